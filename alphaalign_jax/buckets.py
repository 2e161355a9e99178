"""Files and folders in buckets (``gs://...``, by fsspec), and the folders of this machine that stand for them.

A run's records and its export are written locally and copied to the bucket while the run goes on; its checkpoints, of
which every host writes a part, go there directly (``train.checkpoint``). A model or a data file is copied from there.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import fsspec
import jax
import numpy as np
from jax.experimental import multihost_utils

from alphaalign_jax.errors import ExpectedError
from alphaalign_jax.parallel import processes

MARKER = "alphaalign.json"  # in a folder that is nothing without all its files (``hf.staging``): copied there last

_HERE = "~/.cache/alphaalign_jax/buckets"
_SEEN_AFTER_SECONDS = 60.0  # disks that hosts share may be slow to show a file
_EVERY_SECONDS = 60.0  # between copies of what a run has written
_MANIFEST = ".fetched.json"  # what a local copy was made of
_WRITTEN = ".alphaalign"  # an empty file, to see whether there could be others

Choose = Callable[[set[str]], Iterable[str]]


def remote(path: str | pathlib.Path) -> bool:
    return "://" in str(path)


def local(path: str | pathlib.Path, use: str = "runs") -> pathlib.Path:
    """The path itself, or what stands for a bucket's on this machine: one for each process, and for each ``use``."""
    if not remote(path):
        return pathlib.Path(os.path.expanduser(path))
    scheme, _, rest = str(path).partition("://")
    parts = [part for part in rest.split("/") if part]
    if len(parts) < 2 or ".." in parts or not scheme.isalnum():
        raise ValueError(f"{path!r}: expected a bucket and a name in it, such as gs://BUCKET/RUN")
    return pathlib.Path(_HERE).expanduser().joinpath(use, str(jax.process_index()), scheme, *parts)


def open_file(path: str, mode: str, **options: Any) -> IO[Any]:
    """``open`` for local files and those in buckets; options as ``open`` has them."""
    if not remote(path):
        try:
            return open(os.path.expanduser(path), mode, **options)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ValueError(f"{path[:200]!r} cannot be opened ({reason}); give the path of a file") from error
    _system(path)
    with saying(path, "opened"):
        return fsspec.open(path, mode, **options).open()


def check(url: str) -> None:
    """Raises ValueError for a file that could not be written: leaves an empty one beside it."""
    folder = url.rpartition("/")[0]
    system, root = _system(folder)
    with saying(url, "written"):
        system.pipe_file(f"{root}/{_WRITTEN}", b"")


def fetch(url: str, choose: Choose = lambda names: names, target: pathlib.Path | None = None) -> pathlib.Path:
    """A local copy of a bucket's file, or of those files of a folder that ``choose`` takes of all their names.

    What is there already and has not changed is not copied again; files that the bucket does not have are removed.
    Raises ValueError where there is nothing, or it cannot be read.
    """
    target, (system, root) = target or local(url, "fetched"), _system(url)
    with saying(url, "read"):
        if not _update(system, root, choose, target):
            if not system.isfile(root):
                raise FileNotFoundError("no such file or folder")
            _download(system, {target.name: system.info(root)}, target.parent)
    return target


