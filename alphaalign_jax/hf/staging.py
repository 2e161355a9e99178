"""Writing a directory so that a half-written one is never seen under its name."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from alphaalign_jax import buckets
from alphaalign_jax.hf.paths import MARKER, marker


@contextlib.contextmanager
def staged(out_dir: str | Path, **marks: Any) -> Iterator[Path]:
    """A directory beside ``out_dir`` to write into, which takes its name once the block ends without an error.

    ``marks`` go into the marker file. Every process enters; process 0 makes, marks and renames. An earlier save at
    ``out_dir`` is replaced; anything else there is refused with ValueError.
    """
    out = check_target(out_dir)
    partial, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    first = jax.process_index() == 0
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    _wait("staged")
    try:
        yield partial
        _wait("written")
        if first:
            _rename(partial, out, old, marks)
        _wait("renamed")
    finally:
        if first:
            shutil.rmtree(partial, ignore_errors=True)


def check_target(out_dir: str | Path, *, replace: bool = True) -> Path:
    """Return the absolute path.

    Raise ValueError if something is there that we did not write or, without ``replace``, any model at all.
    """
    if "://" in str(out_dir):
        raise ValueError(f"cannot write to {out_dir}: give a local path, and copy it from there")
    out = Path(out_dir).expanduser().absolute()
    try:
        buckets.try_folder(out.parent)
        if out.exists() and not out.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "is no folder", str(out))
    except OSError as error:
        raise ValueError(f"cannot write to {str(out)[:200]} ({buckets.why(error)}); give another directory") from error
    present = {file.name for file in out.iterdir()} if out.is_dir() else set()
    if MARKER in present and not replace:
        raise ValueError(f"{out} holds a model; give another directory, or replace that one with --overwrite")
    ours = {*marker(out).get("files", []), MARKER}
    if present and (MARKER not in present or present - ours):
        raise ValueError(
            f"cannot write to {out}: it holds {sorted(present - ours)[0]}, not only an earlier export; "
            f"give another directory"
        )
    return out


def _rename(partial: Path, out: Path, old: Path, marks: dict[str, Any]) -> None:
    files = sorted(file.name for file in partial.iterdir())
    (partial / MARKER).write_text(json.dumps({**marks, "files": files}, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _wait(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"alphaalign_jax.hf {name}")
