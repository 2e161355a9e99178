"""Losses and their gradients against plain Python loops, on data with forced prefixes, holes, padding, empty rows."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithm_cases import B, G, T, close, make_case, rows

from alphaalign_jax.algorithms import kl as kl_
from alphaalign_jax.algorithms import losses

# Jitted once here: op-by-op dispatch would compile every primitive at every shape.
LOSS_OPTIONS = ("clip_low", "clip_high", "dual_clip", "mode", "horizon", "level")
policy_loss = jax.jit(losses.ppo_policy_loss, static_argnames=LOSS_OPTIONS)
value_loss = jax.jit(losses.value_loss, static_argnames=("clip", "mode", "horizon"))
kl_loss = jax.jit(losses.kl_loss, static_argnames=("kind", "coef", "mode", "horizon"))
aggregate = jax.jit(losses.aggregate, static_argnames=("mode", "horizon"))

# ---------------------------------------------------------------------------------------------- losses


def policy_oracle(case, low=0.2, high=0.2, dual=3.0, weight=None, level="token"):
    """Per-token losses and the two clip flags, by cases on the sign of A instead of by max and min."""
    out, clipped, floored = np.zeros((B, G, T)), np.zeros((B, G, T)), np.zeros((B, G, T))
    for b, g, slots in rows(case["sampled"]):
        diffs = [float(case["logp"][b, g, t]) - float(case["old"][b, g, t]) for t in slots]
        for t, diff in zip(slots, diffs):
            a = float(case["advantage"][b, g, t])
            ratio = math.exp(sum(diffs) / len(diffs) if level == "sequence" else diff)
            used = min(ratio, 1 + high) if a > 0 else max(ratio, 1 - low)
            clipped[b, g, t] = used != ratio
            if a < 0 and used > dual:
                used, floored[b, g, t] = dual, 1.0
            out[b, g, t] = -a * used * (1.0 if weight is None else float(weight[b, g, t]))
    return out, clipped, floored


def aggregate_oracle(x: np.ndarray, sampled: np.ndarray, mode: str, horizon: int) -> float:
    responses = [[float(x[b, g, t]) for t in slots] for b, g, slots in rows(sampled) if slots]
    if mode == "token-mean":
        return sum(map(sum, responses)) / sum(map(len, responses))
    scale = {"seq-mean-token-sum": lambda r: 1, "seq-mean-token-mean": len}.get(mode, lambda r: horizon)
    return sum(sum(r) / scale(r) for r in responses) / len(responses)


@pytest.mark.parametrize(
    ("dlogp", "advantage", "expected"),
    [(0.5, 1, -1.2), (0.5, -1, 1.648721), (2, -1, 3.0), (-0.5, 1, -0.606531), (-0.5, -1, 0.8)],
)
def test_policy_loss_reference_values(dlogp: float, advantage: float, expected: float):
    """A clip on the wrong side; dual clip missing, or applied to positive advantages."""
    one, mask = np.ones((1, 1, 1), np.float32), np.ones((1, 1, 1), bool)
    loss, metrics = policy_loss(dlogp * one, 0 * one, advantage * one, mask)
    np.testing.assert_allclose(loss, expected, atol=5e-7)
    assert metrics["pg_clipfrac_lower"] == (dlogp == 2)
    assert metrics["pg_clipfrac"] == (expected in (-1.2, 0.8))
    close(metrics["ppo_kl"], -dlogp)


@pytest.mark.parametrize("level", losses.RATIO_LEVELS)
@pytest.mark.parametrize("mode", losses.AGGREGATIONS)
def test_policy_loss_matches_loops(mode: str, level: str):
    """Padding, holes or empty rows counted in a mean; asymmetric clips swapped."""
    case = make_case(7)
    case["advantage"] = np.where(case["sampled"], 2 * case["advantage"], np.nan).astype(np.float32)
    case["logp"][0, 0, np.flatnonzero(case["sampled"][0, 0])[0]] += 4.0
    weight = np.random.default_rng(8).uniform(0.5, 2, (B, G, T)).astype(np.float32)
    options = dict(mode=mode, level=level, weight=weight, horizon=20, clip_low=0.1, clip_high=0.3, dual_clip=1.8)
    args = (case["logp"], case["old"], case["advantage"], case["sampled"])
    loss, metrics = policy_loss(*args, **options)
    per_token, clipped, floored = policy_oracle(case, 0.1, 0.3, 1.8, weight, level)
    close(loss, aggregate_oracle(per_token, case["sampled"], mode, 20))
    tokens = case["sampled"].sum()
    close(metrics["pg_clipfrac"], clipped.sum() / tokens)
    close(metrics["pg_clipfrac_lower"], floored.sum() / tokens)
    close(metrics["ppo_kl"], (case["old"] - case["logp"])[case["sampled"]].mean(dtype=np.float64), rtol=1e-4)
    assert clipped.any() and (level == "sequence" or floored.any())


def test_value_entropy_and_kl_loss_match_loops():
    """min instead of max of the two squared errors; the forgotten half; a bonus with a cost's sign."""
    case = make_case(9)
    sampled = case["sampled"]
    square, clipped = np.zeros((B, G, T)), np.zeros((B, G, T))
    for b, g, slots in rows(sampled):
        for t in slots:
            v, old, target = (float(case[k][b, g, t]) for k in ("value", "old_value", "target"))
            bounded = min(max(v, old - 0.5), old + 0.5)
            square[b, g, t] = max((v - target) ** 2, (bounded - target) ** 2)
            clipped[b, g, t] = (bounded - target) ** 2 > (v - target) ** 2
    loss, metrics = value_loss(case["value"], case["old_value"], case["target"], sampled)
    close(loss, 0.5 * square.sum() / sampled.sum())
    close(metrics["vf_clipfrac"], clipped.sum() / sampled.sum())
    close(metrics["vpred_mean"], case["value"][sampled].mean())
    free, _ = value_loss(case["value"], case["old_value"], case["target"], sampled, clip=None)
    close(free, 0.5 * np.mean((case["value"] - case["target"])[sampled] ** 2))

    close(losses.entropy_bonus(case["entropy"], sampled, coef=0.01), -0.01 * case["entropy"][sampled].mean())
    difference = (case["logp"] - case["ref"])[sampled].astype(np.float64)
    k3 = kl_loss(case["logp"], case["ref"], sampled, kind="k3", coef=0.1)
    close(k3, 0.1 * np.mean(np.minimum(np.exp(-difference) + difference - 1, 10)))
    close(kl_loss(case["logp"], case["ref"], sampled, kind="k2", coef=0.1), 0.1 * np.mean(difference**2 / 2))
    with pytest.raises(ValueError, match="mean zero"):
        losses.kl_loss(case["logp"], case["ref"], sampled, kind="k1", coef=0.1)


