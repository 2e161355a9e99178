"""Load a config file and command-line overrides into checked settings."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import math
import os
import pathlib
import sys
import traceback
import typing
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from alphaalign_jax.config.checks import check
from alphaalign_jax.config.settings import Config

_NUMBERS = tuple[float, ...]
# Ranges of the devices' number types. Beyond them a float would become infinite or 0, and an
# integer would fail in whichever code converts it first.
_TINY, _HUGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_INTS = np.iinfo(np.int32)


def defaults() -> ConfigDict:
    """Return the default settings as a ConfigDict, locked so that a misspelt field is an error."""
    return ConfigDict(_to_dict(Config())).lock()


def _to_dict(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def load(path: str, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """Load ``file.py`` or ``file.py:argument``, apply dotted overrides, and check the result."""
    return resolve(read(path, overrides))


def read(path: str, overrides: Sequence[tuple[str, str]] = ()) -> ConfigDict:
    """Load as ``load`` does, but skip its checks: values may still be out of range."""
    config = _made(path)
    for key, text in overrides:
        override(config, key, text)
    return config


def _made(path: str) -> ConfigDict:
    """Return the result of the file's ``get_config``. Raise ValueError with its path on failure."""
    name, _, argument = path.partition(":")
    if not os.path.isfile(name):
        known = ", ".join(sorted(str(p) for p in pathlib.Path("configs").glob("[!_]*.py"))) or "none in ./configs"
        raise ValueError(f"--config={path}: no such file; configs here: {known}")
    file = pathlib.Path(name)
    if file.suffix != ".py":
        raise ValueError(f"--config={path}: expected a Python file with get_config(argument), such as configs/tiny.py")
    spec = importlib.util.spec_from_file_location(f"alphaalign_config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    # Configs may import modules they share, in the same folder (configs/_paper.py).
    sys.path.insert(0, str(file.parent.resolve()))
    try:
        spec.loader.exec_module(module)
        make = getattr(module, "get_config", None)
        config = make(argument) if callable(make) else None
    except (Exception, SystemExit) as error:
        raise ValueError(_fault(file, spec.origin, error)) from error
    finally:
        sys.path.pop(0)
    if not callable(make):
        raise ValueError(f"--config={path}: no get_config in it; define get_config(argument), as configs/tiny.py does")
    if not isinstance(config, ConfigDict) or isinstance(config, FrozenConfigDict):
        raise ValueError(
            f"--config={path}: get_config returns {type(config).__name__}; return the ConfigDict that "
            "alphaalign_jax.config.defaults() gives, with fields changed"
        )
    return config


def _fault(file: pathlib.Path, origin: str, error: BaseException) -> str:
    """Describe a config file's error in one line, with the line number in the file."""
    text = " ".join(str(error).split())
    if isinstance(error, ValueError) and file.name in text:  # the file rejects its argument itself
        return text
    if len(text) > 400:  # an unknown field: ml_collections lists all fields, then the closest match
        text = f"{text[:200]} ... {text[-200:]}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == origin]
    place = f"{file}:{lines[-1]}" if lines else f"{file}"
    return f"{place}: the config cannot be read ({type(error).__name__}: {text}); correct it there"


def override(config: ConfigDict, key: str, text: str) -> None:
    """Set ``a.b.c`` from command-line text, parsed to the type of the current value."""
    node: Any = config
    *parents, leaf = key.split(".")
    for i, part in enumerate([*parents, leaf]):
        if not isinstance(node, ConfigDict) or part not in node:
            raise ValueError(f"--config.{key}: unknown config key{_nearest(key, config)}")
        if i < len(parents):
            node = node[part]
    if isinstance(node[leaf], ConfigDict):
        raise ValueError(f"--config.{key}: is a section; set one of its fields: {', '.join(node[leaf])}")
    try:
        node[leaf] = _parse(key, text, type(node[leaf]))
    except (KeyError, ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        kind = type(node[leaf]).__name__
        raise ValueError(f"--config.{key}={text:.200}: expected {kind}, as the present value {node[leaf]!r}") from None


def _parse(key: str, text: str, kind: type) -> Any:
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if kind in (int, float):
        return kind(text)
    if kind is not tuple:
        return text
    # A bare comma-separated list of words, or of numbers if the setting holds numbers. Nested
    # values need a Python literal.
    if text[:1] not in ("(", "["):
        return tuple(map(float if _hint(key) == _NUMBERS else str, filter(None, text.split(","))))
    found = ast.literal_eval(text)
    if not isinstance(found, (tuple, list)):  # ("a.jsonl") is a string, not a tuple
        raise TypeError
    return tuple(found)


def _hint(key: str) -> Any:
    """Return the declared type of a key of ``Config``."""
    kind: Any = Config
    for part in key.split("."):
        kind = typing.get_type_hints(kind).get(part) if dataclasses.is_dataclass(kind) else None
    return kind


def _keys(config: Any, prefix: str = "") -> list[str]:
    out = []
    for name, value in config.items():
        out += _keys(value, f"{prefix}{name}.") if isinstance(value, (dict, ConfigDict)) else [prefix + name]
    return out


def _nearest(key: str, config: ConfigDict) -> str:
    known = _keys(config)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    tail = key.rsplit(".", 1)[-1]
    close = close or [k for k in known if k.rsplit(".", 1)[-1] == tail][:1]
    return f"; did you mean --config.{close[0]}?" if close else f"; sections: {', '.join(config)}"


def resolve(config: ConfigDict) -> Config:
    """Return typed, frozen settings.

    Raise ValueError for an unknown key, a wrong type, or invalid or incompatible values.
    """
    out = _build(Config, config.to_dict(), "")
    check(out)
    return out


def _build(cls: type, values: Any, prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    if not isinstance(values, dict):
        raise ValueError(f"config.{prefix[:-1]}={values!r}: expected a section with {', '.join(hints)}")
    for name in values:
        if name not in hints:
            close = difflib.get_close_matches(str(name), hints, n=1, cutoff=0.4)
            raise ValueError(
                f"config.{prefix}{name}: unknown config key"
                + (f"; did you mean config.{prefix}{close[0]}?" if close else "")
            )
    built = {}
    for name, value in values.items():
        kind, key = hints[name], f"{prefix}{name}"
        section = dataclasses.is_dataclass(kind)
        built[name] = _build(kind, value, f"{key}.") if section else _typed(kind, value, key)
    return cls(**built)


def _typed(kind: Any, value: Any, key: str) -> Any:
    """Return the value in the setting's type, or raise ValueError.

    Values from the command line and from config files both pass here, so every number is checked.
    """
    if kind == _NUMBERS:
        return tuple(_typed(float, item, key) for item in _typed(tuple, value, key))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= _HUGE else math.inf
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"config.{key}={value!r}: expected {kind.__name__}")
    if kind is float and not (math.isfinite(value) and (value == 0 or _TINY <= abs(value) <= _HUGE)):
        raise ValueError(f"config.{key}={value}: expected a finite number: 0, or {_TINY:.1e} to {_HUGE:.1e} in size")
    if kind is int and not _INTS.min <= value <= _INTS.max:
        raise ValueError(f"config.{key}={value}: expected a number from {_INTS.min} to {_INTS.max} (int32)")
    if kind is str and "\0" in value:
        raise ValueError(f"config.{key}: has a NUL in it, which no path or name may; leave it out")
    return value
