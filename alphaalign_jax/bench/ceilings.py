"""What this machine can do at most, measured: matrix products by shape and dtype, and reading memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from alphaalign_jax.models.layers import precision_of

_STREAMED = 256 * 1024**2  # bytes of weights passed over in one call: more than a cache holds
_MOST_ROWS = 8192  # of a product that is timed: with more the rate is the same, and the result would not fit
PEAK_SIZE = {"cpu": 2048}  # rows and columns of the square product, by backend


def best_seconds(function: Callable[[], Any], *, repeats: int = 5) -> float:
    """Seconds of the fastest of ``repeats`` calls after one that is not counted."""
    jax.block_until_ready(function())
    found = math.inf
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function())
        found = min(found, time.perf_counter() - began)
    return found


def gemm_rate(rows: int, shape: tuple[int, int], dtype: str, *, repeats: int = 5) -> float:
    """FLOP/s of ``[rows, m] @ [m, n]`` on one device, for weights ``shape = (m, n)``.

    Up to 256 weight matrices follow each other as the layers of a model do; a single one would stay in the cache.
    """
    m, n = shape
    count = max(1, min(256, _STREAMED // (m * n * jnp.dtype(dtype).itemsize)))
    keys = jax.random.split(jax.random.key(0), count + 1)
    x = jax.random.normal(keys[0], (rows, m), dtype)
    weights = [jax.random.normal(key, (m, n), dtype) for key in keys[1:]]

    @jax.jit
    def products(x, weights):
        return [jnp.dot(x, w, precision=precision_of(dtype)) for w in weights]

    return count * 2.0 * rows * m * n / best_seconds(lambda: products(x, weights), repeats=repeats)


def gemm_seconds(rows: int, shapes: Sequence[tuple[int, int]], dtype: str, rates: dict[Any, float]) -> float:
    """Seconds of all products ``[rows, m] @ [m, n]`` at measured rates, which are kept in ``rates``."""
    total = 0.0
    for shape in shapes:
        key = (min(rows, _MOST_ROWS), *shape, dtype)
        if key not in rates:
            rates[key] = gemm_rate(key[0], shape, dtype)
        total += 2.0 * rows * shape[0] * shape[1] / rates[key]
    return total


def peak_gemm_rate(dtype: str) -> float:
    """FLOP/s of a square product too large for any cache, on one device."""
    size = PEAK_SIZE.get(jax.default_backend(), 8192)
    return gemm_rate(size, (size, size), dtype, repeats=3)


def memory_rate() -> float:
    """Bytes per second read from one device's memory."""
    size = (256 if jax.default_backend() == "cpu" else 2048) * 1024**2
    values = jnp.ones((size // 4,), jnp.float32)
    return size / best_seconds(lambda: jnp.sum(values))
