"""Requests to end a run, which then saves and ends: SIGTERM (a preemption's notice, a cluster's scheduler), SIGHUP (the
terminal is closed) and Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

import numpy as np

from alphaalign_jax.errors import ExpectedError
from alphaalign_jax.parallel import processes

# Exit statuses. 75 is EX_TEMPFAIL of sysexits.h: the launchers start again what ends with it.
PREEMPTED, INTERRUPTED = 75, 130


class Ended(ExpectedError):
    """The run was asked to end, and has."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Notice:
    """Knows, while it is entered, whether this run was asked to end. Ctrl-C a second time ends it at once; not SIGTERM,
    which schedulers and what stands between pass on more than once.

    In a cluster a request to any process is one to all: they tell each other whenever they ask, so all ask alike, after
    every step and every batch of an evaluation.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Notice:
        # JAX has a handler of its own for clusters, of C++ and unseen here. It names a step by its number, counted from
        # 0 in every life: a resumed run, which is past that, would never come to it.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                # A handler that is set already stays: nohup ignores SIGHUP, a shell's background job Ctrl-C.
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._handlers[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *exc: object) -> None:
        self._restore(*self._handlers)

    def reached(self) -> bool:
        """Whether to save and end: the same on all processes."""
        seen = int(processes.gather_rows(np.asarray(self._signal or 0, np.int32)).max())
        if seen:  # else one may have been heard meanwhile: it is for the next look
            self._signal = seen
        return bool(seen)

    def check(self, what: str, *, kept: bool = True) -> None:
        """Raise Ended if the run was asked to end. The caller has nothing to save."""
        if self.reached():
            raise self.ended(what, kept=kept)

    def ended(self, what: str, *, kept: bool = True) -> Ended:
        """The error to end with. ``kept``: whether a checkpoint has the run's progress."""
        number = signal.Signals(self._signal)
        status = INTERRUPTED if number == signal.SIGINT else PREEMPTED
        advice = "continue with --resume=auto" if kept else "start it again with the same command"
        return Ended(f"ended by {number.name}: {what}; {advice}", status)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        first, self._signal = self._signal is None, number
        if number == signal.SIGINT:
            self._restore(number)
        if first and processes.first():
            # Not print: the signal may have come while something was being printed. Nobody may be reading any more.
            with contextlib.suppress(OSError):
                os.write(2, b"\nasked to end: the run ends after this step (Ctrl-C again: at once)\n")

    def _restore(self, *numbers: int) -> None:
        for number in numbers:
            signal.signal(number, self._handlers.pop(number))
