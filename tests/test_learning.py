"""The whole of reinforcement learning in miniature: a policy that must read its prompt to know what pays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alphaalign_jax import config as config_lib
from alphaalign_jax.models import ModelSpec, Network
from alphaalign_jax.models.distribution import Sampling
from alphaalign_jax.parallel import Layout, build_mesh, rule_table
from alphaalign_jax.rewards.verifiers import Verifiers
from alphaalign_jax.rollout.engine import Engine, InFlight, place
from alphaalign_jax.train import objectives, optimizer
from alphaalign_jax.train.steps import Steps
from alphaalign_jax.types import Prompts, TrainBatch

VOCAB, STOP, HARM = 32, 31, 7
B, G, T, STEPS = 16, 16, 1, 60
SPEC = ModelSpec("qwen2", VOCAB, 32, 64, 2, 4, 2, 8, 1e-6, 1e4, None, 64, True, False, False, False, True)


def settings(advantage):
    c = config_lib.defaults()
    c.model.path = "none"
    c.rollout.prompts, c.rollout.group, c.rollout.max_new_tokens = B, G, T
    c.reward.helpfulness = "off"
    c.algorithm.advantage, c.algorithm.reference = advantage, False
    c.algorithm.old_logprob = "trainer" if advantage == "gae" else "sampler"
    c.algorithm.minibatches = 2
    c.optimizer.learning_rate = 3e-3
    c.critic.optimizer.learning_rate = 3e-3
    return config_lib.resolve(c)


def batch(step):
    """Harmful prompts hold token HARM somewhere; nothing else tells the labels apart."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(8, VOCAB, (B, 5)).astype(np.int32)
    label = np.arange(B) % 2
    tokens[label == 1, rng.integers(0, 5, B // 2)] = HARM
    return Prompts(
        np.array([1, 2], np.int32),
        tokens,
        np.full(B, 5, np.int32),
        label.astype(np.int32),
        np.arange(B, dtype=np.int32),
    )


@pytest.mark.parametrize("advantage", ["gae", "grpo", "anchored"])
def test_the_policy_learns_whom_to_refuse(advantage):
    """A sign, a shifted log-prob, an advantage on the wrong row or a stale weight in the sampler: each passes tests of
    its part, and none of them learns. A first token below 16 stands for a refusal."""
    layout = Layout(build_mesh(devices=jax.devices()[:1], fsdp=1), rule_table("fsdp_tensor"))
    actor = Network(SPEC, remat="none")
    critic = Network(SPEC, head="value", remat="none") if advantage == "gae" else None
    steps = Steps(settings(advantage), actor, critic, layout)
    engine = Engine(
        actor,
        layout,
        Verifiers.build([bytes([i + 40]) for i in range(VOCAB)], [STOP]),
        (STOP,),
        in_flight=InFlight(0, 0),
    )
    init = lambda network, seed: jax.device_put(network.init(jax.random.key(seed)), layout.tree_shardings(network.axes))
    state = steps.init_state(init(actor, 0), init(critic, 1) if critic else None)
    sampling, unknown, right = Sampling.create(), np.full((B, G), np.nan, np.float32), []
    for step in range(STEPS):
        prompts = batch(step)
        key = jax.random.fold_in(jax.random.key(2), step)
        rollout = engine.rollout(engine.prepare(state.actor), prompts, key, sampling, group=G, slots=T)
        refusal = rollout.tokens[..., 0] < 16
        verdict = engine.judge(rollout).replace(refusal=refusal, format=jnp.ones_like(refusal))
        right.append(float(jnp.mean(refusal == (prompts.label[:, None] == 1))))
        placed = place(prompts, layout)
        scored = {}  # GRPO on the sampler's own log-probs needs no scoring pass
        if critic is not None:
            scored = steps.score(state, placed, rollout.tokens, rollout.sampled, sampling, policy=True)
        rows, _, metrics, _ = steps.assemble(state.kl_coef, placed, rollout, verdict, unknown, scored)
        assert critic is None or metrics["rollout/logprob_gap/max"] < 1e-4
        weights, values = (state.actor, state.actor_opt), (state.critic, state.critic_opt)
        halves = np.random.default_rng(step).permutation(B).astype(np.int32).reshape(2, -1)
        if critic is not None:
            values, _ = steps.update_critic(values, rows, halves)
        weights, _ = steps.update_actor(weights, rows, halves, sampling)
        state = state.replace(actor=weights[0], actor_opt=weights[1], critic=values[0], critic_opt=values[1])
    assert np.mean(right[:3]) < 0.65, "it knew from the start: the test shows nothing"
    # The best stretch of five steps, not the last: once all answers are right, whitening blows up what noise is left.
    assert np.convolve(right, np.ones(5) / 5, "valid").max() > 0.85, right


def test_the_learning_rate_rises_stays_and_falls():
    """A first or last update at rate 0 is a step thrown away; a fall that starts late ends on a jump."""
    settings = config_lib.Optimizer(learning_rate=2.0, warmup_steps=4, decay=0.5)
    rates = [float(optimizer.schedule(settings, 12)(n)) for n in range(12)]
    np.testing.assert_allclose(rates, [0.5, 1, 1.5, 2, 2, 2, 2, 10 / 6, 8 / 6, 1, 4 / 6, 2 / 6])
    flat = dataclasses.replace(settings, warmup_steps=0, decay=0.0)
    assert {float(optimizer.schedule(flat, 12)(n)) for n in (0, 11, 50)} == {2.0}


def test_a_place_on_the_schedule_sets_the_size_of_updates_and_nothing_else():
    """A smaller rate that is shown and not taken; or a step back that also forgets what Adam's moments are of."""
    settings = config_lib.Optimizer(learning_rate=0.5, decay=1.0, clip_norm=0.0)
    tx, params = optimizer.build(settings, 10), {"w": jnp.arange(1.0, 4.0)}
    gradient, state = {"w": jnp.array([0.3, -2.0, 1e-3])}, tx.init(params)
    adamw = optax.adamw(optimizer.schedule(settings, 10), weight_decay=settings.weight_decay)
    expected, reference = params, adamw.init(params)
    for _ in range(2):
        update, reference = adamw.update(gradient, reference, expected)
        expected = optax.apply_updates(expected, update)
        update, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, update)
        assert np.array_equal(params["w"], expected["w"])
    place = optimizer.Scheduled(jnp.int32(6), jnp.float32(0.5))
    moved = optimizer.reschedule(state, place)
    assert optimizer.updates_made(moved) == 2 and optimizer.scheduled(moved) == place
    rates = [float(optimizer.learning_rate(settings, 10, each)) for each in (state, moved)]
    np.testing.assert_allclose(rates, [0.5 * 0.8, 0.5 * 0.4 * 0.5])
    here, there = (tx.update(gradient, each, params)[0]["w"] for each in (state, moved))
    np.testing.assert_allclose(there / here, rates[1] / rates[0], rtol=1e-6)


def test_the_actors_schedule_leaves_out_the_critics_warm_up():
    """Counted in, the actor's rate would still be high when the run ends."""
    c = config_lib.defaults()
    c.model.path, c.steps, c.reward.helpfulness = "none", 6, "off"
    c.algorithm.critic_warmup, c.algorithm.minibatches, c.algorithm.epochs = 2, 2, 3
    layout = Layout(build_mesh(devices=jax.devices()[:1], fsdp=1), rule_table("fsdp_tensor"))
    steps = Steps(config_lib.resolve(c), Network(SPEC), Network(SPEC, head="value"), layout)
    assert steps.updates == {"actor": (6 - 2) * 2 * 3, "critic": 6 * 2 * 3}


def test_an_optimizer_step_moves_the_policy_no_further_than_allowed():
    """At a learning rate that is far too high one step turns the policy round; the limit shortens it, whatever the
    slices, and a limit that is not reached changes nothing."""
    layout = Layout(build_mesh(devices=jax.devices()[:1], fsdp=1), rule_table("fsdp_tensor"))
    actor, sampling = Network(SPEC, remat="none"), Sampling.create()
    start = actor.init(jax.random.key(0))
    rng, prompts = np.random.default_rng(3), place(batch(0), layout)
    tokens = rng.integers(0, VOCAB, (B, G, T)).astype(np.int32)
    logp = jax.jit(lambda params: objectives.policy_logprobs(actor, params, prompts, tokens, sampling, chunk=1)[0])
    old, row = logp(start), np.zeros((B, G, T), np.float32)
    advantage = rng.normal(size=(B, G, T)).astype(np.float32)
    known = TrainBatch(prompts, tokens, np.ones((B, G, T), bool), old, row, row, row + 1, advantage, row)

    def moved(max_kl: float, micro_batch: int = 0) -> tuple[float, dict]:
        c = settings("grpo")
        algorithm = dataclasses.replace(c.algorithm, max_kl=max_kl, micro_batch=micro_batch, minibatches=1)
        fast = dataclasses.replace(c.optimizer, learning_rate=0.001)
        steps = Steps(dataclasses.replace(c, algorithm=algorithm, optimizer=fast), actor, None, layout)
        state = steps.init_state(jax.tree.map(jnp.copy, start), None)
        index = np.arange(B)[None]
        (after, _), metrics = steps.update_actor((state.actor, state.actor_opt), known, index, sampling)
        change = logp(after) - old
        return float(jnp.sum(change**2) / (2 * B * G)), {name: float(x[0]) for name, x in metrics.items()}

    free, _ = moved(0.0)
    unreached, metrics = moved(100.0)
    assert unreached == free > 0
    assert metrics["actor/step_scale"] == 1 and metrics["actor/step_kl"] == pytest.approx(free, rel=1e-4)
    limit = free / 4
    limited, metrics = moved(limit)
    assert metrics["actor/step_scale"] == pytest.approx(0.5, rel=1e-4)
    assert 0.5 < limited / limit < 1.6, "the KL of the shortened step is the limit, to second order"
    assert moved(limit, micro_batch=4)[0] == pytest.approx(limited, rel=1e-3)