class Mirror:
    """A run's folder: ``url`` where it is kept, ``folder`` where it is written. Nothing to do where these are the same.

    Every process pulls, so that all see the same; the first one pushes.
    """

    def __init__(self, url: str, say: Callable[[str], None] = lambda _: None):
        """``say``: of a copy that fails while the run goes on, once; it is tried again with the next."""
        self.url, self.folder, self._say, self._failing = url, local(url), say, False
        self._known: dict[str, tuple[int, int]] = {}  # what the bucket has: time and size of the local file
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "bucket")
        self._pushing: concurrent.futures.Future | None = None  # the last copy that was begun
        self._pushed = time.monotonic()

    def pull(self) -> None:
        """Makes the local folder equal to the bucket's.

        Raises ValueError where the bucket cannot be used, or a local folder is not that of all processes.
        """
        if not remote(self.url):
            _check_folder(self.folder)
            _check_shared(self.folder)
            return
        system, root = _system(self.url)
        with saying(self.url, "read"):
            if not _update(system, root, _finished, self.folder):
                shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._known = self._local()
        if processes.first():
            check(f"{self.url}/{_WRITTEN}")  # found out now, not when the run is over

    def push(self, *, now: bool = False) -> None:
        """Starts to copy what is new, if that was not done lately or is asked for ``now``. The run goes on meanwhile,
        and where it fails."""
        under_way = self._pushing is not None and not self._pushing.done()
        waits = under_way and not self._pushing.running()  # one that has yet to begin will copy this too
        lately = time.monotonic() - self._pushed <= _EVERY_SECONDS
        if not (self._idle() or waits) and (now or not (under_way or lately)):
            self._pushed = time.monotonic()
            self._pushing = self._pool.submit(self._try)

    def settle(self) -> None:
        """Copies all that is new. Raises OSError where that fails."""
        if not self._idle():
            concurrent.futures.wait([self._pushing] if self._pushing else [])
            self._copy()

    def share(self, name: str) -> pathlib.Path:
        """A folder that the first process has written, on every process."""
        if remote(self.url) and jax.process_count() > 1:
            if processes.first():
                self._copy()
            multihost_utils.sync_global_devices(f"alphaalign_jax.buckets {name}")
            if not processes.first():
                fetch(f"{self.url}/{name}", target=self.folder / name)
        return self.folder / name

    def _try(self) -> None:
        try:
            self._copy()
            self._failing = False
        except OSError as error:
            if not self._failing:
                self._say(f"the run's records could not be copied, which is tried again: {error}")
            self._failing = True

    def _idle(self) -> bool:
        return not (remote(self.url) and processes.first())

    def _local(self) -> dict[str, tuple[int, int]]:
        found = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder)
            if not any(part.startswith(".") for part in name.parts) and path.is_file():  # not what is half written
                found[name.as_posix()] = (path.stat().st_mtime_ns, path.stat().st_size)
        return found

    def _copy(self) -> None:
        system, root = _system(self.url)
        with saying(self.url, "written", OSError):
            now = self._local()
            new = [name for name, stamp in now.items() if self._known.get(name) != stamp]
            markers = [name for name in new if _is_marker(name)]
            # A folder that is made anew is no whole one meanwhile; and what it no longer has goes. Other files are
            # never taken from the bucket, whatever becomes of those here.
            self._remove(system, root, [name for name in markers if name in self._known])
            self._put(system, root, [name for name in new if name not in markers], now)
            gone = [name for name in self._known if name not in now and (self.folder / name).with_name(MARKER).exists()]
            self._remove(system, root, gone)
            self._put(system, root, markers, now)

    def _put(self, system: fsspec.AbstractFileSystem, root: str, names: list[str], now: dict[str, Any]) -> None:
        if names:
            system.put([str(self.folder / name) for name in names], [f"{root}/{name}" for name in names])
            self._known |= {name: now[name] for name in names}

    def _remove(self, system: fsspec.AbstractFileSystem, root: str, names: list[str]) -> None:
        for name in names:
            system.rm_file(f"{root}/{name}")
            del self._known[name]


@contextlib.contextmanager
def mirrored(url: str, say: Callable[[str], None] = lambda _: None) -> Iterator[Mirror]:
    """A run's folder, pulled, and pushed again whatever ends the run. ExpectedError where that fails at a good end."""
    mirror = Mirror(url, say)
    mirror.pull()
    try:
        yield mirror
    except BaseException:
        with contextlib.suppress(OSError):  # what ended the run is what is to be told
            mirror.settle()
        raise
    try:
        mirror.settle()
    except OSError as error:
        raise ExpectedError(f"{error}; the run is done, and its records and export are in {mirror.folder}") from error
    if remote(url) and jax.process_count() > 1:  # the others would end, and not wait for ever for the first one's end
        multihost_utils.sync_global_devices("alphaalign_jax.buckets settled")


def _is_marker(name: str) -> bool:
    return name.rpartition("/")[2] == MARKER


def _finished(names: set[str]) -> set[str]:
    """Of a run's files those that are copied, without folders of which the copy was never finished."""
    whole = {name.rpartition("/")[0] for name in names if _is_marker(name)}
    unfinished = {name.partition("/")[0] for name in names if "/" in name} - whole - {"tensorboard"}
    return {name for name in names if "/" not in name or name.partition("/")[0] not in unfinished}


