"""Attention over shared segments of keys: one interface, and a kernel for each kind of device."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from alphaalign_jax.models.attention import plain, splash, triton
from alphaalign_jax.models.attention.segments import (
    KEY_SLOTS,
    VALUE_SLOTS,
    Cache,
    Segment,
    pack,
    packable,
    unpack,
)
from alphaalign_jax.parallel import platform, sharded, shards
from alphaalign_jax.types import Array

__all__ = ["KEY_SLOTS", "KINDS", "VALUE_SLOTS", "Cache", "Segment", "attend"]

# What attends, and where it is at home: elsewhere a kernel is interpreted, which is slow, and right.
HOMES = {"plain": None, "splash": "tpu", "triton": "gpu"}
KINDS = ("auto", *HOMES)


def attend(q_bgthc: Array, segments: tuple[Segment, ...], precision: jax.lax.Precision, kind: str = "auto") -> Array:
    """Grouped-query attention, softmax in float32. Returns [B, G, T, H, C] in the dtype of ``q``.

    The last segment holds the queries' own keys. ``kind``, one of ``KINDS``, is what reads whole responses or prompts;
    ``auto`` is the device's own kernel. One new token a row, with a cache for each, is read by plain products always.
    """
    here = platform()
    if kind == "auto":
        kind = next((name for name, home in HOMES.items() if home == here), "plain")
    if kind == "plain" or not packable(q_bgthc, segments):
        return plain.attend(q_bgthc, segments, precision)
    kernel = {"splash": splash, "triton": triton}[kind]
    return _by_kernel(kernel, q_bgthc, segments, precision, interpret=here != HOMES[kind])


def _by_kernel(
    kernel: Any, q_bgthc: Array, segments: tuple[Segment, ...], precision: jax.lax.Precision, *, interpret: bool
) -> Array:
    """A kernel is no operation that XLA could lay over a mesh: each device runs it on its own prompts, rollouts and
    heads."""
    # Where more devices share the query heads than there are key/value heads, each gets a copy of those it reads.
    count = segments[-1].k.shape[-3]
    copies = math.lcm(count, shards("heads")) // count
    spread = lambda x: jnp.repeat(x, copies, axis=-3) if copies > 1 else x

    def run(q: Array, *arrays: Array) -> Array:
        rest = iter(arrays)
        taken = lambda s: s.replace(k=next(rest), v=next(rest), visible=s.visible if s.visible is None else next(rest))
        packed = pack(
            (q * q.shape[-1] ** -0.5).astype(q.dtype),
            tuple(map(taken, segments)),
            block=kernel.BLOCK,
            width=kernel.width(q.shape[-1]),
        )
        return unpack(kernel.attend(packed, packed.rows // q.shape[1], precision, interpret=interpret), q)

    arguments = [(q_bgthc, ("batch", "rollout", "length", "heads", "head_dim"))]
    for s in segments:
        rows = ("batch", "rollout")[: s.k.ndim - 3]
        arguments += [(spread(s.k), (*rows, "heads", "head_dim", "length"))]
        arguments += [(spread(s.v), (*rows, "heads", "length", "head_dim"))]
        arguments += [] if s.visible is None else [(s.visible, ("batch", "length"))]
    return sharded(run, *arguments)
