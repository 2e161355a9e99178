"""Advantages and KL against plain Python loops, on data with forced prefixes, holes, padding and empty rows."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithm_cases import B, G, T, close, make_case, rows

from alphaalign_jax import ops
from alphaalign_jax.algorithms import advantages as adv
from alphaalign_jax.algorithms import kl as kl_
from alphaalign_jax.rewards.safety import decision_rewards
from alphaalign_jax.types import BENIGN, HARMFUL

# Jitted once here: op-by-op dispatch would compile every primitive at every shape.
token_rewards = jax.jit(adv.token_rewards)
gae = jax.jit(adv.gae, static_argnames=("gamma", "lam", "whiten"))
grpo = jax.jit(adv.grpo, static_argnames=("std_floor", "precision"))
estimate = jax.jit(adv.estimate_advantages, static_argnames=("name", "gamma", "lam", "std_floor", "anchor"))


def whiten_oracle(x: np.ndarray, sampled: np.ndarray) -> np.ndarray:
    members = [float(v) for v in x[sampled]]
    mean = sum(members) / len(members)
    var = sum((v - mean) ** 2 for v in members) / (len(members) - 1)
    return np.where(sampled, (x - mean) / math.sqrt(var + 1e-8), 0.0)


def gae_oracle(rewards, values, sampled, gamma, lam, bootstrap):
    """Definition, not recursion: A_i = sum_k (gamma lam)^k delta_{i+k} over the row's sampled tokens."""
    raw, target = np.zeros((B, G, T)), np.zeros((B, G, T))
    for b, g, slots in rows(sampled):
        r = [float(rewards[b, g, t]) for t in slots]
        v = [float(values[b, g, t]) for t in slots] + [float(bootstrap[b, g])]
        delta = [r[i] + gamma * v[i + 1] - v[i] for i in range(len(slots))]
        for i, t in enumerate(slots):
            raw[b, g, t] = sum((gamma * lam) ** k * delta[i + k] for k in range(len(slots) - i))
            target[b, g, t] = raw[b, g, t] + v[i]
    return raw, target


# ---------------------------------------------------------------------------------------------- masked reductions


def test_masked_reductions_select_and_never_divide_by_zero():
    """A NaN in padding that survives multiplication by a zero mask; 0/0 of a batch that sampled nothing."""
    x, mask = jnp.array([1.0, jnp.nan, 4.0]), jnp.array([True, False, True])
    close(ops.masked_sum(x, mask), 5.0)
    close(ops.masked_sum(x, mask, denominator=10.0), 0.5)
    close(ops.masked_mean(x, mask), 2.5)
    close(ops.masked_var(x, mask), 4.5)
    none = jnp.zeros(3, bool)
    for result in (
        ops.masked_sum(x, none),
        ops.masked_mean(x, none),
        ops.masked_mean(x, mask, denominator=0),
        ops.masked_var(x, none),
        ops.masked_whiten(x, none),
        ops.explained_variance(x, x, none),
    ):
        np.testing.assert_array_equal(result, np.zeros_like(result))
    gradient = jax.grad(lambda y: ops.masked_mean(y, none) + ops.safe_divide(y[0], y[2] - 4.0))(x)
    assert np.isfinite(gradient[0])


def test_bfloat16_input_is_summed_in_float32():
    """bfloat16 sums stall at 256: 256 + 1 rounds back to 256."""
    close(ops.masked_sum(jnp.ones(2048, jnp.bfloat16), jnp.ones(2048, bool)), 2048.0)


def test_explained_variance_matches_definition():
    """Swapped arguments (variance of the prediction below the line), and a NaN or -1e5 for constant targets."""
    case = make_case(1)
    mask = case["sampled"]
    target, value = case["target"][mask].astype(np.float64), case["value"][mask].astype(np.float64)
    expected = 1 - np.var(target - value, ddof=1) / (np.var(target, ddof=1) + 1e-5)
    close(ops.explained_variance(case["value"], case["target"], mask), expected)
    assert ops.explained_variance(case["value"], np.full_like(case["target"], 0.7), mask) == 0.0


