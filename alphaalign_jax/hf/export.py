"""Writing a model as a Hugging Face directory that transformers loads: the inverse of ``load``, from the same rows."""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  numpy learns bfloat16 from it
import numpy as np

from alphaalign_jax.hf import tables
from alphaalign_jax.hf.chat import DEFAULT, ChatSettings
from alphaalign_jax.hf.safetensors_dir import write_file
from alphaalign_jax.hf.staging import staged
from alphaalign_jax.hf.tables import Row
from alphaalign_jax.hf.tokenizer import stop_ids
from alphaalign_jax.models import Network, Params
from alphaalign_jax.types import Array

MAX_SHARD_BYTES = 4 * 1024**3
DTYPES = ("float32", "bfloat16", "float16")
# How this process found a tokenizer, which transformers 5 writes beside what the tokenizer is.
_LOAD_TIME = frozenset(
    """is_local local_files_only name_or_path _name_or_path _commit_hash cache_dir force_download revision subfolder
    token use_auth_token trust_remote_code""".split()
)
_NOT_OURS = frozenset(("auto_map", "gradient_checkpointing", "processor_class"))  # files and settings that are not here
_SPECIAL_NAMES = frozenset(f"{name}_token" for name in "bos eos unk sep pad cls mask".split())
_Tensor = tuple[str, Row, int | None]  # tensor name, its row, its layer


def export(
    params: Params,
    network: Network,
    out_dir: str | Path,
    tokenizer: Any = None,
    base_config: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    *,
    generation_config: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    chat: ChatSettings = DEFAULT,
) -> Path:
    """Writes ``out_dir``: safetensors, ``config.json``, ``generation_config.json`` and the tokenizer's files.

    Args:
        params: nested dict as ``load`` returns it, sharded in any way; gathered to the host one tensor at a time.
        base_config: config of the model this one came from. Its fields stay (ids, label names); architecture is ours.
        dtype: of the tensors written; None: that of ``params``, so that loading them again gives the same bits.
        generation_config: likewise kept, but for ``eos_token_id``, which lists every id that ends a response.
        max_shard_bytes: of one safetensors file; a larger tensor gets a file to itself.
        chat: what the chat template was rendered with; kept beside the model, which is then used with the same.

    Every process of a multi-process run calls it; process 0 writes. The directory appears when it is complete; an
    earlier export there is replaced, anything else refused. A value network has no Hugging Face class: ValueError.
    """
    if tables.HEADS[network.head] is None:
        raise ValueError(
            f"a network with a {network.head!r} head has no Hugging Face form; save it with save_model (format 'orbax')"
        )
    dtype = dtype or str(params["embed"]["table"].dtype)
    if dtype not in DTYPES:
        raise ValueError(f"export dtype {dtype!r} is not known; known: {', '.join(DTYPES)}")
    check_params(params, network.shapes())
    config = merged_config(network, base_config, tokenizer, dtype)
    with staged(out_dir, kind="hf_export", dtype=dtype, chat=chat.to_json()) as out:
        _write_weights(params, network, out, jnp.dtype(dtype), max_shard_bytes)
        if jax.process_index() == 0:
            write_configs(out, config, generation_config, tokenizer, chat)
    return Path(out_dir)


