"""Decoders against transformers in float32, and the shared-context path against the plain one."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphaalign_jax import hf
from alphaalign_jax.models import ModelSpec, Network, Segment
from alphaalign_jax.models.distribution import Sampling
from alphaalign_jax.models.layers import rope_frequencies
from alphaalign_jax.rollout.sampler import sample
from alphaalign_jax.types import Prompts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BASE = dict(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    rms_norm_eps=1e-4,
    initializer_range=0.3,
    attn_implementation="eager",
)
# 3 wavelength bands: with theta 10 and 32 original positions, some of the 4 frequencies fall in each.
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=50.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
THETA = lambda theta: dict(rope_parameters=dict(rope_type="default", rope_theta=theta))
CASES = {
    "qwen2 tied": ("Qwen2", dict(tie_word_embeddings=True, **THETA(1e6))),
    "qwen2 untied, one kv head": ("Qwen2", dict(tie_word_embeddings=False, num_key_value_heads=1, **THETA(777.0))),
    "qwen3, head_dim apart, odd half": ("Qwen3", dict(head_dim=10, tie_word_embeddings=False, **THETA(5e5))),
    "qwen3 with attention bias, tied": (
        "Qwen3",
        dict(head_dim=12, attention_bias=True, tie_word_embeddings=True, **THETA(1e4)),
    ),
    "llama, llama3 scaling": ("Llama", dict(tie_word_embeddings=True, rope_parameters=LLAMA3)),
    "llama, all biases, 6 heads over 3": (
        "Llama",
        dict(
            attention_bias=True,
            mlp_bias=True,
            hidden_size=48,
            num_attention_heads=6,
            num_key_value_heads=3,
            **THETA(31.0),
        ),
    ),
    "mistral, no window": ("Mistral", dict(sliding_window=None, head_dim=16, num_key_value_heads=4, **THETA(2e4))),
}


# Compiling costs these tests far more than running does.
QUICK = dict(compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})


def build(family: str, changes: dict, kind: str = "ForCausalLM"):
    """A float32 transformers model whose every parameter, norms and biases too, is random."""
    torch.manual_seed(sum(map(ord, family + kind)))
    config = getattr(transformers, f"{family}Config")(**{**BASE, **changes})
    model = getattr(transformers, f"{family}{kind}")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.3)
    return model


def random_params(network: Network):
    """Larger than ``init`` draws them, and drawn without compiling."""
    rng = np.random.default_rng(0)
    draw = lambda path, x: jnp.asarray(rng.normal("scale" in str(path[-1]), 0.3, x.shape), x.dtype)
    return jax.tree_util.tree_map_with_path(draw, network.shapes())


def tokens(rows: int, length: int, vocab: int = BASE["vocab_size"], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, (rows, length)).astype(np.int32)


def assert_close(ours, theirs, relative=1e-4):
    theirs = theirs.detach().numpy()
    assert np.abs(np.asarray(ours) - theirs).max() <= relative * np.abs(theirs).max()
    assert np.abs(theirs).max() > 0.5, "logits this small would hide a difference"


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case, tmp_path):
    """Prevents a family whose bias, norm, theta, scaling or head layout is read and not used, or used wrongly."""
    model = build(*CASES[case])
    model.save_pretrained(tmp_path)
    network, params = hf.load(tmp_path)
    x = tokens(2, 96)
    with torch.no_grad():
        want = model(torch.tensor(x, dtype=torch.long)).logits
    got = jax.jit(lambda p, t: network.bind(p)(t), **QUICK)(params, x)
    assert got.dtype == jnp.float32
    assert_close(got, want)


def test_theta_and_scaling_change_the_logits(tmp_path):
    """Prevents the parity cases from passing because rotary settings happen not to matter at this size."""
    family, changes = CASES["llama, llama3 scaling"]
    build(family, changes).save_pretrained(tmp_path)
    network, params = hf.load(tmp_path)
    x = tokens(1, 96)
    logits = np.asarray(network.bind(params)(x))
    for field, value in (("rope_scaling", None), ("rope_theta", 60.0)):
        other = dataclasses.replace(network, spec=dataclasses.replace(network.spec, **{field: value}))
        assert np.abs(np.asarray(other.bind(params)(x)) - logits).max() > 1e-2 * np.abs(logits).max(), field


def test_llama3_frequencies_equal_transformers():
    """Prevents a wrong band edge of the llama3 scaling, which logits of a tiny model could miss."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(**{**BASE, "head_dim": 64, "rope_parameters": LLAMA3})
    want, attention_factor = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    got = np.asarray(rope_frequencies(ModelSpec.from_hf(config.to_dict())))
    plain = 50.0 ** (-np.arange(0, 64, 2) / 64)
    assert attention_factor == 1.0
    np.testing.assert_allclose(got, want.numpy(), rtol=2e-6)
    kept, shrunk = np.isclose(got, plain, rtol=1e-5), np.isclose(got, plain / 8, rtol=1e-5)
    assert kept.any() and shrunk.any() and (~kept & ~shrunk).any(), "all three bands must be exercised"


