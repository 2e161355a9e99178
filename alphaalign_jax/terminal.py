"""Standard output and error that cannot fail: text that cannot be shown is replaced or dropped."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any


class Stream:
    """A text stream whose writes never raise; everything else is that of the ``stream`` it wraps.

    Characters that the stream's encoding lacks become ``?``. Text is dropped if nobody reads the
    stream any more (the ``head`` of ``train | head -1``), if its disk is full, or if it is closed.
    If Python started with the descriptor closed, ``stream`` is None, and everything is dropped.
    """

    def __init__(self, stream: Any):
        self._stream = io.TextIOBase() if stream is None else stream

    def write(self, text: str) -> int:
        try:
            self._write(text)
        except (OSError, ValueError):  # ValueError: the stream is closed
            atexit.register(_release, self._stream)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            atexit.register(_release, self._stream)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self._stream.write(text.encode(encoding, "replace").decode(encoding))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def tolerant() -> Iterator[None]:
    """Make standard output and error ``Stream``s in the block, also for libraries that print."""
    _open_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = streams = Stream(sys.stdout), Stream(sys.stderr)
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before


def write_error(text: str) -> None:
    """Write a line to standard error, or drop it if that fails."""
    print(text, file=Stream(sys.stderr), flush=True)


@functools.cache
def quiet_libraries() -> None:
    """Drop library messages that the user cannot act on; ALPHAALIGN_TRACEBACK=1 shows them.

    Orbax warns of metadata files that our checkpoints do not have. When a write fails, its threads
    also log their exceptions with tracebacks before they pass them on, which buries the one line
    that matters in hundreds. transformers advises installing PyTorch. Call this before either
    library is used.
    """
    if os.environ.get("ALPHAALIGN_TRACEBACK"):
        return
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def _open_descriptors() -> None:
    """Open descriptors 0 to 2 if they are closed.

    Otherwise the next opened file, perhaps a checkpoint, would get such a number, and libraries
    would print into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _release(stream: Any) -> None:
    """Make the interpreter's last flush of a stream succeed: its failure would exit with 120."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
