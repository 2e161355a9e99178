"""One labelled prompt: the common form that every source is read into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from alphaalign_jax.types import BENIGN, HARMFUL

ROLES = ("system", "user", "assistant")
KINDS = ("harmful", "benign", "adversarial_benign")  # kinds of categories that reports distinguish


class Turn(NamedTuple):
    """One turn of a conversation. ``role`` is one of ``ROLES``."""

    role: str
    content: str


@dataclass(frozen=True)
class PromptRow:
    """One prompt.

    Attributes:
      prompt: the bare question, without template or chat markup: the last user turn of a conversation.
      label: ``BENIGN`` (0) or ``HARMFUL`` (1).
      source: origin of the prompt, for reports.
      category: free text such as ``harmful/theft``, for reports.
      answer: a short reference answer for supervised warm-up; '' if there is none. Harmful rows of
        the demo set have none.
      context: the turns before ``prompt``, in order: an optional system turn, then earlier turns of
        user and assistant. Empty for a single question.
      place: file and line (or row) counted from 1, for messages. Ignored when rows are compared.
    """

    prompt: str
    label: int
    source: str = ""
    category: str = ""
    answer: str = ""
    context: tuple[Turn, ...] = ()
    place: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in ("prompt", "source", "category", "answer"):
            check_text(name, getattr(self, name))
        if not self.prompt.strip():
            raise ValueError(f"prompt is blank: {self.prompt!r}; expected text")
        if type(self.label) is not int or self.label not in (BENIGN, HARMFUL):
            raise ValueError(f"label is {self.label!r}; expected {BENIGN} (benign) or {HARMFUL} (harmful)")
        for number, turn in enumerate(self.context, start=1):
            check_turn(turn, number)

    @property
    def question(self) -> str:
        """The question as one text, for reward models and for comparisons of prompts.

        It is ``prompt``, or with earlier turns a transcript ("User: ...", "Assistant: ...",
        "User: ..."). A system turn is left out: it says how to answer, and sharing one does not
        make rows similar.
        """
        history = [turn for turn in self.context if turn.role != "system"]
        if not history:
            return self.prompt
        turns = [*history, Turn("user", self.prompt)]
        return "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in turns)

    @property
    def kind(self) -> str:
        """The part of the category before '/' if it is one of ``KINDS``, else ''."""
        head = self.category.partition("/")[0]
        return head if head in KINDS else ""

    @property
    def named(self) -> str:
        """The row's name in messages: its place and the beginning of its prompt."""
        return f"{self.place or self.source or 'a prompt'}: {show(self.prompt)}"

    def messages(self, render: Callable[[str], str] = str) -> list[dict[str, str]]:
        """Return the turns for a chat template, with ``render`` applied to the last user turn."""
        turns = (*self.context, Turn("user", render(self.prompt)))
        return [turn._asdict() for turn in turns]

    def to_json(self) -> dict[str, Any]:
        """Return ``prompt``, and ``context`` if there is any, for output files."""
        context = [turn._asdict() for turn in self.context]
        return {"prompt": self.prompt, "context": context} if context else {"prompt": self.prompt}


def check_turn(turn: Turn, number: int) -> None:
    """Raise ValueError unless ``turn`` may be turn ``number`` (from 1) of a conversation."""
    if turn.role not in ROLES:
        raise ValueError(f"turn {number}: role is {show(turn.role)}; expected one of {', '.join(ROLES)}")
    if turn.role == "system" and number > 1:
        raise ValueError(f"turn {number}: a system turn after others; expected it first")
    check_text(f"turn {number}: content", turn.content)
    if turn.role != "system" and not turn.content.strip():
        raise ValueError(f"turn {number}: content is blank: {turn.content!r}; expected text")


def check_text(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is text that a tokenizer accepts."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {show(value)}; expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can escape a lone surrogate; no tokenizer accepts it
        raise ValueError(f"{name} {show(value)} holds a lone surrogate; expected valid Unicode text") from error


def show(value: Any) -> str:
    """Quote a value for a message: at most 80 characters of its repr."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
