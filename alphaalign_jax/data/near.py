"""Near-duplicate prompts, which reveal reworded label contradictions and evaluation leaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rapidfuzz import fuzz, process

from alphaalign_jax.data.audit import normalise

_LONGEST = 8192  # characters of a prompt that are compared
_BLOCK = 1024  # prompts compared with all others at a time; their similarities are in memory


class Pair(NamedTuple):
    i: int  # index into the first set
    j: int  # index into the second set
    similarity: float  # in (0, 1]; 1: equal except for case, spacing and quotes


def near_pairs(prompts: Sequence[str], others: Sequence[str], cutoff: float) -> list[Pair]:
    """Return pairs (prompt, other) with a similarity of at least ``cutoff``, nearest first.

    Prompts are normalised as in ``audit``. The similarity is

        1 - (insertions and deletions that turn one into the other) / (characters of both)

    Of long prompts only the beginning is compared, because the work grows with the square of the
    length. Raise ValueError unless 0 < cutoff <= 1.
    """
    if not 0 < cutoff <= 1:
        raise ValueError(f"similarity of near-duplicates is {cutoff}; expected a number above 0, at most 1")
    left, right = ([normalise(text[:_LONGEST]) for text in texts] for texts in (prompts, others))
    found = []
    for start in range(0, len(left), _BLOCK):
        block = left[start : start + _BLOCK]
        score = process.cdist(block, right, scorer=fuzz.ratio, score_cutoff=100 * cutoff, dtype=np.float32, workers=-1)
        found += [Pair(start + int(i), int(j), float(score[i, j]) / 100) for i, j in zip(*np.nonzero(score))]
    return sorted(found, key=lambda pair: (-pair.similarity, pair.i, pair.j))
