"""Mixtures of prompt sources."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from alphaalign_jax.data.prompts import Source, read
from alphaalign_jax.data.row import PromptRow
from alphaalign_jax.types import BENIGN, HARMFUL

# The paper names its three sources and not their shares. Half harmful keeps the two signs of the refusal reward in
# balance; XSTest has only 250 safe prompts, so its tenth already limits the mix to 2,500 rows.
PAPER_RATIOS = (0.5, 0.4, 0.1)
_TURN = 0x7075726E  # folded into the seed, so that the draw is no other's


def paper(scot: Source, ratios: Sequence[float] = PAPER_RATIOS) -> tuple[Source, ...]:
    """The sources of the paper (arXiv 2507.14987): SCoT harmful, Dolly benign, XSTest adversarial benign.

    Evaluate on prompts other than XSTest's when training on this mix: its safe half is in it.

    Args:
      scot: the harmful prompts of SCoT (Yang et al., "Enhancing Model Defense Against Jailbreaks with Proactive Safety
        Reasoning"). The authors publish no hub data set of bare prompts, so bring your own copy: a file or hub data
        set with one harmful question a row. A source without a fixed label is given 'harmful'. Where it has columns
        of another name set ``prompt_key``; keep only harmful rows with ``where``.
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
    # Instructions with a context are not questions on their own: only the ones without are taken.
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
    """Rows of several sources in the shares their ratios ask for.

    With n_i the rows of source i and r_i its ratio, the mix is the largest one in which no row is used twice:

        N = min_i n_i / r_i,    source i gives floor(r_i * N) rows

    so at least one source is used up and the others are thinned (by a seeded draw without replacement); shares are
    exact up to rounding down to a whole row. The mix is then shuffled with the seed. With all ratios 0 the mix is the
    plain concatenation of the sources, in the order given.

    Args:
      sources: at least one.
      seed: >= 0; the mix is a pure function of the sources' rows and the seed.
      answers: whether reference answers are read.

    Raises:
      ValueError: ratios that are negative, do not sum to 1, or are 0 for only some of the sources; a ratio so small
        that its source would give no row; any error of ``read``.
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
        # The slack undoes float division: 3 / 0.1 * 0.1 is 3.0000000000000004 or 2.9999999999999996 elsewhere.
        count = min(len(pool), math.floor(ratio * total + 1e-6))
        if count == 0:
            raise ValueError(
                f"{source.path}: ratio {ratio} of a mix of {total:.0f} rows is less than one row; raise "
                "it or leave the source out"
            )
        mixed += [pool[i] for i in np.sort(rng.permutation(len(pool))[:count])]
    return [mixed[i] for i in rng.permutation(len(mixed))]


def turn_labels(rows: Sequence[PromptRow], share: float, seed: int) -> list[PromptRow]:
    """The rows with the labels of ``share`` of each label's rows turned round, drawn by the seed.

    Of each label alike, so that the noise does not move the balance between them by chance.
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
    # "not r > 0" also catches NaN. A 0 beside real shares is more often a forgotten ratio than a wish to leave out.
    if any(not ratio > 0 for ratio in ratios):
        raise ValueError(
            f"ratios are {shown}; expected all positive (leave out a source you do not want) or all 0 "
            "(plain concatenation)"
        )
    if not math.isclose(sum(ratios), 1.0, abs_tol=1e-6):
        raise ValueError(f"ratios sum to {sum(ratios):g} ({shown}); expected 1")
