"""Tensors of a Hugging Face directory, read slice by slice and written one by one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  numpy learns bfloat16 from it
import numpy as np
from safetensors import SafetensorError, safe_open

from alphaalign_jax.hf.paths import is_plain_name, read_json
from alphaalign_jax.hf.tables import Index

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class SafetensorsDir:
    """``model.safetensors``, or else the shards of ``model.safetensors.index.json``, as one set of tensors.

    The single file goes first, as in transformers: ``save_pretrained`` leaves the index of an earlier, sharded save
    beside it. Only slices that are asked for are read. Raises ValueError that names a file or tensor which the
    directory lacks.
    """

    def __init__(self, directory: Path):
        self.where = str(directory)
        self._file: dict[str, Any] = {}  # tensor name -> open file
        origin: dict[str, str] = {}  # tensor name -> its name
        for file in _files(directory):
            try:
                handle = safe_open(file, framework="np")
            except (OSError, SafetensorError) as error:
                raise ValueError(
                    f"{file} cannot be read as safetensors ({error}); the download may be incomplete"
                ) from error
            for name in handle.keys():
                if name in self._file:
                    raise ValueError(f"{directory}: tensor {name!r} is in two files, {origin[name]} and {file.name}")
                self._file[name] = handle
                origin[name] = file.name

    def names(self) -> set[str]:
        return set(self._file)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """``float32``, ``float16`` or ``bfloat16``; any other is refused."""
        stored = self._file[name].get_slice(name).get_dtype()
        if stored not in _DTYPES:
            raise ValueError(f"{self.where}: tensor {name!r} is {stored}; weights must be one of {', '.join(_DTYPES)}")
        return _DTYPES[stored]

    def read(self, name: str, index: Index) -> np.ndarray:
        return self._file[name].get_slice(name)[index]


def write_file(file: Path, shapes: Mapping[str, Sequence[int]], dtype: str, tensors: Iterable[np.ndarray]) -> None:
    """Writes ``tensors``, all of ``dtype``, under the names and in the order of ``shapes``.

    Only one of them is in memory at a time, where the library's own writer takes all at once. Format:
    github.com/huggingface/safetensors#format.
    """
    stored = {ours: theirs for theirs, ours in _DTYPES.items()}[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {"dtype": stored, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # what follows is aligned
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            out.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)


def _files(directory: Path) -> list[Path]:
    single = directory / "model.safetensors"
    if single.is_file():
        return [single]
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        listed = read_json(index).get("weight_map")
        if not isinstance(listed, dict) or not listed or not all(map(is_plain_name, listed.values())):
            raise ValueError(
                f"{index}: expected 'weight_map', from tensor names to the names of files in the same folder"
            )
        files = [directory / name for name in sorted(set(listed.values()))]
        for file in files:
            if not file.is_file():
                raise ValueError(f"{index} lists {file.name}, which is not there; fetch it again")
        return files
    pickles = sorted(file.name for pattern in _PICKLES for file in directory.glob(pattern))
    if pickles:
        raise ValueError(
            f"{directory} has pickled weights only ({pickles[0]}), which can run code when read; load them with "
            f"transformers and save_pretrained to get safetensors"
        )
    quantized = sorted(file.name for file in directory.glob("*.gguf"))
    hint = f"; to load {quantized[0]}, give the path of that file" if quantized else ""
    raise ValueError(f"{directory} has neither model.safetensors nor model.safetensors.index.json{hint}")