def test_sampler_weight_is_capped_and_detached():
    """An uncapped weight explodes on one bad token; a weight that is differentiated trains the wrong objective."""
    case = make_case(10)
    weight, metrics = losses.sampler_weight(case["logp"], case["old"], case["sampled"], cap=1.5)
    for b, g, slots in rows(case["sampled"]):
        for t in range(T):
            raw = math.exp(float(case["logp"][b, g, t]) - float(case["old"][b, g, t])) if t in slots else 1.0
            close(weight[b, g, t], min(raw, 1.5))
    capfrac = np.mean((case["logp"] - case["old"])[case["sampled"]] > math.log(1.5))
    assert 0 < capfrac < 1
    close(metrics["tis_capfrac"], capfrac)
    total = lambda x: losses.sampler_weight(x, case["old"], case["sampled"], cap=1.5)[0].sum()
    assert not np.asarray(jax.grad(total)(case["logp"])).any()
    with pytest.raises(ValueError, match="at least 1"):
        losses.sampler_weight(case["logp"], case["old"], case["sampled"], cap=0.5)


# ---------------------------------------------------------------------------------------------- denominators


def test_token_mean_is_not_a_mean_of_means():
    """[[1, 2], [3..7]] has token mean 4.0; averaging rows (or micro-batches of one row) gives 3.25."""
    x = jnp.array([[1.0, 2, 0, 0, 0], [3, 4, 5, 6, 7]])
    sampled = jnp.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
    close(aggregate(x, sampled), 4.0)
    close(aggregate(x, sampled, mode="seq-mean-token-mean"), 3.25)
    whole = losses.Denominator.of(sampled)
    close(sum(aggregate(x[i], sampled[i], denominator=whole) for i in range(2)), 4.0)


