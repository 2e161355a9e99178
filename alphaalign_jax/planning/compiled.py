"""What a plan needs of a compiled program, kept on disk: a second look at a layout compiles nothing.

JAX's own cache cannot read back programs for a TPU that is not there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import json
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from alphaalign_jax.planning.programs import Program

# What libtpu says where a program is too large: of all that it takes, or, before it is scheduled, of temporaries alone.
_USED = re.compile(r"(?:Used |HLO temporaries \()([\d.]+)([KMGT])\b")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

# How hard XLA tries: ``full`` is what a run compiles; ``fast`` leaves out what takes longest to find.
EFFORTS = {"full": {}, "fast": {"exec_time_optimization_effort": -1.0}}


class TooLarge(Exception):
    """The compiler gave up: a program alone takes more than a chip has."""

    def __init__(self, program: str, bytes: float):
        super().__init__(f"{program} takes at least {bytes / 2**30:.1f} GiB")
        self.bytes = bytes


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Bytes are of one chip."""

    arguments: float
    outputs: float  # beyond those that take an argument's place
    temporaries: float
    text: str  # of the program, as HLO
    output_specs: tuple[PartitionSpec, ...]  # by leaf
    seconds: float  # that compiling took

    @classmethod
    def of(cls, executable: jax.stages.Compiled, seconds: float) -> Compiled:
        stats = executable.memory_analysis()
        spec = lambda s: s.spec if isinstance(s, NamedSharding) else PartitionSpec()
        return cls(
            arguments=stats.argument_size_in_bytes,
            outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
            temporaries=stats.temp_size_in_bytes,
            text=executable.as_text(),
            output_specs=tuple(map(spec, jax.tree.leaves(executable.output_shardings))),
            seconds=seconds,
        )

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"output_specs": [list(spec) for spec in self.output_specs]}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Compiled:
        part = lambda axes: tuple(axes) if isinstance(axes, list) else axes
        specs = tuple(PartitionSpec(*map(part, spec)) for spec in found["output_specs"])
        return cls(**found | {"output_specs": specs})


def compiler(
    devices: Sequence[Any], folder: pathlib.Path | None, effort: str = "full"
) -> Callable[[Program], Compiled]:
    """Compiles programs for ``devices``, or finds in ``folder`` what it once found. Raises ``TooLarge``."""
    options = EFFORTS[effort]
    libtpu = None
    with contextlib.suppress(metadata.PackageNotFoundError):
        libtpu = metadata.version("libtpu")
    known = [jax.__version__, libtpu, os.environ.get("XLA_FLAGS"), os.environ.get("LIBTPU_INIT_ARGS")]
    about = repr([known, sorted(options.items()), [(d.device_kind, getattr(d, "coords", d.id)) for d in devices]])

    def compile(program: Program) -> Compiled:
        if folder is None:
            return _compile(program, options)
        text = "\n".join((about, program.lowered.as_text()))
        file = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json.gz"
        if file.exists():
            found = json.loads(gzip.decompress(file.read_bytes()))
            if "too_large" in found:
                raise TooLarge(program.name, found["too_large"])
            return Compiled.from_json(found)
        try:
            made = _compile(program, options)
        except TooLarge as error:
            _write(file, {"too_large": error.bytes})
            raise
        _write(file, made.to_json())
        return made

    return compile


def _compile(program: Program, options: dict[str, Any]) -> Compiled:
    began = time.perf_counter()
    try:
        with _unkept():
            executable = program.lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        used = _USED.search(str(error))
        if used is None:
            raise
        raise TooLarge(program.name, float(used[1]) * _UNITS[used[2]]) from None
    return Compiled.of(executable, time.perf_counter() - began)


@contextlib.contextmanager
def _unkept():
    """JAX would write programs for a described TPU to its cache, for nobody."""
    name = "jax_persistent_cache_min_compile_time_secs"
    usual = getattr(jax.config, name)
    jax.config.update(name, 1e9)
    try:
        yield
    finally:
        jax.config.update(name, usual)


def _write(file: pathlib.Path, found: dict[str, Any]) -> None:
    """Whole or not at all: another plan may read it meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as out:
        out.write(gzip.compress(json.dumps(found).encode()))
    os.replace(out.name, file)
