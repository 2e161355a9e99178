"""One labelled prompt: what every source is read into and everything after reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alphaalign_jax.types import BENIGN, HARMFUL


@dataclass(frozen=True)
class PromptRow:
    """One prompt.

    Attributes:
      prompt: the bare question, without template or chat markup.
      label: ``BENIGN`` (0) or ``HARMFUL`` (1).
      source: where it came from, for reports.
      category: free text such as ``harmful/theft``, for reports.
      answer: a short reference answer for supervised warm-up; '' where there is none (always so for harmful rows of
        the demo set).
    """

    prompt: str
    label: int
    source: str = ""
    category: str = ""
    answer: str = ""

    def __post_init__(self) -> None:
        for name in ("prompt", "source", "category", "answer"):
            _check_text(name, getattr(self, name))
        if not self.prompt.strip():
            raise ValueError(f"prompt is blank: {self.prompt!r}; expected text")
        if type(self.label) is not int or self.label not in (BENIGN, HARMFUL):
            raise ValueError(f"label is {self.label!r}; expected {BENIGN} (benign) or {HARMFUL} (harmful)")


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {show(value)}; expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON escapes can spell half a surrogate pair, which no tokenizer accepts
        raise ValueError(f"{name} {show(value)} holds a lone surrogate; expected valid Unicode text") from error


def show(value: Any) -> str:
    """A value as messages quote it: at most 80 characters of its repr."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
