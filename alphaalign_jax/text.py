"""Text that others wrote, made safe to show and to read: a prompt, a response or a server's reply may hold anything."""

from __future__ import annotations

import collections
import json
from typing import Any


def printable(text: str) -> str:
    """The text with every character that is not for reading, line ends and tabs apart, as its escape.

    Terminals obey control characters (ESC begins a command: to clear the screen, to rename the window), and what turns
    the direction of writing makes a line read as another. In: "a\\x1b[2J\\u202e"; out: "a\\\\x1b[2J\\\\u202e".
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def inline(text: str, length: int = 200) -> str:
    """The same for a part of a line, which must not begin another: line ends and tabs too, and cut."""
    text = text if len(text) <= length else f"{text[: length - 3]}..."
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def json_of(text: str | bytes) -> Any:
    """What ``json.loads`` gives. Raises ValueError too where a key stands twice in an object, of which Python would
    take the last: a label, a score or a size other than the one that a person reads first."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        [(twice, _)] = collections.Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r:.80} is there twice; leave one")
    return found
