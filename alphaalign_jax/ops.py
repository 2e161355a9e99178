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
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alphaalign_jax.types import Array

Axis = int | Sequence[int] | None


def precision_of(dtype: str) -> float:
    """Return the spacing of a floating type's numbers at 1: float32 2**-23, float16 2**-10, bfloat16 2**-7."""
    return float(jnp.finfo(dtype).eps)


FLOAT32_PRECISION = precision_of("float32")


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


class Spread(NamedTuple):
    """Members about their mean. All but ``scale`` in units of ``scale``."""

    deviation: jax.Array  # float32 [...], member less mean; 0 where not a member
    std: jax.Array  # float32, reduced axes kept at size 1; unbiased; 0 for fewer than two members
    rounding: jax.Array  # float32, shape of ``std``: a std no larger than this is rounding and nothing else
    scale: jax.Array  # float32, shape of ``std``: a power of two, at least 1


def masked_spread(x: Array, mask: Array, *, axis: Axis = None, precision: float = FLOAT32_PRECISION) -> Spread:
    """Measure how far members of ``mask`` are from each other, exactly 0 if all are equal.

    Three faults it avoids. The square of 1e19 overflows float32, and a deviation divided by an infinite std is 0: so
    members are first divided by a power of two, which is exact. The rounded mean of eight copies of 0.7 is not 0.7, so
    their deviations would be noise: so they are taken from the smallest member, not from 0. And a difference in the
    last place is no difference: hence ``rounding``, two units in the last place of the largest member.

    A NaN member makes its whole group NaN, ``~(std <= rounding)`` included, so that it stays visible.

    Args:
        x: number [...], may hold anything where the mask is False.
        mask: bool, shape of ``x``.
        axis: axes of a group; None for all.
        precision: spacing at 1 of the type that ``x`` was computed in (``precision_of``).
    """
    mask = jnp.asarray(mask, bool)
    x = jnp.where(mask, jnp.asarray(x, jnp.float32), 0.0)
    peak = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    exponent = jnp.frexp(jnp.where(jnp.isfinite(peak), peak, 1.0))[1] - 1
    # At most 2**125, whose reciprocal is a normal number: XLA may multiply by it, and flushes smaller ones to 0.
    scale = jnp.ldexp(jnp.float32(1.0), jnp.clip(exponent, 0, 125))
    x = x / scale
    count = jnp.sum(mask, axis=axis, keepdims=True, dtype=jnp.float32)
    lowest = jnp.min(jnp.where(mask, x, jnp.inf), axis=axis, keepdims=True)
    above = jnp.where(mask, x - lowest, 0.0)
    mean = safe_divide(jnp.sum(above, axis=axis, keepdims=True), count)
    deviation = jnp.where(mask, above - mean, 0.0)
    # Two passes: the mean of squares less the square of the mean loses every digit of a small spread.
    variance = safe_divide(jnp.sum(jnp.square(deviation), axis=axis, keepdims=True), count - 1.0)
    return Spread(deviation, jnp.sqrt(variance), 2 * precision * peak / scale, scale)


def masked_var(x: Array, mask: Array, *, axis: Axis = None) -> jax.Array:
    """Unbiased variance (divisor n - 1) of ``x`` where ``mask``; 0 for fewer than two members.

    Infinite if it is beyond float32; ``masked_spread`` has a standard deviation that is right there too.
    """
    spread = masked_spread(x, mask, axis=axis)
    variance = jnp.square(spread.std * spread.scale)
    return jnp.squeeze(variance, axis=axis)


def masked_whiten(x: Array, mask: Array, *, epsilon: float = 1e-8) -> jax.Array:
    """``(x - mean) / sqrt(var + epsilon)`` over all members of ``mask``, 0 elsewhere.

    The variance is unbiased, as in verl's ``masked_whiten``. Members that are equal up to rounding, a single one
    included, give exactly 0.

    Args:
        x: number [...].
        mask: bool, shape of ``x``.
        epsilon: added to the variance, in squared units of ``x``.

    Returns:
        float32 [...].
    """
    spread = masked_spread(x, mask)
    whitened = spread.deviation * jax.lax.rsqrt(jnp.square(spread.std) + epsilon / spread.scale / spread.scale)
    return jnp.where(spread.std <= spread.rounding, 0.0, whitened)


def explained_variance(value: Array, target: Array, mask: Array) -> jax.Array:
    """``1 - var(target - value) / var(target)`` over ``mask``: 1 a perfect critic, 0 no better than a constant.

    float32 []. The denominator carries verl's 1e-5. Targets without spread have nothing to explain and give 0, as does
    an empty mask.
    """
    std, rounding, scale = (jnp.squeeze(part) for part in masked_spread(target, mask)[1:])
    error = jnp.asarray(target, jnp.float32) / scale - jnp.asarray(value, jnp.float32) / scale
    explained = 1.0 - masked_var(error, mask) / (jnp.square(std) + 1e-5 / scale / scale)
    return jnp.where(std <= rounding, 0.0, explained)


def last_true(mask: Array) -> jax.Array:
    """bool [..., T], True at the last True of each row only; a row without one stays all False.

    In : F T T F T F        Out: F F F F T F
    """
    mask = jnp.asarray(mask, bool)
    from_the_end = jnp.flip(jnp.cumsum(jnp.flip(mask, -1).astype(jnp.int32), axis=-1), -1)
    return mask & (from_the_end == 1)
