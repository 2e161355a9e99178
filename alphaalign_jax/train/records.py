"""Records of a run: metrics as JSONL and for TensorBoard, sampled responses, alarms, a summary."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import platform
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from alphaalign_jax import output
from alphaalign_jax.data.row import PromptRow
from alphaalign_jax.errors import ExpectedError
from alphaalign_jax.evaluation.respond import Response
from alphaalign_jax.parallel import processes
from alphaalign_jax.types import LABELS, TrainBatch

# TensorBoard folder by phase; evaluations use their own.
_FOLDER = {"train": "train", "warmup": "warmup", "sft": "train"}


def check_unused(directory: pathlib.Path) -> None:
    """Raise ValueError if the records of an earlier run would be overwritten."""
    if (directory / "export").exists() or (directory / "summary.json").exists():
        raise ValueError(f"{directory} holds an earlier run; choose another --config.out, or move it away")


def finished(directory: pathlib.Path, steps: int) -> dict[str, Any] | None:
    """Return the summary of a run that finished after ``steps`` steps, None if there is none."""
    file = directory / "summary.json"
    try:
        found = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError:  # a truncated file; the resumed run writes it again
        return None
    return found if isinstance(found, dict) and found.get("steps") == steps and "config" in found else None


class Records:
    """Append-only files of one run folder."""

    def __init__(self, directory: pathlib.Path):
        self.directory = pathlib.Path(directory)
        self._files: dict[str, Any] = {}
        self._tensorboard: dict[str, EventFileWriter] = {}

    def begin(self, resume_step: int | None = None, evaluated: int = -1, looked: bool = True) -> list[str]:
        """Create the files, or continue them from ``resume_step``. Return messages to show.

        When resuming, drop the records that the run will write again: steps from ``resume_step``
        on, evaluations after step ``evaluated``, and the evaluation before training unless it is
        known to have run (``looked``).
        """
        if not processes.first():  # one process writes for all
            return []
        said = []
        self.directory.mkdir(parents=True, exist_ok=True)
        for name in ("metrics", "samples", "alarms"):
            path = self.directory / f"{name}.jsonl"
            kept, broken = [], 0
            if resume_step is not None:
                kept, broken = _before(path, resume_step, evaluated, looked)
            if broken:
                said.append(f"{path}: {broken} line(s) that a crash has left half written are taken out")
            output.write(path, "".join(kept))
            self._files[name] = path.open("a")
        # A START event makes TensorBoard discard older events from its step on. Folders are
        # separate because each counts its own steps: an evaluation has the number of training
        # steps before it. START is always written: TensorBoard ignores the first one in a folder.
        first = resume_step or 0
        for name, start in (("warmup", 0), ("train", first), ("eval", evaluated + 1 if resume_step is not None else 0)):
            self._tensorboard[name] = EventFileWriter(str(self.directory / "tensorboard" / name))
            if name != "warmup":
                session = SessionLog(status=SessionLog.START)
                self._tensorboard[name].add_event(Event(wall_time=time.time(), step=start, session_log=session))
        return said

    def metrics(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        self._line("metrics", {"phase": phase, "step": step, **values})
        if self._tensorboard:
            scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            event = Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))
            with _writing(self.directory / "tensorboard"):
                self._tensorboard[_FOLDER.get(phase, "eval")].add_event(event)

    def sample(self, record: Mapping[str, Any]) -> None:
        self._line("samples", record)

    def alarm(self, phase: str, step: int, name: str, message: str) -> None:
        self._line("alarms", {"phase": phase, "step": step, "alarm": name, "message": message})

    def batch(self, step: int, batch: TrainBatch) -> pathlib.Path:
        """Write a step's complete host batch to a file for inspection. Return its path."""
        path = self.directory / f"left_out/step-{step}.npz"
        if processes.first():
            leaves = jax.tree_util.tree_leaves_with_path(batch)
            named = {jax.tree_util.keystr(place, simple=True, separator="."): leaf for place, leaf in leaves}
            with _writing(path):
                path.parent.mkdir(exist_ok=True)
                np.savez(path, **named)
        return path

    def summary(self, values: Mapping[str, Any]) -> None:
        output.write(self.directory / "summary.json", json.dumps(values, indent=2) + "\n")

    def _line(self, name: str, record: Mapping[str, Any]) -> None:
        if name not in self._files:
            return
        with _writing(self.directory / f"{name}.jsonl"):
            self._files[name].write(json.dumps({key: _number(value) for key, value in record.items()}) + "\n")
            self._files[name].flush()

    def flush(self) -> None:
        with _writing(self.directory / "tensorboard"):
            for writer in self._tensorboard.values():
                writer.flush()

    def close(self) -> None:
        for file in (*self._files.values(), *self._tensorboard.values()):
            with contextlib.suppress(OSError):  # a failed write, which was reported at the time
                file.close()


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    """Turn an OSError into a one-line error with instructions."""
    try:
        yield
    except OSError as error:
        raise ExpectedError(
            f"{path} could not be written ({error.strerror or error}); once there is room, run the command again "
            "(train with --resume=auto, which continues from the newest checkpoint if there is one)"
        ) from error


def brief(row: PromptRow, response: Response) -> dict[str, Any]:
    """Return a prompt and its response in the format of ``samples.jsonl``."""
    return {
        **row.to_json(),
        "label": LABELS[row.label],
        "response": response.text,
        "finish": response.finish,
        "format": response.format,
        "refusal": response.refusal,
    }


def versions() -> dict[str, str]:
    """Return the versions that results depend on: Python, platform and packages."""
    return {"python": platform.python_version(), "platform": platform.platform(), **packages()}


def packages() -> dict[str, str]:
    """Return the versions of the packages that compute, read and write for a run."""
    names = (
        "alphaalign_jax",
        "jax",
        "jaxlib",
        "libtpu",
        "flax",
        "optax",
        "orbax-checkpoint",
        "transformers",
        "tokenizers",
        "numpy",
    )
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _number(value: Any) -> Any:
    """Return None for a non-finite float, which JSON cannot represent, else the value."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _before(path: pathlib.Path, step: int, evaluated: int, looked: bool) -> tuple[list[str], int]:
    """Return the records to keep when resuming at ``step``, and the number of unparseable lines.

    Keep the warm-up, the evaluation before training if it has run (``looked``), steps below
    ``step``, and evaluations and rollbacks up to step ``evaluated``. After a power loss, lines may
    be broken anywhere in the file, not only at its end.
    """
    if not path.exists():
        return [], 0
    # An evaluation has the number of the training steps before it.
    until = {"warmup": math.inf, "before": math.inf if looked else -math.inf}
    # A rollback has the step of the evaluation that caused it.
    until |= dict.fromkeys(("eval", "rollback"), evaluated + 1)
    kept, broken = [], 0
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        try:
            record = json.loads(line)
            if record["step"] < until.get(record["phase"], step):
                kept.append(line if line.endswith("\n") else f"{line}\n")
        except (ValueError, LookupError, TypeError):
            broken += 1
    return kept, broken
