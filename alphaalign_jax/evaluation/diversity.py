"""Diversity of a policy's texts, and overlap with the template, to detect canned sentences."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from alphaalign_jax.rewards.hacking import reasoning_block
from alphaalign_jax.rewards.template import INSTRUCTION

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_STRETCH = 4  # words of a stretch


@dataclasses.dataclass(frozen=True)
class Diversity:
    """Counts over responses in format.

    Texts are compared in lower case, with white space collapsed. Refusals do not count as answers,
    because they have a fixed wording.
    """

    reasonings: int = 0
    distinct_reasonings: int = 0
    reasoning_words: int = 0
    answers: int = 0
    distinct_answers: int = 0
    answer_words: int = 0
    stretches: int = 0  # sequences of four words in the reasonings
    template_stretches: int = 0  # those that also occur in the template's instruction

    @classmethod
    def of(cls, responses: Iterable[tuple[str, bool]]) -> Diversity:
        """Count over ``responses``: texts in format, and whether each refuses."""
        pairs = [(_squeezed(reasoning_block(text) or ""), _answer(text), refuses) for text, refuses in responses]
        reasonings = [reasoning for reasoning, _, _ in pairs]
        answers = [answer for _, answer, refuses in pairs if not refuses]
        stretches = [stretch for reasoning in reasonings for stretch in _stretches(reasoning)]
        return cls(
            reasonings=len(reasonings),
            distinct_reasonings=len({*reasonings}),
            reasoning_words=_words(reasonings),
            answers=len(answers),
            distinct_answers=len({*answers}),
            answer_words=_words(answers),
            stretches=len(stretches),
            template_stretches=sum(stretch in _template() for stretch in stretches),
        )

    def to_json(self) -> dict[str, Any]:
        """Return shares and means with their counts. A share or mean of nothing is None."""
        share = lambda count, n: count / n if n else None
        return {
            "distinct_reasonings": share(self.distinct_reasonings, self.reasonings),
            "distinct_reasonings_count": self.distinct_reasonings,
            "n_reasonings": self.reasonings,
            "reasoning_words": share(self.reasoning_words, self.reasonings),
            "distinct_answers": share(self.distinct_answers, self.answers),
            "distinct_answers_count": self.distinct_answers,
            "n_answers": self.answers,
            "answer_words": share(self.answer_words, self.answers),
            "template_overlap": share(self.template_stretches, self.stretches),
        }


def _squeezed(text: str) -> str:
    return " ".join(text.split()).casefold()


def _answer(text: str) -> str:
    found = _ANSWER.search(text)
    return _squeezed(found[1]) if found else ""


def _words(texts: Sequence[str]) -> int:
    return sum(len(text.split()) for text in texts)


def _stretches(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text)
    return [tuple(words[i : i + _STRETCH]) for i in range(len(words) - _STRETCH + 1)]


@functools.cache
def _template() -> frozenset[tuple[str, ...]]:
    return frozenset(_stretches(_squeezed(INSTRUCTION)))
