"""A stand-in scorer for configs without a learned reward model.

It is NOT a model of helpfulness. It only separates answers that address the question at some length, in fresh words,
from those that are empty, clipped, off the question, or looping: enough for the helpfulness reward's plumbing to be
exercised and its effect on length and refusals to be seen. Use a trained reward model for anything else.

    score = coverage + length + freshness,  each in [0, 1]

    coverage   share of the question's content words that the answer mentions
    length     0 at no words, 1 between 30 and 200 words, linear below, falling to 0 at 600
    freshness  share of the answer's word trigrams that are new: in neither the question nor the answer so far

Deterministic, and it splits words at white space and punctuation, so it says little in scripts without spaces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

FULL_FROM, FULL_TO, ZERO_AT = 30, 200, 600  # words
STEM = 5  # letters compared between a question word and an answer word: "boil", "boils", "boiling" stay together

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
_STOPWORDS = frozenset(
    "a an and any are as at be been but by can could did do does for from get give had has have he her him his "
    "how i if in into is it its just know like make many may me might more most much my need no not of on one or "
    "our out please she should so some tell than that the their them then there these they this those to too us "
    "use want was way we were what when where which who whom why will with would write you your".split()
)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _stems(words: Sequence[str]) -> set[str]:
    return {word[:STEM] for word in words if word not in _STOPWORDS}


def _trigrams(words: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))]


def _length(n: int) -> float:
    if n < FULL_FROM:
        return n / FULL_FROM
    return min(1.0, max(0.0, (ZERO_AT - n) / (ZERO_AT - FULL_TO)))


def _score_one(question: str, answer: str) -> float:
    asked, said = _words(question), _words(answer)
    if not said:
        return float("nan")
    topic = _stems(asked)
    coverage = len(topic & _stems(said)) / len(topic) if topic else 0.0
    grams = _trigrams(said)
    freshness = len(set(grams) - set(_trigrams(asked))) / len(grams)
    return coverage + _length(len(said)) + freshness


def score(questions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """float32 [n] in [0, 3]; NaN for an answer without a single word."""
    return np.array([_score_one(q, a) for q, a in zip(questions, answers, strict=True)], dtype=np.float32)