def check_params(have: Params, want: Params, where: str | Path = "the weights") -> None:
    """Raises ValueError that names the first parameter of ``have`` which is missing, extra or misshaped.

    Both are trees of anything with a ``shape``; ``where`` opens the message.
    """
    flat = lambda tree: {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    have, want = flat(have), flat(want)
    for name in sorted(have.keys() | want.keys()):
        if name not in want:
            raise ValueError(f"{where}: parameter {name} is not one of the model's")
        if name not in have:
            raise ValueError(f"{where}: parameter {name} is missing")
        if tuple(have[name].shape) != want[name].shape:
            raise ValueError(f"{where}: parameter {name} is {tuple(have[name].shape)}, expected {want[name].shape}")


def merged_config(network: Network, base: Mapping[str, Any] | None, tokenizer: Any, dtype: str) -> dict[str, Any]:
    """``config.json``: fields of ``base`` that say nothing of the architecture, then ours."""
    spec = network.spec
    ours = spec.to_hf()
    # Python's own state, how the base was trained, and code beside it, which is not here.
    config = {key: value for key, value in dict(base or {}).items() if key not in _NOT_OURS and not key.startswith("_")}
    # Spellings of what ``ours`` says in other words: left in, they would be read instead of it, or beside it.
    for stale in ("rope_parameters", "rope_scaling", "dtype", "torch_dtype", "num_labels", "quantization_config"):
        config.pop(stale, None)
    if len(config.get("layer_types") or ()) != spec.num_layers:
        config.pop("layer_types", None)
    if len(config.get("id2label") or ()) == spec.num_labels:
        ours.pop("id2label"), ours.pop("label2id")
    elif spec.num_labels is None:
        config.pop("id2label", None), config.pop("label2id", None)
    config |= ours | {"torch_dtype": dtype}
    # Without it, transformers 4.57 takes every local tokenizer for one of Mistral's with a known fault, and warns.
    config.setdefault("transformers_version", metadata.version("transformers"))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if config.get(name) is None and getattr(tokenizer, name, None) is not None:
            config[name] = getattr(tokenizer, name)
    return config


def write_configs(
    out: Path, config: dict[str, Any], generation_config: Mapping[str, Any] | None, tokenizer: Any, chat: ChatSettings
) -> None:
    """``config.json``, ``generation_config.json`` and the tokenizer's files."""
    ids = {
        name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(name) is not None
    }
    generation = ids | {key: value for key, value in (generation_config or {}).items() if value is not None}
    if tokenizer is not None:
        tokenizer.save_pretrained(out)
        _make_portable(out / "tokenizer_config.json", tokenizer)
        generation["eos_token_id"] = list(stop_ids(tokenizer, config, generation_config, settings=chat))
    _write_json(out / "config.json", config)
    _write_json(out / "generation_config.json", generation)


def _make_portable(file: Path, tokenizer: Any) -> None:
    """Rewrite what transformers 5 says of a tokenizer so that transformers 4, and what builds on it, reads it too.

    The older spellings mean the same to both, but for what a call returns: under the older class name 4 would add
    ``token_type_ids``, which no model here takes.
    """
    config = json.loads(file.read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if key not in _LOAD_TIME and key not in _NOT_OURS}
    if isinstance(config.get("extra_special_tokens"), list):  # 4 expects a dict there: 'list' has no attribute 'keys'
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    named = {name: text for name, text in tokenizer.special_tokens_map.items() if name not in _SPECIAL_NAMES}
    named = {name: text for name, text in named.items() if isinstance(text, str)}
    config.pop("model_specific_special_tokens", None)
    if named:  # image_token and the like: 5 finds them by their names, 4 in a dict
        config |= named | {"extra_special_tokens": named}
    if config.get("tokenizer_class") == "TokenizersBackend":
        inputs = {"model_input_names": ["input_ids", "attention_mask"]}
        config = inputs | config | {"tokenizer_class": "PreTrainedTokenizerFast"}
    _write_json(file, config)


def _write_weights(params: Params, network: Network, out: Path, dtype: jnp.dtype, max_shard_bytes: int) -> None:
    files = plan_files(network, dtype.itemsize, max_shard_bytes)
    for file, tensors in files.items():
        whole = (_gather(tables.get(params, row.path), layer) for _, row, layer in tensors)
        stored = (row.to_hf(host.astype(dtype, copy=False)) for host, (_, row, _) in zip(whole, tensors, strict=True))
        if jax.process_index() == 0:
            write_file(out / file, stored_shapes(network, tensors), str(dtype), stored)
        else:
            collections.deque(stored, maxlen=0)  # every process takes part in gathering each
    if len(files) > 1 and jax.process_index() == 0:
        write_index(out, network, files, dtype.itemsize)


def write_index(out: Path, network: Network, files: Mapping[str, list[_Tensor]], itemsize: int) -> None:
    """Which tensor is in which file."""
    shapes = {file: stored_shapes(network, tensors) for file, tensors in files.items()}
    total = sum(int(np.prod(shape)) for of_file in shapes.values() for shape in of_file.values()) * itemsize
    weight_map = {name: file for file, of_file in shapes.items() for name in of_file}
    _write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def stored_shapes(network: Network, tensors: Sequence[_Tensor]) -> dict[str, tuple[int, ...]]:
    shapes = network.shapes()
    return {name: row.hf_shape(tables.get(shapes, row.path).shape[layer is not None :]) for name, row, layer in tensors}


def plan_files(network: Network, itemsize: int, max_shard_bytes: int) -> dict[str, list[_Tensor]]:
    """Tensors of each file, layer by layer as the model runs, so that a file holds whole neighbourhoods."""
    rows = tables.rows(network)
    before = [row for row in rows if row.path[0] == "embed"]
    after = [row for row in rows if row.path[0] in ("final_norm", "head")]
    tensors: list[_Tensor] = [(row.name, row, None) for row in before]
    tensors += [
        (row.name.format(layer=i), row, i) for i in range(network.spec.num_layers) for row in rows if row.stacked
    ]
    tensors += [(row.name, row, None) for row in after]
    parts: list[list[_Tensor]] = [[]]
    filled = 0
    for tensor, shape in zip(tensors, stored_shapes(network, tensors).values(), strict=True):
        size = itemsize * int(np.prod(shape))
        if parts[-1] and filled + size > max_shard_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(tensor)
        filled += size
    if len(parts) == 1:
        return {"model.safetensors": parts[0]}
    return {f"model-{i:05d}-of-{len(parts):05d}.safetensors": part for i, part in enumerate(parts, 1)}


def _gather(weights: Array, layer: int | None) -> np.ndarray:
    """One layer's weights, or all of them, whole on the host of every process."""
    if isinstance(weights, jax.Array) and not weights.is_fully_addressable:
        mesh = weights.sharding.mesh
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        weights = jax.jit(lambda w: w if layer is None else w[layer], out_shardings=whole)(weights)
        return np.asarray(weights.addressable_data(0))
    return np.asarray(weights if layer is None else weights[layer])


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
