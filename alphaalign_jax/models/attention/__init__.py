"""Attention over shared segments of keys: one interface, and a kernel for each kind of device."""

from __future__ import annotations

import jax

from alphaalign_jax.models.attention import plain, splash, triton
from alphaalign_jax.models.attention.segments import (
    KEY_SLOTS,
    VALUE_SLOTS,
    Cache,
    Packed,
    Segment,
    pack,
    packable,
    unpack,
)
from alphaalign_jax.parallel import platform, sharded
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
    scaled = (q_bgthc * q_bgthc.shape[-1] ** -0.5).astype(q_bgthc.dtype)
    packed = pack(scaled, segments, block=kernel.BLOCK, width=kernel.width(q_bgthc.shape[-1]))
    settings = dict(slots=packed.rows // q_bgthc.shape[1], precision=precision, interpret=here != HOMES[kind])
    run = lambda *arrays: kernel.attend(Packed(*arrays), **settings)
    # A kernel is no operation that XLA could lay over a mesh: each device runs it on its own prompts and heads.
    keys = ("batch", "kv_heads", None, None)
    axes = (("batch", "heads", None, None), keys, keys, ("batch", None))
    out = sharded(run, *zip((packed.q, packed.k, packed.v, packed.visible), axes, strict=True))
    return unpack(out, q_bgthc)