def test_last_true_and_shape_check():
    """Length minus one is not the last sampled slot where a row ends in a hole; broadcasting hides a lost axis."""
    mask = np.array([[0, 1, 1, 0, 1, 0], [0] * 6, [1] * 6], bool)
    expected = np.array([[0, 0, 0, 0, 1, 0], [0] * 6, [0, 0, 0, 0, 0, 1]], bool)
    np.testing.assert_array_equal(ops.last_true(mask), expected)
    with pytest.raises(ValueError, match=r"a \(2, 3\), b \(3,\)"):
        ops.require_same_shape(a=np.zeros((2, 3)), b=np.zeros(3), c=None)


# ---------------------------------------------------------------------------------------------- rewards and slots


def test_reward_lands_on_last_sampled_token():
    """The reward of an empty response on padding; 0.7 truncated to 0 by an integer buffer; KL charged on padding."""
    case = make_case(2)
    kl = case["logp"] - case["ref"]
    rewards, unrewarded = token_rewards(case["reward"], case["sampled"], kl=kl, kl_coef=0.1)
    expected = np.zeros((B, G, T))
    for b, g, slots in rows(case["sampled"]):
        assert bool(unrewarded[b, g]) == (not slots)
        for t in slots:
            expected[b, g, t] = -0.1 * kl[b, g, t] + (case["reward"][b, g] if t == slots[-1] else 0.0)
    close(rewards, expected)
    assert rewards.dtype == jnp.float32 and int(unrewarded.sum()) == 1
    with pytest.raises(ValueError, match="int"):
        adv.token_rewards(np.ones((B, G), np.int32), case["sampled"])
    with pytest.raises(ValueError, match="one a response"):
        adv.token_rewards(case["reward"][0], case["sampled"])


def test_trained_slots_by_truncation():
    """An unscorable (NaN) reward trained as 0; a masked truncated row that still moves its group's baseline."""
    case = make_case(3)
    reward, truncated = case["reward"].copy(), np.zeros((B, G), bool)
    reward[0, 0], truncated[2, 3] = np.nan, True
    for mode, dropped in (("terminal", [(0, 0)]), ("bootstrap", [(0, 0)]), ("mask", [(0, 0), (2, 3)])):
        slots = np.asarray(adv.trained_slots(case["sampled"], reward=reward, truncated=truncated, truncation=mode))
        for b, g, sampled in rows(case["sampled"]):
            kept = [] if (b, g) in dropped else sampled
            assert np.flatnonzero(slots[b, g]).tolist() == kept
    rewards, _ = token_rewards(reward, slots)
    result = np.asarray(grpo(rewards, slots).advantage)
    assert np.isfinite(result).all()
    valid = np.array([reward[2, g] for g in range(3)], np.float64)  # row 3 of the group is masked
    close(result[2, 0, -1], (valid[0] - valid.mean()) / valid.std(ddof=1))
    with pytest.raises(ValueError, match="terminal, bootstrap, mask"):
        adv.trained_slots(case["sampled"], reward=reward, truncated=truncated, truncation="drop")


# ---------------------------------------------------------------------------------------------- advantages


def test_gae_reference_values():
    """The unsampled slot's value .9 leaking into the last delta; a biased variance in whitening."""
    rewards, values = jnp.array([[[0.0, 0, 1, 0]]]), jnp.array([[[0.5, 0.6, 0.7, 0.9]]])
    sampled = jnp.array([[[True, True, True, False]]])
    close(gae(rewards, values, sampled, lam=0.95, whiten=False).advantage[0, 0], [0.46575, 0.385, 0.3, 0])
    close(gae(rewards, values, sampled, lam=1.0, whiten=False).advantage[0, 0], [0.5, 0.4, 0.3, 0])
    whitened, target = gae(rewards, values, sampled, lam=0.95)
    np.testing.assert_allclose(whitened[0, 0], [0.99134, 0.01709, -1.00844, 0], atol=6e-6)
    close(target[0, 0], [0.96575, 0.985, 1.0, 0])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.8)])
def test_gae_matches_loops_over_sampled_tokens(gamma: float, lam: float):
    """A hole or forced prefix that resets the carries, or is discounted as if it were a step."""
    case = make_case(4)
    truncated = np.random.default_rng(0).random((B, G)) < 0.5
    tail = np.asarray(adv.bootstrap_value(case["value"], case["sampled"], truncated))
    for b, g, slots in rows(case["sampled"]):
        assert tail[b, g] == (case["value"][b, g, slots[-1]] if slots and truncated[b, g] else 0.0)
    rewards = np.random.default_rng(1).normal(size=(B, G, T))
    args = (rewards, case["value"], case["sampled"])
    raw, target = gae_oracle(*args, gamma, lam, tail)
    result = gae(*args, gamma=gamma, lam=lam, bootstrap=tail)
    close(result.target, target)
    close(result.advantage, whiten_oracle(raw, case["sampled"]), atol=1e-5)
    close(gae(*args, gamma=gamma, lam=lam, bootstrap=tail, whiten=False).advantage, raw)
    assert not np.asarray(result.advantage)[~case["sampled"]].any()
    assert not np.asarray(result.target)[~case["sampled"]].any()


