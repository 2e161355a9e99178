"""A tokenizer's chat template: a program that came with the model, run in transformers' sandbox."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any

from alphaalign_jax.config.chat import ChatSettings

Message = dict[str, str]  # role and content

_QUESTION, _ANSWER = "0123ASKED3210, is it?\n\nSo it is said; and after a while, again.", "0123SAID3210"
_SECONDS = 20.0  # for a short exchange: the sandbox bounds each loop, and not loops in loops
_CLOCK = re.compile(r"strftime_now|date_string")  # how templates ask for today's date
# Directives of strftime, those with a flag first: each is replaced by its value in the text that a template gives.
_DIRECTIVES = [f"%-{code}" for code in "dmHIMSjy"] + [f"%{code}" for code in "aAbBcdDeFfGhHIjmMnpRSTuUVwWxXyYzZ%"]
_CHANCE = re.compile(r"\|\s*random\b|\blipsum\b")  # what Jinja itself offers that differs from call to call


DEFAULT = ChatSettings()


def reads_date(tokenizer: Any) -> bool:
    """Whether the template asks for today's date."""
    return bool(_CLOCK.search(str(getattr(tokenizer, "chat_template", None) or "")))


def check(tokenizer: Any, settings: ChatSettings = DEFAULT, *, answers: bool = False) -> None:
    """Raise ValueError for a template that is missing, fails, does not end, or changes the question.

    With ``answers``, the answer must survive too. Without, the rendered prompt must end where the answer begins.
    """
    name = _name(tokenizer)
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise ValueError(
            f"the tokenizer {name} has no chat template; use an instruct model's tokenizer, or set "
            "tokenizer.chat_template (the 'chat_template' field of tokenizer_config.json, or a chat_template.jinja "
            "beside it)"
        )
    if _CHANCE.search(str(template)):
        raise ValueError(f"the chat template of {name} draws at random: a prompt would differ from call to call")
    exchange = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    found: list[str | ValueError] = []

    def attempt() -> None:
        try:
            messages = exchange if answers else exchange[:1]
            found.append(text(tokenizer, messages, settings, generation_prompt=not answers))
        except ValueError as error:
            found.append(error)

    # In a thread: nothing else ends a template that loops.
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


def check_generation_prompt(tokenizer: Any, settings: ChatSettings = DEFAULT) -> None:
    """Raise ValueError if a prompt does not end where the assistant's answer begins.

    A template that ignores ``add_generation_prompt`` leaves the policy to write the assistant's header itself. Compare
    the prompt with the whole exchange: between the prompt's end and the answer there may be white space (Mistral) or
    an empty block of thoughts (Qwen3), but no control token, and no words unless the template knows the argument.
    """
    exchange = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    try:
        whole = text(tokenizer, exchange, settings)
    except ValueError:  # a template for questions alone: there is nothing to compare with
        return
    if _ANSWER not in whole:
        return
    prompt = text(tokenizer, exchange[:1], settings, generation_prompt=True)
    shared = next((i for i, (a, b) in enumerate(zip(prompt, whole)) if a != b), min(len(prompt), len(whole)))
    between = whole[shared : whole.index(_ANSWER)]
    header = next((control for control in control_texts(tokenizer) if control in between), None)
    if header is None and prompt == text(tokenizer, exchange[:1], settings) and any(map(str.isalnum, between)):
        header = between.strip()
    if header is not None:
        raise ValueError(
            f"the chat template of {_name(tokenizer)} ends a prompt before the assistant's turn: {header!r:.80} comes "
            "between the prompt and the answer; let the template write it if add_generation_prompt is set"
        )


def text(
    tokenizer: Any, messages: Sequence[Message], settings: ChatSettings = DEFAULT, *, generation_prompt: bool = False
) -> str:
    """Return the messages as the model reads them. Raise ValueError if the template fails on them."""
    return _apply(tokenizer, messages, settings, add_generation_prompt=generation_prompt, tokenize=False)


def ids(
    tokenizer: Any, messages: Sequence[Message], settings: ChatSettings = DEFAULT, *, generation_prompt: bool = False
) -> list[int]:
    """Return the token ids of ``text``."""
    # return_dict=False: transformers 5 would return a mapping, transformers 4 a list.
    how = {"tokenize": True, "return_dict": False}
    return list(_apply(tokenizer, messages, settings, add_generation_prompt=generation_prompt, **how))


def end_of_turn(tokenizer: Any, settings: ChatSettings = DEFAULT) -> int | None:
    """Return the added token that follows an assistant's message in the template; None if plain text does.

    Raises ValueError as ``check`` does.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    check(tokenizer, settings, answers=True)
    exchange = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    tail = text(tokenizer, exchange, settings).rpartition(_ANSWER)[2].lstrip()
    found = tokenizer(tail, add_special_tokens=False)["input_ids"]
    return found[0] if found and found[0] in set(tokenizer.get_added_vocab().values()) else None


def control_texts(tokenizer: Any) -> tuple[str, ...]:
    """Return the text of every special token, unnamed ones included (``<|start_header_id|>``)."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return tuple(sorted({*tokenizer.all_special_tokens, *(str(token) for token in added.values() if token.special)}))


def _name(tokenizer: Any) -> str:
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__


def _apply(tokenizer: Any, messages: Sequence[Message], settings: ChatSettings, **how: Any) -> Any:
    try:
        template = _with_date(tokenizer.get_chat_template(), settings)
        return tokenizer.apply_chat_template(list(messages), chat_template=template, **how, **settings.variables())
    except Exception as error:  # jinja's own, and whatever a template makes Python raise
        roles = " and ".join(message["role"] for message in messages)
        raise ValueError(
            f"the chat template of {_name(tokenizer)} fails on {roles}: {type(error).__name__}: {error}"
        ) from error


def _with_date(template: str, settings: ChatSettings) -> str:
    """Return the template with a ``strftime_now`` of its own, which hides the clock that transformers offers.

    It is a macro: transformers turns every function among a template's variables into text.
    """
    if "strftime_now" not in template:
        return template
    replaced = " | ".join(f"replace({code!r}, {settings.day.strftime(code)!r})" for code in _DIRECTIVES)
    # The line end is eaten with the block's (trim_blocks), so that the template begins as it would without.
    return f"{{%- macro strftime_now(format) -%}}{{{{ format | {replaced} }}}}{{%- endmacro %}}\n{template}"
