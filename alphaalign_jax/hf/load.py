"""Loading weights straight into mesh shards: each device's slice is read and cast alone, a layer at a time."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from alphaalign_jax.hf import orbax_model, tables
from alphaalign_jax.hf.gguf import GGUFFile
from alphaalign_jax.hf.paths import is_classifier, kind, load_config, num_labels, resolve
from alphaalign_jax.hf.safetensors_dir import SafetensorsDir
from alphaalign_jax.hf.tables import Index, Row
from alphaalign_jax.models import ModelSpec, Network, Params
from alphaalign_jax.parallel import Layout

_BUFFERS = re.compile(r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)$")  # old checkpoints carry these constants
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_ROWS_COMPARED = 8192
_VALUES_CHECKED = 2**16  # at once: what a core's cache holds
_SHOWN = 6


class Source(Protocol):
    """A checkpoint's tensors under their Hugging Face names."""

    where: str

    def names(self) -> set[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> str: ...
    def read(self, name: str, index: Index) -> np.ndarray: ...


def open_source(path: Path) -> Source:
    """The tensors of a resolved GGUF file or Hugging Face directory."""
    return GGUFFile(path) if kind(path) == "gguf" else SafetensorsDir(path)


def load(
    path: str | Path,
    network: Network | None = None,
    layout: Layout | None = None,
    param_dtype: str = "float32",
    *,
    head: str | None = None,
    num_layers: int | None = None,
) -> tuple[Network, Params]:
    """The network at ``path`` and its weights, laid over ``layout`` (None: whole on the first local device).

    Args:
        path: whatever ``resolve`` takes; directories written by ``save_model`` too.
        network: build exactly this; its spec must be the checkpoint's. None: from the checkpoint's config.
        param_dtype: dtype of the weights returned; sources are float32, float16, bfloat16 or GGUF quantized.
        head: ``lm``, ``score`` or ``value``; None: the network's, or what the config says the checkpoint is. ``value``
            takes the body of any checkpoint and adds a fresh head of zeros.
        num_layers: keep the first so many layers only (for a small critic); needs ``head='value'``.

    Raises ValueError that names the config field, or every missing, extra or misshaped tensor, before reading weights;
    while reading them, the tensor that holds NaN or infinity: figures of such a model look like those of a bad one.
    """
    local = resolve(path)
    config = load_config(local)
    network, full_layers = _network(config, network, head, num_layers, stored_head=orbax_model.stored_head(local))
    shardings = _shardings(network, layout)
    if kind(local) == "orbax":
        return network, orbax_model.restore(local, network, shardings, param_dtype, full_layers)
    source = _as_tied(open_source(local), network.spec)
    rows = tables.rows(network)
    _check(source, network, rows, full_layers)
    params: dict[str, Any] = {}
    shapes = network.shapes(param_dtype)
    for row in rows:
        array = _assemble(source, row, tables.get(shapes, row.path), tables.get(shardings, row.path))
        _put(params, row.path, array)
    if network.head == "value":
        like = shapes["head"]["kernel"]
        zeros = jax.jit(lambda: jnp.zeros(like.shape, like.dtype), out_shardings=shardings["head"]["kernel"])
        params["head"] = {"kernel": zeros()}
    return network, params


def check(path: str | Path, network: Network) -> None:
    """Raises ValueError, as ``load`` would, for a checkpoint whose config or tensors are not the network's; reads no
    weights. Orbax checkpoints are compared by their config alone."""
    local = resolve(path)
    network, full_layers = _network(load_config(local), network, None, None, orbax_model.stored_head(local))
    if kind(local) != "orbax":
        _check(_as_tied(open_source(local), network.spec), network, tables.rows(network), full_layers)


def _network(
    config: dict[str, Any], network: Network | None, head: str | None, num_layers: int | None, stored_head: str | None
) -> tuple[Network, int]:
    """The network to build, and how many layers the checkpoint has."""
    head = head or (network.head if network else None) or stored_head or ("score" if is_classifier(config) else "lm")
    if head not in tables.HEADS:
        raise ValueError(f"head {head!r} is not known; known: {', '.join(tables.HEADS)}")
    spec = ModelSpec.from_hf(config, num_labels=num_labels(config) if head == "score" else None)
    full_layers = spec.num_layers
    if num_layers is None and network is not None and head == "value":
        num_layers = network.spec.num_layers
    if num_layers is not None:
        if not 1 <= num_layers <= full_layers or (head != "value" and num_layers != full_layers):
            raise ValueError(
                f"num_layers={num_layers} with head {head!r}: the checkpoint has {full_layers} layers, and only "
                f"a value network may keep fewer, at least 1"
            )
        spec = dataclasses.replace(spec, num_layers=num_layers)
    if network is None:
        return Network(spec, head), full_layers
    if network.head != head:
        raise ValueError(f"head={head!r} was asked of a network with head {network.head!r}; give one of the two")
    for field in dataclasses.fields(ModelSpec):
        wanted, found = getattr(network.spec, field.name), getattr(spec, field.name)
        if wanted != found:
            raise ValueError(f"the network has {field.name}={wanted!r}, but the checkpoint's config says {found!r}")
    return network, full_layers


def _shardings(network: Network, layout: Layout | None) -> Params:
    if layout is not None:
        return layout.tree_shardings(network.axes, network.shapes())
    whole = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda _: whole, network.shapes())


