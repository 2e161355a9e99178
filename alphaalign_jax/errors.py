"""Ends of a command that a message explains: they are shown in one line, not as a traceback."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator


class ExpectedError(RuntimeError):
    """Something outside of the program, or a limit that its user set, ends it. ``status`` is its exit status.

    2 is not to be started again as it is: launch/tpu_vm.sh and launch/gke.sh stop there, SkyPilot after three times.
    """

    status = 2


class OutOfMemory(ExpectedError):
    """A device had no room left. The settings decide how much is taken, so the same command would end the same way."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: on the host, or in XLA, which has one exception for all that goes wrong in it."""
    return isinstance(error, MemoryError) or (
        type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and "RESOURCE_EXHAUSTED" in str(error)
    )


@contextlib.contextmanager
def explaining_memory(advice: str) -> Iterator[None]:
    """Raise OutOfMemory, with ``advice``, in place of an allocation that failed in the block."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        wanted = re.search(r"allocat\w* ([0-9]+) bytes", str(error))
        size = f" (an allocation of {int(wanted[1]) / 2**30:.1f} GiB failed)" if wanted else ""
        raise OutOfMemory(f"out of memory{size}; {advice}") from error


EXPLAINED = (ValueError, FileNotFoundError, ExpectedError)


def ends_with(error: BaseException) -> tuple[int, str | BaseException]:
    """The exit status of a command that ends with it, and what is to be shown: a line, or the error with its traceback,
    which ALPHAALIGN_TRACEBACK=1 shows in any case."""
    if not isinstance(error, EXPLAINED) or os.environ.get("ALPHAALIGN_TRACEBACK"):
        return 1, error
    return error.status if isinstance(error, ExpectedError) else 2, f"{error} (ALPHAALIGN_TRACEBACK=1 shows where)"
