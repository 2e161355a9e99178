"""A tokenizer's chat template: a program that came with the model, run in transformers' sandbox."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

Message = dict[str, str]  # role and content

# Llama 3's template writes today's date into the prompt: a run resumed tomorrow would train on other tokens. This is
# the date that the template itself falls back to; templates that do not ask for one ignore it.
CHAT_CONTEXT = {"date_string": "26 Jul 2024"}

_QUESTION, _ANSWER = "0123ASKED3210, is it?\n\nSo it is said; and after a while, again.", "0123SAID3210"
_SECONDS = 20.0  # for a short exchange: the sandbox bounds each loop, and not loops in loops


def check(tokenizer: Any, *, answers: bool = False) -> None:
    """Raises ValueError for a template that there is not, that fails, that does not end, or that drops or changes a
    question, and with ``answers`` an answer: all prompts would be one.

    In a thread: nothing else ends a template that loops.
    """
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"the tokenizer {name} has no chat template; use an instruct model's tokenizer, or set "
            "tokenizer.chat_template (the 'chat_template' field of tokenizer_config.json, or a chat_template.jinja "
            "beside it)"
        )
    exchange = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    found: list[str | ValueError] = []

    def attempt() -> None:
        try:
            found.append(text(tokenizer, exchange if answers else exchange[:1], generation_prompt=not answers))
        except ValueError as error:
            found.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    if not found:
        raise ValueError(f"the chat template of {name} has not rendered a short exchange after {_SECONDS:g} s")
    if isinstance(found[0], ValueError):
        raise found[0]
    for part in (_QUESTION, _ANSWER) if answers else (_QUESTION,):
        if part not in found[0]:
            raise ValueError(
                f"the chat template of {name} drops or changes what it is given: of {part!r} it made {found[0]!r:.200}"
            )


def text(tokenizer: Any, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
    """The messages as the model reads them. ValueError for a template that fails on them."""
    return _apply(tokenizer, messages, add_generation_prompt=generation_prompt, tokenize=False)


def ids(tokenizer: Any, messages: Sequence[Message], *, generation_prompt: bool = False) -> list[int]:
    """Likewise as token ids."""
    # return_dict=False: transformers 5 would return a mapping, transformers 4 a list.
    return list(_apply(tokenizer, messages, add_generation_prompt=generation_prompt, tokenize=True, return_dict=False))


def end_of_turn(tokenizer: Any) -> int | None:
    """The added token that follows an assistant's message in the chat template; None where plain text does.

    Raises ValueError as ``check`` does.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    check(tokenizer, answers=True)
    exchange = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    tail = text(tokenizer, exchange).rpartition(_ANSWER)[2].lstrip()
    found = tokenizer(tail, add_special_tokens=False)["input_ids"]
    return found[0] if found and found[0] in set(tokenizer.get_added_vocab().values()) else None


def _apply(tokenizer: Any, messages: Sequence[Message], **how: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(list(messages), **how, **CHAT_CONTEXT)
    except Exception as error:  # jinja's own, and whatever a template makes Python raise
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        roles = " and ".join(message["role"] for message in messages)
        raise ValueError(f"the chat template of {name} fails on {roles}: {type(error).__name__}: {error}") from error
