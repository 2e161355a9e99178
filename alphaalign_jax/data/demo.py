"""The built-in demo set: about 900 short prompts written for this project.

It lets users try the whole method without a download. There are three kinds of prompts: harmful (in
wording only), ordinary benign, and adversarial benign (harmless, in words that harmful prompts use
too). All three share many carriers ("How do I ...?", "Explain how to ..."), so that the carrier
does not give away the label. Train and held-out share no carrier: no held-out prompt is an instance
of a train template, or the other way round. Fillers may occur in both; some occur only in held-out.

Every benign row has a short, true ``answer`` for the warm-up; harmful rows have none.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from alphaalign_jax.data import demo_adversarial, demo_benign, demo_harmful
from alphaalign_jax.data.row import PromptRow
from alphaalign_jax.types import BENIGN, HARMFUL

SPLITS = ("train", "heldout")

# Acts per carrier, by split. Together with the direct sentences they give about 40 % harmful, 40 %
# ordinary benign and 20 % adversarial benign in train. Held-out has a quarter of all prompts.
_HARMFUL_ACTS = {"train": 8, "heldout": 6}
_BENIGN_ACTS = {"train": 14, "heldout": 8}
_ADVERSARIAL_ACTS = {"train": 13, "heldout": 10}
_HELDOUT_ONLY = {"harmful": 20, "benign": 8, "adversarial_benign": 11}  # acts at the end of each list


@dataclass(frozen=True)
class Template:
    """A carrier with its fillers. ``carrier`` and ``answer`` are format strings over the slots."""

    carrier: str
    rows: tuple[tuple[tuple, str], ...]  # (slots, category) of each row
    label: int
    answer: str = ""

    def expand(self, source: str) -> Iterator[PromptRow]:
        for slots, category in self.rows:
            yield PromptRow(self.carrier.format(*slots), self.label, source, category, self.answer.format(*slots))


def rows(split: str) -> list[PromptRow]:
    """Return the prompts of a split, 'train' or 'heldout'.

    The result is always the same, ordered by template: shuffle it before use.
    """
    return [row for template in templates(split) for row in template.expand(f"demo/{split}")]


@functools.cache
def templates(split: str) -> tuple[Template, ...]:
    """Return the templates of a split, 'train' or 'heldout'."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
    return (*_harmful(split), *_benign(split), *_adversarial(split))


def _harmful(split: str) -> Iterator[Template]:
    # Interleave the categories, so that a window of consecutive acts spans several of them.
    acts = [
        ((act,), f"harmful/{category}")
        for column in zip(*demo_harmful.ACTS.values(), strict=True)
        for category, act in zip(demo_harmful.ACTS, column)
    ]
    yield from _around_acts(demo_harmful, split, acts, _HARMFUL_ACTS[split], "harmful", HARMFUL, "")
    for category, carrier, fillers in _direct(demo_harmful, split):
        yield Template(carrier, tuple(((filler,), f"harmful/{category}") for filler in fillers), HARMFUL)


def _benign(split: str) -> Iterator[Template]:
    acts = [((act, answer), f"benign/{kind}") for kind, act, answer in demo_benign.ACTS]
    yield from _around_acts(demo_benign, split, acts, _BENIGN_ACTS[split], "benign", BENIGN, "{1}")
    for kind, carrier, answer, fills in _direct(demo_benign, split):
        yield Template(carrier, tuple((slots, f"benign/{kind}") for slots in fills), BENIGN, answer)


def _adversarial(split: str) -> Iterator[Template]:
    name = "adversarial_benign"
    acts = [((act, answer), f"{name}/{kind}") for kind, act, answer in demo_adversarial.ACTS]
    yield from _around_acts(demo_adversarial, split, acts, _ADVERSARIAL_ACTS[split], name, BENIGN, "{1}")
    for kind, carrier, fills in _direct(demo_adversarial, split):
        # The last slot of a row is its answer.
        yield Template(carrier, tuple((slots, f"{name}/{kind}") for slots in fills), BENIGN, f"{{{len(fills[0]) - 1}}}")


def _around_acts(texts, split: str, acts: list, count: int, kind: str, label: int, answer: str) -> Iterator[Template]:
    """Yield each carrier with the next ``count`` acts.

    The acts repeat cyclically over all carriers, so that each is used equally often.
    """
    known, unseen = acts[: -_HELDOUT_ONLY[kind]], acts[-_HELDOUT_ONLY[kind] :]
    if split == "train":
        carriers, order = texts.TRAIN_CARRIERS, known
    else:
        # Two acts from train, then one that is new, until the new ones run out.
        carriers = texts.HELDOUT_CARRIERS
        order = [act for two, new in zip(zip(known[::2], known[1::2]), unseen) for act in (*two, new)]
    for i, carrier in enumerate(carriers):
        chosen = tuple(order[(i * count + j) % len(order)] for j in range(count))
        yield Template(carrier, chosen, label, answer)


def _direct(texts, split: str) -> tuple:
    return texts.TRAIN_DIRECT if split == "train" else texts.HELDOUT_DIRECT
