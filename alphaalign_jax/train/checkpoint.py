"""Save and restore the checkpoints of a run.

Each checkpoint is one Orbax step with the whole training state. It is written atomically in the
background, and verified against its saved digests when it is read.
"""

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

# The policy and its average are separate items, so that ``hf.load`` of a run's folder can read one
# without the rest.
_POLICY = ("actor", "average")
_REST = ("step", "actor_opt", "critic", "critic_opt", "reference", "ahead", "kl_coef")
# Storage error codes of an unreachable checkpoint. It may be intact, so the run must not fall back
# to an older one.
_UNREACHABLE = ("UNAVAILABLE", "PERMISSION_DENIED", "DEADLINE_EXCEEDED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED")


class CheckpointError(ExpectedError):
    """A checkpoint could not be written, or none can be read. Earlier checkpoints are untouched."""


class _Damaged(Exception):
    """A checkpoint is unreadable or differs from its digests."""


@dataclasses.dataclass
class Progress:
    """The state of a run apart from its arrays, saved with them.

    The data position and all random keys are functions of the step, so they are not stored.
    """

    config: dict[str, Any]
    inputs: dict[str, str]  # ``provenance.inputs``
    computed_by: dict[str, str]  # ``provenance.computed_by``
    initial: str  # ``provenance.weights_id`` of the initial weights, which are also the reference
    before: dict[str, Any] | None = None  # outcomes at step 0; None before that evaluation
    seconds: float = 0.0  # run time so far
    evaluated: int = -1  # step of the last periodic evaluation (``looks``); -1: none yet
    look_at: int = -1  # step at which an alarm requests an evaluation; -1: none
    # {step, score} of each periodic evaluation (``Outcome.score``).
    looks: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best: dict[str, Any] | None = None  # {step, score} of the best one so far
    rollbacks: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # {step, to, reason, lr_scale}
    guards: dict[str, Any] = dataclasses.field(default_factory=dict)  # ``Guards.state``


def result_item(config: config_lib.Config) -> str:
    """Return the name of the checkpoint item that holds the weights of ``TrainState.result``."""
    return "average" if config.algorithm.ema_decay else "actor"


def _items(state: TrainState) -> dict[str, Any]:
    """Return the state by checkpoint item, without its None fields: Orbax has no leaf for None."""
    there = lambda names: {name: getattr(state, name) for name in names if getattr(state, name) is not None}
    return there(_POLICY) | {"rest": there(_REST)}


@dataclasses.dataclass
class _Kept(PreservationPolicy):
    """Keep the newest ``last`` checkpoints, the multiples of ``every`` (0: none), and the best."""

    last: int
    every: int
    best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: PreservationContext) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        newest = sorted(steps)[-self.last :]
        return [s in newest or s == self.best or bool(self.every and s and s % self.every == 0) for s in steps]


def _forgiving(handler: ocp.CheckpointHandler) -> ocp.CheckpointHandler:
    """Make ``handler.restore`` return errors: raising them would leave other processes waiting."""
    read = handler.restore

    def restore(*args: Any, **kwargs: Any) -> Any:
        try:
            return read(*args, **kwargs)
        except Exception as error:
            return error

    handler.restore = restore  # on the instance: Orbax has no arguments registered for a subclass
    return handler


