"""From rewards to advantages: what each sampled token did for its response.

``sampled`` (bool [B, G, T]) is the only authority on which slots exist. Forced prefixes, padding and holes are
skipped: the return of a sampled token reads the next *sampled* token, however far away. The order of use is

    slots    = trained_slots(sampled, reward=..., truncated=..., truncation=...)
    rewards  = token_rewards(reward, slots, ...)
    estimate = estimate_advantages("gae", rewards=rewards, sampled=slots, ...)

and ``slots`` is what every loss after it must use as its mask. Whitening reads the whole batch, so it happens here,
once, before any split into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alphaalign_jax.ops import (
    FLOAT32_PRECISION,
    Spread,
    last_true,
    masked_mean,
    masked_spread,
    masked_sum,
    masked_whiten,
    require_same_shape,
    safe_divide,
)
from alphaalign_jax.types import Array

TRUNCATIONS = ("terminal", "bootstrap", "mask")


class Advantage(NamedTuple):
    """What an estimator returns; both 0 where not sampled."""

    advantage: jax.Array  # float32 [B, G, T]
    target: jax.Array  # float32 [B, G, T], unwhitened advantage + value: the critic's regression target


def trained_slots(sampled: Array, *, reward: Array, truncated: Array, truncation: str) -> jax.Array:
    """The sampled slots that take part in training.

    Args:
        sampled: bool [B, G, T].
        reward: float [B, G], NaN where the response could not be scored. Such a row trains nothing and is no part of
            its group's baseline: counting it as 0 would punish a reward server's failure.
        truncated: bool [B, G], the response ran out of slots.
        truncation: what a truncated response is worth. ``terminal``: its reward, as for any other. ``bootstrap``: its
            reward plus the critic's value at the cut (see ``bootstrap_value``). ``mask``: nothing, the row is dropped.

    Returns:
        bool [B, G, T].

    Raises:
        ValueError: unknown truncation.
    """
    if truncation not in TRUNCATIONS:
        raise ValueError(f"unknown truncation {truncation!r}; choose one of {', '.join(TRUNCATIONS)}")
    rows = ~jnp.isnan(jnp.asarray(reward, jnp.float32))
    if truncation == "mask":
        rows &= ~jnp.asarray(truncated, bool)
    return jnp.asarray(sampled, bool) & rows[..., None]


def bootstrap_value(values: Array, sampled: Array, truncated: Array) -> jax.Array:
    """float32 [B, G]: the critic's value at the last sampled token of a truncated row, 0 for a finished or empty one.

    The value after the cut was never computed, for that token was never sampled; the one at the cut is the nearest.
    """
    tail = masked_sum(values, last_true(sampled), axis=-1)
    return jnp.where(truncated, tail, 0.0)


def token_rewards(
    reward: Array, sampled: Array, *, kl: Array | None = None, kl_coef: Array | float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """The response's scalar reward at its last sampled token, less ``kl_coef * kl`` at every sampled one.

    Args:
        reward: float [B, G].
        sampled: bool [B, G, T].
        kl: float [B, G, T] or None, per-token estimate (k1).
        kl_coef: float [].

    Returns:
        ``rewards`` float32 [B, G, T], 0 where not sampled, and ``unrewarded`` bool [B, G]: rows without a sampled
        token. Their reward goes nowhere (the last slot would be padding); count them.

    Raises:
        ValueError: ``reward`` is not [B, G] (an integer one would truncate 0.7 to 0), or shapes that differ.
    """
    if not jnp.issubdtype(jnp.result_type(reward), jnp.floating):
        raise ValueError(f"reward must be floating point, got {jnp.result_type(reward)}; integers truncate 0.7 to 0")
    if jnp.shape(reward) != jnp.shape(sampled)[:-1]:
        raise ValueError(f"reward must be {jnp.shape(sampled)[:-1]}, one a response, got {jnp.shape(reward)}")
    require_same_shape(sampled=sampled, kl=kl)
    rewards = jnp.where(last_true(sampled), jnp.asarray(reward, jnp.float32)[..., None], 0.0)
    if kl is not None:
        rewards = rewards - jnp.where(sampled, kl_coef * jnp.asarray(kl, jnp.float32), 0.0)
    return rewards, ~jnp.any(sampled, axis=-1)


def discounted_residuals(
    rewards: Array, values: Array, sampled: Array, *, gamma: float, lam: float, bootstrap: Array | None = None
) -> jax.Array:
    """Generalized advantage estimates before whitening (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

        delta_t = r_t + gamma V_{t+1} - V_t        A_t = delta_t + gamma lam A_{t+1}

    t+1 is the next sampled slot: an unsampled slot hands both carries on untouched, as in verl.

    Returns:
        float32 [..., T], 0 where not sampled.
    """
    sampled = jnp.asarray(sampled, bool)
    rewards, values = jnp.asarray(rewards, jnp.float32), jnp.asarray(values, jnp.float32)
    slots = tuple(jnp.moveaxis(x, -1, 0) for x in (rewards, values, sampled))
    tail = jnp.zeros(sampled.shape[:-1], jnp.float32)
    if bootstrap is not None:
        tail = jnp.broadcast_to(jnp.asarray(bootstrap, jnp.float32), tail.shape)

    def step(carry: tuple[jax.Array, jax.Array], slot: tuple[jax.Array, ...]) -> tuple:
        next_value, next_advantage = carry
        reward, value, real = slot
        advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
        carry = jnp.where(real, value, next_value), jnp.where(real, advantage, next_advantage)
        return carry, jnp.where(real, advantage, 0.0)

    _, advantages = jax.lax.scan(step, (tail, jnp.zeros_like(tail)), slots, reverse=True)
    return jnp.moveaxis(advantages, 0, -1)


def gae(
    rewards: Array,
    values: Array,
    sampled: Array,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    bootstrap: Array | None = None,
    whiten: bool = True,
) -> Advantage:
    """Generalized advantage estimation with a critic.

    Args:
        rewards: float [B, G, T], from ``token_rewards``.
        values: float [B, G, T], the critic's before the update.
        sampled: bool [B, G, T].
        gamma: discount per sampled token, in [0, 1].
        lam: trace decay per sampled token, in [0, 1].
        bootstrap: float [B, G] or None, the value after the last sampled token; None for 0 (a finished response).
        whiten: whether the advantage (never the target) is whitened over all sampled tokens of the batch.

    Returns:
        ``Advantage``.

    Raises:
        ValueError: shapes that differ.
    """
    require_same_shape(rewards=rewards, values=values, sampled=sampled)
    values = jnp.where(sampled, jnp.asarray(values, jnp.float32), 0.0)
    raw = discounted_residuals(rewards, values, sampled, gamma=gamma, lam=lam, bootstrap=bootstrap)
    return Advantage(masked_whiten(raw, sampled) if whiten else raw, raw + values)


def _outcomes(rewards: Array, sampled: Array) -> tuple[jax.Array, jax.Array]:
    """Undiscounted return of each row, float32 [B, G], and the rows that have one, bool [B, G]."""
    require_same_shape(rewards=rewards, sampled=sampled)
    return masked_sum(rewards, sampled, axis=-1), jnp.any(sampled, axis=-1)


def _spread_over_tokens(per_row: jax.Array, sampled: Array) -> Advantage:
    per_token = jnp.where(sampled, per_row[..., None], 0.0)
    return Advantage(per_token, per_token)


def _group_spread(outcome: jax.Array, valid: jax.Array, precision: float = FLOAT32_PRECISION) -> Spread:
    """Outcomes about their group's mean over valid rows; 0 for an invalid row and in a group of equals."""
    if outcome.ndim < 1 or outcome.shape[-1] < 2:
        raise ValueError(
            f"a group baseline needs at least 2 rollouts of each prompt, got shape {outcome.shape} (the last axis is "
            "the group); raise the number of rollouts or use an estimator without groups"
        )
    return masked_spread(outcome, valid, axis=-1, precision=precision)


def _centred(spread: Spread) -> jax.Array:
    return spread.deviation * spread.scale


def grpo(rewards: Array, sampled: Array, *, std_floor: float = 1e-3, precision: float = FLOAT32_PRECISION) -> Advantage:
    """``(R - mean) / max(std, std_floor)`` within each group (Shao et al. 2024, arXiv 2402.03300, section 4.1.2).

    The standard deviation is unbiased, as in verl. Seven equal rewards and one a rounding error away would reach 2.5
    and train like a real difference: a group whose spread is no more than rounding gives exactly 0, and ``std_floor``
    replaces the usual 1e-6 beside the std. Rows without a sampled token are no members of their group.

    Args:
        rewards: float [B, G, T].
        sampled: bool [B, G, T].
        std_floor: positive, in units of the reward.
        precision: of the type that the rewards were computed in (``ops.precision_of``).

    Returns:
        ``Advantage``; without a critic its target is the advantage itself.

    Raises:
        ValueError: G below 2, shapes that differ, a floor that is not positive.
    """
    if std_floor <= 0:
        raise ValueError(f"std_floor must be positive, got {std_floor}; it is in units of the reward, 1e-3 is usual")
    spread = _group_spread(*_outcomes(rewards, sampled), precision)
    standardised = spread.deviation / jnp.maximum(spread.std, std_floor / spread.scale)
    return _spread_over_tokens(jnp.where(spread.std <= spread.rounding, 0.0, standardised), sampled)


def dr_grpo(rewards: Array, sampled: Array) -> Advantage:
    """``R - mean`` within each group (Liu et al. 2025, arXiv 2503.20783).

    Without the std, prompts that are nearly always or nearly never solved weigh no more than others. Use it with the
    loss aggregation ``seq-mean-token-sum-norm``. Arguments, result and errors as ``grpo``.
    """
    return _spread_over_tokens(_centred(_group_spread(*_outcomes(rewards, sampled))), sampled)


def rloo(rewards: Array, sampled: Array) -> Advantage:
    """``R`` less the mean of the *other* rows of its group (Ahmadian et al. 2024, arXiv 2402.14740).

    With n members that is ``(R - mean) * n / (n - 1)``. Arguments, result and errors as ``grpo``.
    """
    outcome, valid = _outcomes(rewards, sampled)
    count = jnp.sum(valid, axis=-1, keepdims=True).astype(jnp.float32)
    centred = _centred(_group_spread(outcome, valid))
    return _spread_over_tokens(centred * safe_divide(count, count - 1.0), sampled)


def reinforce_plus_plus(rewards: Array, sampled: Array, *, gamma: float = 1.0) -> Advantage:
    """Discounted return of each token, whitened over all sampled tokens of the batch (Hu 2025, arXiv 2501.03262).

    It is GAE with a critic that says 0 and lambda 1. Unlike verl's, the return passes through a hole instead of being
    reset by it. Arguments and result as ``gae``; the target is the return.
    """
    return gae(rewards, jnp.zeros(jnp.shape(rewards), jnp.float32), sampled, gamma=gamma, lam=1.0)


def reinforce_batch(rewards: Array, sampled: Array) -> Advantage:
    """``R`` less the mean over all rows of the batch (Williams 1992, with the batch as baseline).

    Each row counts once, whatever its length. Arguments and result as ``grpo``; G may be 1.
    """
    outcome, valid = _outcomes(rewards, sampled)
    return _spread_over_tokens(_centred(masked_spread(outcome, valid)), sampled)


def anchored(rewards: Array, sampled: Array, *, anchors: Array | None, anchor: float = 1.0) -> Advantage:
    """``R`` less the mean of its group and of ``anchor`` imagined pairs of rollouts, one refusing and one answering.

        b = (sum of R + anchor * (R_refuse + R_answer)) / (n + 2 * anchor)

    What either decision earns is known before anything is sampled. With the group alone as the baseline, a group that
    agrees has advantage 0, right or wrong: a policy that refuses everything is never pushed back. Here a group that
    agrees on the wrong decision is below its baseline, and one that agrees on the right one above it. The pairs do not
    depend on what was sampled, so they add no bias. Like ``dr_grpo``, without a division by the std.

    Args:
        rewards: float [B, G, T], from ``token_rewards``.
        sampled: bool [B, G, T].
        anchors: float [B, 2], the rewards of a refusal and of an answer, both in format.
        anchor: pairs, positive; half of G to G is usual. It need not be a whole number.

    Returns:
        ``Advantage``, in units of the reward; without a critic its target is the advantage itself.

    Raises:
        ValueError: anchors missing or of another shape, ``anchor`` not positive.
    """
    outcome, valid = _outcomes(rewards, sampled)
    if anchors is None or jnp.shape(anchors) != (*outcome.shape[:-1], 2):
        have = None if anchors is None else jnp.shape(anchors)
        raise ValueError(f"anchors must be {(*outcome.shape[:-1], 2)}, two rewards a prompt, got {have}")
    if anchor <= 0:
        raise ValueError(f"anchor must be positive, got {anchor}; without imagined pairs choose dr_grpo")
    total = masked_sum(outcome, valid, axis=-1) + anchor * jnp.sum(jnp.asarray(anchors, jnp.float32), axis=-1)
    baseline = total / (jnp.sum(valid, axis=-1, dtype=jnp.float32) + 2 * anchor)
    return _spread_over_tokens(outcome - baseline[..., None], sampled)


def balanced_labels(advantage: Array, refusal: Array, valid: Array, harmful: Array) -> jax.Array:
    """Return factors on the advantages of each prompt that keep the rate of refusals from running off to 0 or 1.

    An update most easily moves the logit of refusing by the same amount for all prompts. To first order that pays

        push = sum over rows of A * (refused - the group's share of refusals)

    Harmful prompts push it up and benign ones down. While the policy cannot tell them apart, which of the two wins is
    chance, and a few such steps take a low rate of refusals to 0, where there is nothing left to learn from. So if the
    policy refuses less often than a right one would, which refuses the share of harmful prompts, benign prompts push
    down by no more than harmful ones push up, and the other way round if it refuses more often:

        factor = min(1, other label's push / own push)    of the label that pushes away from the right rate, else 1

    Args:
        advantage: float [B, G], of each row; a row's tokens share it.
        refusal: bool [B, G].
        valid: bool [B, G], rows that train.
        harmful: bool [B].

    Returns:
        float32 [B].
    """
    harmful = jnp.asarray(harmful, bool)
    refused = jnp.asarray(refusal, jnp.float32)
    share = masked_mean(refused, valid, axis=-1)  # [B]
    push = masked_sum(advantage * (refused - share[:, None]), valid, axis=-1)
    up = jnp.abs(jnp.sum(jnp.where(harmful, push, 0.0)))
    down = jnp.abs(jnp.sum(jnp.where(harmful, 0.0, push)))
    rows = jnp.broadcast_to(harmful[:, None], jnp.shape(valid)).astype(jnp.float32)
    too_few = masked_mean(refused, valid) < masked_mean(rows, valid)
    held = jnp.where(too_few, ~harmful, harmful)
    own = jnp.where(too_few, down, up)
    other = jnp.where(too_few, up, down)
    factor = jnp.where(own > other, other / jnp.where(own > 0, own, 1.0), 1.0)
    return jnp.where(held, factor, 1.0)


class Estimator(NamedTuple):
    """A row of ``ADVANTAGES``."""

    compute: Callable[..., Advantage]
    critic: bool  # reads values, and may bootstrap
    options: tuple[str, ...]  # what else it reads


ADVANTAGES: dict[str, Estimator] = {
    "gae": Estimator(gae, True, ("gamma", "lam")),
    "grpo": Estimator(grpo, False, ("std_floor", "precision")),
    "dr_grpo": Estimator(dr_grpo, False, ()),
    "rloo": Estimator(rloo, False, ()),
    "reinforce_plus_plus": Estimator(reinforce_plus_plus, False, ("gamma",)),
    "reinforce_batch": Estimator(reinforce_batch, False, ()),
    "anchored": Estimator(anchored, False, ("anchors", "anchor")),
}


def get_estimator(name: str) -> Estimator:
    """The registered estimator, or ``ValueError`` with the valid names."""
    if name not in ADVANTAGES:
        raise ValueError(f"unknown advantage estimator {name!r}; choose one of {', '.join(ADVANTAGES)}")
    return ADVANTAGES[name]


def estimate_advantages(
    name: str,
    *,
    rewards: Array,
    sampled: Array,
    values: Array | None = None,
    bootstrap: Array | None = None,
    gamma: float = 1.0,
    lam: float = 1.0,
    std_floor: float = 1e-3,
    precision: float = FLOAT32_PRECISION,
    anchors: Array | None = None,
    anchor: float = 1.0,
) -> Advantage:
    """Dispatch to ``ADVANTAGES[name]``, so that the trainer stays blind to which one it is.

    Shapes as ``gae``; ``anchors`` and ``anchor`` as ``anchored``. ``values`` is required by an estimator with a critic
    and must be None for the others.

    Raises:
        ValueError: unknown name; values or bootstrap missing or unused; a discount that the estimator would ignore.
    """
    estimator = get_estimator(name)
    if estimator.critic and values is None:
        raise ValueError(f"advantage estimator {name!r} needs values; build a critic or choose one without")
    if not estimator.critic and (values is not None or bootstrap is not None):
        raise ValueError(
            f"advantage estimator {name!r} has no critic: pass neither values nor bootstrap, and set truncation to "
            "'terminal' or 'mask'"
        )
    if "gamma" not in estimator.options and gamma != 1.0:
        raise ValueError(f"advantage estimator {name!r} does not discount; gamma must be 1.0, got {gamma}")
    given = {"gamma": gamma, "lam": lam, "std_floor": std_floor, "precision": precision}
    given |= {"anchors": anchors, "anchor": anchor}
    options = {key: given[key] for key in estimator.options}
    if estimator.critic:
        return estimator.compute(rewards, values, sampled, bootstrap=bootstrap, **options)
    return estimator.compute(rewards, sampled, **options)