@pytest.mark.parametrize("mode", losses.AGGREGATIONS)
def test_micro_batches_add_up_to_the_whole(mode: str):
    """Loss, metrics and gradients that depend on how many micro-batches (or devices) the batch was cut into."""
    case = make_case(11)
    whole = losses.Denominator.of(case["sampled"])
    assert (float(whole.tokens), float(whole.rows)) == (case["sampled"].sum(), B * G - 1)
    names = ("logp", "old", "ref", "advantage", "value", "old_value", "target", "entropy", "sampled")

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 4, 7), has_aux=True)
    def total(logp, old, ref, advantage, value, old_value, target, entropy, sampled, denominator):
        shared = dict(mode=mode, denominator=denominator, horizon=T)
        policy, metrics = losses.ppo_policy_loss(logp, old, advantage, sampled, **shared)
        critic, more = losses.value_loss(value, old_value, target, sampled, **shared)
        bonus = losses.entropy_bonus(entropy, sampled, coef=0.01, **shared)
        bonus += losses.kl_loss(logp, ref, sampled, kind="k3", coef=0.1, **shared)
        return policy + critic + bonus, metrics | more

    (loss, metrics), grads = total(*(case[n] for n in names), None)
    cuts = [[case[n].reshape(3, 4, T)[i] for n in names] for i in range(3)]
    assert len({int(cut[-1].sum()) for cut in cuts}) > 1  # equal parts would make a mean of means right
    parts = [total(*cut, whole) for cut in cuts]
    np.testing.assert_allclose(sum(p[0][0] for p in parts), loss, atol=1e-6)
    for key, value in metrics.items():
        np.testing.assert_allclose(sum(p[0][1][key] for p in parts), value, atol=1e-6)
    for i, grad in enumerate(grads):
        pieces = np.concatenate([np.asarray(p[1][i]) for p in parts]).reshape(B, G, T)
        np.testing.assert_allclose(pieces, grad, atol=1e-6)
        assert np.isfinite(grad).all() and not np.asarray(grad)[~case["sampled"]].any()


@pytest.mark.parametrize("mode", losses.AGGREGATIONS)
def test_batch_without_a_sampled_token_is_zero_and_finite(mode: str):
    """A batch whose rows were all masked: 0/0 in a loss turns every weight into NaN."""
    case, nothing = make_case(12), np.zeros((B, G, T), bool)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def total(logp):
        policy, metrics = losses.ppo_policy_loss(logp, case["old"], case["advantage"], nothing, mode=mode, horizon=T)
        return policy + losses.kl_loss(logp, case["ref"], nothing, kind="k3", coef=0.1, mode=mode, horizon=T), metrics

    (loss, metrics), grad = total(case["logp"])
    assert loss == 0 and not np.asarray(grad).any() and all(v == 0 for v in metrics.values())


# ---------------------------------------------------------------------------------------------- gradients, numerics


def test_policy_gradient_matches_finite_differences():
    """A clip whose value is right and whose gradient leaks: clipped tokens must not move, all others must."""
    case = make_case(13)
    sampled, tokens = case["sampled"], case["sampled"].sum()
    fn = lambda x: policy_loss(x, case["old"], case["advantage"], sampled)[0]
    grad = np.asarray(jax.grad(fn)(case["logp"]))
    _, clipped, floored = policy_oracle(case)
    moved = {True: 0, False: 0}
    for b, g, slots in rows(sampled):
        for t in slots:
            up, down = (dict(case, logp=case["logp"].astype(np.float64)) for _ in range(2))
            up["logp"][b, g, t] += 1e-6
            down["logp"][b, g, t] -= 1e-6
            numeric = (policy_oracle(up)[0].sum() - policy_oracle(down)[0].sum()) / 2e-6 / tokens
            np.testing.assert_allclose(grad[b, g, t], numeric, rtol=1e-3, atol=1e-6)
            stopped = bool(clipped[b, g, t] or floored[b, g, t])
            assert (grad[b, g, t] == 0) == stopped
            moved[stopped] += 1
    assert moved[True] and moved[False]


