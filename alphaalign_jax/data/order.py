"""The prompts of each training step, a pure function of (seed, step).

The data position is therefore just the step. Checkpoints need no iterator state: resume at step k
and call ``indices(k)``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from alphaalign_jax.types import BENIGN, HARMFUL, LABELS

# Purposes of a permutation, folded into its key so that equal epochs of different streams differ.
_ALL, _HARMFUL, _BENIGN, _WITHIN, _MINIBATCH = range(5)


class PromptOrder:
    """Batches of row indices, epoch after epoch.

    Plain: the run reads an endless stream, the concatenation of one fresh permutation of all n rows
    per epoch. Step k takes positions [k * batch, (k + 1) * batch). Every row occurs exactly once
    per epoch, even if ``batch`` does not divide n. A batch across two epochs may repeat a row.

    Balanced (``harmful_fraction`` given): every batch has exactly
    h = round(batch * harmful_fraction) harmful rows and batch - h benign rows, in shuffled
    positions. They come from two such streams, one per label, with epochs of their own length:
    the rarer label repeats earlier.

    Attributes:
      num_steps: steps in ``epochs`` epochs, ceil(epochs * n / batch). The last batch is filled up
        from the next epoch, so that every row is seen at least ``epochs`` times. (A balanced order
        reads the same number of rows, without that guarantee.) None for an endless order.
    """

    def __init__(
        self,
        n: int,
        batch: int,
        seed: int,
        epochs: int | None = None,
        labels: Sequence[int] | np.ndarray | None = None,
        harmful_fraction: float | None = None,
    ):
        """Args:
        n: rows in the data set, > 0.
        batch: rows a step, > 0.
        seed: >= 0.
        epochs: > 0; None never ends.
        labels: int [n], BENIGN or HARMFUL; needed for a balanced order.
        harmful_fraction: share of harmful rows in every batch, in [0, 1]; None leaves it to chance.
        """
        for name, value, least in (("n", n, 1), ("batch", batch, 1), ("seed", seed, 0), ("epochs", epochs, 1)):
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; expected at least {least}")
        self.n, self.batch, self.seed = n, batch, seed
        self.num_steps = None if epochs is None else math.ceil(epochs * n / batch)
        self._streams = [(_ALL, np.arange(n), batch)]
        if harmful_fraction is not None:
            self._streams = _balanced_streams(n, batch, labels, harmful_fraction)

    def indices(self, step: int) -> np.ndarray:
        """Return the rows of a step, int64 [batch]. Raise ValueError outside [0, num_steps)."""
        if step < 0 or (self.num_steps is not None and step >= self.num_steps):
            raise ValueError(f"step is {step}; expected 0 <= step < {self.num_steps or 'infinity'}")
        parts = [rows[_stream(len(rows), self.seed, key, step * count, count)] for key, rows, count in self._streams]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts)[_permutation(self.batch, self.seed, _WITHIN, step)]


def minibatches(label: np.ndarray, parts: int, seed: int, *, step: int, epoch: int) -> np.ndarray:
    """Shuffle the positions [0, B) of a batch into ``parts``, each with the batch's mix of labels.

    Otherwise a mini-batch of only harmful prompts would teach refusing, and the next one answering:
    the policy would move twice without learning to tell the labels apart.

    Args:
      label: int [B]; B divides by ``parts``.

    Returns:
      int32 [parts, B // parts].
    """
    shuffled = _permutation(len(label), seed, _MINIBATCH, step, epoch)
    # Space each label's rows evenly on [0, 1), so that every interval has its share of them.
    place = np.zeros(len(label))
    for value in np.unique(label):
        members = shuffled[label[shuffled] == value]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    order = shuffled[np.argsort(place[shuffled], kind="stable")]
    return order.reshape(parts, -1).astype(np.int32)


def _balanced_streams(n: int, batch: int, labels: Sequence[int] | np.ndarray | None, fraction: float) -> list:
    if labels is None:
        raise ValueError(f"harmful_fraction is {fraction} but no labels were given; pass labels, int [{n}]")
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(f"labels have shape {labels.shape}; expected ({n},)")
    if not 0 <= fraction <= 1:
        raise ValueError(f"harmful_fraction is {fraction}; expected a number from 0 to 1")
    harmful = round(batch * fraction)
    if 0 < fraction < 1 and harmful in (0, batch):
        raise ValueError(
            f"round({batch} * {fraction}) = {harmful} harmful rows in a batch of {batch} leaves a label "
            "out of every batch; raise the batch, or ask for a fraction of 0 or 1"
        )
    streams = []
    for key, label, count in ((_HARMFUL, HARMFUL, harmful), (_BENIGN, BENIGN, batch - harmful)):
        rows = np.flatnonzero(labels == label)
        if count and not len(rows):
            raise ValueError(
                f"harmful_fraction {fraction} needs {count} {LABELS[label]} rows a batch; the data set has none"
            )
        if count:
            streams.append((key, rows, count))
    return streams


def _stream(n: int, seed: int, key: int, start: int, count: int) -> np.ndarray:
    """Return positions [start, start + count) of all epochs' permutations of n, int64 [count]."""
    epochs = range(start // n, (start + count - 1) // n + 1)
    joined = np.concatenate([_permutation(n, seed, key, epoch) for epoch in epochs])
    offset = start - epochs[0] * n
    return joined[offset : offset + count]


@functools.lru_cache(maxsize=16)
def _permutation(n: int, seed: int, key: int, *numbers: int) -> np.ndarray:
    """Return a permutation of n that depends only on the arguments: int64 [n], read-only.

    It sorts raw 64-bit draws, because a run resumed under a newer NumPy must see the same rows.
    NumPy guarantees that a bit generator's raw stream never changes, but not
    ``Generator.permutation``.
    """
    raw = np.random.PCG64(np.random.SeedSequence([seed, key, *numbers])).random_raw(n)
    order = np.argsort(raw, kind="stable")
    order.flags.writeable = False
    return order
