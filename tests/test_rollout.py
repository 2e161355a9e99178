"""The sampler against the trainer's forward, and its promises about stopping, forcing and keys."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphaalign_jax.models import ModelSpec, Network
from alphaalign_jax.models.context import response_states
from alphaalign_jax.models.distribution import Sampling, scaled_logits, token_logprobs
from alphaalign_jax.parallel import Layout, build_mesh, rule_table
from alphaalign_jax.rewards.verifiers import Verifiers
from alphaalign_jax.rollout.engine import Engine, InFlight
from alphaalign_jax.rollout.sampler import _first_above, _inverse_cdf, sample
from alphaalign_jax.types import Finish, Prompts

V, GROUP, SLOTS, STOPS = 61, 3, 12, (5, 6)
SPEC = ModelSpec("qwen2", V, 32, 48, 2, 4, 2, 8, 1e-6, 1e4, None, 256, True, False, False, False, True)
NETWORK = Network(SPEC, remat="none")


@functools.cache
def params():
    # Scaled up, so that the distribution is far from uniform and a wrong mask or position shows.
    return jax.tree.map(lambda x: 6 * x, NETWORK.init(jax.random.key(0)))


def prompts(rows=4):
    rng = np.random.default_rng(1)
    return Prompts(
        prefix=rng.integers(0, V, 7).astype(np.int32),
        tokens=rng.integers(0, V, (4, 6)).astype(np.int32)[:rows],
        length=np.array([6, 3, 1, 4], np.int32)[:rows],
        label=np.zeros(4, np.int32)[:rows],
        row=np.array([10, 11, 12, 13], np.int32)[:rows],
    )


@functools.partial(jax.jit, static_argnames=("group", "slots"))
def draw(params, prompts, key, sampling, forced=None, *, group=GROUP, slots=SLOTS):
    return sample(NETWORK.bind(params), prompts, key, sampling, group=group, slots=slots, stop_ids=STOPS, forced=forced)


@jax.jit
def rescored(params, prompts, tokens, sampling):
    model = NETWORK.bind(params)
    return token_logprobs(model, response_states(model, prompts, tokens), tokens, sampling, chunk=5)


SETTINGS = {
    "plain": Sampling.create(),
    "tempered": Sampling.create(0.6),
    "top_k": Sampling.create(0.9, top_k=5),
    "top_p": Sampling.create(1.3, top_p=0.7),
    "both": Sampling.create(0.8, top_k=9, top_p=0.8),
    "padded": Sampling.create(3.0, owned=np.arange(V) % 3 != 1),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_trainer_recomputes_the_samplers_logprobs(name):
    """Decode against teacher forcing: a cache slot, position or mask off by one shows as a gap.

    So does a top-k sample scored against the full softmax.
    """
    sampling = SETTINGS[name]
    rollout = draw(params(), prompts(), jax.random.key(2), sampling)
    logprob, _ = rescored(params(), prompts(), rollout.tokens, sampling)
    gap = np.where(rollout.sampled, np.asarray(logprob) - rollout.logprob, 0)
    assert np.abs(gap).max() < 3e-4  # log-probs reach -30 here
    assert np.asarray(rollout.logprob)[np.asarray(rollout.sampled)].min() > -50


def test_rows_that_no_token_owns_are_never_drawn():
    """Embedding tables are padded by hundreds of rows: drawn, they have no bytes, so that nobody sees them and the
    verifiers pass over them. The trainer must renormalise likewise, or the gap between the two is theirs."""
    sampling, owned = SETTINGS["padded"], np.arange(V) % 3 != 1
    for heat in (sampling, sampling.replace(temperature=jnp.float32(0.0))):
        rollout = jax.device_get(draw(params(), prompts(), jax.random.key(7), heat, group=64))
        assert owned[rollout.tokens[rollout.sampled]].all()
    logits = np.array([[2.0, 9.0, -1.0, 0.5] + [0.0] * (V - 4)], np.float32)
    found = np.asarray(jax.nn.softmax(scaled_logits(jnp.asarray(logits), sampling)))[0]
    weights = np.where(owned, np.exp(logits[0].astype(np.float64) / 3), 0)
    assert np.allclose(found, weights / weights.sum(), atol=1e-6) and not found[~owned].any()


def test_prompts_are_computed_once_and_logits_in_chunks():
    """What a longer response or a larger group would run out of memory by: logits of all tokens at once, or a prompt's
    activations for each of its rollouts; in the gradient too."""
    p, tokens = prompts(), np.zeros((4, GROUP, SLOTS), np.int32)
    loss = lambda w: rescored(w, p, tokens, Sampling.create())[0].sum()
    program = str(jax.make_jaxpr(jax.grad(loss))(params()))
    shapes = {tuple(map(int, found.split(","))) for found in re.findall(r"\[(\d+(?:,\d+)*)\]", program)}
    assert (4, GROUP, 5, V) in shapes, "the chunk's logits"
    assert max(np.prod(shape) for shape in shapes if V in shape) == 4 * GROUP * 5 * V
    assert (4, 1, 6, 32) in shapes and not {shape for shape in shapes if shape[:3] == (4, GROUP, 6)}


def test_greedy_decode_is_the_argmax_of_the_plain_forward():
    """Decoding one token at a time with a cache gives what a full forward over the whole sequence gives."""
    p = prompts()
    rollout = draw(params(), p, jax.random.key(0), Sampling.create(0.0), group=1)
    forward = jax.jit(lambda w, t: NETWORK.bind(w)(t))
    for b in range(4):
        whole = np.concatenate([p.prefix, p.tokens[b, : p.length[b]], np.asarray(rollout.tokens[b, 0])])[None]
        start = len(p.prefix) + p.length[b]
        wanted = np.asarray(forward(params(), whole))[0, start - 1 : -1].argmax(-1)
        n = int(rollout.length[b, 0])
        assert np.array_equal(wanted[:n], np.asarray(rollout.tokens[b, 0, :n]))


def test_frequencies_follow_the_recorded_distribution():
    """A sampler that draws from another distribution than the one it records passes every other test here."""
    p = prompts(1)
    sampling = SETTINGS["both"]
    rollout = draw(params(), p, jax.random.key(3), sampling, group=4000, slots=1)
    model = NETWORK.bind(params())
    state = response_states(model, p, jnp.zeros((1, 1, 1), jnp.int32))
    expected = np.asarray(jax.nn.softmax(scaled_logits(model.logits(state), sampling)))[0, 0, 0]
    counts = np.bincount(np.asarray(rollout.tokens).ravel(), minlength=V)
    assert counts[expected < 1e-6].sum() == 0
    assert np.abs(counts / 4000 - expected).max() < 4 * np.sqrt(0.25 / 4000)


def test_the_inverse_of_the_distribution():
    """Against NumPy's in float64, over more blocks than one, with tokens outside the support and at both ends."""
    rng = np.random.default_rng(4)
    logits = (3 * rng.standard_normal((2, 3, 1000))).astype(np.float32)
    logits[rng.random(logits.shape) < 0.5] = -1e30
    logits[..., :300], logits[..., 900:] = -1e30, -1e30
    weight = np.where(logits > -1e29, np.exp(logits.astype(np.float64)), 0)
    edges = np.cumsum(weight, -1) / weight.sum(-1, keepdims=True)
    draw = jax.jit(_inverse_cdf)
    for uniform in (0.0, *np.linspace(0.01, 0.99, 23), 1 - 2**-24):
        token = np.asarray(draw(logits, np.full((2, 3), uniform, np.float32)))[..., None]
        upper, share = (np.take_along_axis(x, token, -1) for x in (edges, weight / weight.sum(-1, keepdims=True)))
        assert (share > 0).all() and (upper > uniform - 1e-5).all() and (upper - share < uniform + 1e-5).all()


