"""GGUF files (llama.cpp): architecture from the metadata, weights dequantized with the ``gguf`` library, in NumPy.

llama.cpp stores the query and key rows of Llama models in the order of its own rotary embedding, which pairs
neighbours (0, 1), (2, 3), ...; Hugging Face pairs halves (0, C/2), (1, C/2 + 1), .... Reading undoes that.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from alphaalign_jax.hf.tables import Index

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_READ = frozenset(
    """block_count context_length embedding_length feed_forward_length vocab_size attention.head_count
    attention.head_count_kv attention.key_length attention.value_length attention.layer_norm_rms_epsilon rope.freq_base
    rope.dimension_count""".split()
)


def read_config(path: Path) -> dict[str, Any]:
    """The metadata as ``config.json`` fields. Raises ValueError that names a missing or unsupported key."""
    fields, tensors = metadata(path), _reader(path)[1]
    arch = fields.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise ValueError(
            f"{path}: general.architecture={arch!r} is not implemented; implemented: {', '.join(ARCHITECTURES)}"
        )
    _refuse_unsupported(path, arch, fields, tensors)

    def need(key: str) -> Any:
        if f"{arch}.{key}" not in fields:
            raise ValueError(f"{path}: metadata {arch}.{key!s} is missing; the model cannot be built without it")
        return fields[f"{arch}.{key}"]

    heads = need("attention.head_count")
    config = {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "vocab_size": tensors["token_embd.weight"].data.shape[0],
        "hidden_size": need("embedding_length"),
        "intermediate_size": need("feed_forward_length"),
        "num_hidden_layers": need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.get(f"{arch}.attention.head_count_kv", heads),
        "head_dim": _head_dim(path, arch, fields),
        "hidden_act": "silu",
        # Stored as float32: the shortest decimal that gives the same float32 is the number the model's author wrote.
        "rms_norm_eps": float(str(np.float32(need("attention.layer_norm_rms_epsilon")))),
        "rope_theta": float(str(np.float32(need("rope.freq_base")))),
        "max_position_embeddings": need("context_length"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _eos(fields),
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
    }
    if arch != "qwen2":
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if arch == "llama":
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in tensors
    return config


def metadata(path: Path) -> dict[str, Any]:
    """Every metadata key with its Python value."""
    return _reader(path)[0]


class GGUFFile:
    """The weights of a GGUF file under their Hugging Face names, float32, read slice by slice."""

    def __init__(self, path: Path):
        self.where = str(path)
        self._tensors = {_hf_name(name): tensor for name, tensor in _reader(path)[1].items()}
        config = read_config(path)
        self._permuted: dict[str, int] = {}  # suffix of the tensor's name -> heads
        if config["model_type"] == "llama":
            for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
                self._permuted |= {f"{part}.weight": config[heads], f"{part}.bias": config[heads]}

    def names(self) -> set[str]:
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(n) for n in reversed(self._tensors[name].shape))

    def dtype(self, name: str) -> str:
        return "float32"

    def read(self, name: str, index: Index) -> np.ndarray:
        from gguf.quants import dequantize

        tensor, rows = self._tensors[name], index[0]
        heads = next((heads for suffix, heads in self._permuted.items() if name.endswith(suffix)), None)
        # Blocks run along the last axis, so any choice of rows can be taken before dequantizing.
        data = tensor.data[rows] if heads is None else tensor.data[_halves_from_pairs(self.shape(name)[0], heads)[rows]]
        if data.ndim == 1 and data.dtype == np.float32:
            return np.array(data)
        return dequantize(data, tensor.tensor_type)[(slice(None), *index[1:])]


def _halves_from_pairs(rows: int, heads: int) -> np.ndarray:
    """Where llama.cpp keeps each row: row (h, half, i) of the halves layout is row (h, i, half) of the pairs layout."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def _reader(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return _parse(str(path.resolve()), path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _parse(path: str, _mtime: int) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        import gguf
    except ImportError:
        raise ValueError(f"{path}: reading GGUF files needs the gguf package; run: pip install gguf") from None

    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} cannot be read as GGUF: {error}") from error
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def _hf_name(name: str) -> str:
    """Names that are not in the tables stay as they are, and are then refused by name as any extra tensor."""
    if name in _NAMES:
        return _NAMES[name]
    block, _, rest = name.partition(".")
    layer, _, rest = rest.partition(".")
    part, _, suffix = rest.rpartition(".")
    known = block == "blk" and part in _LAYER_NAMES
    return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{suffix}" if known else name


def _refuse_unsupported(path: Path, arch: str, fields: dict[str, Any], tensors: dict[str, Any]) -> None:
    if "rope_freqs.weight" in tensors:
        raise ValueError(
            f"{path}: rope_freqs.weight (scaled rotary frequencies) is not implemented; use the Hugging Face directory"
        )
    if "token_embd.weight" not in tensors:
        raise ValueError(f"{path}: tensor token_embd.weight is missing; this is no complete language model")
    kind = fields.get(f"{arch}.rope.scaling.type", "none")
    if kind != "none":
        raise ValueError(
            f"{path}: {arch}.rope.scaling.type={kind!r} is not implemented; use the Hugging Face directory"
        )
    for key, value in fields.items():
        prefix, _, name = key.partition(".")
        neutral = value is None or value is False or value == 0
        # With the type "none" the other keys of rope.scaling say nothing; without a type they may.
        idle = name.startswith("rope.scaling.") and f"{arch}.rope.scaling.type" in fields
        if prefix == arch and name not in _READ and not idle and not neutral:
            raise ValueError(f"{path}: metadata {key}={value!r} is not implemented")


def _head_dim(path: Path, arch: str, fields: dict[str, Any]) -> int:
    keys = [f"{arch}.{name}" for name in ("attention.key_length", "attention.value_length", "rope.dimension_count")]
    stated = {key: fields[key] for key in keys if key in fields}
    if not stated:  # llama.cpp's own definition of all three where they are absent
        return fields[f"{arch}.embedding_length"] // fields[f"{arch}.attention.head_count"]
    if len(set(stated.values())) > 1:
        raise ValueError(f"{path}: {stated} must be one number: keys, values and rotary embedding share the head width")
    return next(iter(stated.values()))


def _eos(fields: dict[str, Any]) -> int | list[int] | None:
    """End of text, end of turn and end of message: each stops generation."""
    found = [fields.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    ids = list(dict.fromkeys(i for i in found if i is not None))
    return ids[0] if len(ids) == 1 else (ids or None)
