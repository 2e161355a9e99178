"""Chat-format rows: a list of turns in a data file is read into the parts of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from alphaalign_jax.data.row import Turn, check_turn, show
from alphaalign_jax.text import json_of

COLUMN = "messages"  # read if there is no column ``prompt``
EXAMPLE = "[{'role': 'user', 'content': 'How do I bake bread?'}]"
# ShareGPT has its own names for the two keys of a turn, and for the roles.
_KEYS = (("role", "content"), ("from", "value"))
_ROLES = {"human": "user", "gpt": "assistant"}
_TOOLS = ("tool_calls", "function_call", "tool_call_id")


class Conversation(NamedTuple):
    context: tuple[Turn, ...]  # turns before the last user turn
    prompt: str  # the last user turn
    answer: str  # the assistant's turn after it; '' if there is none


def read_conversation(value: Any) -> Conversation:
    """Split a conversation that ends with a user turn, or with the assistant's answer to it.

    Args:
      value: a list of ``{"role", "content"}``, or the list as JSON text, as in CSV files.

    Raises:
      ValueError, without a place, for anything else.
    """
    turns = read_turns(value)
    answer = ""
    if turns[-1].role == "assistant":
        answer = turns[-1].content
        turns = turns[:-1]
    if not turns or turns[-1].role != "user":
        last = turns[-1].role if turns else "the assistant"
        raise ValueError(
            f"the last turn before the answer is of {last}; expected one of the user, such as {EXAMPLE}, and after it "
            "at most one of the assistant"
        )
    return Conversation(turns[:-1], turns[-1].content, answer)


def read_turns(value: Any) -> tuple[Turn, ...]:
    """Return the turns of a list, or of its JSON text; at least one. Raise ValueError otherwise."""
    if isinstance(value, str):
        try:
            value = json_of(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{show(value)} is not JSON ({error}); expected turns, such as {EXAMPLE}") from error
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value:
        raise ValueError(f"turns are {show(value)}; expected a list of them, such as {EXAMPLE}")
    turns = tuple(_read_turn(item, number) for number, item in enumerate(value, start=1))
    for number, turn in enumerate(turns, start=1):
        check_turn(turn, number)
    return turns


def _read_turn(item: Any, number: int) -> Turn:
    names = next((names for names in _KEYS if isinstance(item, Mapping) and all(name in item for name in names)), None)
    if names is None:
        raise ValueError(f"turn {number} is {show(item)}; expected a role and a content, such as {EXAMPLE}")
    tool = next((key for key in _TOOLS if item.get(key)), None)
    if tool is not None:
        raise ValueError(f"turn {number} has {tool}: calls of tools are not supported; leave the row out")
    role, content = item[names[0]], item[names[1]]
    if isinstance(role, str):
        role = _ROLES.get(role, role)
    return Turn(role, _text_of(content, number))


def _text_of(content: Any, number: int) -> Any:
    """Join a content that is a list of text parts, ``[{"type": "text", "text": ...}]``.

    Return any other content unchanged, except that a list of other parts raises ValueError.
    """
    if not isinstance(content, list):
        return content
    texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
    if len(texts) != len(content) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"turn {number}: content is {show(content)}; expected text, or parts of type 'text' only")
    return "".join(texts)
