"""Attention over segments: keys that rows share are read where they lie, never copied per row.

A response of rollout g to prompt b sees three stretches of keys, held at the rank at which they differ:

    template prefix   k [K, P, C]          one copy for the batch
    prompt            k [B, K, S, C]       one copy for the G rollouts of a prompt
    response          k [B, G, K, T, C]    its own

The keys of one head lie together, as the products read them: with heads innermost, every decoded token would copy the
whole cache into this order first.

The softmax runs over all of them together, so the result is that of one long sequence:

    In:  prefix "ab", prompt "cd_" (length 2), response "ef"      Out:  e sees a b c d e,  f sees a b c d e f
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

from alphaalign_jax.types import Array

# M = T * Q: the query heads of one key/value head stand beside its tokens, so that each product is one matrix product a
# (b, g, k), and the queries are transposed once for all segments.
_SCORES = {3: "bgkmc,kuc->bgkmu", 4: "bgkmc,bkuc->bgkmu", 5: "bgkmc,bgkuc->bgkmu"}
_VALUES = {3: "bgkmu,kuc->bgkmc", 4: "bgkmu,bkuc->bgkmc", 5: "bgkmu,bgkuc->bgkmc"}

# Finite, so that a padded query that sees nothing gives a mean of values, not NaN that would reach real gradients.
_HIDDEN = -1e30


@flax.struct.dataclass
class Segment:
    """Keys and values that queries may attend to; inside a layer as listed above.

    Between layers ``k`` and ``v`` have a leading L, or are lists of L.
    """

    k: Array  # compute dtype [K, U, C], [B, K, U, C] or [B, G, K, U, C], rotary embedding applied
    v: Array  # same shape
    mask: Array | None = None  # bool, broadcastable to [B, G, T, U]; None: all visible


def attend(q_bgthc: Array, segments: tuple[Segment, ...], precision: jax.lax.Precision) -> Array:
    """Grouped-query attention, softmax in float32. Returns [B, G, T, H, C] in the dtype of ``q``."""
    b, g, t, h, c = q_bgthc.shape
    k = segments[-1].k.shape[-3]
    q_bgkmc = jnp.moveaxis(q_bgthc.reshape(b, g, t, k, h // k, c), 2, 3).reshape(b, g, k, -1, c)
    product = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    scores = [_masked(product(_SCORES[s.k.ndim], q_bgkmc, s.k) * c**-0.5, s.mask, t) for s in segments]
    peak = jax.lax.stop_gradient(jnp.max(jnp.stack([s.max(-1) for s in scores]), axis=0))[..., None]
    weights = [jnp.exp(s - peak) for s in scores]
    total = sum(w.sum(-1, keepdims=True) for w in weights)
    out = sum(product(_VALUES[s.v.ndim], w.astype(s.v.dtype), s.v) for w, s in zip(weights, segments, strict=True))
    out_bgktqc = (out / total).astype(q_bgthc.dtype).reshape(b, g, k, t, h // k, c)
    return jnp.moveaxis(out_bgktqc, 3, 2).reshape(b, g, t, h, c)


def _masked(scores_bgkmu: Array, mask: Array | None, t: int) -> Array:
    if mask is None:
        return scores_bgkmu
    *lead, _, u = scores_bgkmu.shape
    scores = scores_bgkmu.reshape(*lead, t, -1, u)
    return jnp.where(mask[:, :, None, :, None], scores, _HIDDEN).reshape(scores_bgkmu.shape)
