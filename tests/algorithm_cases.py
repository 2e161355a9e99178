"""What the tests of advantages and of losses share: hard batches, and their rows as dense lists."""

from __future__ import annotations

from functools import partial

import numpy as np

B, G, T = 3, 4, 9
close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)


def make_case(seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays whose unsampled slots hold NaN: whatever reads one of them shows it."""
    rng = np.random.default_rng(seed)
    sampled = np.zeros((B, G, T), bool)
    for b in range(B):
        for g in range(G):
            start, stop = rng.integers(0, 3), rng.integers(4, T + 1)
            sampled[b, g, start:stop] = True
    sampled[0, 1, 3:5] = False  # a hole in the middle
    sampled[0, 1, 6] = True
    sampled[1, 2] = False  # a response of length zero
    sampled[2, 0] = np.arange(T) == T - 1  # a single token, in the last slot
    names = ("logp", "old", "ref", "value", "old_value", "target", "advantage", "entropy")
    case = {name: rng.normal(size=(B, G, T)).astype(np.float32) for name in names}
    case["logp"] = case["old"] + 0.5 * case["logp"]
    case = {name: np.where(sampled, x, np.nan).astype(np.float32) for name, x in case.items()}
    return case | {"sampled": sampled, "reward": rng.normal(size=(B, G)).astype(np.float32)}


def rows(sampled: np.ndarray) -> list[tuple[int, int, list[int]]]:
    """Each response with the list of its sampled slots: oracles then work on dense lists, without any mask."""
    return [(b, g, np.flatnonzero(sampled[b, g]).tolist()) for b in range(B) for g in range(G)]
