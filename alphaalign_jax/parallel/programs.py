"""Compiled programs: jitting under a layout, and counting what is compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax

from alphaalign_jax.parallel.rules import Layout, use

_EVENT = "/jax/core/compile/backend_compile_duration"  # JAX's, of each program it compiles or takes from its cache


def compiled(function: Callable, layout: Layout, **jit_options) -> Callable:
    """Jits ``function`` so that the activations it names are laid out by ``layout``."""

    @functools.wraps(function)
    def traced(*args, **kwargs):
        with use(layout):
            return function(*args, **kwargs)

    return jax.jit(traced, **jit_options)


def compiles() -> tuple[int, float]:
    """Programs that this process has compiled or taken from the persistent cache since the first call, and the seconds
    that took: a step that should compile nothing shows it by their difference."""
    return tuple(_totals())


@functools.cache
def _totals() -> list:
    totals = [0, 0.0]

    def on_event(event: str, seconds: float, **_) -> None:
        if event == _EVENT:
            totals[0] += 1
            totals[1] += seconds

    jax.monitoring.register_event_duration_secs_listener(on_event)
    return totals
