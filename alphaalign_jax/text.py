"""Text that others wrote, made safe to show: a prompt, a response or a server's reply may hold anything."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with every character that is not for reading, line ends and tabs apart, as its escape.

    Terminals obey control characters (ESC begins a command: to clear the screen, to rename the window), and what turns
    the direction of writing makes a line read as another. In: "a\\x1b[2J\\u202e"; out: "a\\\\x1b[2J\\\\u202e".
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
