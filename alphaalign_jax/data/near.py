"""Prompts that are nearly the same: where labels contradict each other, or an evaluation set leaks, in other words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rapidfuzz import fuzz, process

from alphaalign_jax.data.audit import normalise

_LONGEST = 8192  # characters that are compared
_BLOCK = 1024  # prompts compared with all others at a time: the similarities of so many are in memory


class Pair(NamedTuple):
    i: int  # of the first set
    j: int  # of the second
    similarity: float  # in (0, 1]; 1 is equal but for case, spacing and quotes


def near_pairs(prompts: Sequence[str], others: Sequence[str], cutoff: float) -> list[Pair]:
    """Pairs of a prompt and another one with a similarity of at least ``cutoff``, the nearest first.

    The similarity is 1 - (insertions and deletions that make one of the other) / (characters of both), of prompts
    normalised as for exact duplicates; of long prompts their beginnings, for the work grows with the square of the
    length. Raises ValueError unless 0 < cutoff <= 1.
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
