"""Attention on GPU: a flash kernel over packed responses, in Pallas (lowered through Triton).

As in Dao 2023 (FlashAttention-2): blocks of queries and keys meet in registers, the softmax is kept running, and the
backward pass computes the weights again from the row's log-sum-exp. A block of queries belongs to one response: it
meets that response's own keys up to itself, and then the prompt's, and no other block is looked at.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from alphaalign_jax.models.attention.segments import Packed, seen
from alphaalign_jax.types import Array

BLOCK = 64  # slots of a block
_HIDDEN = -1e30


def width(c: int) -> int:
    """Head width that the kernel takes for ``c``."""
    return max(16, pl.next_power_of_2(c))


def attend(packed: Packed, slots: int, precision: jax.lax.Precision, *, interpret: bool) -> jax.Array:
    """[B, H, G * T, C], for responses of ``slots`` = T."""
    return _flash(packed.q, packed.k, packed.v, packed.visible, slots, precision, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _flash(q: Array, k: Array, v: Array, visible: Array, slots: int, precision: Any, interpret: bool) -> Array:
    return _forward(q, k, v, visible, slots, precision, interpret)[0]


def _forward(q, k, v, visible, slots, precision, interpret) -> tuple[Array, tuple]:
    b, h, rows, c = q.shape
    kernel = functools.partial(_out_kernel, slots=slots, rows=rows, precision=precision)
    out, lse = _call(
        kernel,
        (b, h, rows // BLOCK),
        [_block(c), _head(k, h), _head(v, h), _row(visible)],
        [(q.shape, q.dtype, _block(c)), (q.shape[:-1], jnp.float32, _line())],
        interpret,
    )(q, k, v, visible)
    return out, (q, k, v, visible, out, lse)


def _backward(slots, precision, interpret, saved, d_out) -> tuple:
    q, k, v, visible, out, lse = saved
    (b, h, rows, c), keys = q.shape, k.shape[2]
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    settings = dict(slots=slots, rows=rows, precision=precision)
    (dq,) = _call(
        functools.partial(_dq_kernel, **settings),
        (b, h, rows // BLOCK),
        [_block(c), _head(k, h), _head(v, h), _row(visible), _block(c), _line(), _line()],
        [(q.shape, q.dtype, _block(c))],
        interpret,
    )(q, k, v, visible, d_out, lse, delta)
    group = h // k.shape[1]
    own = pl.BlockSpec((None, None, BLOCK, c), lambda b, h, j: (b, jax.lax.div(h, group), j, 0))
    whole = pl.BlockSpec((None, None, rows, c), lambda b, h, j: (b, h, 0, 0))
    line = pl.BlockSpec((None, None, rows), lambda b, h, j: (b, h, 0))
    shape = (b, h, keys, c)
    dk, dv = _call(
        functools.partial(_dkv_kernel, **settings),
        (b, h, keys // BLOCK),
        [whole, own, own, pl.BlockSpec((None, BLOCK), lambda b, h, j: (b, j)), whole, line, line],
        [(shape, jnp.float32, _block(c)), (shape, jnp.float32, _block(c))],
        interpret,
    )(q, k, v, visible, d_out, lse, delta)
    gathered = lambda x: x.reshape(b, k.shape[1], -1, keys, c).sum(2).astype(k.dtype)  # over heads that share keys
    return dq, gathered(dk), gathered(dv), None


_flash.defvjp(_forward, _backward)


def _call(kernel, grid, inputs, outputs, interpret):
    shapes, specs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in outputs], [s for *_, s in outputs]
    parameters = {} if interpret else {"compiler_params": plgpu.CompilerParams(num_warps=4, num_stages=2)}
    return pl.pallas_call(
        kernel, out_shape=shapes, grid=grid, in_specs=inputs, out_specs=specs, interpret=interpret, **parameters
    )


# Grids are (b, h, block).


def _block(c: int) -> pl.BlockSpec:
    """A block's [BLOCK, C] of [B, H, ., C]."""
    return pl.BlockSpec((None, None, BLOCK, c), lambda b, h, i: (b, h, i, 0))


def _line() -> pl.BlockSpec:
    """A block's [BLOCK] of [B, H, .]."""
    return pl.BlockSpec((None, None, BLOCK), lambda b, h, i: (b, h, i))