def test_running_sums_out_of_order_draw_no_token_outside_the_support():
    """A parallel sum may step up where the weight is 0, and not be largest at its end; its log-prob would be -1e30."""
    weight = np.array([0.0, 1.0, 0.0, 2.0, 0.0], np.float32)
    upto = np.array([1e-7, 1.0, 1.0000001, 3.0000002, 3.0], np.float32)
    targets = np.array([0.0, 1.0, 2.0, 3.0, 3.0000002, 4.0], np.float32)
    index, _ = jax.vmap(lambda target: _first_above(upto, weight, target))(targets)
    assert index.tolist() == [1, 3, 3, 3, 3, 3]


def test_rows_do_not_depend_on_their_neighbours():
    """Keys fold in the row's number: row 12 draws the same alone, in another place, or in another batch."""
    everything = draw(params(), prompts(), jax.random.key(4), Sampling.create())
    p = prompts()
    alone = jax.tree.map(lambda x: x[2:3], p.replace(prefix=np.zeros((4, 7), np.int32))).replace(prefix=p.prefix)
    single = draw(params(), alone, jax.random.key(4), Sampling.create())
    assert np.array_equal(everything.tokens[2], single.tokens[0])
    assert not np.array_equal(everything.tokens[2, 0], everything.tokens[2, 1]), "rollouts of one prompt share a key"
    other = draw(params(), prompts(), jax.random.key(5), Sampling.create())
    assert not np.array_equal(everything.tokens, other.tokens), "the step's key is not used"


def test_stop_token_ends_and_belongs_to_the_response():
    """A stop id that is stripped is never trained; one that stops nothing runs to the end; padding is never sampled."""
    rollout = jax.device_get(draw(params(), prompts(), jax.random.key(6), Sampling.create(2.0), group=64))
    stopped = rollout.finish == Finish.STOP
    assert 0.1 < stopped.mean() < 0.9, "the test needs both kinds"
    slot = np.arange(SLOTS)
    assert np.array_equal(rollout.sampled, slot < rollout.length[..., None])
    is_stop = np.isin(rollout.tokens, STOPS) & rollout.sampled
    last = slot == rollout.length[..., None] - 1
    assert np.array_equal(is_stop.any(-1), stopped)
    assert not (is_stop & ~last).any()
    assert (rollout.length[~stopped] == SLOTS).all()
    assert (rollout.tokens[~rollout.sampled] == 0).all() and (rollout.logprob[~rollout.sampled] == 0).all()
    assert set(rollout.tokens[is_stop]) == set(STOPS), "each of two stop ids must stop"


