"""Standard output and error that cannot end a command: text that cannot be shown is replaced or dropped."""

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
    """A text stream whose writes raise no error; everything else is that of the ``stream`` it wraps.

    Characters that the stream's encoding lacks become ``?``. Text is dropped if nobody reads the stream any more (the
    ``head`` of ``train | head -1``), its disk is full, or it is closed. None, which Python has in place of a descriptor
    that was closed when it started, is a stream that drops everything.
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
    """Standard output and error as ``Stream``s while the block runs, also for libraries that print."""
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
    """Write a line to standard error; one that cannot be written is dropped."""
    print(text, file=Stream(sys.stderr), flush=True)


@functools.cache
def quiet_libraries() -> None:
    """Drop messages of libraries that nobody can act on here; ALPHAALIGN_TRACEBACK=1 shows them.

    Orbax warns of metadata files that our checkpoints do not have. When a write fails, its threads log what they raise,
    with their tracebacks, before they give it to whoever waits for them: hundreds of lines around the one that says
    what happened. transformers advises to install PyTorch. To be called before either is used.
    """
    if os.environ.get("ALPHAALIGN_TRACEBACK"):
        return
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def _open_descriptors() -> None:
    """Open descriptors 0 to 2 if they are closed. The next file, a checkpoint perhaps, would get such a number, and
    whatever a library prints to it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _release(stream: Any) -> None:
    """Let the interpreter's last flush of a stream succeed: its failure would be the exit status (120)."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
