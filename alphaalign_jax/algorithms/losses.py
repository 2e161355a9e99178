"""Losses over sampled tokens, whose value does not depend on how the batch was cut.

Every loss and every metric here is *this part's share of the whole batch's figure*: it divides by ``denominator``, the
counts of the whole batch (``Denominator.of(sampled)`` before any split), so that the shares of micro-batches and
shards simply add up. A mean of means would weigh the tokens of a short micro-batch more: [[1, 2], [3, 4, 5, 6, 7]] has
token mean 4.0, and mean of means 3.25. Without a ``denominator`` the arrays given are taken for the whole batch.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from alphaalign_jax.algorithms.kl import MAX_LOG_RATIO, kl_loss_term
from alphaalign_jax.ops import masked_mean, masked_sum, require_same_shape, safe_divide
from alphaalign_jax.types import Array

AGGREGATIONS = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
RATIO_LEVELS = ("token", "sequence")

Metrics = dict[str, jax.Array]


class Denominator(NamedTuple):
    """Counts of the whole batch, over every micro-batch and every host."""

    tokens: Array | float  # float32 [], sampled tokens
    rows: Array | float  # float32 [], responses with at least one sampled token

    @classmethod
    def of(cls, sampled: Array) -> Denominator:
        """Counts of ``sampled`` bool [..., T]."""
        sampled = jnp.asarray(sampled, bool)
        return cls(jnp.sum(sampled, dtype=jnp.float32), jnp.sum(jnp.any(sampled, axis=-1), dtype=jnp.float32))


def aggregate(
    per_token: Array,
    sampled: Array,
    *,
    mode: str = "token-mean",
    denominator: Denominator | None = None,
    horizon: int | None = None,
) -> jax.Array:
    """Reduce a per-token loss to a scalar.

        token-mean                sum over tokens / tokens
        seq-mean-token-sum        sum over tokens / rows
        seq-mean-token-mean       sum over rows of (row's token mean) / rows
        seq-mean-token-sum-norm   sum over tokens / (rows * horizon)      Dr. GRPO, arXiv 2503.20783

    Args:
        per_token: float [..., T]; may hold anything where not sampled.
        sampled: bool [..., T].
        mode: one of ``AGGREGATIONS``.
        denominator: the whole batch's counts; None if this is the whole batch.
        horizon: tokens, a constant of the run; needed by seq-mean-token-sum-norm, unread by the others. It is not taken
            from T: an array trimmed to its longest response would change the loss.

    Returns:
        float32 [].

    Raises:
        ValueError: unknown mode, shapes that differ, a horizon missing or not positive.
    """
    if mode not in AGGREGATIONS:
        raise ValueError(f"unknown loss aggregation {mode!r}; choose one of {', '.join(AGGREGATIONS)}")
    require_same_shape(per_token=per_token, sampled=sampled)
    denominator = Denominator.of(sampled) if denominator is None else denominator
    if mode == "token-mean":
        return masked_mean(per_token, sampled, denominator=denominator.tokens)
    if mode == "seq-mean-token-mean":
        return safe_divide(jnp.sum(masked_mean(per_token, sampled, axis=-1)), denominator.rows)
    total = masked_sum(per_token, sampled, denominator=denominator.rows)
    if mode == "seq-mean-token-sum":
        return total
    if horizon is None or horizon <= 0:
        raise ValueError(f"aggregation {mode!r} needs a positive horizon (the run's response slots), got {horizon}")
    return total / horizon


def log_ratio(logp: Array, old_logp: Array, sampled: Array, *, level: str = "token") -> jax.Array:
    """Log importance ratio of each sampled token, within +-20, 0 where not sampled.

    Only the value is held within +-20, so that its exponential is finite. The gradient passes: without a dual clip, a
    token of negative advantage whose probability has grown by more than exp(20) is still pushed down.

    ``token``: ``logp - old_logp`` (PPO). ``sequence``: the row's mean of it, in every slot, with the gradient of that
    slot's own log-prob (GSPO-token, Zheng et al. 2025, arXiv 2507.18071, eq. 14).

    Args:
        logp, old_logp: float [..., T].
        sampled: bool [..., T].
        level: one of ``RATIO_LEVELS``.

    Returns:
        float32 [..., T].
    """
    if level not in RATIO_LEVELS:
        raise ValueError(f"unknown ratio level {level!r}; choose one of {', '.join(RATIO_LEVELS)}")
    require_same_shape(logp=logp, old_logp=old_logp, sampled=sampled)
    # Selected before exp: an unsampled slot's infinity would come back as a NaN gradient.
    logp = jnp.where(sampled, jnp.asarray(logp, jnp.float32), 0.0)
    difference = logp - jnp.where(sampled, jnp.asarray(old_logp, jnp.float32), 0.0)
    if level == "sequence":
        row_mean = jax.lax.stop_gradient(masked_mean(difference, sampled, axis=-1))[..., None]
        difference = jnp.where(sampled, row_mean + (logp - jax.lax.stop_gradient(logp)), 0.0)
    held = jnp.clip(difference, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return difference + jax.lax.stop_gradient(held - difference)


def sampler_weight(
    old_logp: Array, sampler_logp: Array, sampled: Array, *, cap: float, denominator: Denominator | None = None
) -> tuple[jax.Array, Metrics]:
    """Truncated importance weight of the trainer against the sampler: ``min(exp(old_logp - sampler_logp), cap)``.

    Corrects for a sampler whose numerics differ from the trainer's (Yao et al. 2025, "Your efficient RL framework
    secretly brings you off-policy RL training"). Detached: it weighs the gradient and is no path for it.

    Args:
        old_logp: float [..., T], the trainer's log-probs before the update.
        sampler_logp: float [..., T], recorded while sampling.
        sampled: bool [..., T].
        cap: at least 1; 2 is usual.
        denominator: as in ``aggregate``.

    Returns:
        float32 [..., T], 1 where not sampled; metrics ``tis_mean`` and ``tis_capfrac`` (fraction of tokens at the cap).

    Raises:
        ValueError: a cap below 1 (it would weigh down even an exact sampler).
    """
    if cap < 1:
        raise ValueError(f"the importance weight's cap must be at least 1, got {cap}; 2.0 is usual")
    raw = jnp.exp(log_ratio(old_logp, sampler_logp, sampled))
    weight = jax.lax.stop_gradient(jnp.minimum(raw, cap))
    tokens = (Denominator.of(sampled) if denominator is None else denominator).tokens
    capped = masked_mean(jax.lax.stop_gradient(raw) > cap, sampled, denominator=tokens)
    return weight, {"tis_mean": masked_mean(weight, sampled, denominator=tokens), "tis_capfrac": capped}


def ppo_policy_loss(
    logp: Array,
    old_logp: Array,
    advantage: Array,
    sampled: Array,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
    denominator: Denominator | None = None,
    mode: str = "token-mean",
    horizon: int | None = None,
    level: str = "token",
    weight: Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """Clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, eq. 7) with dual clip (Ye et al. 2020, 1912.09729).

        L = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))        and for A < 0 at most -A dual_clip

    Args:
        logp: float [..., T], differentiated.
        old_logp: float [..., T], before the update.
        advantage: float [..., T].
        sampled: bool [..., T].
        clip_low: in (0, 1]; clip_high: positive.
        dual_clip: above 1, or None for no dual clip.
        denominator, mode, horizon: as in ``aggregate``.
        level: as in ``log_ratio``; "sequence" with mode "seq-mean-token-mean" and no dual clip is GSPO.
        weight: float [..., T] or None, from ``sampler_weight``.

    Returns:
        Loss float32 [], and metrics by verl's names, float32 [] each, shares of the whole batch's token means:
        ``pg_clipfrac`` (tokens where the clip decides), ``pg_clipfrac_lower`` (where the dual clip decides),
        ``ppo_kl`` (mean of old_logp - logp).

    Raises:
        ValueError: a clip out of range, unknown mode or level, shapes that differ.
    """
    if not 0 < clip_low <= 1 or clip_high <= 0:
        raise ValueError(f"clip_low must be in (0, 1], clip_high positive, got {clip_low}, {clip_high}; 0.2 is usual")
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip must be above 1, got {dual_clip}; 3.0 is usual, None turns it off")
    require_same_shape(logp=logp, advantage=advantage, sampled=sampled, weight=weight)
    denominator = Denominator.of(sampled) if denominator is None else denominator
    advantage = jax.lax.stop_gradient(jnp.where(sampled, jnp.asarray(advantage, jnp.float32), 0.0))
    log_r = log_ratio(logp, old_logp, sampled, level=level)
    ratio = jnp.exp(log_r)

    free = -advantage * ratio
    clipped = -advantage * jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    loss = jnp.maximum(free, clipped)
    floored = jnp.zeros_like(sampled, dtype=bool)
    if dual_clip is not None:
        ceiling = -advantage * dual_clip
        floored = (advantage < 0) & (loss > ceiling)
        loss = jnp.where(floored, ceiling, loss)
    if weight is not None:
        loss = loss * jax.lax.stop_gradient(jnp.asarray(weight, jnp.float32))

    metrics = {
        "pg_clipfrac": masked_mean(clipped > free, sampled, denominator=denominator.tokens),
        "pg_clipfrac_lower": masked_mean(floored, sampled, denominator=denominator.tokens),
        "ppo_kl": masked_mean(-log_r, sampled, denominator=denominator.tokens),
    }
    loss = aggregate(loss, sampled, mode=mode, denominator=denominator, horizon=horizon)
    return loss, jax.lax.stop_gradient(metrics)


def value_loss(
    value: Array,
    old_value: Array,
    target: Array,
    sampled: Array,
    *,
    clip: float | None = 0.5,
    denominator: Denominator | None = None,
    mode: str = "token-mean",
    horizon: int | None = None,
) -> tuple[jax.Array, Metrics]:
    """``0.5 * max((V - target)^2, (clip(V, V_old +- clip) - target)^2)``, aggregated (as verl and OpenAI baselines).

    Args:
        value: float [..., T], differentiated.
        old_value, target: float [..., T], fixed.
        sampled: bool [..., T].
        clip: positive, in reward units; None for no clip.
        denominator, mode, horizon: as in ``aggregate``.

    Returns:
        Loss float32 [], and metrics ``vf_clipfrac``, ``vpred_mean``: shares of the whole batch's token means.

    Raises:
        ValueError: a clip that is not positive, unknown mode, shapes that differ.
    """
    if clip is not None and clip <= 0:
        raise ValueError(f"value clip must be positive, got {clip}; 0.5 is usual, None turns it off")
    require_same_shape(value=value, old_value=old_value, target=target, sampled=sampled)
    denominator = Denominator.of(sampled) if denominator is None else denominator
    value, old_value, target = (
        jnp.where(sampled, jnp.asarray(x, jnp.float32), 0.0) for x in (value, old_value, target)
    )
    loss = jnp.square(value - target)
    clip_decides = jnp.zeros_like(sampled, dtype=bool)
    if clip is not None:
        bounded = jnp.square(jnp.clip(value, old_value - clip, old_value + clip) - target)
        clip_decides = bounded > loss
        loss = jnp.maximum(loss, bounded)
    metrics = {
        "vf_clipfrac": masked_mean(clip_decides, sampled, denominator=denominator.tokens),
        "vpred_mean": masked_mean(value, sampled, denominator=denominator.tokens),
    }
    loss = 0.5 * aggregate(loss, sampled, mode=mode, denominator=denominator, horizon=horizon)
    return loss, jax.lax.stop_gradient(metrics)


def entropy_bonus(
    entropy: Array,
    sampled: Array,
    *,
    coef: float,
    denominator: Denominator | None = None,
    mode: str = "token-mean",
    horizon: int | None = None,
) -> jax.Array:
    """``-coef * aggregate(entropy)``, a term to *add* to the policy loss.

    entropy: float [..., T], nats, differentiated; the others as in ``aggregate``; result float32 [].
    """
    return -coef * aggregate(entropy, sampled, mode=mode, denominator=denominator, horizon=horizon)


def kl_loss(
    logp: Array,
    ref_logp: Array,
    sampled: Array,
    *,
    kind: str,
    coef: Array | float,
    denominator: Denominator | None = None,
    mode: str = "token-mean",
    horizon: int | None = None,
) -> jax.Array:
    """``coef * aggregate(kl_loss_term(logp, ref_logp))``, a term to add to the policy loss; the reference is fixed.

    Args:
        logp, ref_logp: float [..., T]; sampled: bool [..., T].
        kind: "k2" or "k3".
        coef, denominator, mode, horizon: as in ``aggregate``.

    Returns:
        float32 [].

    Raises:
        ValueError: ``kind`` is k1, whose gradient has mean zero, or unknown.
    """
    # Selected first, so that an unsampled slot's infinity cannot come back as a NaN gradient.
    logp, ref_logp = (jnp.where(sampled, jnp.asarray(x, jnp.float32), 0.0) for x in (logp, ref_logp))
    per_token = kl_loss_term(logp, jax.lax.stop_gradient(ref_logp), kind=kind)
    return coef * aggregate(per_token, sampled, mode=mode, denominator=denominator, horizon=horizon)
