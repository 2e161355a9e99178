"""A run's checkpoints: one Orbax step holds the whole training state, written atomically and off the critical path,
and is checked against digests of what was written when it is read."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import hashlib
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import PreservationContext, PreservationPolicy

from alphaalign_jax import buckets
from alphaalign_jax import config as config_lib
from alphaalign_jax.errors import ExpectedError
from alphaalign_jax.parallel import processes
from alphaalign_jax.parallel.digest import digests
from alphaalign_jax.terminal import quiet_libraries
from alphaalign_jax.train import resumption
from alphaalign_jax.types import TrainState

# The policy and its average are items of their own, so that either can be read without the rest (``hf.load`` of a run's
# folder).
_POLICY = ("actor", "average")
_REST = ("step", "actor_opt", "critic", "critic_opt", "reference", "ahead", "kl_coef")
# What storage says where it cannot be reached: the checkpoint may be whole, and an older one is not to be taken for it.
_UNREACHABLE = ("UNAVAILABLE", "PERMISSION_DENIED", "DEADLINE_EXCEEDED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED")


class CheckpointError(ExpectedError):
    """A checkpoint could not be written, or none can be read. What was written before is left as it is."""


class _Damaged(Exception):
    """A checkpoint is not what was written."""


@dataclasses.dataclass
class Progress:
    """What a run knows beside its arrays, saved with them. The data position and all keys are functions of the step."""

    config: dict[str, Any]
    inputs: dict[str, str]  # ``provenance.inputs``
    computed_by: dict[str, str]  # ``provenance.computed_by``
    initial: str  # the weights it began with, the reference's (``provenance.weights_id``)
    before: dict[str, Any] | None = None  # outcomes at step 0, once they are known
    seconds: float = 0.0  # that the run has taken
    evaluated: int = -1  # the last step that was looked at (``looks``); -1: none yet
    look_at: int = -1  # the step that an alarm wants looked at; -1: none
    looks: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # {step, score} of each (``Outcome.score``)
    best: dict[str, Any] | None = None  # that of the best look so far
    rollbacks: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # {step, to, reason, lr_scale}
    guards: dict[str, Any] = dataclasses.field(default_factory=dict)  # ``Guards.state``


def result_item(config: config_lib.Config) -> str:
    """Item of a checkpoint that holds the weights of ``TrainState.result``."""
    return "average" if config.algorithm.ema_decay else "actor"


def _items(state: TrainState) -> dict[str, Any]:
    """The state by item of a checkpoint. Only what is there: Orbax has no leaf for None."""
    there = lambda names: {name: getattr(state, name) for name in names if getattr(state, name) is not None}
    return there(_POLICY) | {"rest": there(_REST)}


@dataclasses.dataclass
class _Kept(PreservationPolicy):
    """The newest ``last``, every one of a multiple of ``every`` (0: none), and the best."""

    last: int
    every: int
    best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: PreservationContext) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        newest = sorted(steps)[-self.last :]
        return [s in newest or s == self.best or bool(self.every and s and s % self.every == 0) for s in steps]


def _forgiving(handler: ocp.CheckpointHandler) -> ocp.CheckpointHandler:
    """One that returns what goes wrong in reading: raised, it would leave other processes waiting for this one."""
    read = handler.restore

    def restore(*args: Any, **kwargs: Any) -> Any:
        try:
            return read(*args, **kwargs)
        except Exception as error:
            return error

    handler.restore = restore  # not of a subclass, for which Orbax knows no arguments
    return handler


class Checkpoints:
    """Training states by step under ``directory``."""

    def __init__(self, directory: str | pathlib.Path, settings: config_lib.Checkpoint):
        """``directory``: one that all processes see, local or ``gs://...``."""
        self.directory = epath.Path(directory if buckets.remote(directory) else buckets.local(directory).absolute())
        self._kept = _Kept(settings.keep, settings.keep_every)
        self._manager: ocp.CheckpointManager | None = None
        self._damaged: dict[int, str] = {}  # steps that cannot be read, and why
        if buckets.remote(directory):  # what may not be used is found out now
            with buckets.saying(str(directory), "used"):
                self._open()
        elif self.directory.is_dir():
            self._open()

    def _open(self) -> ocp.CheckpointManager:
        """The folder is made by the first save, not by a run that is refused."""
        if self._manager is None:
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self._kept, create=True, cleanup_tmp_directories=True
            )
            _hush()
            handlers = {name: _forgiving(ocp.StandardCheckpointHandler()) for name in (*_POLICY, "rest")}
            handlers["meta"] = _forgiving(ocp.JsonCheckpointHandler())
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
        return self._manager

    def steps(self) -> list[int]:
        """Finished steps that are not known to be damaged, newest first."""
        found = () if self._manager is None else self._manager.all_steps()
        return sorted({*found} - {*self._damaged}, reverse=True)

    def check(self, config: config_lib.Config, resume: bool, *, extend: bool = False) -> Progress | None:
        """Raises ValueError unless the folder fits: empty for a new run; for a resumption, this config's checkpoints.

        ``extend``: see ``resumption.check``. Returns the progress of the newest that can be read, None for a new run.
        """
        if not resume and self.steps():
            raise ValueError(
                f"{config.location} already holds checkpoints (newest: step {self.steps()[0]}); continue with "
                "--resume, or choose another --config.out"
            )
        if not resume:
            return None
        if not self.steps():
            raise ValueError(f"--resume: {self.directory} holds no finished checkpoint; run without it")
        for step in self.steps():
            try:
                progress, _ = self._read_meta(step)
            except _Damaged as error:
                self._damaged[step] = str(error)
            else:
                resumption.check(progress.config, config, step, extend=extend)
                return progress
        raise self._nothing_left()

    # Writing ----------------------------------------------------------------------------------------------------------

    def save(self, state: TrainState, progress: Progress, *, wait: bool = False) -> bool:
        """Starts writing ``state`` under its step; a step that is there already is left as it is.

        Where an earlier one is still being written nothing is done, and False returned, unless this is to ``wait`` for
        it: saves must not take longer than the steps between them.
        """
        manager, step = self._open(), int(state.step)
        # One answer on all processes: each writes its part.
        if not wait and processes.gather_rows(np.asarray(manager.is_saving_in_progress())).any():
            return False
        self.wait()
        if step in manager.all_steps():
            return True
        items = _items(state)
        meta = {"progress": resumption.plain(dataclasses.asdict(progress)), "arrays": digests(items)}
        self._kept.best = None if progress.best is None else progress.best["step"]
        arrays = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        meta = ocp.args.JsonSave(meta | {"sha256": _sha256(meta)})
        with self._saying():
            manager.save(step, args=ocp.args.Composite(**arrays, meta=meta))
        return True

    def check_written(self) -> None:
        """Raises CheckpointError where a write in the background has failed. Waits for none."""
        # Orbax's own check finds nothing: its thread has taken the error, and gives it to who waits for the thread.
        if self._manager is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Until what is being written is whole. Raises CheckpointError where it cannot be."""
        with self._saying():
            if self._manager is not None:
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for writes under way; after one that failed there is nothing to wait for."""
        if self._manager is not None:
            with contextlib.suppress(CheckpointError):
                self.wait()
            with contextlib.suppress(Exception):  # the same once more
                self._manager.close()

    @contextlib.contextmanager
    def _saying(self) -> Iterator[None]:
        """What Orbax and storage raise in writing, as one line that says what is left."""
        try:
            yield
        except jax.errors.JaxRuntimeError:  # of a process that is gone: nothing is wrong with the disk
            raise
        except Exception as error:
            self._manager.reload()  # it has forgotten those that were to go once this one is written
            whole = self.steps()
            left = f"the run can go on from step {whole[0]} with --resume" if whole else "there is none before it"
            reason = _shortened(str(error), 300)
            raise CheckpointError(
                f"a checkpoint could not be written to {self.directory} ({type(error).__name__}: {reason}); {left}, "
                "once there is room and it may be written to"
            ) from error

    # Reading ----------------------------------------------------------------------------------------------------------

    def restore(self, like: Callable[[int], TrainState]) -> tuple[TrainState, Progress, list[str]]:
        """The newest state that is as it was written, its progress, and what is to be said of newer ones.

        ``like``: by step, what to restore into (ShapeDtypeStructs with shardings). Newer checkpoints, which are
        damaged, are renamed, so that the run can write its own. Raises CheckpointError where none can be read.
        """
        for step in self.steps():
            try:
                progress, written = self._read_meta(step)
                state = self._read_arrays(step, like(step), written)
            except _Damaged as error:
                self._damaged[step] = str(error)
            else:
                return state, progress, self._set_aside(step)
        raise self._nothing_left()

    def read(self, step: int, like: TrainState) -> TrainState:
        """Return the state after ``step``, which was saved before.

        ``like``: what to restore into, as for ``restore``; fields that are None are not read. Raises CheckpointError if
        it cannot be read.
        """
        self.wait()
        try:
            if step not in self.steps():
                raise _Damaged("it is gone")
            return self._read_arrays(step, like, self._read_meta(step)[1])
        except _Damaged as error:
            raise CheckpointError(f"checkpoint {step} in {self.directory} cannot be read ({error})") from error

    def _read_meta(self, step: int) -> tuple[Progress, dict[str, str]]:
        """What is saved beside the arrays, and their digests."""
        meta = self._restore(step, meta=ocp.args.JsonRestore())["meta"]
        said = meta.pop("sha256", None) if isinstance(meta, dict) else None
        if said is None or said != _sha256(meta):
            raise _Damaged("meta is not what was written")
        try:
            return Progress(**meta["progress"]), meta["arrays"]
        except TypeError as error:
            raise ValueError(f"checkpoint {step} of {self.directory} is another version's: {error}") from error

    def _read_arrays(self, step: int, like: TrainState, written: dict[str, str]) -> TrainState:
        items = {name: item for name, item in _items(like).items() if item}
        found = self._restore(step, **{name: ocp.args.StandardRestore(item) for name, item in items.items()})
        said = digests(found)
        read = tuple(f"['{name}']" for name in items)
        written = {path: digest for path, digest in written.items() if path.startswith(read)}
        differing = sorted(path for path in {*said, *written} if said.get(path) != written.get(path))
        if differing:
            raise _Damaged(f"{differing[0]} is not what was written, one of {len(differing)} such arrays")
        return like.replace(**{name: found[name] for name in found if name != "rest"}, **found.get("rest", {}))

    def _restore(self, step: int, **args: Any) -> dict[str, Any]:
        """Items of a step. Raises _Damaged on all processes where one of them cannot read its part."""
        failed = ""
        try:
            with _quiet():
                found = {**self._manager.restore(step, args=ocp.args.Composite(**args))}
            failures = [(name, value) for name, value in found.items() if isinstance(value, Exception)]
            failed = f"{failures[0][0]}: {_reason(failures[0][1])}" if failures else ""
        except Exception as error:  # of a folder that is missing, on all processes alike; or of storage
            failed = _reason(error)
        everywhere = np.flatnonzero(processes.gather_rows(np.asarray(bool(failed))))
        if len(everywhere):
            raise _Damaged(failed or f"process {everywhere[0]} cannot read its part")
        return found

    def _set_aside(self, step: int) -> list[str]:
        """Renames the damaged checkpoints, all newer than ``step``; what a person should know of them."""
        said = []
        for bad, reason in sorted(self._damaged.items(), reverse=True):
            aside = self.directory / f"damaged-{bad}"
            if processes.first():
                if aside.exists():  # the same step, damaged before
                    aside.rmtree()
                (self.directory / str(bad)).rename(aside)
            said.append(f"checkpoint {bad} is damaged ({reason}); kept as {aside}, going on from step {step}")
        if said:
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("alphaalign_jax.checkpoint set aside")
            self._manager.reload()
            self._damaged.clear()
        return said

    def _nothing_left(self) -> CheckpointError:
        reasons = "; ".join(f"step {step}: {reason}" for step, reason in sorted(self._damaged.items(), reverse=True))
        return CheckpointError(
            f"--resume: no checkpoint in {self.directory} can be read ({reasons}); start anew with another --config.out"
        )


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _reason(error: Exception) -> str:
    """Why a checkpoint cannot be read, in one line. Raises the error where it may be whole, and cannot be reached."""
    text = " ".join(str(error).split())  # whole: what says so may stand at its end
    unreachable = isinstance(error, (MemoryError, PermissionError, ConnectionError, TimeoutError))
    if unreachable or any(word in text for word in _UNREACHABLE):
        raise error
    return f"{type(error).__name__}, {text[:120]}"


def _shortened(text: str, length: int) -> str:
    """In one line. What it was stands at a message's beginning; what the system said of it before its error's code."""
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    said = re.findall(r"[^:]+\[os_error_code[^\]]*\]", text) or [text[-length // 2 :]]
    return f"{text[: length // 2]} ...{said[0]}"


@functools.cache
def _hush() -> None:
    """Silence Orbax, and writes of tensorstore that a failed one leaves behind, whose event loop is gone."""
    quiet_libraries()
    if os.environ.get("ALPHAALIGN_TRACEBACK"):
        return
    hook = sys.unraisablehook
    sys.unraisablehook = lambda said: None if str(said.exc_value) == "Event loop is closed" else hook(said)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Reads of a damaged array that were under way end in tracebacks that nobody can act on."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
        gc.collect()
    finally:
        sys.unraisablehook = hook
