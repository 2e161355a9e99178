"""Which prompts a step trains on: a pure function of (seed, step), so the data position is the step and nothing else.

Checkpointing the input needs no iterator state: resume at step k and ask for ``indices(k)``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from alphaalign_jax.types import BENIGN, HARMFUL, LABELS

# What a permutation is drawn for; folded into its key so that equal epochs of different streams differ.
_ALL, _HARMFUL, _BENIGN, _WITHIN, _MINIBATCH = range(5)


class PromptOrder:
    """Batches of row indices, epoch after epoch.

    Plain: the run reads an endless stream, the concatenation of one fresh permutation of all n rows per epoch; step k
    takes places [k * batch, (k + 1) * batch) of it. Within an epoch every row comes exactly once: nothing is lost
    where ``batch`` does not divide n. A batch that straddles two epochs may hold a row twice.

    Balanced (``harmful_fraction`` given): every batch holds exactly h = round(batch * harmful_fraction) harmful rows
    and batch - h benign ones, in shuffled places, drawn from two such streams, one for each label. Each stream keeps
    the promise above with epochs of its own length: the rarer label repeats before the other is through.

    Attributes:
      num_steps: steps in ``epochs`` epochs, ceil(epochs * n / batch): the last batch is filled up from the epoch
        after, so that no row is seen less than ``epochs`` times (in a balanced order: so that as many rows are read).
        None for an endless order.
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
        harmful_fraction: harmful share of every batch, in [0, 1]; None leaves it to chance.
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
        """Rows of a step, int64 [batch]. Raises ValueError outside [0, num_steps)."""
        if step < 0 or (self.num_steps is not None and step >= self.num_steps):
            raise ValueError(f"step is {step}; expected 0 <= step < {self.num_steps or 'infinity'}")
        parts = [rows[_stream(len(rows), self.seed, key, step * count, count)] for key, rows, count in self._streams]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts)[_permutation(self.batch, self.seed, _WITHIN, step)]


def minibatches(label: np.ndarray, parts: int, seed: int, *, step: int, epoch: int) -> np.ndarray:
    """Places [0, B) of a batch, shuffled and cut into ``parts``, each with the batch's mix of labels.

    A mini-batch of harmful prompts alone would teach to refuse and the next one to answer: at the end of both the
    policy has moved twice and learned nothing of who is who.

    Args:
      label: int [B]; B divides by ``parts``.

    Returns:
      int32 [parts, B // parts].
    """
    shuffled = _permutation(len(label), seed, _MINIBATCH, step, epoch)
    # Each label's rows at even distances on [0, 1): any stretch of the line holds its share of them.
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
    """Places [start, start + count) of the concatenated epochs' permutations of n: int64 [count]."""
    epochs = range(start // n, (start + count - 1) // n + 1)
    joined = np.concatenate([_permutation(n, seed, key, epoch) for epoch in epochs])
    offset = start - epochs[0] * n
    return joined[offset : offset + count]


@functools.lru_cache(maxsize=16)
def _permutation(n: int, seed: int, key: int, *numbers: int) -> np.ndarray:
    """A permutation of n that depends on its arguments alone: int64 [n], read-only.

    Made by sorting raw 64-bit draws: NumPy promises that a bit generator's raw stream never changes, and makes no
    such promise for ``Generator.permutation``; a run resumed under a newer NumPy must still see the same rows.
    """
    raw = np.random.PCG64(np.random.SeedSequence([seed, key, *numbers])).random_raw(n)
    order = np.argsort(raw, kind="stable")
    order.flags.writeable = False
    return order
