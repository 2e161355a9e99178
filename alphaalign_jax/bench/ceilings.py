"""What this machine can do at most, measured: matrix products by shape and dtype, and reading memory."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from alphaalign_jax.models.layers import precision_of

_STREAMED = 256 * 1024**2  # bytes of right sides passed over in one call: more than a cache holds
_MOST_FLOPS = {"cpu": 2e10}  # of one call, by backend: a tenth of a second
PEAK_SIZE = {"cpu": 2048}  # rows and columns of the square product, by backend


@dataclasses.dataclass(frozen=True)
class Product:
    """``[m, k] @ [k, n]``, made ``times`` times, each with another right side as the layers of a model have."""

    m: int
    k: int
    n: int
    times: float = 1.0

    @property
    def flops(self) -> float:
        """Of one."""
        return 2.0 * self.m * self.k * self.n

    def seconds(self, dtype: str, repeats: int = 3) -> float:
        """Of all, on one device: the best of ``repeats``, the right sides in whichever order goes faster."""
        backend, itemsize = jax.default_backend(), jnp.dtype(dtype).itemsize
        most = _MOST_FLOPS.get(backend, 2e12) / self.flops
        count = math.ceil(min(256, most, _STREAMED / (self.k * self.n * itemsize)))
        x = jax.random.normal(jax.random.key(0), (self.m, self.k), dtype)
        w = jax.random.normal(jax.random.key(1), (self.k, self.n), dtype)
        found = []
        for axis, matrix in enumerate((w, w.T)):
            right = [matrix * (1 + i / 256) for i in range(count)]
            found.append(best_seconds(functools.partial(_products, x, right, axis=axis), repeats=repeats))
        return self.times * min(found) / count


@functools.partial(jax.jit, static_argnames="axis")
def _products(x: jax.Array, right: list[jax.Array], axis: int) -> list[jax.Array]:
    """``x`` by each of ``right``, contracting its ``axis``."""
    dims = (((1,), (axis,)), ((), ()))
    return [jax.lax.dot_general(x, w, dims, precision=precision_of(x.dtype)) for w in right]


def best_seconds(function: Callable[[], Any], *, repeats: int = 5) -> float:
    """Seconds of the fastest of ``repeats`` calls after one that is not counted."""
    jax.block_until_ready(function())
    found = math.inf
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function())
        found = min(found, time.perf_counter() - began)
    return found


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the machine reached at one time, measured right beside a phase: its speed drifts."""

    peak: float  # FLOP/s of a square product too large for any cache, on one device
    products: float  # seconds of the phase's own products, one after the other; 0 where they are not known

    @classmethod
    def measure(cls, products: Sequence[Product], dtype: str) -> Limits:
        size = PEAK_SIZE.get(jax.default_backend(), 8192)
        square = Product(size, size, size)
        return cls(square.flops / square.seconds(dtype), sum(product.seconds(dtype) for product in products))


def memory_rate() -> float:
    """Bytes per second read from one device's memory."""
    size = (256 if jax.default_backend() == "cpu" else 2048) * 1024**2
    values = jnp.ones((size // 4,), jnp.float32)
    return size / best_seconds(lambda: jnp.sum(values))
