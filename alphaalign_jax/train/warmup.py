"""The format warm-up's training data: prompts and the responses to them.

With ``warmup.source="texts"`` a response is made of fixed sentences and the row's answer, with ``"self"`` of texts that
the model has written (``own_texts``). Refusals are drawn at one rate for both labels, again at every step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from alphaalign_jax.config import Config
from alphaalign_jax.data.row import PromptRow
from alphaalign_jax.data.tokenized import PromptSet
from alphaalign_jax.data.warmup import COMPLY_VERDICT, GENERAL_ANSWERS, REFUSE_VERDICT, response_text, warmup_examples
from alphaalign_jax.data.wording import REFUSAL
from alphaalign_jax.rewards.oracle import refusal_oracle
from alphaalign_jax.rollout.policy import Policy
from alphaalign_jax.train import sft
from alphaalign_jax.train.sft import Responses


@dataclasses.dataclass(frozen=True)
class Material:
    """Training data of a warm-up.

    Attributes:
      prompts: prompts under the template; their rows hold the answers.
      thoughts: text before the verdict in each row's reasoning; an empty tuple if there is none.
      longest: tokens of the longest response.
    """

    prompts: PromptSet
    thoughts: tuple[str, ...]
    longest: int

    def responses(self, config: Config) -> Responses:
        """Return the function that gives ``Supervised.train`` its responses."""

        def of(index, step):
            rows = [self.prompts.rows[i] for i in index]
            return _responses(rows, [self.thoughts[i] for i in index] if self.thoughts else (), config, step)

        return of


def prompts(train: PromptSet, config: Config) -> PromptSet:
    """Return the training prompts that the warm-up uses."""
    count = config.warmup.max_examples
    return train.subset(count, config.seed) if count else train


def material(chosen: PromptSet, thoughts: Sequence[str], config: Config, policy: Policy) -> Material:
    """Return training data for the ``chosen`` prompts.

    Raise ValueError for a response that cannot be trained on.
    """
    possible = possible_responses(chosen.rows, thoughts, config)
    longest = sft.check_responses(chosen, possible, policy.tokenizer, policy.spec.max_positions)
    return Material(chosen, tuple(thoughts), longest)


def possible_responses(rows: Sequence[PromptRow], thoughts: Sequence[str], config: Config) -> list[tuple[str, str]]:
    """Return each row's response where it is answered, and where it is refused."""
    return list(zip(*(_responses(rows, thoughts, config, 0, refusal_rate=rate) for rate in (0.0, 1.0))))


def longest(train: PromptSet, config: Config, policy: Policy) -> int:
    """Return a bound on the tokens of a response, known before any text is sampled.

    Raise ValueError for a response that cannot be trained on.
    """
    if config.warmup.source == "texts":
        return material(prompts(train, config), (), config, policy).longest
    w, room = config.warmup, policy.spec.max_positions - train.longest
    slots = most_tokens(config, policy)
    if slots > room:
        raise ValueError(
            f"warmup.thought_tokens={w.thought_tokens} and answer_tokens={w.answer_tokens} make responses of up to "
            f"{slots} tokens, and the longest prompt leaves {room} of the model's max_position_embeddings="
            f"{policy.spec.max_positions}; lower them, or data.max_prompt_tokens"
        )
    return slots


def most_tokens(config: Config, policy: Policy) -> int:
    """Return the token limit of a response made of the model's own texts; longer ones are dropped."""
    verdicts = (COMPLY_VERDICT, REFUSE_VERDICT)
    fixed = (response_text(verdict, answer) for verdict in verdicts for answer in (*GENERAL_ANSWERS, REFUSAL))
    form = max(map(len, sft.encode_responses(list(fixed), policy.tokenizer, 0)))
    return form + config.warmup.thought_tokens + config.warmup.answer_tokens


def _responses(
    rows: Sequence[PromptRow],
    thoughts: Sequence[str],
    config: Config,
    draw: int,
    *,
    refusal_rate: float | None = None,
) -> list[str]:
    """Return responses to ``rows``.

    Each ``draw`` decides again which rows are refused, so that no decision can be memorised.
    ``refusal_rate``: overrides the config's.
    """
    is_refusal = lambda text: refusal_oracle(f"<answer>{text}</answer>".encode())
    rate = config.warmup.refusal_rate if refusal_rate is None else refusal_rate
    return [text for _, text in warmup_examples(rows, (config.seed, draw), rate, is_refusal, thoughts)]
