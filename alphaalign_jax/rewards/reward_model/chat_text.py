"""From (question, answer) to the token ids that a reward model was trained to read: its own tokenizer and template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alphaalign_jax.hf import chat
from alphaalign_jax.hf.chat import control_texts
from alphaalign_jax.rewards.reward_model.cleaning import remove_literals
from alphaalign_jax.rewards.reward_model.protocol import RewardModelError


class ChatText:
    """Tokenizes one exchange with a reward model's chat template.

    Three faults it exists to prevent: a second BOS (most Llama templates write one, and the tokenizer would add
    another), a cut that removes the end of turn (a score read at an unfinished turn is a score of something else), and
    text that contains the reward model's own special tokens (an answer could close its turn and write the next one).

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        max_length: most tokens of a text, L.
        name: for messages.

    Raises:
        ValueError: no chat template, or one that does not render a question with an answer, or too small a max_length.
    """

    def __init__(self, tokenizer: Any, max_length: int, name: str = "the reward model"):
        self._tokenizer, self._max_length = tokenizer, max_length
        self._special = control_texts(tokenizer)
        bos = tokenizer.bos_token_id
        self._adds_bos = bos is not None and list(tokenizer("a").input_ids[:1]) == [bos]
        try:
            chat.check(tokenizer, answers=True)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        shortest = self._ids("a", "a")
        self.last_id: int = shortest[-1]  # the token that every text ends in
        least = len(shortest)
        if max_length < least:
            raise ValueError(f"{name}: max_length={max_length} is below {least}, an exchange of one letter each")

    def __call__(self, question: str, answer: str) -> list[int] | None:
        """Token ids of the exchange, at most max_length; None if no part of the answer fits beside the question.

        A text that is too long loses the end of its answer, never the end of the turn.
        """
        question = remove_literals(question, self._special)
        answer = remove_literals(answer, self._special).strip()
        ids = self._ids(question, answer)
        if len(ids) <= self._max_length:
            return ids
        # Bisection over characters needs nothing from the tokenizer but a length, so it holds for every kind of it.
        kept, low, high = None, 1, len(answer) - 1
        while low <= high:
            middle = (low + high) // 2
            ids = self._ids(question, answer[:middle].rstrip())
            if len(ids) <= self._max_length:
                kept, low = ids, middle + 1
            else:
                high = middle - 1
        return kept

    def _render(self, question: str, answer: str) -> str:
        exchange = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        try:
            return chat.text(self._tokenizer, exchange)
        except ValueError as error:  # of a template that fails on some texts only
            raise RewardModelError(str(error)) from error

    def _ids(self, question: str, answer: str) -> list[int]:
        return self._one_bos(self._tokenizer(self._render(question, answer), add_special_tokens=False).input_ids)

    def _one_bos(self, ids: Sequence[int]) -> list[int]:
        """One BOS for a tokenizer that begins its texts with one, whether or not the template has written it."""
        bos = self._tokenizer.bos_token_id
        start = 0
        if bos is not None:
            while start < len(ids) and ids[start] == bos:
                start += 1
        head = [bos] if start or self._adds_bos else []
        return head + list(ids[start:])
