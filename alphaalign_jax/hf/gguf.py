"""GGUF files (llama.cpp): architecture from the metadata, weights dequantized with the ``gguf`` library, in NumPy.

llama.cpp stores the query and key rows of Llama models in the order of its own rotary embedding, which pairs
neighbours (0, 1), (2, 3), ...; Hugging Face pairs halves (0, C/2), (1, C/2 + 1), .... Reading undoes that.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np

from alphaalign_jax.hf.tables import Index
from alphaalign_jax.models.spec import FIELDS, Kind

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

_PART = re.compile(r"-[0-9]{5}-of-[0-9]{5}\.gguf$")  # llama.cpp's names for the parts of a split file
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
    rope.dimension_count attention.causal rope.scaling.original_context_length tensor_data_layout""".split()
)
# 1 changes nothing. The second is applied whatever the type of scaling is.
_FACTORS = ("rope.scaling.factor", "rope.scaling.attn_factor", "rope.scale_linear", "logit_scale", "embedding_scale")
_FACTORS += ("residual_scale",)


TEXT: Kind = ("a text", lambda value: isinstance(value, str))
TEXTS: Kind = ("a list of texts", lambda value: isinstance(value, list) and all(isinstance(x, str) for x in value))
FLAG: Kind = ("true or false", lambda value: isinstance(value, bool))


def token_id(tokens: int) -> Kind:
    return f"the id of one of {tokens} tokens", lambda value: type(value) is int and 0 <= value < tokens


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a file says of its model. A value may be of any type under any key: each is checked where it is read."""

    path: Path
    fields: dict[str, Any]

    def need(self, key: str, kind: Kind) -> Any:
        """Raises ValueError where the key is missing, or its value is not of the kind."""
        if key not in self.fields:
            raise ValueError(f"{self.path}: metadata {key} is missing; the model cannot be built without it")
        (expected, fits), value = kind, self.fields[key]
        if not fits(value):
            raise ValueError(
                f"{self.path}: metadata {key} is {value!r:.80}; expected {expected}; convert the model again"
            )
        return value

    def get(self, key: str, kind: Kind, absent: Any = None) -> Any:
        """Likewise, but for a key that may be missing."""
        return self.need(key, kind) if key in self.fields else absent


def is_part(path: Path) -> bool:
    """Whether the name is that of a part of a split file."""
    return bool(_PART.search(path.name))


def refuse_part(path: Path, parts: Any) -> None:
    """Raise ValueError for one of the ``parts`` of a split file."""
    raise ValueError(
        f"{path} is one of {parts} parts of a split GGUF file, which are not read one by one; join them first: "
        "llama-gguf-split --merge FIRST_PART.gguf WHOLE.gguf"
    )


def read_config(path: Path) -> dict[str, Any]:
    """The metadata as ``config.json`` fields. Raises ValueError that names a missing or unsupported key."""
    meta, tensors = _reader(path)
    arch = meta.need("general.architecture", TEXT)
    if arch not in ARCHITECTURES:
        raise ValueError(
            f"{path}: general.architecture={arch!r} is not implemented; implemented: {', '.join(ARCHITECTURES)}"
        )
    _refuse_unsupported(meta, arch, tensors)
    tokens = _tokens(path, tensors)
    heads = meta.need(f"{arch}.attention.head_count", FIELDS["num_attention_heads"])
    config = {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "vocab_size": tokens,
        "hidden_size": meta.need(f"{arch}.embedding_length", FIELDS["hidden_size"]),
        "intermediate_size": meta.need(f"{arch}.feed_forward_length", FIELDS["intermediate_size"]),
        "num_hidden_layers": meta.need(f"{arch}.block_count", FIELDS["num_hidden_layers"]),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.get(f"{arch}.attention.head_count_kv", FIELDS["num_key_value_heads"], heads),
        "head_dim": _head_dim(meta, arch),
        "hidden_act": "silu",
        # Stored as float32: the shortest decimal that gives the same float32 is the number the model's author wrote.
        "rms_norm_eps": float(
            str(np.float32(meta.need(f"{arch}.attention.layer_norm_rms_epsilon", FIELDS["rms_norm_eps"])))
        ),
        "rope_theta": float(str(np.float32(meta.need(f"{arch}.rope.freq_base", FIELDS["rope_theta"])))),
        "max_position_embeddings": context_length(meta, arch),
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": meta.get("tokenizer.ggml.bos_token_id", token_id(tokens)),
        "eos_token_id": _eos(meta, tokens),
        "pad_token_id": meta.get("tokenizer.ggml.padding_token_id", token_id(tokens)),
    }
    if arch != "qwen2":
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if arch == "llama":
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in tensors
    return config


def metadata(path: Path) -> Metadata:
    """Every metadata key with its Python value."""
    return _reader(path)[0]


def context_length(meta: Metadata, arch: str) -> int:
    return meta.need(f"{arch}.context_length", FIELDS["max_position_embeddings"])


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
        return _shape(self._tensors[name])

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
        try:
            values = dequantize(data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            kind = tensor.tensor_type.name
            raise ValueError(f"{self.where}: tensor {name} of type {kind} cannot be read: {error}") from error
        return values[(slice(None), *index[1:])]


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in reversed(tensor.shape))


def _halves_from_pairs(rows: int, heads: int) -> np.ndarray:
    """Where llama.cpp keeps each row: row (h, half, i) of the halves layout is row (h, i, half) of the pairs layout."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def _reader(path: Path) -> tuple[Metadata, dict[str, Any]]:
    fields, tensors = _parse(str(path.resolve()), path.stat().st_mtime_ns)
    return Metadata(path, fields), tensors