def test_forced_prefix_is_not_trained_and_does_not_stop():
    """A prefilling attack's text is the attacker's: no log-prob, no gradient, and a stop id in it ends nothing."""
    forced = jnp.array([9, STOPS[0], 8], jnp.int32)
    sampling = Sampling.create()
    rollout = draw(params(), prompts(), jax.random.key(7), sampling, forced)
    assert (np.asarray(rollout.tokens[..., :3]) == np.asarray(forced)).all()
    assert not np.asarray(rollout.sampled[..., :3]).any() and np.asarray(rollout.sampled[..., 3]).all()
    logprob, _ = rescored(params(), prompts(), rollout.tokens, sampling)
    assert np.abs(np.where(rollout.sampled, np.asarray(logprob) - rollout.logprob, 0)).max() < 1e-4
    with pytest.raises(ValueError, match="12 tokens leaves none of 12 slots"):
        draw(params(), prompts(), jax.random.key(7), sampling, jnp.zeros(12, jnp.int32))


def test_sampling_settings_out_of_range_are_refused():
    for bad in ({"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match="out of range"):
            Sampling.create(**bad)


def test_support_matches_transformers_warpers():
    """Top-k then top-p, as transformers orders them."""
    torch = pytest.importorskip("torch")
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(0).normal(0, 2, (20, V)).astype(np.float32)
    scores = torch.tensor(logits)
    for warper in (TemperatureLogitsWarper(0.8), TopKLogitsWarper(9), TopPLogitsWarper(0.8)):
        scores = warper(None, scores)
    wanted = torch.log_softmax(scores, -1).numpy()
    ours = np.asarray(jax.nn.log_softmax(scaled_logits(logits, SETTINGS["both"])))
    kept = np.isfinite(wanted)
    assert np.array_equal(kept, ours > -1e20)
    assert np.abs(ours[kept] - wanted[kept]).max() < 1e-5


@functools.cache
def engine(in_flight, scan=True):
    layout = Layout(build_mesh(devices=jax.devices()[:1], fsdp=1), rule_table("tensor"))
    verifiers = Verifiers.build([bytes([i + 40]) for i in range(V)], STOPS)
    return Engine(dataclasses.replace(NETWORK, scan=scan), layout, verifiers, STOPS, in_flight=in_flight)


@pytest.mark.parametrize("forced, scan", [(None, True), (jnp.array([9, STOPS[0]], jnp.int32), True), (None, False)])
def test_dropping_rows_and_growing_the_cache_change_no_sample(forced, scan, monkeypatch):
    """Rows that are moved with another row's keys, prompt or position, or written back in another's place."""
    limit = np.ceil(SLOTS * np.random.default_rng(3).random((4, 16)) ** 4).astype(np.int32)
    sizes = dict(group=16, slots=SLOTS, forced=forced, limit=limit)
    sampling, key = Sampling.create(1.5), jax.random.key(8)
    whole = engine(InFlight(cache=0, fewest_rows=0)).rollout(params(), prompts(), key, sampling, **sizes)
    staged, called = engine(InFlight(cache=3, fewest_rows=1), scan), []
    for name in ("_drop", "_longer"):
        stage = getattr(staged, name)
        monkeypatch.setattr(staged, name, lambda *a, _of=(name, stage), **k: called.append(_of[0]) or _of[1](*a, **k))
    few = staged.rollout(staged.prepare(params()), prompts(), key, sampling, **sizes)
    assert "_drop" in called and called.count("_longer") == 4, "nothing changed, nothing is shown"
    assert 0.02 < (np.asarray(whole.finish) == Finish.STOP).mean() < 0.95
    for name in ("tokens", "length", "finish", "sampled"):
        assert np.array_equal(getattr(whole, name), getattr(few, name)), name
    np.testing.assert_allclose(whole.logprob, few.logprob, atol=1e-4)


def test_a_limit_ends_its_own_row():
    limit = np.random.default_rng(0).integers(1, SLOTS + 1, (4, GROUP)).astype(np.int32)
    sizes = dict(group=GROUP, slots=SLOTS)
    run = lambda **options: engine(InFlight(cache=3, fewest_rows=2)).rollout(
        params(), prompts(), jax.random.key(9), Sampling.create(), **sizes, **options
    )
    free, limited = run(), run(limit=limit)
    assert np.array_equal(limited.length, np.minimum(free.length, limit))
    assert np.array_equal(limited.tokens, np.where(np.arange(SLOTS) < limit[..., None], free.tokens, 0))
    ended = np.asarray(free.length) > limit
    assert ended.any() and (np.asarray(limited.finish)[ended] == Finish.LENGTH).all()
