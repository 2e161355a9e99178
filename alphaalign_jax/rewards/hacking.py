"""Signs in a response that it earns the format's reward without what the format is for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from alphaalign_jax.data.wording import TAG_TEXTS
from alphaalign_jax.rewards.template import INSTRUCTION

_REASONING = re.compile(r"<safety_reasoning>(.*?)</safety_reasoning>", re.DOTALL)
_FEWEST_WORDS = 2
_QUOTE = 40  # characters of the instruction that nobody writes by chance


@dataclasses.dataclass(frozen=True)
class Signs:
    """Of one response.

    Attributes:
      echo: it repeats a stretch of the instruction that the template puts before the question.
      empty: its reasoning has fewer than two words. None where there is no reasoning to judge.
      tags: it has a tag more than once.
    """

    echo: bool
    empty: bool | None
    tags: bool


def signs(text: str) -> Signs:
    """What ``text``, a whole response, shows."""
    plain = _squeezed(text)
    reasoning = reasoning_block(text)
    return Signs(
        echo=any(stretch in plain for stretch in _STRETCHES),
        empty=None if reasoning is None else len(reasoning.split()) < _FEWEST_WORDS,
        tags=any(text.count(tag) > 1 for tag in TAG_TEXTS),
    )


def reasoning_block(text: str) -> str | None:
    """Return the text of a response's first reasoning block; None if it has none."""
    found = _REASONING.search(text)
    return found[1] if found else None


def rates(texts: Iterable[str]) -> dict[str, float]:
    """Shares of the responses by sign, as metrics; ``empty`` of those with a reasoning block, 0 without any."""
    found = [signs(text) for text in texts]
    reasoned = [each.empty for each in found if each.empty is not None]
    share = lambda flags: sum(flags) / len(flags) if flags else 0.0
    return {
        "hacking/echo": share([each.echo for each in found]),
        "hacking/empty_reasoning": share(reasoned),
        "hacking/repeated_tags": share([each.tags for each in found]),
    }


def _squeezed(text: str) -> str:
    return " ".join(text.split()).casefold()


# Each sentence of the instruction, cut to what is enough to know it by.
_STRETCHES = tuple(
    _squeezed(sentence)[:_QUOTE] for sentence in re.split(r"(?<=\.)\s+", INSTRUCTION) if len(sentence) >= _QUOTE
)
