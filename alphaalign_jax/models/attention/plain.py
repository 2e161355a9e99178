"""Attention as plain matrix products: what XLA compiles everywhere, and what the kernels are checked against."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from alphaalign_jax.models.attention.segments import Segment
from alphaalign_jax.types import Array

# M = T * Q: the query heads of one key/value head stand beside its tokens, so that each product is one matrix product a
# (b, g, k), and the queries are transposed once for all segments.
_SCORES = {3: "bgkmc,kuc->bgkmu", 4: "bgkmc,bkuc->bgkmu", 5: "bgkmc,bgkuc->bgkmu"}
_VALUES = {3: "bgkmu,kuc->bgkmc", 4: "bgkmu,bkuc->bgkmc", 5: "bgkmu,bgkuc->bgkmc"}

# Finite, so that a padded query that sees nothing gives a mean of values, not NaN that would reach real gradients.
_HIDDEN = -1e30


def attend(q_bgthc: Array, segments: tuple[Segment, ...], precision: jax.lax.Precision) -> Array:
    """Scores of all keys are held at once: float32 [B, G, H, T, U]."""
    b, g, t, h, c = q_bgthc.shape
    k = segments[-1].k.shape[-3]
    q_bgkmc = jnp.moveaxis(q_bgthc.reshape(b, g, t, k, h // k, c), 2, 3).reshape(b, g, k, -1, c)
    product = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    scores = [_masked(product(_SCORES[s.k.ndim], q_bgkmc, s.k) * c**-0.5, s, t) for s in segments]
    peak = jax.lax.stop_gradient(jnp.max(jnp.stack([s.max(-1) for s in scores]), axis=0))[..., None]
    weights = [jnp.exp(s - peak) for s in scores]
    total = sum(w.sum(-1, keepdims=True) for w in weights)
    out = sum(product(_VALUES[s.v.ndim], w.astype(s.v.dtype), s.v) for w, s in zip(weights, segments, strict=True))
    out_bgktqc = (out / total).astype(q_bgthc.dtype).reshape(b, g, k, t, h // k, c)
    return jnp.moveaxis(out_bgktqc, 3, 2).reshape(b, g, t, h, c)


def _masked(scores_bgkmu: Array, segment: Segment, t: int) -> Array:
    b, g, k, _, u = scores_bgkmu.shape
    mask = None  # bool, broadcastable to [B, G, K, T, Q, U]
    if segment.visible is not None:
        mask = segment.visible.reshape(-1, 1, 1, 1, 1, u)
    if segment.causal:
        earlier = jnp.tril(jnp.ones((t, u), bool))[:, None]
        mask = earlier if mask is None else mask & earlier
    if mask is None:
        return scores_bgkmu
    return jnp.where(mask, scores_bgkmu.reshape(b, g, k, t, -1, u), _HIDDEN).reshape(scores_bgkmu.shape)
