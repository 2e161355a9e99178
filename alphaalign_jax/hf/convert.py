"""One model format into another."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from alphaalign_jax.hf.chat import ChatSettings
from alphaalign_jax.hf.export import export
from alphaalign_jax.hf.load import load, open_source
from alphaalign_jax.hf.orbax_model import save_model
from alphaalign_jax.hf.paths import chat_settings, kind, load_config, load_generation_config, marker, resolve
from alphaalign_jax.hf.staging import check_target
from alphaalign_jax.hf.tokenizer import load_tokenizer
from alphaalign_jax.models import Network, Params

FORMATS = ("hf", "orbax")


@dataclasses.dataclass
class Model:
    """A model in memory with everything its directory holds."""

    params: Params
    network: Network
    tokenizer: Any
    config: dict[str, Any]
    generation_config: dict[str, Any]
    chat: ChatSettings


def convert(
    src: str | Path, dst: str | Path, format: str, *, dtype: str | None = None, overwrite: bool = False
) -> Path:
    """Reads the model at ``src`` (GGUF file, Hugging Face or Orbax directory, run) and writes it to ``dst``.

    Args:
        src: whatever ``resolve`` takes: a run's folder gives its newest checkpoint.
        format: ``hf`` or ``orbax``.
        dtype: of the weights written. None: as stored; float32 where the source is quantized or mixed.
        overwrite: replace an earlier export at ``dst``, which is refused otherwise.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is not known; known: {', '.join(FORMATS)}")
    check_target(dst, replace=overwrite)
    model = read_model(src, dtype)
    common = dict(
        tokenizer=model.tokenizer, base_config=model.config, generation_config=model.generation_config, chat=model.chat
    )
    if format == "hf":
        return export(model.params, model.network, dst, dtype=dtype, **common)
    return save_model(model.params, model.network, dst, **common)


def read_model(src: str | Path, dtype: str | None = None) -> Model:
    """The model at ``src`` with its tokenizer and configs, on this process's first device."""
    path = resolve(src)
    network, params = load(path, param_dtype=dtype or _stored_dtype(path))
    return Model(
        params, network, load_tokenizer(path), load_config(path), load_generation_config(path), chat_settings(path)
    )


def _stored_dtype(path: Path) -> str:
    if kind(path) == "orbax":
        return marker(path)["dtype"]
    source = open_source(path)
    found = {source.dtype(name) for name in source.names()}
    return found.pop() if len(found) == 1 else "float32"
