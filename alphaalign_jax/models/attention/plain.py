"""Attention as plain matrix products: what XLA compiles everywhere, and what the kernels are checked against."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from alphaalign_jax.models.attention.segments import Segment
from alphaalign_jax.types import Array

# The order of B, G and K in the scores of a segment whose keys have so many axes: the keys' own first, so that all
# queries that read the same keys are the rows of one matrix product, and nothing as large as scores is transposed.
_ORDER = {3: (2, 0, 1), 4: (0, 2, 1), 5: (0, 1, 2)}

# Finite, so that a padded query that sees nothing gives a mean of values, not NaN that would reach real gradients.
_HIDDEN = -1e30


def attend(q_bgthc: Array, segments: tuple[Segment, ...], precision: jax.lax.Precision) -> Array:
    """Scores of all keys are held at once: float32 [B, G, H, T, U]."""
    b, g, t, h, c = q_bgthc.shape
    k = segments[-1].k.shape[-3]
    # M = T * Q: the query heads of one key/value head stand beside its tokens.
    q_bgkmc = jnp.moveaxis(q_bgthc.reshape(b, g, t, k, h // k, c), 2, 3).reshape(b, g, k, -1, c)
    scores = [_masked(_product(_turned(q_bgkmc, s), s.k, precision) * c**-0.5, s, t) for s in segments]
    peaks = [_restored(x.max(-1), s) for x, s in zip(scores, segments, strict=True)]
    peak = jax.lax.stop_gradient(functools.reduce(jnp.maximum, peaks))
    weights = [jnp.exp(x - _turned(peak, s)[..., None]) for x, s in zip(scores, segments, strict=True)]
    total = sum(_restored(w.sum(-1), s) for w, s in zip(weights, segments, strict=True))
    values = [_product(w.astype(s.v.dtype), s.v, precision) for w, s in zip(weights, segments, strict=True)]
    out = sum(_restored(x, s) for x, s in zip(values, segments, strict=True)) / total[..., None]
    out_bgktqc = out.astype(q_bgthc.dtype).reshape(b, g, k, t, h // k, c)
    return jnp.moveaxis(out_bgktqc, 3, 2).reshape(b, g, t, h, c)


def _turned(x: Array, segment: Segment) -> Array:
    """[B, G, K, ...] with these three in the order of the segment's scores."""
    return jnp.transpose(x, (*_ORDER[segment.k.ndim], *range(3, x.ndim)))


def _restored(x: Array, segment: Segment) -> Array:
    order = _ORDER[segment.k.ndim]
    return jnp.transpose(x, (*map(order.index, range(3)), *range(3, x.ndim)))


def _product(x: Array, keys: Array, precision: jax.lax.Precision) -> Array:
    """[x, y, z, M, i] by keys (or values) [..., i, o] whose first axes are x's: float32 [x, y, z, M, o]."""
    rows = x.reshape(*keys.shape[:-2], -1, x.shape[-1])
    out = jnp.matmul(rows, keys, precision=precision, preferred_element_type=jnp.float32)
    return out.reshape(*x.shape[:-1], keys.shape[-1])


def _masked(scores: Array, segment: Segment, t: int) -> Array:
    """``scores`` float32 [B, G, K, T * Q, U], these three turned."""
    u, mask = scores.shape[-1], None  # bool, broadcastable to [B, G, K, T, Q, U], turned
    if segment.visible is not None:
        mask = _turned(segment.visible.reshape(-1, 1, 1, 1, 1, u), segment)
    if segment.causal:
        earlier = jnp.tril(jnp.ones((t, u), bool))[:, None]
        mask = earlier if mask is None else mask & earlier
    if mask is None:
        return scores
    return jnp.where(mask, scores.reshape(*scores.shape[:3], t, -1, u), _HIDDEN).reshape(scores.shape)
