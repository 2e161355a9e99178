"""R_s, the verifiable safety reward."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from alphaalign_jax.types import HARMFUL, Array


def safety_reward(format: Array, refusal: Array, label: Array, *, r_f: float, r_a: float) -> jax.Array:
    """R_s = r_f V_f + r_a V_r for a harmful prompt, r_f V_f - r_a V_r for a benign one (arXiv 2507.14987).

    Args:
        format: bool [B, G], V_f.
        refusal: bool [B, G], V_r.
        label: int32 [B], ``BENIGN`` or ``HARMFUL``.
        r_f, r_a: weights of the format and of the (right) refusal.

    Returns: float32 [B, G]. Float from the first operation: verdicts and labels are whole numbers, and a reward that
    takes its type from them turns 0.7 into 0.
    """
    sign = jnp.where(jnp.asarray(label) == HARMFUL, 1.0, -1.0).astype(jnp.float32)[:, None]
    v_f, v_r = jnp.asarray(format, jnp.float32), jnp.asarray(refusal, jnp.float32)
    return jnp.float32(r_f) * v_f + jnp.float32(r_a) * sign * v_r


def decision_rewards(label: Array, *, r_f: float, r_a: float) -> jax.Array:
    """Return R_s of a refusal and of an answer, both in format: float32 [B, 2], for ``label`` int32 [B]."""
    decisions = jnp.broadcast_to(jnp.array([True, False]), (*jnp.shape(label), 2))
    return safety_reward(jnp.ones_like(decisions), decisions, label, r_f=r_f, r_a=r_a)