def _head(k: Array, heads: int) -> pl.BlockSpec:
    """All keys [., C] of the key/value head that a query head reads."""
    _, kv_heads, keys, c = k.shape
    return pl.BlockSpec((None, None, keys, c), lambda b, h, i: (b, jax.lax.div(h, heads // kv_heads), 0, 0))


def _row(visible: Array) -> pl.BlockSpec:
    return pl.BlockSpec((None, visible.shape[1]), lambda b, h, i: (b, 0))


def _places(block: Array) -> Array:
    return block * BLOCK + jnp.arange(BLOCK)


def _over_keys(body, carry, *, i: Array, keys: int, slots: int, rows: int):
    """``body(block, carry)`` for the key blocks that the query block ``i`` may see."""
    blocks = slots // BLOCK  # of a response
    carry = jax.lax.fori_loop(jax.lax.div(i, blocks) * blocks, i + 1, body, carry)
    return jax.lax.fori_loop(rows // BLOCK, keys // BLOCK, body, carry)


def _scores(q, k, visible, i, j, *, slots, rows, precision) -> Array:
    """float32 [BLOCK, BLOCK], for blocks ``i`` of queries and ``j`` of keys."""
    allowed = seen(_places(i)[:, None], _places(j)[None], slots=slots, rows=rows) & visible[None]
    return jnp.where(allowed, _dot(q, k.T, precision), _HIDDEN)


def _dot(a: Array, b: Array, precision) -> Array:
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _out_kernel(q_ref, k_ref, v_ref, visible_ref, out_ref, lse_ref, *, slots, rows, precision):
    i, (_, c) = pl.program_id(2), q_ref.shape
    q, sizes = q_ref[...], dict(slots=slots, rows=rows)

    def body(j, carry):
        out, peak, total = carry
        part = pl.ds(j * BLOCK, BLOCK)
        scores = _scores(q, k_ref[part, :], visible_ref[part], i, j, precision=precision, **sizes)
        higher = jnp.maximum(peak, scores.max(-1))
        shrink, weights = jnp.exp(peak - higher), jnp.exp(scores - higher[:, None])
        v = v_ref[part, :]
        out = out * shrink[:, None] + _dot(weights.astype(v.dtype), v, precision)
        return out, higher, total * shrink + weights.sum(-1)

    zeros = jnp.zeros((BLOCK,), jnp.float32)
    start = jnp.zeros((BLOCK, c), jnp.float32), zeros + _HIDDEN, zeros
    out, peak, total = _over_keys(body, start, i=i, keys=k_ref.shape[0], **sizes)
    out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
    lse_ref[...] = peak + jnp.log(total)


def _dq_kernel(q_ref, k_ref, v_ref, visible_ref, d_out_ref, lse_ref, delta_ref, dq_ref, *, slots, rows, precision):
    i, sizes = pl.program_id(2), dict(slots=slots, rows=rows)
    q, d_out, lse, delta = q_ref[...], d_out_ref[...], lse_ref[...], delta_ref[...]

    def body(j, dq):
        part = pl.ds(j * BLOCK, BLOCK)
        k = k_ref[part, :]
        weights = jnp.exp(_scores(q, k, visible_ref[part], i, j, precision=precision, **sizes) - lse[:, None])
        d_scores = weights * (_dot(d_out, v_ref[part, :].T, precision) - delta[:, None])
        return dq + _dot(d_scores.astype(k.dtype), k, precision)

    start = jnp.zeros(q.shape, jnp.float32)
    dq_ref[...] = _over_keys(body, start, i=i, keys=k_ref.shape[0], **sizes).astype(dq_ref.dtype)


def _dkv_kernel(
    q_ref, k_ref, v_ref, visible_ref, d_out_ref, lse_ref, delta_ref, dk_ref, dv_ref, *, slots, rows, precision
):
    j, sizes = pl.program_id(2), dict(slots=slots, rows=rows)
    k, v, visible = k_ref[...], v_ref[...], visible_ref[...]

    def body(i, carry):
        dk, dv = carry
        part = pl.ds(i * BLOCK, BLOCK)
        q, d_out = q_ref[part, :], d_out_ref[part, :]
        scores = _scores(q, k, visible, i, j, precision=precision, **sizes)
        weights = jnp.exp(scores - lse_ref[part][:, None])
        d_scores = weights * (_dot(d_out, v.T, precision) - delta_ref[part][:, None])
        dv = dv + _dot(weights.astype(d_out.dtype).T, d_out, precision)
        return dk + _dot(d_scores.astype(q.dtype).T, q, precision), dv

    # A response's own keys are seen from their place to its end, the prompt's by all.
    blocks, own = slots // BLOCK, j < rows // BLOCK
    first = jnp.where(own, j, 0)
    last = jnp.where(own, (jax.lax.div(j, blocks) + 1) * blocks, rows // BLOCK)
    zeros = jnp.zeros(k.shape, jnp.float32)
    dk_ref[...], dv_ref[...] = jax.lax.fori_loop(first, last, body, (zeros, zeros))
