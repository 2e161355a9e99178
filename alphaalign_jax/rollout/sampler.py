"""Sampling G responses for each prompt: prefill once, then compiled decode loops over the rows that still run.

Pure functions that callers trace: ``start`` prefills, ``decode`` draws tokens until the key/value cache is full or few
enough rows are left, ``longer`` adds slots to the cache, ``drop`` makes the grid of rows smaller, ``finish`` puts
together what was drawn. ``sample`` is the plain path: one loop over all rows at full length.

The key of every draw folds in (row, rollout, position), so a row's noise depends neither on its neighbours in the
batch, nor on the mesh, nor on when rows were dropped, and two steps never share any. Its sample does not either, up to
rounding: logits of two programs differ in their last bits, which now and then, in bfloat16 more often, moves a draw
that falls between two tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from alphaalign_jax.models import Cache, Segment, Transformer
from alphaalign_jax.models.attention import KEY_SLOTS, VALUE_SLOTS
from alphaalign_jax.models.context import Context, prefill
from alphaalign_jax.models.distribution import Sampling, chosen_logprob, scaled_logits
from alphaalign_jax.parallel import constrain
from alphaalign_jax.types import Array, Finish, Prompts, Rollout

_BLOCK = 256  # tokens summed up at a time when one is drawn


@flax.struct.dataclass
class Drawn:
    """What was drawn for a grid of rows."""

    tokens: Array  # int32 [B, G, T]
    logprob: Array  # float32 [B, G, T]
    length: Array  # int32 [B, G]
    stopped: Array  # bool [B, G], by a stop id


@flax.struct.dataclass
class Decoding:
    """Rows in flight: at first the grid [B, G]; after a ``drop`` to R rows a grid [R, 1], each with its prompt's keys
    for itself. R is at most B (``InFlight.fewer``), so that these take no more memory than before."""

    t: Array  # int32 [], slots drawn so far
    hidden: Array  # compute dtype [B, G, D], predicts token t
    context: Context
    # compute dtype [L, B, G, K, C, U], U slots of cache, and a list of L where layers are not scanned. Without G where
    # that is 1: XLA would read the cache without it, and copy it at every token.
    k: Any
    v: Any  # [L, B, G, K, U, C]
    keys: Array  # keys [B, G]
    limit: Array  # int32 [B, G], the row's last slot + 1
    done: Array  # bool [B, G]
    left: Array  # int32 [], rows that still run
    drawn: Drawn  # of this grid
    origin: Array | None  # int32 [R], the rows of the batch that this grid holds; None: all of them, in order
    batch: Drawn | None  # of the whole batch, as it was when rows were last dropped

    @property
    def rows(self) -> int:
        return self.done.size

    @property
    def capacity(self) -> int:
        return jax.tree.leaves(self.v)[0].shape[VALUE_SLOTS]


def sample(
    model: Transformer,
    prompts: Prompts,
    key: jax.Array,
    sampling: Sampling,
    *,
    group: int,
    slots: int,
    stop_ids: Sequence[int],
    forced: Array | None = None,
) -> Rollout:
    """Draws ``group`` responses of up to ``slots`` tokens for each prompt. Traced by callers; pure.

    ``forced`` int32 [F] (F < slots): every response starts with it; those positions are not ``sampled``. A response
    ends with the first sampled stop id, which belongs to it. The loop stops when every row has.
    """
    state = start(model, prompts, key, group=group, slots=slots, capacity=slots)
    state = decode(model, state, sampling, stop_ids=stop_ids, forced=forced)
    return finish(state.drawn, state.origin, state.batch, forced)


def start(
    model: Transformer,
    prompts: Prompts,
    key: jax.Array,
    *,
    group: int,
    slots: int,
    capacity: int,
    limit: Array | None = None,
) -> Decoding:
    """Prefills. ``capacity``: slots of the first cache. ``limit`` int32 [B, G]: rows end there at the latest."""
    context = prefill(model, prompts)
    b = prompts.batch
    k, v = model.cache(*((b, group) if group > 1 else (b,)), slots=capacity)
    return Decoding(
        t=jnp.int32(0),
        hidden=jnp.broadcast_to(context.last_hidden, (b, group, model.spec.hidden_size)),
        context=context,
        k=_laid_out(k, KEY_SLOTS),
        v=_laid_out(v, VALUE_SLOTS),
        keys=_row_keys(key, prompts.row, group),
        limit=jnp.full((b, group), slots, jnp.int32) if limit is None else jnp.minimum(limit, slots),
        done=jnp.zeros((b, group), bool),
        drawn=Drawn(
            tokens=jnp.zeros((b, group, slots), jnp.int32),
            logprob=jnp.zeros((b, group, slots), jnp.float32),
            length=jnp.zeros((b, group), jnp.int32),
            stopped=jnp.zeros((b, group), bool),
        ),
        left=jnp.int32(b * group),
        origin=None,
        batch=None,
    )


def decode(
    model: Transformer,
    state: Decoding,
    sampling: Sampling,
    *,
    stop_ids: Sequence[int],
    forced: Array | None = None,
    leave_at: Array | int = 0,
) -> Decoding:
    """Draws until the cache is full or at most ``leave_at`` rows are left."""
    forced = jnp.zeros((0,), jnp.int32) if forced is None else jnp.asarray(forced, jnp.int32)
    slots = state.drawn.tokens.shape[-1]
    if forced.shape[0] >= slots:
        raise ValueError(f"forced response prefix of {forced.shape[0]} tokens leaves none of {slots} slots to sample")
    stops = jnp.asarray(stop_ids, jnp.int32)

    def one(state: Decoding) -> Decoding:
        t, drawn = state.t, state.drawn
        scaled = scaled_logits(model.logits(state.hidden), sampling)
        token = _force(_draw(scaled, state.keys, t, sampling), forced, t)
        alive, is_forced = ~state.done, t < forced.shape[0]
        chosen, _ = chosen_logprob(scaled, token)
        stopped = alive & ~is_forced & (token[..., None] == stops).any(-1)
        done = state.done | stopped | (t + 1 >= state.limit)
        put = lambda buffer, value: jax.lax.dynamic_update_index_in_dim(buffer, value, t, axis=2)
        hidden, k, v = _advance(model, state, token)
        return state.replace(
            t=t + 1,
            hidden=hidden,
            k=k,
            v=v,
            done=done,
            left=jnp.sum(~done, dtype=jnp.int32),
            drawn=Drawn(
                tokens=put(drawn.tokens, jnp.where(alive, token, 0)),
                logprob=put(drawn.logprob, jnp.where(alive & ~is_forced, chosen, 0.0)),
                length=drawn.length + alive,
                stopped=drawn.stopped | stopped,
            ),
        )

    going = lambda s: (s.t < s.capacity) & (s.left > leave_at)
    return jax.lax.while_loop(going, one, state)


def longer(cache: Any, *, axis: int, capacity: int) -> Any:
    """Keys or values of a ``Decoding`` with ``capacity`` slots, which are their ``axis``."""

    def pad(x: Array) -> Array:
        width = [(0, 0)] * x.ndim
        width[axis] = (0, capacity - x.shape[axis])
        return jnp.pad(x, width)

    return _laid_out(jax.tree.map(pad, cache), axis)


def _laid_out(cache: Any, axis: int) -> Any:
    rows = ("batch", "rollout")[: jax.tree.leaves(cache)[0].ndim - _leading(cache) - 3]
    return _constrained(cache, axis, "layers", *rows, "kv_heads")


def _leading(cache: Any) -> int:
    """Axes before the rows': L, where layers are stacked."""
    return 0 if isinstance(cache, list) else 1


