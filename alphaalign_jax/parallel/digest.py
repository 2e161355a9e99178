"""Digests of arrays: what a checkpoint is checked by when it is read, and what tells weights from others.

Orbax checks what its index says and not the values: of nine flips of one bit in a stored array, eight were read back as
other weights without a word. These digests are found on the devices, before the arrays leave them, and again once they
have been read: whatever happens in between is seen. They do not depend on how an array is cut over the devices.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alphaalign_jax.parallel import processes
from alphaalign_jax.types import Array

# One for each of the two sums: the fractional parts of the golden ratio, and a constant of Murmur3 (Appleby).
_SALTS = (0x9E3779B9, 0x85EBCA6B)


def digests(tree: Any, *, across: bool = True) -> dict[str, str]:
    """A hexadecimal digest of each array of a pytree, by its path; the same on every process.

    The digest of an array is the sum of its shards': found shard by shard where each lies, with nothing sent between
    devices, and added up here. ``across``: the arrays lie over all processes; else each has its own.
    """
    named = jax.tree_util.tree_leaves_with_path(tree)
    parts = [[_part(shard, leaf.shape) for shard in _own_shards(leaf)] for _, leaf in named]
    here = np.array([np.sum(jax.device_get(part), axis=0, dtype=np.uint32) if part else (0, 0) for part in parts])
    whole = here.astype(np.uint32)
    if across:
        whole = processes.gather_rows(whole).sum(axis=0, dtype=np.uint32)
    return {
        jax.tree_util.keystr(path): "".join(f"{int(word):08x}" for word in words)
        for (path, _), words in zip(named, whole, strict=True)
    }


def _own_shards(x: jax.Array) -> list[Any]:
    """This process's shards, each part of the array once over all processes."""
    return [shard for shard in x.addressable_shards if shard.replica_id == 0]


def _part(shard: Any, shape: tuple[int, ...]) -> Array:
    data = shard.data
    memory = shard.device.default_memory()
    if data.sharding.memory_kind not in (None, memory.kind):  # weights that wait in the host's memory, one by one
        data = jax.device_put(data, data.sharding.with_memory_kind(memory.kind))
    starts = np.array([place.indices(size)[0] for place, size in zip(shard.index, shape)], np.uint32)
    return _digest(data, starts, np.array(shape, np.uint32))


@jax.jit
def _digest(x: Array, starts: Array, shape: Array) -> Array:
    """uint32 [2]: sums, modulo 2^32, of the words of ``x``, each times an odd number that its place in the whole gives.

    ``starts``, ``shape`` uint32 [rank]: where the part ``x`` begins in the array, and the array's shape. A change of
    one bit changes a word by plus or minus 2^k, k < 32, and 2^k times an odd number is never 0 modulo 2^32: no such
    change is missed.
    """
    words, place = _words(x), jnp.zeros((), jnp.uint32)
    for axis in range(x.ndim):
        here = starts[axis] + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place = place * shape[axis] + here
    if words.ndim > x.ndim:  # elements of two words
        place = place * 2 + jax.lax.broadcasted_iota(jnp.uint32, words.shape, x.ndim)
    return jnp.stack([jnp.sum(words * (_mix(place + jnp.uint32(salt)) | 1), dtype=jnp.uint32) for salt in _SALTS])


def _words(x: Array) -> Array:
    """The bits of each element as a uint32. An element of 8 bytes is two words."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    width = jnp.dtype(x.dtype).itemsize
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[width]
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mix(x: Array) -> Array:
    """Murmur3's finalizer: every bit of the input moves about half of the output's."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
