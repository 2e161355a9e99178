"""Ends of a command that a message explains: they are shown in one line, not as a traceback."""

from __future__ import annotations

import os


class ExpectedError(RuntimeError):
    """Something outside of the program, or a limit that its user set, ends it. ``status`` is its exit status.

    2 is not to be started again as it is: launch/tpu_vm.sh and launch/gke.sh stop there, SkyPilot after three times.
    """

    status = 2


EXPLAINED = (ValueError, FileNotFoundError, ExpectedError)


def ends_with(error: BaseException) -> tuple[int, str | BaseException]:
    """The exit status of a command that ends with it, and what is to be shown: a line, or the error with its traceback,
    which ALPHAALIGN_TRACEBACK=1 shows in any case."""
    if not isinstance(error, EXPLAINED) or os.environ.get("ALPHAALIGN_TRACEBACK"):
        return 1, error
    return error.status if isinstance(error, ExpectedError) else 2, f"{error} (ALPHAALIGN_TRACEBACK=1 shows where)"