@functools.lru_cache(maxsize=2)
def _parse(path: str, _mtime: int) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        import gguf
    except ImportError:
        raise ValueError(f"{path}: reading GGUF files needs the gguf package; run: pip install gguf") from None

    class Reader(gguf.GGUFReader):
        """Past the file's end the library reads nothing, for each of as many elements as an array claims to have."""

        def _get(self, offset: int, dtype: Any, count: int = 1, *order: Any, **named: Any) -> np.ndarray:
            end = int(offset) + np.dtype(dtype).itemsize * int(count)
            if not 0 <= int(offset) <= end <= self.data.size:
                raise ValueError(f"it should go on to byte {end}, and has {self.data.size}")
            return super()._get(offset, dtype, count, *order, **named)

    try:
        reader = Reader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # the library has no error of its own: what a damaged file meets in it, of many kinds
        raise ValueError(f"{path} cannot be read as GGUF: {error!r:.200}; fetch it again") from error
    parts, kind = fields.get("split.count", 1), fields.get("general.type", "model")
    if parts not in (0, 1):
        refuse_part(Path(path), parts)
    if kind != "model":
        what = "a LoRA adapter" if kind == "adapter" else f"of type {kind!r:.80}"
        raise ValueError(f"{path} is {what}, not a whole model; merge it into its base model, or give that one's file")
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


def _refuse_unsupported(meta: Metadata, arch: str, tensors: dict[str, Any]) -> None:
    path, scaling = meta.path, f"{arch}.rope.scaling.type"
    if "rope_freqs.weight" in tensors:
        raise ValueError(
            f"{path}: rope_freqs.weight (scaled rotary frequencies) is not implemented; use the Hugging Face directory"
        )
    if not meta.get(f"{arch}.attention.causal", FLAG, True):
        raise ValueError(f"{path}: metadata {arch}.attention.causal=False is not implemented: attention is causal")
    kind = meta.get(scaling, TEXT, "none")
    identity = kind == "linear" and _is_one(meta.fields.get(f"{arch}.rope.scaling.factor"))
    if kind != "none" and not identity:
        raise ValueError(f"{path}: {scaling}={kind!r} is not implemented; use the Hugging Face directory")
    for key, value in meta.fields.items():
        prefix, _, name = key.partition(".")
        neutral = value is None or value is False or value == 0 or (name in _FACTORS and _is_one(value))
        # With the type "none" the other keys of rope.scaling say nothing; without a type they may.
        idle = name.startswith("rope.scaling.") and name != "rope.scaling.attn_factor" and scaling in meta.fields
        if prefix == arch and name not in _READ and not idle and not neutral:
            raise ValueError(f"{path}: metadata {key}={value!r:.80} is not implemented")


def _is_one(value: Any) -> bool:
    return type(value) in (int, float) and value == 1


def _tokens(path: Path, tensors: dict[str, Any]) -> int:
    """Rows of the embedding: the vocabulary, padding included."""
    if "token_embd.weight" not in tensors:
        raise ValueError(f"{path}: tensor token_embd.weight is missing; this is no complete language model")
    shape, (expected, fits) = _shape(tensors["token_embd.weight"]), FIELDS["vocab_size"]
    if len(shape) != 2 or not fits(shape[0]):
        raise ValueError(
            f"{path}: tensor token_embd.weight is {list(shape)}; expected two axes, the first {expected}; "
            f"convert the model again"
        )
    return shape[0]


def _head_dim(meta: Metadata, arch: str) -> int:
    keys = [f"{arch}.{name}" for name in ("attention.key_length", "attention.value_length", "rope.dimension_count")]
    stated = {key: meta.need(key, FIELDS["head_dim"]) for key in keys if key in meta.fields}
    if not stated:  # llama.cpp's own definition of all three where they are absent
        return meta.fields[f"{arch}.embedding_length"] // meta.fields[f"{arch}.attention.head_count"]
    if len(set(stated.values())) > 1:
        raise ValueError(
            f"{meta.path}: {stated} must be one number: keys, values and rotary embedding share the head width"
        )
    return next(iter(stated.values()))


def _eos(meta: Metadata, tokens: int) -> int | list[int] | None:
    """End of text, end of turn and end of message: each stops generation."""
    found = [meta.get(f"tokenizer.ggml.{kind}_token_id", token_id(tokens)) for kind in ("eos", "eot", "eom")]
    ids = list(dict.fromkeys(i for i in found if i is not None))
    return ids[0] if len(ids) == 1 else (ids or None)