@pytest.mark.parametrize("case", CASES)
def test_greedy_decoding_is_token_identical(case, tmp_path):
    """Prevents cached decoding here and there from drifting apart past the prompt: positions, masks, cache slots."""
    model = build(*CASES[case])
    model.generation_config.eos_token_id = None
    model.save_pretrained(tmp_path)
    network, params = hf.load(tmp_path)
    x = tokens(2, 7, seed=3)
    x[:, :3] = x[0, :3]  # the template prefix, which rows share
    want = model.generate(torch.tensor(x, dtype=torch.long), do_sample=False, max_new_tokens=24, pad_token_id=0).numpy()
    prompts = Prompts(
        prefix=x[0, :3],
        tokens=x[:, 3:],
        length=np.full(2, 4, np.int32),
        label=np.zeros(2, np.int32),
        row=np.arange(2, dtype=np.int32),
    )

    def decode(params, prompts, sampling):
        model = network.bind(params)
        return sample(model, prompts, jax.random.key(0), sampling, group=1, slots=24, stop_ids=())

    got = jax.jit(decode, **QUICK)(params, prompts, Sampling.create(0.0))
    np.testing.assert_array_equal(got.tokens[:, 0], want[:, 7:])


@pytest.mark.parametrize("family, labels", [("Llama", 1), ("Qwen2", 3), ("Mistral", 2)])
def test_sequence_classifier_equals_transformers(family, labels, tmp_path):
    """Prevents a reward model whose score head is transposed, or whose number of labels is guessed."""
    changes = dict(num_labels=labels, pad_token_id=0, tie_word_embeddings=False, **THETA(1e4))
    if family == "Mistral":
        changes["sliding_window"] = None
    model = build(family, changes, "ForSequenceClassification")
    model.save_pretrained(tmp_path)
    assert hf.load_spec(tmp_path).num_labels == labels
    network, params = hf.load(tmp_path)
    assert network.head == "score"
    x = tokens(3, 40) % 60 + 1  # no pad: transformers scores the last token
    with torch.no_grad():
        want = model(torch.tensor(x, dtype=torch.long)).logits
    assert_close(network.bind(params)(x)[:, -1], want)


def projected_squares(hidden):
    """Of projections: the squares of normed states sum to a constant, and their gradient is rounding alone."""
    return jnp.square(hidden @ np.random.default_rng(9).normal(0, 0.1, (hidden.shape[-1], 5)).astype(np.float32)).sum()


def context_loss(network, params, prefix, prompts, lengths, responses):
    """Hidden states of responses by prefix + prompt + response segments; (loss, hidden [B, G, T, D])."""
    model = network.bind(params)
    (p,), (b, s), (_, g, t) = prefix.shape, prompts.shape, responses.shape
    _, (k, v) = model.extend(prefix[None, None], jnp.arange(p, dtype=jnp.int32)[None, None])
    shared = Segment(k[:, 0, 0], v[:, 0, 0])
    positions = jnp.broadcast_to(p + jnp.arange(s, dtype=jnp.int32), (b, 1, s))
    _, (k, v) = model.extend(prompts[:, None], positions, (shared,))
    own = Segment(k[:, :, 0], v[:, :, 0], jnp.arange(s) < lengths[:, None])
    positions = jnp.broadcast_to((p + lengths)[:, None, None] + jnp.arange(t, dtype=jnp.int32), (b, g, t))
    hidden, kv = model.extend(responses, positions, (shared, own), keep_kv=False)
    assert kv is None
    return projected_squares(hidden), hidden


def plain_loss(network, params, prefix, prompts, lengths, responses):
    """The same by one forward over each whole sequence."""
    model = network.bind(params)
    heads = [np.concatenate([prefix, prompt[:length]]) for prompt, length in zip(prompts, lengths, strict=True)]
    t = responses.shape[-1]
    whole = np.zeros(
        (*responses.shape[:2], max(map(len, heads)) + t), np.int32
    )  # right-padded: never seen by what is before
    for b, head in enumerate(heads):
        whole[b, :, : len(head)], whole[b, :, len(head) : len(head) + t] = head, responses[b]
    hidden, _ = model.extend(whole, jnp.broadcast_to(jnp.arange(whole.shape[-1]), whole.shape), keep_kv=False)
    hidden = jnp.stack([hidden[b, :, len(head) : len(head) + t] for b, head in enumerate(heads)])
    return projected_squares(hidden), hidden


def test_shared_context_equals_whole_sequences():
    """Prevents a response that sees padding or wrong positions, and gradients that stop at the context."""
    config = transformers.LlamaConfig(**{**BASE, "rope_parameters": LLAMA3, "attention_bias": True}).to_dict()
    network = Network(ModelSpec.from_hf(config), remat="full")
    params = random_params(network)
    prompts, responses = tokens(2, 9, seed=1), tokens(4, 6, seed=2).reshape(2, 2, 6)
    lengths = np.array([9, 4], np.int32)
    prompts[1, 4:] = 7  # padding with a real token: only the mask may hide it
    args = (tokens(1, 11)[0], prompts, lengths, responses)
    grad = lambda net, loss: jax.jit(jax.grad(lambda p: loss(net, p, *args), has_aux=True), **QUICK)(params)
    got, hidden = grad(network, context_loss)
    want, plain = grad(dataclasses.replace(network, remat="none"), plain_loss)
    np.testing.assert_allclose(hidden, plain, atol=1e-5)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        name, scale = jax.tree_util.keystr(path), float(np.abs(y).max())
        assert np.abs(np.asarray(x - y)).max() <= 2e-5 * max(scale, 1.0), name
        # Head apart, which this loss does not read, and the key bias, which softmax cancels only nearly (rotation).
        assert scale > 1e-2 or "head" in name, f"{name}: nothing to compare"


