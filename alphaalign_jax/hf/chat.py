"""A tokenizer's chat template: a program that came with the model, run in transformers' sandbox."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any

import jinja2
import jinja2.defaults
import jinja2.meta
import jinja2.nodes

from alphaalign_jax.config.chat import ChatSettings

Message = dict[str, str]  # role and content

_QUESTION, _ANSWER = "0123ASKED3210, is it?\n\nSo it is said; and after a while, again.", "0123SAID3210"
_SECONDS = 20.0  # for a short exchange: the sandbox bounds each loop, and not loops in loops
_CLOCK = re.compile(r"strftime_now|date_string")  # how templates ask for today's date
_GENERATION = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")  # a tag of transformers' own
# Directives of strftime, those with a flag first: each is replaced by its value in the text that a template gives.
_DIRECTIVES = [f"%-{code}" for code in "dmHIMSjy"] + [f"%{code}" for code in "aAbBcdDeFfGhHIjmMnpRSTuUVwWxXyYzZ"]

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
    _check_source(tokenizer, settings)
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
                f"the chat template of {name} drops or changes its input: from {part!r} it made {found[0]!r:.200}"
            )


def _check_source(tokenizer: Any, settings: ChatSettings) -> None:
    """Raise ValueError for a template that draws at random, or that does not read one of the arguments."""
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    environment.globals.clear()  # or what Jinja offers of itself would not count as read
    try:
        tree = environment.parse(_GENERATION.sub("", tokenizer.get_chat_template()))
    except Exception:  # rendering it will say what is wrong
        return
    read = jinja2.meta.find_undeclared_variables(tree)
    filters = {node.name for node in tree.find_all(jinja2.nodes.Filter)}
    mapped = {argument for node in tree.find_all(jinja2.nodes.Filter) for argument in node.args or ()}
    by_name = {node.value for node in mapped if isinstance(node, jinja2.nodes.Const)}
    if "random" in filters | by_name or "lipsum" in read:
        raise ValueError(
            f"the chat template of {_name(tokenizer)} draws at random: a prompt would differ from call to call"
        )
    for pair in settings.args:
        argument = pair.partition("=")[0]
        if argument not in read:
            raise ValueError(
                f"chat_args: the chat template of {_name(tokenizer)} does not read {argument!r}; it reads "
                f"{', '.join(sorted(read - set(jinja2.defaults.DEFAULT_NAMESPACE))) or 'nothing'}"
            )


def check_generation_prompt(tokenizer: Any, settings: ChatSettings = DEFAULT) -> None:
    """Raise ValueError if a prompt does not end where the assistant's answer begins.

    A template that ignores ``add_generation_prompt`` leaves the policy to write the assistant's header itself. Compare
    what follows the question in the prompt with what stands between question and answer in the whole exchange, white
    space left out. One must begin with the other, and the rest (an empty block of thoughts, in Qwen3) must hold no
    control token, and no words if the template does not know the argument.
    """
    exchange = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    try:
        whole = text(tokenizer, exchange, settings)
    except ValueError:  # a template for questions alone: there is nothing to compare with
        return
    head = whole.partition(_ANSWER)[0]
    if head == whole or _QUESTION not in head:
        return
    prompt = text(tokenizer, exchange[:1], settings, generation_prompt=True)
    squeezed = lambda part: "".join(part.split())
    # What follows the question in the prompt, and in the whole exchange up to the answer.
    asked = squeezed(prompt.rpartition(_QUESTION)[2])
    between = squeezed(head.rpartition(_QUESTION)[2])
    ignored = prompt == text(tokenizer, exchange[:1], settings)
    if between.startswith(asked):
        wrong = _header(between.removeprefix(asked), tokenizer, words=ignored)
        place = "before the assistant's turn"
    elif asked.startswith(between):
        wrong = _header(asked.removeprefix(between), tokenizer, words=False)
        place = "after the assistant's turn has begun"
    else:
        wrong, place = asked, "in another turn than the assistant's"
    if wrong:
        raise ValueError(
            f"the chat template of {_name(tokenizer)} ends a prompt {place}: {asked!r:.80} follows the question there, "
            f"and {between!r:.80} before an answer; let it write that if add_generation_prompt is set, and no more"
        )


def _header(rest: str, tokenizer: Any, *, words: bool) -> bool:
    """Whether text between a prompt and an answer belongs to a turn: a control token or, with ``words``, any word."""
    return any("".join(control.split()) in rest for control in control_texts(tokenizer)) or (
        words and any(map(str.isalnum, rest))
    )


def text(
    tokenizer: Any, messages: Sequence[Message], settings: ChatSettings = DEFAULT, *, generation_prompt: bool = False
) -> str:
    """Return the messages as the model reads them. Raise ValueError if the template fails on them."""
    template = _with_date(tokenizer, settings)
    how = {"chat_template": template, "add_generation_prompt": generation_prompt, "tokenize": False}
    try:
        return tokenizer.apply_chat_template(list(messages), **how, **settings.variables())
    except Exception as error:  # jinja's own, and whatever a template makes Python raise
        roles = " and ".join(message["role"] for message in messages)
        raise ValueError(
            f"the chat template of {_name(tokenizer)} fails on {roles}: {type(error).__name__}: {error}"
        ) from error


def ids(
    tokenizer: Any, messages: Sequence[Message], settings: ChatSettings = DEFAULT, *, generation_prompt: bool = False
) -> list[int]:
    """Return the token ids of ``text``. The template writes the special tokens, so the tokenizer adds none."""
    rendered = text(tokenizer, messages, settings, generation_prompt=generation_prompt)
    return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])


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


def _with_date(tokenizer: Any, settings: ChatSettings) -> Any:
    """Return the template with a ``strftime_now`` of its own, which hides the clock that transformers offers.

    It is a macro: transformers turns every function among a template's variables into text.
    """
    template = tokenizer.get_chat_template()
    if "strftime_now" not in str(template):
        return template
    # "%%" is set aside first, so that "%%d" is not read as "%" and a day.
    pairs = [("%%", "\0"), *((code, settings.day.strftime(code)) for code in _DIRECTIVES)]
    replaced = " | ".join(f"replace({code!r}, {shown!r})" for code, shown in pairs)
    unknown = "{{ raise_exception('strftime_now does not know a directive of ' ~ format) }}"
    # The line end is eaten with the block's (trim_blocks), so that the template begins as it would without.
    return (
        f"{{%- macro strftime_now(format) -%}}{{%- set shown = format | {replaced} -%}}"
        f"{{%- if '%' in shown -%}}{unknown}{{%- endif -%}}{{{{ shown | replace('\\0', '%') }}}}{{%- endmacro %}}\n"
        f"{template}"
    )
