"""Expected errors that end a command: shown as one line instead of a traceback."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator


class ExpectedError(RuntimeError):
    """An error from outside the program, or a limit set by its user. ``status``: the exit status.

    Status 2 means "do not restart unchanged": launch/tpu_vm.sh and launch/gke.sh stop at it,
    SkyPilot after three restarts.
    """

    status = 2


class OutOfMemory(ExpectedError):
    """A device ran out of memory. With the same settings the command would fail again."""


# Advice that fits every command, for failures that do not show which settings matter.
_TAKE_LESS = "take a smaller model, more devices, bfloat16, or fewer rows at a time"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, on the host or in XLA.

    XLA has one exception type for all its errors, so its message is searched.
    """
    if isinstance(error, OSError):  # a file could not be mapped into memory
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and "RESOURCE_EXHAUSTED" in str(error)
    )


def out_of_memory(error: BaseException, advice: str) -> OutOfMemory:
    """Return the error to raise for a failed allocation: with its size, if known, and advice."""
    wanted = re.search(r"allocat\w* ([0-9]+) bytes", str(error))
    size = f" (an allocation of {int(wanted[1]) / 2**30:.1f} GiB failed)" if wanted else ""
    return OutOfMemory(f"out of memory{size}; {advice}")


@contextlib.contextmanager
def explaining_memory(advice: str) -> Iterator[None]:
    """Raise OutOfMemory with ``advice`` in place of an allocation error in the block.

    Use it only for advice that names settings: ``ends_with`` explains all other allocation errors.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(error, advice) from error


EXPLAINED = (ValueError, FileNotFoundError, ExpectedError)


def ends_with(error: BaseException) -> tuple[int, str | BaseException]:
    """Return the exit status of a command that fails with ``error``, and the line or error to show.

    An expected error is shown as a line. ALPHAALIGN_TRACEBACK=1 always shows the error itself, with
    its traceback.
    """
    shown = out_of_memory(error, _TAKE_LESS) if is_out_of_memory(error) else error
    if not isinstance(shown, EXPLAINED) or os.environ.get("ALPHAALIGN_TRACEBACK"):
        return 1, error
    status = shown.status if isinstance(shown, ExpectedError) else 2
    return status, f"{shown} (ALPHAALIGN_TRACEBACK=1 shows where)"
