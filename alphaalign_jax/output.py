"""Command output files: validated up front, written atomically, by process 0 only."""

from __future__ import annotations

import errno
import os
import pathlib
import secrets

from alphaalign_jax import buckets
from alphaalign_jax.parallel import processes


def check(path: str, *inputs: str) -> None:
    """Raise ValueError, before any work, if ``path`` cannot be written or is one of ``inputs``."""
    if buckets.remote(path):
        buckets.check(path)
        return
    try:
        target = _target(path)
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder", str(target))
        if not target.exists() or target.is_file():  # not a pipe or /dev/null: a file will be made
            buckets.try_folder(target.parent)
        same = [name for name in inputs if name and not buckets.remote(name) and _same(target, name)]
    except OSError as error:
        raise ValueError(
            f"--out={path[:200]}: cannot be written ({buckets.why(error)}); give the path of a file"
        ) from error
    if same:
        raise ValueError(f"--out={path}: cannot be written ({same[0]} is an input of this command); give another file")


def write(path: str | pathlib.Path, text: str) -> None:
    """Write the file atomically, and create its folders.

    If the process is killed at any time, the old file or the new one is there.
    """
    if not processes.first():
        return
    if buckets.remote(path):
        with buckets.open_file(path, "w", encoding="utf-8") as file:
            file.write(text)
        return
    target = _target(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and not target.is_file():  # a pipe or /dev/null: do not replace it
        target.write_text(text, encoding="utf-8")
        return
    # The name is hidden, so that a mirror of the folder skips it, and random, so that nobody can
    # have placed a link there.
    partial = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("x", encoding="utf-8") as file:
            file.write(text)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _target(path: str | pathlib.Path) -> pathlib.Path:
    """Return the file's real path: links are followed, so that writing keeps them."""
    return pathlib.Path(os.path.expanduser(path)).resolve()


def _same(target: pathlib.Path, name: str) -> bool:
    other = pathlib.Path(os.path.expanduser(name))
    return target.exists() and other.exists() and target.samefile(other)