ANCHORS = np.array([[2.0, -1.0], [0.25, 0.5], [-3.0, 0.5]], np.float32)  # [B, 2], of anchored


def outcome_oracle(name: str, reward: np.ndarray, sampled: np.ndarray, gamma: float = 1.0) -> np.ndarray:
    out = np.zeros((B, G, T))
    everyone = [float(reward[b, g]) for b, g, slots in rows(sampled) if slots]
    for b, g, slots in rows(sampled):
        group = [float(reward[b, i]) for i in range(G) if sampled[b, i].any()]
        mean = sum(group) / len(group)
        r = float(reward[b, g])
        for i, t in enumerate(slots):
            if name == "grpo":
                out[b, g, t] = (r - mean) / math.sqrt(sum((x - mean) ** 2 for x in group) / (len(group) - 1))
            elif name == "dr_grpo":
                out[b, g, t] = r - mean
            elif name == "rloo":
                out[b, g, t] = r - (sum(group) - r) / (len(group) - 1)
            elif name == "anchored":
                pairs = 2.5 * (ANCHORS[b][0] + ANCHORS[b][1])
                out[b, g, t] = r - (sum(group) + pairs) / (len(group) + 2 * 2.5)
            elif name == "reinforce_batch":
                out[b, g, t] = r - sum(everyone) / len(everyone)
            else:
                out[b, g, t] = gamma ** (len(slots) - 1 - i) * r
    return whiten_oracle(out, sampled) if name == "reinforce_plus_plus" else out


@pytest.mark.parametrize("name", [name for name, row in adv.ADVANTAGES.items() if not row.critic])
def test_outcome_advantages_match_loops(name: str):
    """The empty response counted in its group as a reward of 0; statistics over slots instead of responses."""
    case = make_case(5)
    gamma = 0.9 if "gamma" in adv.ADVANTAGES[name].options else 1.0
    rewards, _ = token_rewards(case["reward"], case["sampled"])
    anchors = {"anchors": ANCHORS, "anchor": 2.5} if name == "anchored" else {}
    result = estimate(name, rewards=rewards, sampled=case["sampled"], gamma=gamma, **anchors)
    expected = outcome_oracle(name, case["reward"], case["sampled"], gamma)
    close(result.advantage, expected, atol=1e-5)
    assert not np.asarray(result.target)[~case["sampled"]].any()


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "reinforce_batch", "reinforce_plus_plus"])
def test_no_spread_is_exactly_zero(name: str):
    """Equal rewards whose rounded mean differs from them: 1e-8 of noise over a tiny std trains like a difference."""
    sampled = np.ones((B, 7, T), bool)
    sampled[:, 3] = False
    for reward in np.random.default_rng(14).normal(size=20):  # many, since some means round back to the value
        rewards, _ = token_rewards(np.full((B, 7), reward, np.float32), sampled)
        assert not np.asarray(estimate(name, rewards=rewards, sampled=sampled).advantage).any()


def test_a_group_that_agrees_on_the_wrong_decision_is_pushed_back():
    """With the group alone as its baseline, a policy that refuses every prompt has no gradient, and stays there."""
    sampled = np.ones((2, 8, 1), bool)
    anchors = decision_rewards(np.array([HARMFUL, BENIGN]), r_f=0.5, r_a=1.0)
    close(anchors, [[1.5, 0.5], [-0.5, 0.5]])
    refusing = np.repeat(np.asarray(anchors)[:, :1], 8, 1)  # all eight refuse, both prompts
    found = estimate("anchored", rewards=refusing[..., None], sampled=sampled, anchors=anchors, anchor=4.0).advantage
    close(found[:, :, 0], np.repeat([[0.25], [-0.25]], 8, 1))
    assert not np.asarray(adv.dr_grpo(refusing[..., None], sampled).advantage).any()
    with pytest.raises(ValueError, match=r"anchors must be \(2, 2\).*got None"):
        adv.estimate_advantages("anchored", rewards=refusing[..., None], sampled=sampled)
    with pytest.raises(ValueError, match="anchor must be positive, got 0"):
        adv.anchored(refusing[..., None], sampled, anchors=anchors, anchor=0)


