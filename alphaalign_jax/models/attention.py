"""Attention over segments: keys that rows share are read where they lie, never copied per row.

A response of rollout g to prompt b sees three stretches of keys, held at the rank at which they differ:

    template prefix   k [P, K, C]          one copy for the batch
    prompt            k [B, S, K, C]       one copy for the G rollouts of a prompt
    response          k [B, G, T, K, C]    its own

The softmax runs over all of them together, so the result is that of one long sequence:

    In:  prefix "ab", prompt "cd_" (length 2), response "ef"      Out:  e sees a b c d e,  f sees a b c d e f
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from alphaalign_jax.types import Array

_SCORES = {3: "bgtkqc,ukc->bgkqtu", 4: "bgtkqc,bukc->bgkqtu", 5: "bgtkqc,bgukc->bgkqtu"}
_VALUES = {3: "bgkqtu,ukc->bgtkqc", 4: "bgkqtu,bukc->bgtkqc", 5: "bgkqtu,bgukc->bgtkqc"}

# Finite, so that a padded query that sees nothing gives a mean of values, not NaN that would reach real gradients.
_HIDDEN = -1e30


@flax.struct.dataclass
class Segment:
    """Keys and values that queries may attend to; inside a layer as listed above, between layers with a leading L."""

    k: Array  # compute dtype [U, K, C], [B, U, K, C] or [B, G, U, K, C], rotary embedding applied
    v: Array  # same shape
    mask: Array | None = None  # bool, broadcastable to [B, G, T, U]; None: all visible


def attend(q_bgthc: Array, segments: tuple[Segment, ...], precision: jax.lax.Precision) -> Array:
    """Grouped-query attention, softmax in float32. Returns [B, G, T, H, C] in the dtype of ``q``."""
    b, g, t, h, c = q_bgthc.shape
    kv_heads = segments[-1].k.shape[-2]
    q = q_bgthc.reshape(b, g, t, kv_heads, h // kv_heads, c)
    scores = []
    for segment in segments:
        s = jnp.einsum(_SCORES[segment.k.ndim], q, segment.k, precision=precision, preferred_element_type=jnp.float32)
        s = s * (c**-0.5)
        if segment.mask is not None:
            s = jnp.where(segment.mask[:, :, None, None], s, _HIDDEN)
        scores.append(s)
    peak = jax.lax.stop_gradient(jnp.max(jnp.stack([s.max(-1) for s in scores]), axis=0))[..., None]
    weights = [jnp.exp(s - peak) for s in scores]
    total = sum(w.sum(-1) for w in weights)  # [B, G, K, Q, T]
    out = sum(
        jnp.einsum(_VALUES[s.v.ndim], w.astype(q.dtype), s.v, precision=precision, preferred_element_type=jnp.float32)
        for w, s in zip(weights, segments, strict=True)
    )
    out = out / jnp.moveaxis(total, -1, 2)[..., None]
    return out.astype(q.dtype).reshape(b, g, t, h, c)
