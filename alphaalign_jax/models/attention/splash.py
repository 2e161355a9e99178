"""Attention on TPU: JAX's splash kernel over packed responses, which skips the blocks that no query may see."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from alphaalign_jax.models.attention.segments import Packed, seen

BLOCK = _LANES = 128  # slots and head width are multiples of a TPU's lanes
_LARGEST = 512  # keys or queries of a block: beyond it a block of float32 scores crowds the rest out of VMEM


class _Sight(masks._ComputableMask):
    """``seen``, computed in the kernel."""

    def __init__(self, shape: tuple[int, int], slots: int):
        self.slots = slots
        super().__init__(shape, functools.partial(seen, slots=slots, rows=shape[0]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Sight) and (self.shape, self.slots) == (other.shape, other.slots)

    def __hash__(self) -> int:
        return hash((_Sight, self.shape, self.slots))


def width(c: int) -> int:
    """Head width that the kernel takes for ``c``."""
    return -(-c // _LANES) * _LANES


def attend(packed: Packed, slots: int, precision: jax.lax.Precision, *, interpret: bool) -> jax.Array:
    """[B, H, G * T, C], for responses of ``slots`` = T."""
    heads, rows = packed.q.shape[1:3]
    block = math.gcd(rows, _LARGEST)
    packed = _whole_blocks(packed, block)
    names = [field.name for field in dataclasses.fields(kernel.BlockSizes) if field.name.startswith("block_")]
    sizes = kernel.BlockSizes(**dict.fromkeys(names, block))
    mask = masks.MultiHeadMask([_Sight((rows, packed.k.shape[2]), slots)] * heads)
    with jax.ensure_compile_time_eval():  # the mask's tables are constants, also where a caller traces
        run = kernel.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)
    ids = kernel.SegmentIds(jnp.ones((packed.q.shape[0], rows), jnp.int32), packed.visible.astype(jnp.int32))
    with jax.default_matmul_precision(precision.name.lower()):  # the kernel's products name none
        return jax.vmap(run)(packed.q, packed.k, packed.v, ids)


def _whole_blocks(packed: Packed, block: int) -> Packed:
    spare = -packed.k.shape[2] % block
    longer = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, spare), (0, 0)))
    return packed.replace(k=longer(packed.k), v=longer(packed.v), visible=jnp.pad(packed.visible, ((0, 0), (0, spare))))