@pytest.mark.parametrize("rate", [0.2, 0.8])
def test_no_label_pushes_the_rate_of_refusals_off(rate: float):
    """With more benign refusals than harmful ones by chance, a step lowers a rate of refusals that is low already."""
    rng = np.random.default_rng(8)
    valid = rng.random((20, 8)) < 0.9
    harmful = np.array([True, False] * 10)
    # The label that pushes away from a half disagrees in its groups more often.
    often = np.where(harmful == (rate > 0.5), rate, np.round(rate) * 0.8 + 0.1)
    refusal = rng.random((20, 8)) < often[:, None]
    gained = np.where(harmful[:, None], 1.0, -1.0) * refusal

    def pushes(advantage: np.ndarray) -> np.ndarray:
        share = (refusal * valid).sum(1) / valid.sum(1)
        push = (advantage * (refusal - share[:, None]) * valid).sum(1)
        return np.array([push[harmful].sum(), push[~harmful].sum()])

    factors = np.asarray(jax.jit(adv.balanced_labels)(gained, refusal, valid, harmful))
    before, after = pushes(gained), pushes(gained * factors[:, None])
    held, free = (0, 1) if rate > 0.5 else (1, 0)
    assert abs(before[held]) > abs(before[free]) > 0, "it is not pushed off: the test shows nothing"
    close(after, np.where(np.arange(2) == free, before, -before[free]), atol=1e-5)
    # The label that pushes the right way is never held back, even if the other does not push at all.
    alone = refusal & (harmful == (rate < 0.5))[:, None]
    if rate < 0.5:
        close(adv.balanced_labels(1.0 * alone, alone, valid, harmful), np.ones(20))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("base", [0.7, 13.0, 1e5])
def test_a_rounding_error_earns_no_advantage(base: float, dtype: str):
    """Seven equal rewards and one an ulp away give z = 2.5, above the std's floor too where rewards are large; a real
    spread is not damped."""
    sampled, reward = np.ones((1, 8, 1), bool), np.full((1, 8), base).astype(dtype)
    reward[0, 0] = np.nextafter(reward[0, 0], reward.dtype.type(np.inf))
    advantages = lambda x: np.asarray(
        grpo(token_rewards(x.astype(np.float32), sampled)[0], sampled, precision=ops.precision_of(dtype)).advantage
    )
    assert not advantages(reward).any()
    reward = np.full((1, 8), base, np.float32)
    reward[0, 0] += abs(base)
    close(advantages(reward)[0, 0, 0], 0.875 / math.sqrt(0.875 / 7))


@pytest.mark.parametrize("name", ["gae", "grpo", "dr_grpo", "rloo", "reinforce_batch", "reinforce_plus_plus"])
def test_large_rewards_keep_their_spread(name: str):
    """The square of 1e19 overflows float32, and whatever is divided by an infinite std is 0: nothing is learned."""
    rng, sampled = np.random.default_rng(15), np.ones((B, G, 1), bool)
    reward = rng.normal(size=(B, G)).astype(np.float32)
    values = {"values": np.zeros((B, G, 1), np.float32)} if name == "gae" else {}
    advantages = lambda scale: np.asarray(
        estimate(name, rewards=token_rewards(scale * reward, sampled)[0], sampled=sampled, **values).advantage
    )
    scale = np.float32(2.0**66)
    grown = 1.0 if name in ("gae", "grpo", "reinforce_plus_plus") else scale
    assert np.abs(advantages(np.float32(1))).max() > 0.5
    np.testing.assert_allclose(advantages(scale) / grown, advantages(np.float32(1)), rtol=1e-5)


def test_explained_variance_of_large_targets():
    """An infinite variance below the line makes any critic perfect."""
    case = make_case(16)
    value, target = (case[key] * np.float32(1e20) for key in ("value", "target"))
    expected = ops.explained_variance(case["value"], case["target"], case["sampled"])
    close(ops.explained_variance(value, target, case["sampled"]), expected, atol=1e-4)