class Checkpoints:
    """The saved training states of a run, by step, under ``directory``."""

    def __init__(self, directory: str | pathlib.Path, settings: config_lib.Checkpoint):
        """Open ``directory`` if it exists.

        It must be visible to all processes: a local path or ``gs://...``.
        """
        self.directory = epath.Path(directory if buckets.remote(directory) else buckets.local(directory).absolute())
        self._kept = _Kept(settings.keep, settings.keep_every)
        self._manager: ocp.CheckpointManager | None = None
        self._damaged: dict[int, str] = {}  # steps that cannot be read, and why
        if buckets.remote(directory):  # fail now if the bucket cannot be used
            with buckets.saying(str(directory), "used"):
                self._open()
        elif self.directory.is_dir():
            self._open()

    def _open(self) -> ocp.CheckpointManager:
        """Return the Orbax manager, created on first use.

        The first save creates the folder. A run that is rejected before leaves no folder behind.
        """
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
        """Return the finished steps that are not known to be damaged, newest first."""
        found = () if self._manager is None else self._manager.all_steps()
        return sorted({*found} - {*self._damaged}, reverse=True)

    def check(self, config: config_lib.Config, resume: bool, *, extend: bool = False) -> Progress | None:
        """Raise ValueError unless the folder suits the run.

        It must be empty for a new run, and hold checkpoints of this config when resuming. Return
        the progress of the newest readable checkpoint, None for a new run. Raise CheckpointError if
        none can be read. ``extend``: see ``resumption.check``.
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
        """Start saving ``state`` under its step. An existing checkpoint of it is left unchanged.

        Return False, with nothing done, if a save is in progress and ``wait`` is False: a save that
        takes longer than the steps between two saves must not hold up training.
        """
        manager, step = self._open(), int(state.step)
        # All processes must decide alike, because each writes its part.
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
        """Raise CheckpointError if a background write has failed, without waiting for any."""
        # Orbax's own check misses the error: its thread passes it only to a caller that waits.
        if self._manager is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Block until the write in progress has finished. Raise CheckpointError if it failed."""
        with self._saying():
            if self._manager is not None:
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for writes in progress, ignore their errors, and close the manager."""
        if self._manager is not None:
            with contextlib.suppress(CheckpointError):
                self.wait()
            with contextlib.suppress(Exception):  # raises the same error again
                self._manager.close()

    @contextlib.contextmanager
    def _saying(self) -> Iterator[None]:
        """Turn write errors into a one-line CheckpointError with the newest checkpoint left."""
        try:
            yield
        except jax.errors.JaxRuntimeError:  # another process is gone; the disk is fine
            raise
        except Exception as error:
            # The manager has already dropped the checkpoints that this save would have replaced.
            self._manager.reload()
            whole = self.steps()
            left = f"the run can go on from step {whole[0]} with --resume" if whole else "there is none before it"
            reason = _shortened(str(error), 300)
            raise CheckpointError(
                f"a checkpoint could not be written to {self.directory} ({type(error).__name__}: {reason}); {left}, "
                "once there is room and it may be written to"
            ) from error

    # Reading ----------------------------------------------------------------------------------------------------------

    def restore(self, like: Callable[[int], TrainState]) -> tuple[TrainState, Progress, list[str]]:
        """Return the newest intact state, its progress, and messages about damaged checkpoints.

        ``like`` maps a step to the structure to restore into: ShapeDtypeStructs with shardings.
        Damaged checkpoints are renamed, so that the run can save those steps again. Raise
        CheckpointError if none can be read.
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
        """Return the saved state after ``step``.

        ``like``: the structure to restore into, with ShapeDtypeStructs as for ``restore``. Its None
        fields are not read. Raise CheckpointError if the checkpoint cannot be read.
        """
        self.wait()
        try:
            if step not in self.steps():
                raise _Damaged("it is gone")
            return self._read_arrays(step, like, self._read_meta(step)[1])
        except _Damaged as error:
            raise CheckpointError(f"checkpoint {step} in {self.directory} cannot be read ({error})") from error

    def _read_meta(self, step: int) -> tuple[Progress, dict[str, str]]:
        """Return the progress of ``step`` and the digests of its arrays.

        Raise _Damaged if they are unreadable or altered, and ValueError if another version wrote
        them.
        """
        meta = self._restore(step, meta=ocp.args.JsonRestore())["meta"]
        said = meta.pop("sha256", None) if isinstance(meta, dict) else None
        if said is None or said != _sha256(meta):
            raise _Damaged("meta is corrupt (its digest differs)")
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
            raise _Damaged(f"{differing[0]} is corrupt (its digest differs), one of {len(differing)} such arrays")
        return like.replace(**{name: found[name] for name in found if name != "rest"}, **found.get("rest", {}))

    def _restore(self, step: int, **args: Any) -> dict[str, Any]:
        """Return items of a step. Raise _Damaged on all processes if any cannot read its part."""
        failed = ""
        try:
            with _quiet():
                found = {**self._manager.restore(step, args=ocp.args.Composite(**args))}
            failures = [(name, value) for name, value in found.items() if isinstance(value, Exception)]
            failed = f"{failures[0][0]}: {_reason(failures[0][1])}" if failures else ""
        except Exception as error:  # a folder that is missing on all processes, or a storage error
            failed = _reason(error)
        everywhere = np.flatnonzero(processes.gather_rows(np.asarray(bool(failed))))
        if len(everywhere):
            raise _Damaged(failed or f"process {everywhere[0]} cannot read its part")
        return found

    def _set_aside(self, step: int) -> list[str]:
        """Rename the damaged checkpoints, all newer than ``step``. Return a message about each."""
        said = []
        for bad, reason in sorted(self._damaged.items(), reverse=True):
            aside = self.directory / f"damaged-{bad}"
            if processes.first():
                if aside.exists():  # the same step was damaged once before
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
    """Return, in one line, why a checkpoint cannot be read.

    Raise the error itself if storage is unreachable, because the checkpoint may then be intact.
    """
    text = " ".join(str(error).split())  # not shortened yet: the storage code may be at its end
    unreachable = isinstance(error, (MemoryError, PermissionError, ConnectionError, TimeoutError))
    if unreachable or any(word in text for word in _UNREACHABLE):
        raise error
    return f"{type(error).__name__}, {text[:120]}"


def _shortened(text: str, length: int) -> str:
    """Return an error's text on one line, shortened to about ``length`` characters.

    Keep the beginning, which names the operation, and the system's reason, which precedes its error
    code.
    """
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    said = re.findall(r"[^:]+\[os_error_code[^\]]*\]", text) or [text[-length // 2 :]]
    return f"{text[: length // 2]} ...{said[0]}"


@functools.cache
def _hush() -> None:
    """Silence Orbax, and tensorstore writes that outlive a failed save and its event loop."""
    quiet_libraries()
    if os.environ.get("ALPHAALIGN_TRACEBACK"):
        return
    hook = sys.unraisablehook
    sys.unraisablehook = lambda said: None if str(said.exc_value) == "Event loop is closed" else hook(said)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the tracebacks of pending reads of a damaged array: nobody can act on them."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
        gc.collect()
    finally:
        sys.unraisablehook = hook
