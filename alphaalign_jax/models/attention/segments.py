"""Segments of keys, held where they lie: what every attention reads.

A response of rollout g to prompt b sees three stretches of keys, held at the rank at which they differ:

    template prefix   k [K, C, P]          v [K, P, C]          one copy for the batch
    prompt            k [B, K, C, S]       v [B, K, S, C]       one copy for the G rollouts of a prompt
    response          k [B, G, K, C, T]    v [B, G, K, T, C]    its own

Keys and values of one head lie together, and both as the right side of a matrix product, which is how a decoded token
reads them: with heads innermost, every token would copy the whole cache into another order first, and with keys as
values lie, a CPU's products of a few queries take twice as long.

The softmax runs over all of them together, so the result is that of one long sequence:

    In:  prefix "ab", prompt "cd_" (length 2), response "ef"      Out:  e sees a b c d e,  f sees a b c d e f
"""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from alphaalign_jax.types import Array

KEY_SLOTS, VALUE_SLOTS = -1, -2  # the axis of U


@flax.struct.dataclass
class Segment:
    """Keys and values that queries may attend to; inside a layer as listed above.

    Between layers ``k`` and ``v`` have a leading L, or are lists of L.
    """

    k: Array  # compute dtype [K, C, U], [B, K, C, U] or [B, G, K, C, U], rotary embedding applied
    v: Array  # compute dtype [K, U, C], [B, K, U, C] or [B, G, K, U, C]
    visible: Array | None = None  # bool [U] or [B, U], slots that hold a token; None: all
    causal: bool = flax.struct.field(pytree_node=False, default=False)  # the queries' own: query t sees keys 0 to t

    @property
    def slots(self) -> int:
        """U."""
        return self.v.shape[VALUE_SLOTS]


@flax.struct.dataclass
class Cache:
    """Keys and values of the tokens that were decoded, a slot each, over all layers."""

    k: Any  # compute dtype [L, B, G, K, C, U], or a list of L; where G is 1, without it
    v: Any  # [L, B, G, K, U, C]
    slot: Array  # int32 [], where the next token's belong

    def written(self, layer: Array | int, k: Array, v: Array) -> tuple[Segment, Cache]:
        """With a token's keys [B, G, K, C, 1] and values [B, G, K, 1, C] of a layer in their slot, and what that layer
        attends to.

        Read after it is written, and only then, the cache is changed in place: a new token as a segment of its own,
        written later, would have XLA copy the whole cache for those who read it in between.
        """
        put = functools.partial(_put, layer=layer, slot=self.slot)
        new = self.replace(k=put(self.k, k, axis=KEY_SLOTS), v=put(self.v, v, axis=VALUE_SLOTS))
        stacked = not isinstance(self.k, list)
        at = lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) if stacked else x[layer]
        return Segment(at(new.k), at(new.v), jnp.arange(at(new.v).shape[VALUE_SLOTS]) <= self.slot), new


def _put(cache: Any, x: Array, *, layer: Array | int, slot: Array, axis: int) -> Any:
    if isinstance(cache, list):
        x = x.reshape(*cache[layer].shape[:-3], *x.shape[-3:])
        written = jax.lax.dynamic_update_slice_in_dim(cache[layer], x, slot, axis)
        return [*cache[:layer], written, *cache[layer + 1 :]]
    x = x.reshape(*cache.shape[1:-3], *x.shape[-3:])
    start = [layer] + [0] * x.ndim
    start[axis] = slot
    return jax.lax.dynamic_update_slice(cache, x[None], start)


@flax.struct.dataclass
class Packed:
    """The queries of a prompt's G responses in one sequence, and the keys that they see in another: the responses' own
    in the same places, then prefix and prompt, once. What ``seen`` and ``visible`` allow is what segments allow.

        keys:  response 0 | response 1 | ... | prefix, prompt
    """

    q: Array  # [B, H, G * T, C]
    k: Array  # [B, K, G * T + U, C]
    v: Array
    visible: Array  # bool [B, G * T + U]

    @property
    def rows(self) -> int:
        """G * T."""
        return self.q.shape[2]


def seen(query: Array, key: Array, *, slots: int, rows: int) -> Array:
    """Whether the query at one place of ``Packed`` may see the key at another.

    ``rows`` = G * T, for responses of T = ``slots``.
    """
    return (key >= rows) | ((query // slots == key // slots) & (query >= key))


def packable(q_bgthc: Array, segments: tuple[Segment, ...]) -> bool:
    """Whether these are queries of whole responses (or prompts), and not of one token with a cache of its own."""
    *context, own = segments
    return q_bgthc.shape[2] > 1 and own.causal and all(s.k.ndim < 5 and not s.causal for s in context)


def pack(q_bgthc: Array, segments: tuple[Segment, ...], *, block: int, width: int) -> Packed:
    """Slots of a response and of the context are padded to a multiple of ``block``, and C to ``width``."""
    b, g, t, h, c = q_bgthc.shape
    *context, own = segments
    slots = -(-t // block) * block
    fit = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, slots - t), (0, width - c)])
    flat = lambda x: jnp.moveaxis(fit(x), 1, 2).reshape(b, x.shape[2], g * slots, width)  # from [B, G, heads, T, C]
    used = sum(s.slots for s in context)
    rows = lambda s, name: s.v if name == "v" else jnp.swapaxes(s.k, -1, -2)  # [..., U, C]
    spare = -used % block

    def keys(name: str) -> Array:
        parts = [jnp.broadcast_to(rows(s, name), (b, *rows(s, name).shape[-3:])) for s in context]
        wider = [jnp.pad(x, ((0, 0),) * 3 + ((0, width - c),)) for x in parts]
        end = [jnp.zeros((b, own.v.shape[2], spare, width), own.v.dtype)] if spare else []
        return jnp.concatenate([flat(rows(own, name)), *wider, *end], axis=2)

    sight = [jnp.ones((b, g * slots), bool)]
    for s in context:
        seen_slots = jnp.ones((s.slots,), bool) if s.visible is None else s.visible
        sight.append(jnp.broadcast_to(seen_slots, (b, s.slots)))
    sight.append(jnp.zeros((b, spare), bool))
    return Packed(flat(jnp.moveaxis(q_bgthc, 2, 3)), keys("k"), keys("v"), jnp.concatenate(sight, axis=1))


def unpack(out_bhrc: Array, q_bgthc: Array) -> Array:
    """[B, H, G * T, C] as the queries came."""
    b, g, t, h, c = q_bgthc.shape
    out = out_bhrc.reshape(b, h, g, -1, out_bhrc.shape[-1])[:, :, :, :t, :c]
    return jax.lax.transpose(out, (0, 2, 3, 1, 4)).astype(q_bgthc.dtype)
