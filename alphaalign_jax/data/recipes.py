"""Mixtures of prompt sources."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from alphaalign_jax.data.prompts import Source, read
from alphaalign_jax.data.row import PromptRow
from alphaalign_jax.types import BENIGN, HARMFUL

# The paper names its three sources but not their shares. A half of harmful prompts balances the two
# signs of the refusal reward. XSTest has only 250 safe prompts, so that its share of a tenth
# already limits the mix to 2,500 rows.
PAPER_RATIOS = (0.5, 0.4, 0.1)
_TURN = 0x7075726E  # folded into the seed, so that this draw differs from all others


def paper(scot: Source, ratios: Sequence[float] = PAPER_RATIOS) -> tuple[Source, ...]:
    """Return the paper's sources: SCoT harmful, Dolly benign, XSTest adversarial benign.

    The paper is arXiv 2507.14987. The mix contains the safe half of XSTest, so evaluate on other
    prompts when training on it.

    Args:
      scot: the harmful prompts of SCoT (Yang et al., "Enhancing Model Defense Against Jailbreaks
        with Proactive Safety Reasoning"). The authors publish no hub data set of bare prompts, so
        bring your own copy, a file or hub data set with one harmful question per row. A source
        without a fixed label gets 'harmful'. If its columns have other names, set ``prompt_key``;
        if it also has benign rows, exclude them with ``where``.
      ratios: shares of SCoT, Dolly and XSTest; they sum to 1.
    """
    if len(ratios) != 3:
        raise ValueError(f"{len(ratios)} ratios {tuple(ratios)}; expected three: SCoT, Dolly, XSTest")
    harmful = {
        **vars(scot),
        "label": scot.label or "harmful",
        "category": scot.category or "harmful/scot",
        "ratio": ratios[0],
    }
    # Instructions with a context are not questions on their own, so only those without are used.
    dolly = Source(
        "databricks/databricks-dolly-15k",
        prompt_key="instruction",
        label="benign",
        where=(("context", ""),),
        answer_key="response",
        category="benign/dolly",
        ratio=ratios[1],
    )
    xstest = Source(
        "walledai/XSTest",
        split="test",
        label="benign",
        where=(("label", "safe"),),
        category="adversarial_benign/xstest",
        ratio=ratios[2],
    )
    return Source(**harmful), dolly, xstest


def mix(sources: Sequence[Source], seed: int, *, answers: bool = True) -> list[PromptRow]:
    """Mix the rows of several sources in the shares given by their ratios.

    With n_i the rows of source i and r_i its ratio, the mix is the largest that uses no row twice:

        N = min_i n_i / r_i,    source i gives floor(r_i * N) rows

    At least one source is thus used up; the others are subsampled by a seeded draw without
    replacement. Shares are exact up to rounding down to whole rows. The mix is then shuffled with
    the seed. If all ratios are 0, the mix is the plain concatenation of the sources, in the order
    given.

    Args:
      sources: at least one.
      seed: >= 0; the mix is a pure function of the sources' rows and the seed.
      answers: whether to read reference answers.

    Raises:
      ValueError: ratios that are negative, do not sum to 1, or are 0 for only some sources; a ratio
        so small that its source would give no row; any error of ``read``.
    """
    if not sources:
        raise ValueError("no sources to mix; expected at least one")
    ratios = [float(source.ratio) for source in sources]
    if not any(ratios):
        return [row for source in sources for row in read(source, answers=answers)]
    _check_ratios(sources, ratios)
    pools = [read(source, answers=answers) for source in sources]
    total = min(len(pool) / ratio for pool, ratio in zip(pools, ratios))
    rng = np.random.default_rng([seed, len(sources)])
    mixed: list[PromptRow] = []
    for source, pool, ratio in zip(sources, pools, ratios):
        # The slack absorbs rounding: 3 / 0.1 * 0.1 can be 3.0000000000000004 or 2.9999999999999996.
        count = min(len(pool), math.floor(ratio * total + 1e-6))
        if count == 0:
            raise ValueError(
                f"{source.path}: ratio {ratio} of a mix of {total:.0f} rows is less than one row; raise "
                "it or leave the source out"
            )
        mixed += [pool[i] for i in np.sort(rng.permutation(len(pool))[:count])]
    return [mixed[i] for i in rng.permutation(len(mixed))]


def turn_labels(rows: Sequence[PromptRow], share: float, seed: int) -> list[PromptRow]:
    """Return the rows with a ``share`` of their labels flipped, drawn by the seed.

    The share is the same for each label, so that the noise does not shift their balance by chance.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share of labels to turn round is {share}; expected a number from 0 to 1")
    rng, turned = np.random.default_rng([seed, _TURN]), list(rows)
    for label in (BENIGN, HARMFUL):
        members = np.array([i for i, row in enumerate(rows) if row.label == label], np.int64)
        for i in rng.permutation(members)[: round(share * len(members))]:
            turned[i] = dataclasses.replace(rows[i], label=BENIGN + HARMFUL - label)
    return turned


def _check_ratios(sources: Sequence[Source], ratios: Sequence[float]) -> None:
    shown = ", ".join(f"{source.path}: {ratio}" for source, ratio in zip(sources, ratios))
    # "not r > 0" also catches NaN. A 0 next to real shares is probably a forgotten ratio, not a
    # wish to leave the source out.
    if any(not ratio > 0 for ratio in ratios):
        raise ValueError(
            f"ratios are {shown}; expected all positive (leave out a source you do not want) or all 0 "
            "(plain concatenation)"
        )
    if not math.isclose(sum(ratios), 1.0, abs_tol=1e-6):
        raise ValueError(f"ratios sum to {sum(ratios):g} ({shown}); expected 1")
