"""From a config file and the command line to checked settings."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import pathlib
import sys
import typing
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from alphaalign_jax.config.checks import check
from alphaalign_jax.config.settings import Config


def defaults() -> ConfigDict:
    """The default settings as a ConfigDict: typed, and locked so that a misspelt field is an error."""
    return ConfigDict(_to_dict(Config())).lock()


def _to_dict(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def load(path: str, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """Config of ``file.py`` or ``file.py:argument`` with dotted overrides, checked."""
    name, _, argument = path.partition(":")
    file = pathlib.Path(name)
    if not file.is_file():
        known = ", ".join(sorted(str(p) for p in pathlib.Path("configs").glob("[!_]*.py"))) or "none in ./configs"
        raise ValueError(f"--config={path}: no such file; configs here: {known}")
    spec = importlib.util.spec_from_file_location(f"alphaalign_config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    # What several configs share lies beside them (configs/_paper.py).
    sys.path.insert(0, str(file.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    config = module.get_config(argument)
    for key, text in overrides:
        override(config, key, text)
    return resolve(config)


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets ``a.b.c`` from command-line text, typed as the present value is."""
    node: Any = config
    *parents, leaf = key.split(".")
    for i, part in enumerate([*parents, leaf]):
        if not isinstance(node, ConfigDict) or part not in node:
            raise ValueError(f"--config.{key}: unknown config key{_nearest(key, config)}")
        if i < len(parents):
            node = node[part]
    if isinstance(node[leaf], ConfigDict):
        raise ValueError(f"--config.{key}: is a section; set one of its fields: {', '.join(node[leaf])}")
    node[leaf] = _parse(key, text, node[leaf])


def _parse(key: str, text: str, present: Any) -> Any:
    kind = type(present)
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind in (int, float):
            return kind(text)
        if kind is tuple:
            # A bare comma-separated list of words, or a Python literal for anything nested.
            return tuple(ast.literal_eval(text)) if text[:1] in ("(", "[") else tuple(p for p in text.split(",") if p)
    except (KeyError, ValueError, SyntaxError, TypeError):
        raise ValueError(f"--config.{key}={text}: expected {kind.__name__}, as the present value {present!r}") from None
    return text


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
    """Typed, frozen settings; raises ValueError for an unknown key, a wrong type or values that cannot go together."""
    out = _build(Config, config.to_dict(), "")
    check(out)
    return out


def _build(cls: type, values: dict, prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            raise ValueError(
                f"config.{prefix}{name}: unknown config key"
                + (f"; did you mean config.{prefix}{close[0]}?" if close else "")
            )
    built = {}
    for name, value in values.items():
        kind = hints[name]
        if dataclasses.is_dataclass(kind):
            value = _build(kind, value, f"{prefix}{name}.")
        elif kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"config.{prefix}{name}={value!r}: expected {kind.__name__}")
        built[name] = value
    return cls(**built)