def _constrained(tree: Any, axis: int, *axes: str) -> Any:
    """Keys or values whose slots are their ``axis``; without ``layers`` where they are not stacked."""
    axes += ("head_dim", "length") if axis == KEY_SLOTS else ("length", "head_dim")
    return jax.tree.map(lambda x: constrain(x, *axes[-x.ndim :]), tree)


def drop(state: Decoding, *, rows: int) -> Decoding:
    """``rows`` of the rows, those that still run first: the caller has seen that no more than so many do."""
    group = state.done.shape[1]
    kept = jnp.argsort(state.done.ravel(), stable=True)[:rows]  # int32 [R]; what fills up is done and stays as it is
    row = lambda x: x.reshape(-1, *x.shape[2:])[kept][:, None]
    # Axes of keys and values are counted from the end: [(L,) B, (G,) K, C, U] and [(L,) B, (G,) K, U, C].
    flat = lambda x, leading: x.reshape(*x.shape[:leading], -1, *x.shape[-3:])
    grid = lambda tree: jax.tree.map(lambda x: jnp.take(flat(x, _leading(tree)), kept, axis=-4), tree)
    cache = lambda tree, axis: _laid_out(grid(tree), axis)

    def segment(s: Segment) -> Segment:
        if s.visible is None:  # the template prefix is everyone's
            return s
        take = lambda tree: jax.tree.map(lambda x: jnp.take(x, kept // group, axis=-4), tree)
        own = lambda tree, axis: _constrained(take(tree), axis, "layers", "batch", "kv_heads")
        return Segment(own(s.k, KEY_SLOTS), own(s.v, VALUE_SLOTS), s.visible[kept // group])

    context = state.context.replace(
        segments=tuple(map(segment, state.context.segments)),
        last_hidden=state.context.last_hidden[kept // group],
        start=state.context.start[kept // group],
    )
    return state.replace(
        hidden=row(state.hidden),
        context=context,
        k=cache(state.k, KEY_SLOTS),
        v=cache(state.v, VALUE_SLOTS),
        keys=row(state.keys),
        limit=row(state.limit),
        done=row(state.done),
        drawn=jax.tree.map(row, state.drawn),
        origin=kept if state.origin is None else state.origin[kept],
        batch=_whole(state.drawn, state.origin, state.batch),
    )


def _whole(drawn: Drawn, origin: Array | None, batch: Drawn | None) -> Drawn:
    """What was drawn for the whole batch so far."""
    if origin is None:
        return drawn
    put = lambda whole, rows: whole.reshape(-1, *whole.shape[2:]).at[origin].set(rows[:, 0]).reshape(whole.shape)
    return jax.tree.map(put, batch, drawn)


def finish(drawn: Drawn, origin: Array | None, batch: Drawn | None, forced: Array | None = None) -> Rollout:
    """The rollout of a ``Decoding`` in which no row runs any more, from its fields."""
    drawn, skipped = _whole(drawn, origin, batch), 0 if forced is None else len(forced)
    position = jnp.arange(drawn.tokens.shape[-1])
    rollout = Rollout(
        tokens=drawn.tokens,
        length=drawn.length,
        finish=jnp.where(drawn.stopped, int(Finish.STOP), int(Finish.LENGTH)).astype(jnp.int32),
        sampled=(position < drawn.length[..., None]) & (position >= skipped),
        logprob=drawn.logprob,
    )
    # One layout whether rows were dropped or not: what reads the rollout is compiled once.
    return jax.tree.map(lambda x: constrain(x, *("batch", "rollout", "length")[: x.ndim]), rollout)


def _row_keys(key: jax.Array, row: Array, group: int) -> Array:
    """Keys [B, G]."""
    fold = lambda r, g: jax.random.fold_in(jax.random.fold_in(key, r), g)
    return jax.vmap(lambda r: jax.vmap(lambda g: fold(r, g))(jnp.arange(group)))(row)


def _draw(logits: Array, row_keys: Array, t: Array, sampling: Sampling) -> Array:
    """Next tokens int32 [B, G]; the highest logit where greedy."""
    uniform = jax.vmap(jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, t))))
    drawn = lambda: _inverse_cdf(logits, uniform(row_keys))
    return jax.lax.cond(sampling.temperature > 0, drawn, lambda: jnp.argmax(logits, axis=-1)).astype(jnp.int32)


def _inverse_cdf(logits: Array, uniform: Array) -> Array:
    """The token in whose share of softmax(logits) [..., V] the number ``uniform`` [...] in [0, 1) falls.

    One random number a row, where the Gumbel trick takes V of them: with 49,152 that took longer than the head's matrix
    product. The sum runs over blocks first, then within one, so that V is passed over once. What a float32 from 0 to
    1 cannot tell apart, shares below 2^-23, is lost; a token outside the support (weight 0) is never drawn.
    """
    weight = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weight = jnp.pad(weight, [(0, 0)] * (logits.ndim - 1) + [(0, -logits.shape[-1] % _BLOCK)])
    blocks = weight.reshape(*logits.shape[:-1], -1, _BLOCK)
    sums = blocks.sum(-1)
    block, rest = _first_beyond(sums, uniform * sums.sum(-1))
    inside = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
    return block * _BLOCK + _first_beyond(inside, rest)[0]


def _first_beyond(weight: Array, target: Array) -> tuple[Array, Array]:
    """The index [...] whose share of the running sum of ``weight`` [..., n] holds ``target`` [...], and how far into
    that share it lies."""
    return _first_above(jnp.cumsum(weight, axis=-1), weight, target)


def _first_above(upto: Array, weight: Array, target: Array) -> tuple[Array, Array]:
    """``_first_beyond`` by running sums ``upto`` that rounding may have put out of order, as a parallel sum does.

    Only an index of positive weight is taken. A target at or beyond the sum is moved just below it.
    """
    upto = jnp.where(weight > 0, upto, -1.0)
    target = jnp.minimum(target, jnp.nextafter(jnp.max(upto, axis=-1), 0.0))
    index = jnp.argmax(upto > target[..., None], axis=-1)
    before = jnp.take_along_axis(upto - weight, index[..., None], axis=-1)[..., 0]
    return index, jnp.maximum(target - before, 0.0)


def _force(token: Array, forced: Array, t: Array) -> Array:
    if not forced.shape[0]:
        return token
    return jnp.where(t < forced.shape[0], forced[jnp.minimum(t, forced.shape[0] - 1)], token)


def _advance(model: Transformer, state: Decoding, token: Array) -> tuple[Array, Any, Any]:
    """Runs token t through the model; returns the state that predicts t + 1 and the cache with slot t written."""
    positions = jnp.broadcast_to((state.context.start + state.t)[..., None], (*token.shape, 1))
    cache = Cache(state.k, state.v, state.t)
    hidden, cache = model.extend(token[..., None], positions, state.context.segments, cache=cache)
    return hidden[:, :, 0], cache.k, cache.v
