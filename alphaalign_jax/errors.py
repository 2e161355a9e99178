"""Ends of a command that a message explains: they are shown in one line, not as a traceback."""

from __future__ import annotations

import contextlib
import errno
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


# Advice for every command, where the failed allocation does not tell which of its settings decide.
_TAKE_LESS = "take a smaller model, more devices, bfloat16, or fewer rows at a time"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: on the host, or in XLA, which has one exception for all that goes wrong in it."""
    if isinstance(error, OSError):  # a file that could not be mapped
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and "RESOURCE_EXHAUSTED" in str(error)
    )


def out_of_memory(error: BaseException, advice: str) -> OutOfMemory:
    """Return what to raise in place of an allocation's ``error``: its size, if it is known, and what to do."""
    wanted = re.search(r"allocat\w* ([0-9]+) bytes", str(error))
    size = f" (an allocation of {int(wanted[1]) / 2**30:.1f} GiB failed)" if wanted else ""
    return OutOfMemory(f"out of memory{size}; {advice}")


@contextlib.contextmanager
def explaining_memory(advice: str) -> Iterator[None]:
    """Raise OutOfMemory, with ``advice``, in place of an allocation that failed in the block.

    Only for advice that names settings: ``ends_with`` explains every other failed allocation.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(error, advice) from error


EXPLAINED = (ValueError, FileNotFoundError, ExpectedError)


def ends_with(error: BaseException) -> tuple[int, str | BaseException]:
    """Return the exit status of a command that ends with ``error``, and what to show: a line, or the error itself.

    ALPHAALIGN_TRACEBACK=1 shows the error, with its traceback, in any case.
    """
    shown = out_of_memory(error, _TAKE_LESS) if is_out_of_memory(error) else error
    if not isinstance(shown, EXPLAINED) or os.environ.get("ALPHAALIGN_TRACEBACK"):
        return 1, error
    status = shown.status if isinstance(shown, ExpectedError) else 2
    return status, f"{shown} (ALPHAALIGN_TRACEBACK=1 shows where)"
