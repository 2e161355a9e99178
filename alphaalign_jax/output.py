"""The file that a command leaves: looked at before the work, written whole or not at all, by one process for all."""

from __future__ import annotations

import os
import pathlib

from alphaalign_jax import buckets
from alphaalign_jax.parallel import processes


def check(path: str) -> None:
    """Raises ValueError for a file that could not be written once all is found."""
    if buckets.remote(path):
        buckets.check(path)
        return
    target = pathlib.Path(path)
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    if target.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"--out={path}: cannot be written ({folder} is where it would go); give the path of a file")


def write(path: str | pathlib.Path, text: str) -> None:
    """Makes the file and the folders above it. Whenever the process is killed, it is the old one or the new one."""
    if not processes.first():
        return
    if buckets.remote(path):
        with buckets.open_file(path, "w", encoding="utf-8") as file:
            file.write(text)
        return
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")  # hidden: a mirror of the folder passes over it
    partial.write_text(text, encoding="utf-8")
    partial.replace(target)