def _listed(system: fsspec.AbstractFileSystem, root: str) -> dict[str, Any]:
    """What the file system says of each file below a folder. Empty objects that stand for folders are left out."""
    system.invalidate_cache()
    found = {name[len(root) + 1 :]: info for name, info in system.find(root, detail=True).items()}
    return {name: info for name, info in found.items() if name and not name.endswith("/")}


def _system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        system, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url}: {error}; for gs://: pip install 'alphaalign_jax[gcs]'") from error
    return system, root.rstrip("/")


def _check_folder(folder: pathlib.Path) -> None:
    """Raises ValueError for one that cannot be made or written to: found out now, not when there is something to."""
    try:
        try_folder(folder.absolute())
    except OSError as error:
        raise ValueError(
            f"{str(folder)[:200]}: the run cannot be kept there ({why(error)}); give another --config.out"
        ) from error


def try_folder(folder: pathlib.Path) -> None:
    """Raise OSError if a file could not be written in ``folder``, which need not exist yet. Leaves nothing behind.

    A folder is really made: permissions alone say that /proc may be written to, and a disk mounted read-only. If
    ``folder`` does not exist it is made in the nearest parent, under a name of its own, as other processes may try too.
    """
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is no folder", str(there))
    os.rmdir(tempfile.mkdtemp(prefix=".alphaalign-", dir=there))


def why(error: OSError) -> str:
    """An OSError's reason, with the folder that it is about."""
    place = os.path.dirname(error.filename) if ".alphaalign-" in str(error.filename) else error.filename
    return f"{str(place)[:200]}: {error.strerror}"


def _check_shared(folder: pathlib.Path) -> None:
    """Every process writes its part of a checkpoint: hosts with a disk of their own would be found out at the first."""
    if jax.process_count() == 1:
        return
    mark = folder / f".seen-{multihost_utils.broadcast_one_to_all(np.int32(time.time_ns() % 2**31))}"
    missing = []
    if processes.first():  # the others do not look before it is there: a shared disk would remember that it was not
        missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    multihost_utils.sync_global_devices("alphaalign_jax.buckets marked")
    waited = time.monotonic() + _SEEN_AFTER_SECONDS
    while not mark.exists() and time.monotonic() < waited:
        time.sleep(0.1)
    seen = processes.gather_rows(np.asarray(mark.exists()))
    if processes.first():
        mark.unlink()
        with contextlib.suppress(OSError):  # a run that is refused leaves nothing
            for parent in missing:
                parent.rmdir()
    if not seen.all():
        raise ValueError(
            f"{folder}: processes {np.flatnonzero(~seen).tolist()} do not see what process 0 writes there; give a "
            "folder that all hosts share, or gs://BUCKET/RUN"
        )


def _update(system: fsspec.AbstractFileSystem, root: str, choose: Choose, folder: pathlib.Path) -> bool:
    """Makes ``folder`` equal to what ``choose`` takes of the files below ``root``; False where that is nothing."""
    found = _listed(system, root)
    wanted = {name: found[name] for name in choose({*found})}
    if wanted:
        _download(system, wanted, folder)
        _remove_others(folder, {*wanted})
    return bool(wanted)


def _download(system: fsspec.AbstractFileSystem, wanted: dict[str, Any], folder: pathlib.Path) -> None:
    """Copies files to ``folder``: what the file system says of each, by its name there."""
    manifest = folder / _MANIFEST
    had = json.loads(manifest.read_text()) if manifest.is_file() else {}
    for name, info in wanted.items():
        target, stamp = folder / name, str([info.get(key) for key in ("size", "etag", "mtime", "created")])
        if folder.resolve() not in target.resolve().parents:
            raise ValueError(f"{name!r} leaves the folder")
        if had.get(name) != stamp or not target.is_file() or target.stat().st_size != info["size"]:
            target.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(info["name"], str(target))
            had[name] = stamp
    manifest.write_text(json.dumps(had))


def _remove_others(folder: pathlib.Path, names: set[str]) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):  # files before the folders that they lie in
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif name not in names and name != _MANIFEST:
            path.unlink()


@contextlib.contextmanager
def saying(url: str, what: str, kind: type[Exception] = ValueError) -> Iterator[None]:
    """Whatever the bucket's library raises, as one line that names the place."""
    try:
        yield
    except Exception as error:
        raise kind(
            f"{url}: cannot be {what} ({type(error).__name__}: {error}); check the name and your access to the bucket "
            "(gcloud auth application-default login)"
        ) from error
