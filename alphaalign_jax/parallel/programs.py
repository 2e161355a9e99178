"""Compiled programs: jitting under a layout, keeping them between processes, and counting what is compiled."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from alphaalign_jax.parallel.rules import Layout, use

_EVENT = "/jax/core/compile/backend_compile_duration"  # JAX's, of each program it compiles or takes from its cache


@dataclasses.dataclass
class _Report:
    began: Callable[[str], None]
    ended: Callable[[], None]
    program: str = ""  # JAX's name of the program that is being compiled


_REPORT: contextvars.ContextVar[_Report | None] = contextvars.ContextVar("report", default=None)


@contextlib.contextmanager
def reporting(began: Callable[[str], None], ended: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Call ``began`` with the name of each program that is about to be compiled in the block, then ``ended``.

    Compiling may take minutes, while nothing else happens.
    """
    _totals()  # listens to JAX
    token = _REPORT.set(_Report(began, ended))
    try:
        yield
    finally:
        _REPORT.reset(token)


def compiled(function: Callable, layout: Layout, *, name: str = "", **jit_options) -> Callable:
    """Jit ``function`` so that the activations it names are laid out by ``layout``.

    ``name``: what people are shown while it is compiled; default: the function's own.
    """

    @functools.wraps(function)
    def traced(*args, **kwargs):
        report = _REPORT.get()
        if report is not None:  # tracing: new shapes, or the first call
            report.program = f"jit({function.__name__})"
            report.began(name or function.__name__)
        with use(layout):
            return function(*args, **kwargs)

    return jax.jit(traced, **jit_options)


def keep_programs() -> None:
    """Keep compiled programs on disk, so that a second start compiles nothing.

    JAX_COMPILATION_CACHE_DIR, or JAX's setting of that name, moves the cache; a cache that is set already stays.
    """
    if jax.config.jax_compilation_cache_dir:
        return
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/alphaalign_jax/xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    compilation_cache.reset_cache()  # JAX looks for a cache once, which may have been before


def compiles() -> tuple[int, float]:
    """Programs that this process has compiled or taken from the persistent cache since the first call, and the seconds
    that took: a step that should compile nothing shows it by their difference."""
    return tuple(_totals())


def compiles_since(before: tuple[int, float]) -> tuple[int, float]:
    """Return how many programs were compiled, and the seconds that took, since ``compiles`` returned ``before``."""
    count, seconds = compiles()
    return count - before[0], seconds - before[1]


@functools.cache
def _totals() -> list:
    totals = [0, 0.0]

    def on_event(event: str, seconds: float, fun_name: str = "", **_) -> None:
        if event != _EVENT:
            return
        totals[0] += 1
        totals[1] += seconds
        report = _REPORT.get()
        if report is not None and report.program == fun_name != "":  # not a constant's, of its tracing
            report.program = ""
            report.ended()

    jax.monitoring.register_event_duration_secs_listener(on_event)
    return totals