def test_responses_do_not_see_each_other_or_later_tokens():
    """Prevents rollouts of one prompt from leaking into each other through the shared keys."""
    config = transformers.Qwen2Config(**{**BASE, **THETA(1e4)}).to_dict()
    network = Network(ModelSpec.from_hf(config))
    params = random_params(network)
    args = (jnp.asarray(tokens(1, 5)[0]), jnp.asarray(tokens(1, 4)), np.array([4], np.int32))
    responses = tokens(2, 6, seed=5).reshape(1, 2, 6)
    changed = responses.copy()
    changed[0, 1, 3:] = (changed[0, 1, 3:] + 1) % 61
    run = jax.jit(lambda r: context_loss(network, params, *args, r)[1], **QUICK)
    before, after = np.asarray(run(responses)), np.asarray(run(changed))
    np.testing.assert_array_equal(before[0, 0], after[0, 0])
    np.testing.assert_array_equal(before[0, 1, :3], after[0, 1, :3])
    assert np.abs(before[0, 1, 3:] - after[0, 1, 3:]).max() > 1e-4


@pytest.mark.parametrize(
    "family, changes, message",
    [
        ("Llama", {"attention_multiplier": 0.5}, "attention_multiplier"),
        ("Llama", {"use_qk_norm": True}, "use_qk_norm"),
        ("Qwen3", {"num_experts": 1}, "num_experts"),
        ("Llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("Llama", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("Mistral", {"sliding_window": 64}, "sliding_window=64"),
        ("Mistral", {"sliding_window": ...}, "'sliding_window' is missing, which in Mistral means 4096"),
        ("Mistral", {"num_key_value_heads": None}, "num_key_value_heads"),
        ("Llama", {"rope_interleaved": True}, "rope_interleaved"),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 64}, "use_sliding_window"),
        ("Llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "yarn"),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "linear"),
        ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "factor": 2.0}}, "factor"),
        ("Llama", {"rope_parameters": {**LLAMA3, "attention_factor": 2.0}}, "attention_factor"),
        ("Llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("Llama", {"model_type": "gemma"}, "model_type='gemma'"),
        ("Llama", {"rms_norm_eps": None}, "rms_norm_eps"),
        ("Llama", {"rope_parameters": None, "rope_theta": None}, "rope_theta"),
        ("Qwen3", {"head_dim": None}, "head_dim"),
        ("Llama", {"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ("Llama", {"head_dim": 9}, "head_dim=9"),
    ],
)
def test_unsupported_config_is_refused_by_name(family, changes, message):
    """Prevents a field that is read over silently, which gives a model that runs and is wrong."""
    extra = {"sliding_window": None} if family == "Mistral" else {}
    config = getattr(transformers, f"{family}Config")(**{**BASE, **THETA(1e4), **extra}).to_dict()
    ModelSpec.from_hf(config)  # unchanged, it is taken
    with pytest.raises(ValueError, match=message):
        ModelSpec.from_hf({field: value for field, value in (config | changes).items() if value is not ...})


@pytest.mark.parametrize("case", CASES)
def test_config_round_trip(case):
    """Prevents an export whose config describes another architecture, in transformers 4's spelling or 5's."""
    family, changes = CASES[case]
    spec = ModelSpec.from_hf(getattr(transformers, f"{family}Config")(**{**BASE, **changes}).to_dict())
    written = json.loads(json.dumps(spec.to_hf()))
    assert ModelSpec.from_hf(written) == spec
    read = transformers.AutoConfig.for_model(**written)
    assert ModelSpec.from_hf(read.to_dict()) == spec


def test_value_head_starts_at_zero():
    """Prevents first advantages that are an untrained critic's noise."""
    spec = ModelSpec.from_hf(transformers.Qwen2Config(**{**BASE, **THETA(1e4)}).to_dict())
    network = Network(spec, head="value")
    values = network.bind(network.init(jax.random.key(0)))(tokens(2, 5))
    assert values.shape == (2, 5, 1) and not np.asarray(values).any()


def test_num_parameters_counts_the_weights():
    """Prevents a memory or FLOP estimate from a formula that missed a bias or a norm."""
    for family, changes in CASES.values():
        spec = ModelSpec.from_hf(getattr(transformers, f"{family}Config")(**{**BASE, **changes}).to_dict())
        shapes = jax.tree.leaves(Network(spec).shapes())
        assert spec.num_parameters == sum(int(np.prod(x.shape)) for x in shapes), spec.family
