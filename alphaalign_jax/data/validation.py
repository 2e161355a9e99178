"""Validation prompts, set aside from the training prompts for a run's periodic evaluations.

They choose the best state, so that the reported held-out prompts have no influence on the choice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from alphaalign_jax.data.audit import normalise
from alphaalign_jax.data.row import PromptRow
from alphaalign_jax.types import BENIGN, HARMFUL

_SET_ASIDE = 0x73657461  # folded into the seed, so that this draw differs from all others


def set_aside(rows: Sequence[PromptRow], share: float, seed: int) -> tuple[list[PromptRow], list[PromptRow]]:
    """Return the rows to train on, and the rows set aside, both in the order of ``rows``.

    The draw is stratified by label and kind (``PromptRow.kind``): the seed draws ``share`` of each
    stratum, rounded, and at least one prompt if the stratum has two or more. Rows that ask the same
    question (``audit.normalise``) count as one prompt. Its first row is set aside and the others
    are dropped, because a run that trains on one of them has learnt the answer.

    Raise ValueError if no prompt of a label is set aside: one label alone cannot rank the states.
    """
    if not share:
        return list(rows), []
    prompts: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        prompts[normalise(row.question)].append(i)
    strata: dict[tuple[int, str], list[list[int]]] = defaultdict(list)
    for members in prompts.values():
        first = rows[members[0]]
        strata[first.label, first.kind].append(members)
    rng = np.random.default_rng([seed, _SET_ASIDE])
    drawn: list[list[int]] = []
    for _, stratum in sorted(strata.items()):
        count = max(round(share * len(stratum)), int(len(stratum) > 1))
        drawn += [stratum[i] for i in rng.permutation(len(stratum))[:count]]
    left_out = {i for members in drawn for i in members}
    validation = [rows[i] for i in sorted(members[0] for members in drawn)]
    harmful, benign = (sum(row.label == label for row in validation) for label in (HARMFUL, BENIGN))
    if not harmful or not benign:
        raise ValueError(
            f"data.validation={share} sets {harmful} harmful and {benign} benign prompts aside, of {len(prompts)}; "
            "choosing the best state needs both labels: raise it, or set it to 0 (looks then use data.heldout)"
        )
    return [row for i, row in enumerate(rows) if i not in left_out], validation
