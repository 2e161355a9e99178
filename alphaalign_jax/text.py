"""Display and parsing of untrusted text: prompts, responses and replies may hold anything."""

from __future__ import annotations

import collections
import json
from typing import Any


def printable(text: str) -> str:
    """Replace all unprintable characters, except line ends and tabs, with their escapes.

    Terminals obey control characters: ESC begins commands that clear the screen or rename the
    window. Characters that reverse the direction of writing make a line read differently.
    In: "a\\x1b[2J\\u202e"; out: "a\\\\x1b[2J\\\\u202e".
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def inline(text: str, length: int = 200) -> str:
    """Make text printable for use within a line: escape line ends and tabs too, and truncate it."""
    text = text if len(text) <= length else f"{text[: length - 3]}..."
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def json_of(text: str | bytes) -> Any:
    """Parse JSON like ``json.loads``, but also raise ValueError for a duplicate key in an object.

    Python would take the last of the two: another label, score or size than the one that a person
    reads first.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        [(twice, _)] = collections.Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r:.80} is there twice; leave one")
    return found