class _HeadAsEmbedding:
    """A tied checkpoint that stores its one table under the head's name alone. transformers reads such files too."""

    def __init__(self, source: Source):
        self._source, self.where = source, source.where

    def names(self) -> set[str]:
        return (self._source.names() - {_HEAD}) | {_EMBEDDING}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(self._stored(name))

    def dtype(self, name: str) -> str:
        return self._source.dtype(self._stored(name))

    def read(self, name: str, index: Index) -> np.ndarray:
        return self._source.read(self._stored(name), index)

    @staticmethod
    def _stored(name: str) -> str:
        return _HEAD if name == _EMBEDDING else name


def _as_tied(source: Source, spec: ModelSpec) -> Source:
    names = source.names()
    lacks_embedding = _EMBEDDING not in names and _HEAD in names
    return _HeadAsEmbedding(source) if spec.tie_embeddings and lacks_embedding else source


def _check(source: Source, network: Network, rows: list[Row], full_layers: int) -> None:
    """Raises ValueError unless the tensors are exactly those the network has, in shape and in a dtype we read."""
    shapes, spec = network.shapes(), network.spec
    expected: dict[str, tuple[int, ...]] = {}
    for row in rows:
        shape = tables.get(shapes, row.path).shape
        hf_shape = row.hf_shape(shape[1:] if row.stacked else shape)
        expected |= {name: hf_shape for name in row.names(range(spec.num_layers))}
    allowed = {name for row in rows for name in row.names(range(spec.num_layers, full_layers))}
    names = source.names()
    if network.head == "value":
        allowed |= {row.name for row in tables.HEADS.values() if row is not None}
    elif network.head == "lm" and spec.tie_embeddings and _HEAD in names and expected.keys() <= names:
        _check_tied(source)
        allowed.add(_HEAD)
    problems = [f"missing {_shown(sorted(expected.keys() - names))}"] if expected.keys() - names else []
    extra = sorted(name for name in names - expected.keys() - allowed if not _BUFFERS.match(name))
    if extra:
        problems.append(f"extra {_shown(extra)}")
    wrong = [
        f"{name} {list(source.shape(name))}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in names and source.shape(name) != shape
    ]
    if wrong:
        problems.append(f"misshaped {_shown(wrong)}")
    if problems:
        raise ValueError(
            f"{source.where}: tensors do not fit its config as a {spec.family} {network.head} model: "
            f"{'; '.join(problems)}"
        )
    for name in expected:
        source.dtype(name)


def _check_tied(source: Source) -> None:
    embed, head = _EMBEDDING, _HEAD
    same = source.shape(embed) == source.shape(head)
    for start in range(0, source.shape(embed)[0] if same else 0, _ROWS_COMPARED):
        rows = (slice(start, min(start + _ROWS_COMPARED, source.shape(embed)[0])), slice(0, source.shape(embed)[1]))
        same = same and np.array_equal(source.read(embed, rows), source.read(head, rows), equal_nan=True)
    if not same:
        raise ValueError(
            f"{source.where}: tie_word_embeddings is true, but {head} differs from {embed}; set tie_word_embeddings "
            f"to false in config.json if the model was trained untied"
        )


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _assemble(source: Source, row: Row, like: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.Array:
    """One parameter, each shard read once even where several devices hold it."""
    read: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def shard(index: Index) -> np.ndarray:
        bounds = tuple(cut.indices(size)[:2] for cut, size in zip(index, like.shape, strict=True))
        if bounds not in read:
            read[bounds] = _read(source, row, like, tuple(slice(*bound) for bound in bounds))
        return read[bounds]

    return jax.make_array_from_callback(like.shape, sharding, shard)


def _read(source: Source, row: Row, like: jax.ShapeDtypeStruct, index: Index) -> np.ndarray:
    out = np.empty([cut.stop - cut.start for cut in index], like.dtype)
    layers, index, shape = (index[0], index[1:], like.shape[1:]) if row.stacked else (slice(0, 1), index, like.shape)
    block = row.hf_index(shape, index)
    for i, layer in enumerate(range(layers.start, layers.stop)):
        target, name = out[i] if row.stacked else out, row.name.format(layer=layer)
        target[...] = row.from_hf(source.read(name, block), shape, index)
        if not _finite(target):
            raise ValueError(
                f"{source.where}: tensor {name} has NaN or infinity as {target.dtype}; expected finite weights; "
                f"fetch the file again, give an earlier checkpoint, or a wider dtype if its values are too large"
            )
    return out


def _finite(x: np.ndarray) -> bool:
    """By its bits: an exponent of ones is NaN or infinity. ``np.isfinite`` takes four times as long for bfloat16."""
    bits = x.reshape(-1).view(f"u{x.dtype.itemsize}")
    infinity = np.array(np.inf, x.dtype).view(bits.dtype)
    parts = (bits[i : i + _VALUES_CHECKED] for i in range(0, bits.size, _VALUES_CHECKED))
    return all(((part & infinity) != infinity).all() for part in parts)


def _put(tree: dict[str, Any], path: tuple[str, ...], leaf: jax.Array) -> None:
    *parents, last = path
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = leaf
