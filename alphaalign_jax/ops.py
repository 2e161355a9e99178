"""Masked reductions that stay finite: the arithmetic under every advantage, loss and metric.

Two rules hold throughout.

* What a mask hides is *selected away* with ``where``, never multiplied by zero: a NaN or an infinity in a padding slot
  must reach neither the result nor its gradient.
* A mean names its denominator. Sums over micro-batches or mesh shards add up to the whole batch's mean only if every
  part divides by the whole batch's count, so each reduction takes an optional ``denominator``; without one it divides
  by the count of its own mask. An empty mask or a zero denominator gives 0, never NaN.

All results are float32, whatever came in: bfloat16 carries 8 bits, and a sum of 2,000 tokens needs more.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from alphaalign_jax.types import Array

Axis = int | Sequence[int] | None


def require_same_shape(**arrays: Array | None) -> None:
    """Raise ``ValueError`` unless all given arrays have one shape (None is skipped).

    Broadcasting would hide a missing or transposed axis.
    """
    shapes = {name: tuple(jnp.shape(array)) for name, array in arrays.items() if array is not None}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"arrays must have the same shape, got {listed}; pass every one as [..., T] of one batch")


def safe_divide(x: Array, denominator: Array | float) -> jax.Array:
    """``x / denominator`` in float32, and 0 where the denominator is not positive (an empty count)."""
    x, denominator = jnp.asarray(x, jnp.float32), jnp.asarray(denominator, jnp.float32)
    # Both the divisor and the quotient are selected: a gradient through 0/0 is NaN even when the value is discarded.
    return jnp.where(denominator > 0, x / jnp.where(denominator > 0, denominator, 1.0), 0.0)


def masked_sum(x: Array, mask: Array, *, axis: Axis = None, denominator: Array | float | None = None) -> jax.Array:
    """Sum of ``x`` where ``mask``, divided by ``denominator`` if one is given.

    Args:
        x: number [...], may hold anything where the mask is False.
        mask: bool, shape of ``x``.
        axis: axes to reduce; None for all.
        denominator: number, broadcastable to the result; a global count, for parts of a batch.

    Returns:
        float32, ``x`` without ``axis``.
    """
    total = jnp.sum(jnp.where(mask, jnp.asarray(x, jnp.float32), 0.0), axis=axis)
    return total if denominator is None else safe_divide(total, denominator)


def masked_mean(x: Array, mask: Array, *, axis: Axis = None, denominator: Array | float | None = None) -> jax.Array:
    """Mean of ``x`` where ``mask``; with ``denominator``, this part's share of a larger batch's mean. Shapes as
    ``masked_sum``; 0 for an empty mask."""
    if denominator is None:
        denominator = jnp.sum(jnp.asarray(mask, jnp.float32), axis=axis)
    return masked_sum(x, mask, axis=axis, denominator=denominator)


def masked_var(x: Array, mask: Array, *, axis: Axis = None) -> jax.Array:
    """Unbiased variance (divisor n - 1) of ``x`` where ``mask``; 0 for fewer than two members.

    Two passes: the textbook ``E[x^2] - E[x]^2`` loses every digit when the spread is small beside the mean.
    """
    mean = masked_mean(x, mask, axis=axis)
    centred = jnp.asarray(x, jnp.float32) - (mean if axis is None else jnp.expand_dims(mean, axis))
    count = jnp.sum(jnp.asarray(mask, jnp.float32), axis=axis)
    return masked_sum(jnp.square(centred), mask, axis=axis, denominator=count - 1.0)


def has_spread(x: Array, mask: Array, *, axis: Axis = None) -> jax.Array:
    """bool: whether two members of ``x`` under ``mask`` differ.

    Eight copies of 0.7 have a rounded mean that is not 0.7, so ``x - mean`` is small noise, which a division by a small
    standard deviation turns into a training signal. Comparing the extremes is exact. NaN members count as spread, so
    that a NaN stays visible instead of turning into 0.
    """
    x = jnp.asarray(x, jnp.float32)
    high = jnp.max(jnp.where(mask, x, -jnp.inf), axis=axis)
    low = jnp.min(jnp.where(mask, x, jnp.inf), axis=axis)
    return (high > low) | jnp.isnan(high)


def masked_whiten(x: Array, mask: Array, *, epsilon: float = 1e-8) -> jax.Array:
    """``(x - mean) / sqrt(var + epsilon)`` over all members of ``mask``, 0 elsewhere.

    The variance is unbiased, as in verl's ``masked_whiten``. Members that are all equal, a single one included, give
    exactly 0.

    Args:
        x: number [...].
        mask: bool, shape of ``x``.
        epsilon: added to the variance, in squared units of ``x``.

    Returns:
        float32 [...].
    """
    whitened = (jnp.asarray(x, jnp.float32) - masked_mean(x, mask)) * jax.lax.rsqrt(masked_var(x, mask) + epsilon)
    return jnp.where(jnp.asarray(mask, bool) & has_spread(x, mask), whitened, 0.0)


def explained_variance(value: Array, target: Array, mask: Array) -> jax.Array:
    """``1 - var(target - value) / var(target)`` over ``mask``: 1 a perfect critic, 0 no better than a constant.

    float32 []. The denominator carries verl's 1e-5. Targets without spread have nothing to explain and give 0, as does
    an empty mask.
    """
    spread = masked_var(target, mask)
    error = masked_var(jnp.asarray(target, jnp.float32) - jnp.asarray(value, jnp.float32), mask)
    return jnp.where(has_spread(target, mask), 1.0 - error / (spread + 1e-5), 0.0)


def last_true(mask: Array) -> jax.Array:
    """bool [..., T], True at the last True of each row only; a row without one stays all False.

    In : F T T F T F        Out: F F F F T F
    """
    mask = jnp.asarray(mask, bool)
    from_the_end = jnp.flip(jnp.cumsum(jnp.flip(mask, -1).astype(jnp.int32), axis=-1), -1)
    return mask & (from_the_end == 1)