def test_sequence_ratio_gradient_reaches_each_token():
    """GSPO-token: the row's ratio times each token's own advantage, not the row's mean advantage."""
    mask, zero = jnp.ones((1, 2), bool), jnp.zeros((1, 2))
    logp = jnp.array([[0.10, -0.04]])
    fn = lambda x: policy_loss(x, zero, jnp.array([[1.0, 3.0]]), mask, level="sequence")[0]
    close(jax.grad(fn)(logp), -math.exp(0.03) * np.array([[1.0, 3.0]]) / 2)


def test_extreme_log_ratios_stay_finite():
    """exp(200) is infinite in float32, and infinity minus infinity a NaN in the metrics."""
    mask = jnp.ones((1, 2), bool)
    logp, old = jnp.array([[0.0, -200.0]]), jnp.array([[-200.0, 0.0]])
    for advantage in (jnp.array([[1.0, 1.0]]), jnp.array([[-1.0, -1.0]])):
        fn = lambda x, a=advantage: policy_loss(x, old, a, mask, dual_clip=None)
        (loss, metrics), grad = jax.value_and_grad(fn, has_aux=True)(logp)
        assert all(np.isfinite(x).all() for x in (loss, grad, *metrics.values()))
    close(loss, (math.exp(20) + 0.8) / 2)


@pytest.mark.parametrize(
    ("logp", "ref", "pull"),
    [
        (-1.0, -1.5, 1 - math.exp(-0.5)),  # near the reference: k3's own gradient
        (-3.5, -1.0, 1 - math.exp(2.5)),
        (-0.01, -11.1, 1.0),  # k3 is above 10
        (-0.01, -30.0, 1.0),  # the log-ratio is beyond 20 too
        (-11.1, -0.01, 1 - math.exp(kl_.K3_LINE_FROM)),  # without bounds 65,000
        (-90.0, -0.01, 1 - math.exp(kl_.K3_LINE_FROM)),
    ],
)
def test_the_k3_loss_pulls_on_every_token(logp: float, ref: float, pull: float):
    """A bound that is differentiated has no gradient: the tokens that drifted furthest are not pulled back."""
    logp, ref, mask = jnp.full((1, 1), logp), jnp.full((1, 1), ref), jnp.ones((1, 1), bool)
    value, gradient = jax.value_and_grad(lambda x: kl_loss(x, ref, mask, kind="k3", coef=1.0))(logp)
    close(value, kl_.kl_penalty(logp, ref, kind="k3")[0, 0])
    close(gradient, [[pull]])
    close(kl_.kl_penalty(-kl_.K3_LINE_FROM, 0.0, kind="k3"), kl_.MAX_K3)  # no jump in the gradient


def test_a_ratio_that_is_held_still_has_a_gradient():
    """Held below exp(20) by a clip, the token whose probability grew most is the one that is not pushed down."""
    old, advantage, mask = jnp.full((1, 1), -25.0), -jnp.ones((1, 1)), jnp.ones((1, 1), bool)
    fn = lambda x: policy_loss(x, old, advantage, mask, dual_clip=None)[0]
    value, gradient = jax.value_and_grad(fn)(jnp.zeros((1, 1)))
    np.testing.assert_allclose([value, gradient[0, 0]], [math.exp(20)] * 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mode="mean"), "'mean'.*token-mean"),
        (dict(mode="seq-mean-token-sum-norm"), "horizon"),
        (dict(level="word"), "'word'.*token, sequence"),
        (dict(clip_low=0.0), "clip_low"),
        (dict(dual_clip=1.0), "dual_clip"),
    ],
)
def test_losses_refuse_bad_options(options: dict, message: str):
    """A misspelt mode that falls through to a default."""
    x, mask = jnp.zeros((2, 3)), jnp.ones((2, 3), bool)
    with pytest.raises(ValueError, match=message):
        losses.ppo_policy_loss(x, x, x, mask, **options)
    with pytest.raises(ValueError, match="same shape"):
        losses.ppo_policy_loss(x, x, x[0], mask)
    with pytest.raises(ValueError, match="value clip"):
        losses.value_loss(x, x, x, mask, clip=0.0)