def test_whitening_a_lone_token_and_an_empty_batch_is_zero():
    """Bessel's n - 1 is 0 for one token: infinite or NaN advantages on a nearly empty batch."""
    values = np.full((B, G, T), 0.3, np.float32)
    rewards, sampled = np.zeros((B, G, T), np.float32), np.zeros((B, G, T), bool)
    for _ in range(2):
        result = gae(rewards, values, sampled)
        assert not np.asarray(result.advantage).any()
        sampled[0, 0, 4], rewards[0, 0, 4] = True, 1.0
    close(gae(rewards, values, sampled).target[0, 0, 4], 1.0)


def test_registry_refuses_what_it_would_ignore():
    """A discount, a bootstrap or a critic that the chosen estimator never reads; a group of one that trains nothing."""
    ones, mask = np.ones((B, G, T), np.float32), np.ones((B, G, T), bool)
    call = partial(adv.estimate_advantages, rewards=ones, sampled=mask)
    with pytest.raises(ValueError, match=f"'gea'.*{', '.join(adv.ADVANTAGES)}"):
        call("gea")
    with pytest.raises(ValueError, match="needs values"):
        call("gae")
    with pytest.raises(ValueError, match="no critic"):
        call("grpo", bootstrap=ones[..., 0])
    with pytest.raises(ValueError, match="does not discount"):
        call("rloo", gamma=0.9)
    with pytest.raises(ValueError, match="at least 2 rollouts"):
        adv.grpo(ones[:, :1], mask[:, :1])
    with pytest.raises(ValueError, match="std_floor"):
        call("grpo", std_floor=0.0)
    with pytest.raises(ValueError, match="same shape"):
        adv.gae(ones, ones[..., 0], mask)
    direct = gae(ones, ones, mask, gamma=0.9, lam=0.8)
    routed = estimate("gae", rewards=ones, sampled=mask, values=ones, gamma=0.9, lam=0.8)
    np.testing.assert_array_equal(routed.advantage, direct.advantage)


# ---------------------------------------------------------------------------------------------- KL


def test_kl_reference_values_and_loops():
    """A sign slip (k1, k3 of the wrong direction); k3 overflowing where the policy left the reference far behind."""
    for kind, expected in (("k1", 0.5), ("k2", 0.125), ("k3", 0.106531)):
        result = kl_.kl_penalty(jnp.array([-1.0]), jnp.array([-1.5]), kind=kind)
        np.testing.assert_allclose(result, [expected], atol=5e-7)
    rng = np.random.default_rng(6)
    logp, ref = rng.normal(size=(2, 4, 5)), rng.normal(size=(2, 4, 5))
    logp[0, 0, 0] -= 90.0
    oracle = {
        "k1": lambda p, q: p - q,
        "k2": lambda p, q: (p - q) ** 2 / 2,
        "k3": lambda p, q: min(math.exp(min(q - p, 20.0)) - min(q - p, 20.0) - 1, 10.0),
    }
    for kind in kl_.KL_KINDS:
        expected = [[[oracle[kind](p, q) for p, q in zip(*rs)] for rs in zip(*gs)] for gs in zip(logp, ref)]
        close(kl_.kl_penalty(logp.astype(np.float32), ref.astype(np.float32), kind=kind), expected)
    with pytest.raises(ValueError, match="'k4'.*k1, k2, k3"):
        kl_.kl_penalty(logp, ref, kind="k4")


def test_kl_controllers():
    """A controller that overshoots its clip, moves the wrong way, or flips the coefficient's sign on a long batch."""
    update = partial(kl_.update_kl_coef, controller="adaptive", target=0.1, horizon=100, n_steps=10)
    close(update(0.2, 0.11), 0.2 * (1 + 0.1 * 0.1))
    close(update(0.2, 5.0), 0.2 * (1 + 0.2 * 0.1))
    close(jax.jit(update)(0.2, 0.0), 0.2 * (1 - 0.2 * 0.1))
    close(kl_.update_kl_coef(0.2, 5.0, controller="fixed"), 0.2)
    with pytest.raises(ValueError, match="too short"):
        update(0.2, 0.0, horizon=2)
    with pytest.raises(ValueError, match="positive target"):
        update(0.2, 0.0, target=None)
    with pytest.raises(ValueError, match="fixed, adaptive"):
        update(0.2, 0.0, controller="pid")
