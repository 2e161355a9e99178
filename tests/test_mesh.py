"""Every mesh gives the same answer, and a mesh that cannot work says so before anything is compiled."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphaalign_jax import config as config_lib
from alphaalign_jax.models import ModelSpec, Network
from alphaalign_jax.models.distribution import Sampling
from alphaalign_jax.parallel import Layout, build_mesh, constrain, rule_table, to_host
from alphaalign_jax.rewards.verifiers import Verifiers
from alphaalign_jax.rollout.engine import Engine, InFlight, place
from alphaalign_jax.train.steps import Steps
from alphaalign_jax.types import Prompts

VOCAB = 64
SPEC = ModelSpec("qwen3", VOCAB, 32, 64, 2, 8, 2, 8, 1e-6, 1e4, None, 256, False, False, False, True, False)
STOP = 5
B, G, T = 16, 2, 8
MESHES = {
    "tensor 2": dict(tensor=2, fsdp=1),
    "fsdp 8": dict(fsdp=8),
    "fsdp 4 x tensor 2": dict(fsdp=4, tensor=2),
    "data 2 x fsdp 2 x tensor 2": dict(data=2, fsdp=2, tensor=2),
    "sequence, fsdp 2 x tensor 2": dict(fsdp=2, tensor=2),
    "fsdp_rollout, fsdp 2 x tensor 2": dict(fsdp=2, tensor=2),
}


def settings():
    c = config_lib.defaults()
    c.model.path = "none"
    c.rollout.prompts, c.rollout.group, c.rollout.max_new_tokens = B, G, T
    c.reward.helpfulness = "off"
    c.algorithm.minibatches, c.algorithm.micro_batch = 1, 1  # a prompt a shard: other slices on other meshes
    c.algorithm.ratio, c.algorithm.sampler_cap = "sequence", 2.0
    c.algorithm.kl_loss, c.algorithm.entropy_coef, c.algorithm.kl_in_reward = 0.1, 0.01, 0.05
    # Large steps: a gradient that one mesh loses must show in the weights. The large eps keeps Adam's first step from
    # being the gradient's bare sign, where a rounding error of a near-zero gradient would count in full.
    c.optimizer.learning_rate = c.critic.optimizer.learning_rate = 1e-2
    c.optimizer.eps = c.critic.optimizer.eps = 1e-3
    return config_lib.resolve(c)


def layout(rules, devices=None, **sizes):
    return Layout(build_mesh(**sizes, devices=devices), rule_table(rules))


@functools.cache
def one_step(name):
    """Tokens, metrics and weights after a whole PPO step on a mesh."""
    sizes = dict(MESHES.get(name, dict(fsdp=1)))
    devices = jax.devices()[: math.prod(sizes.values())]
    rules = name.partition(",")[0] if "," in name else "fsdp_tensor"
    train, rollout_layout = layout(rules, devices, **sizes), layout("tensor", devices, **sizes)
    c = settings()
    actor, critic = Network(SPEC, remat="full"), Network(SPEC, head="value", remat="full")
    steps = Steps(c, actor, critic, train)
    table = [bytes([i + 40]) for i in range(VOCAB)]
    engine = Engine(
        actor, rollout_layout, Verifiers.build(table, [STOP]), (STOP,), in_flight=InFlight(cache=2, fewest_rows=1)
    )
    init = lambda network: jax.tree.map(lambda x: 4 * x, network.init(jax.random.key(0)))
    put = lambda network: jax.device_put(init(network), train.tree_shardings(network.axes))
    state = steps.init_state(put(actor), put(critic))
    rng = np.random.default_rng(0)
    prompts = Prompts(
        prefix=rng.integers(0, VOCAB, 5).astype(np.int32),
        tokens=rng.integers(0, VOCAB, (B, 6)).astype(np.int32),
        length=rng.integers(1, 7, B).astype(np.int32),
        label=rng.integers(0, 2, B).astype(np.int32),
        row=np.arange(B, dtype=np.int32),
    )
    sampling = Sampling.create()
    # Rows that end early, so that rows are dropped and the cache grows on the mesh too.
    sizes = dict(group=G, slots=T, limit=np.random.default_rng(1).integers(1, T + 1, (B, G)).astype(np.int32))
    rollout = engine.rollout(engine.prepare(state.actor), prompts, jax.random.key(1), sampling, **sizes)
    assert engine._drop._cache_size() and engine._longer._cache_size(), "neither was tried"
    assert rollout.tokens.sharding.is_equivalent_to(rollout_layout.sharding("batch", None, None), 3)
    verdict = engine.judge(rollout)
    # Random verdicts: made-up tokens never pass the verifiers, and equal rewards would train nothing.
    flip = rng.integers(0, 2, (B, G)).astype(bool)
    verdict = verdict.replace(format=flip, refusal=~flip)
    placed = place(prompts, train)
    scored = steps.score(state, placed, rollout.tokens, rollout.sampled, sampling, policy=True)
    unknown = np.full((B, G), np.nan, np.float32)
    batch, scores, metrics, _ = steps.assemble(state.kl_coef, placed, rollout, verdict, unknown, scored)
    index = np.arange(B, dtype=np.int32)[None]
    (value_weights, _), critic_metrics = steps.update_critic((state.critic, state.critic_opt), batch, index)
    (weights, _), actor_metrics = steps.update_actor((state.actor, state.actor_opt), batch, index, sampling)
    host = to_host(dict(tokens=rollout.tokens, weights=weights, critic=value_weights))
    return host, to_host(metrics | critic_metrics | actor_metrics), jax.tree.leaves(weights)


# One axis at a time takes minutes to compile, and is part of the two others.
CASES = [pytest.param(name, marks=[] if " x " in name else pytest.mark.slow) for name in MESHES]


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_the_same_on_every_mesh(name):
    """Sharding must not change samples, losses or weights: a mean of means, or noise that follows the mesh, would."""
    alone, metrics_alone, _ = one_step("one device")
    many, metrics, _ = one_step(name)
    assert np.array_equal(alone["tokens"], many["tokens"])
    for key, value in metrics_alone.items():
        if key.startswith("rollout/logprob_gap"):  # rounding and nothing else, on either side
            assert max(metrics[key], value) < 1e-4
            continue
        np.testing.assert_allclose(metrics[key], value, rtol=2e-4, atol=2e-5, err_msg=key)
    for part in ("weights", "critic"):
        for a, b in zip(jax.tree.leaves(alone[part]), jax.tree.leaves(many[part]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_weights_really_are_cut(name):
    """Sharding that is a no-op on CPU would pass every comparison: large weights must lie in pieces."""
    leaves = one_step(name)[2]
    largest = max(leaves, key=lambda x: x.size)
    pieces = {str(shard.index) for shard in largest.addressable_shards}
    cut = np.prod([size for axis, size in MESHES[name].items() if axis != "data"])
    assert len(pieces) == cut


def test_the_step_learns():
    """What is compared above is not a step that did nothing."""
    _, metrics, _ = one_step("one device")
    assert metrics["actor/grad_norm"] > 1e-3 and metrics["critic/grad_norm"] > 1e-3
    assert metrics["rollout/logprob_gap/max"] < 1e-4


def test_a_mesh_that_does_not_fit_says_so():
    for sizes, words in (
        (dict(data=3, fsdp=1), "takes 3 devices, but there are 8"),
        (dict(data=-1, fsdp=-1), "at most one may be -1"),
        (dict(data=-1, fsdp=1, tensor=3), "8 devices do not divide by 3"),
        (dict(fsdp=0), "sizes are positive"),
    ):
        with pytest.raises(ValueError, match=words):
            build_mesh(**sizes)


def test_axes_that_do_not_divide_are_refused_before_compiling():
    """Silently replicated, a batch or a weight would cost memory that nobody planned."""
    eight = layout("fsdp_tensor", tensor=8, fsdp=1)
    with pytest.raises(ValueError, match="'kv_heads' of size 2 does not divide over mesh axes {'tensor': 8}"):
        Steps(settings(), Network(SPEC), Network(SPEC, head="value"), eight)
    c = settings()
    c = dataclasses.replace(c, rollout=dataclasses.replace(c.rollout, prompts=12))
    with pytest.raises(ValueError, match="rollout.prompts.*size 12 does not divide"):
        Steps(c, Network(SPEC), Network(SPEC, head="value"), layout("fsdp_tensor", fsdp=8))


def test_rule_tables_reject_collisions_and_strangers():
    collide = Layout(build_mesh(fsdp=8), rule_table("tensor", [("batch", "data"), ("mlp", "fsdp"), ("embed", "fsdp")]))
    with pytest.raises(ValueError, match="'embed' and 'mlp' are both laid over mesh axis 'fsdp'"):
        collide.spec(("embed", "mlp"))
    with pytest.raises(ValueError, match="'batch' and 'act_embed' are both laid over mesh axis 'fsdp'"):
        Layout(build_mesh(fsdp=8), rule_table("fsdp_tensor", [("act_embed", "fsdp")]))
    with pytest.raises(ValueError, match="not a logical axis"):
        rule_table("tensor", [("mpl", "fsdp")])
    with pytest.raises(ValueError, match="no axis 'expert'"):
        Layout(build_mesh(fsdp=8), rule_table("tensor", [("mlp", "expert")]))
    with pytest.raises(ValueError, match="known: fsdp_tensor, fsdp_rollout, sequence, tensor"):
        rule_table("zero3")
    with pytest.raises(ValueError, match="shard 'act_length' instead"):
        rule_table("tensor", [("length", "tensor")])


def test_constrain_outside_a_layout_is_the_identity():
    x = jnp.ones((2, 3))
    assert constrain(x, "vocab", None) is x
    with pytest.raises(ValueError, match="not among ACTIVATIONS"):
        constrain(x, "batch", "embed")


def described(name, **options):
    pytest.importorskip("libtpu", reason="it describes TPUs; it comes with the test extra on Linux")
    return jax.experimental.topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices


def test_only_the_data_axis_goes_across_slices():
    """Weights gathered over the network between slices, at every layer."""
    devices = described("v5e:2x2", num_slices=2)
    mesh = build_mesh(data=2, fsdp=2, tensor=2, devices=devices)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert len(set(slices[0].flat)) == len(set(slices[1].flat)) == 1 and slices[0, 0, 0] != slices[1, 0, 0]
    with pytest.raises(ValueError, match="are 2 slices, which only the data axis may go across"):
        build_mesh(fsdp=4, tensor=2, devices=devices)


def test_an_axis_may_take_part_of_a_side_of_the_chips():
    """16 x 4 on 8 x 8 chips: a mesh that is refused once the pod is up."""
    mesh = build_mesh(fsdp=16, tensor=4, devices=described("v5e:8x8"))
    places = np.array([[device.coords for device in row] for row in mesh.devices[0]])
    # Those that share heads are neighbours: within 4 x 1 or 2 x 2 chips.
    assert np.ptp(places, axis=1).sum(-1).max() <= 3
