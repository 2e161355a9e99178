"""The side of a program that takes turns (``turns.py``), for whatever Python it runs in."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any


class Turns:
    """``begin`` waits until it is this program's turn, ``end`` says what there is to say of it."""

    def __init__(self):
        # Libraries print: that must not mix with what the parent reads.
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def begin(self) -> bool:
        """False where there are no more turns."""
        going = bool(sys.stdin.readline())
        self._began = time.perf_counter()
        return going

    def end(self, **found: Any) -> None:
        """Adds the seconds that the turn took, where ``found`` does not say, and the process' peak of memory in GiB."""
        seconds, peak = time.perf_counter() - self._began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        # The other side needs the memory now.
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
        self._answers.write(json.dumps({"seconds": seconds, "peak_gib": peak, **found}) + "\n")
        self._answers.flush()


def serve(step: Callable[[], dict[str, Any]]) -> None:
    turns = Turns()
    while turns.begin():
        turns.end(**step())
