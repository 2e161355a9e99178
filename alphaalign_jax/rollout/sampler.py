"""Sampling G responses for each prompt: prefill once, then one compiled decode loop.

The key of every draw folds in (row, rollout, position), so a row's sample depends neither on its neighbours in the
batch nor on the mesh, and two steps never share noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp

from alphaalign_jax.models import Segment, Transformer
from alphaalign_jax.models.context import Context, prefill
from alphaalign_jax.models.distribution import Sampling, chosen_logprob, scaled_logits
from alphaalign_jax.parallel import constrain
from alphaalign_jax.types import Array, Finish, Prompts, Rollout


@flax.struct.dataclass
class _Loop:
    t: Array  # int32 []
    hidden: Array  # compute dtype [B, G, D], predicts token t
    k: Array  # compute dtype [L, B, G, T, K, C]
    v: Array
    tokens: Array  # int32 [B, G, T]
    logprob: Array  # float32 [B, G, T]
    done: Array  # bool [B, G]
    length: Array  # int32 [B, G]


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
    forced = jnp.zeros((0,), jnp.int32) if forced is None else jnp.asarray(forced, jnp.int32)
    if forced.shape[0] >= slots:
        raise ValueError(f"forced response prefix of {forced.shape[0]} tokens leaves none of {slots} slots to sample")
    context = prefill(model, prompts)
    row_keys = _row_keys(key, prompts.row, group)
    stops = jnp.asarray(stop_ids, jnp.int32)

    def decode(state: _Loop) -> _Loop:
        scaled = scaled_logits(model.logits(state.hidden), sampling)
        token = _force(_draw(scaled, row_keys, state.t, sampling), forced, state.t)
        alive = ~state.done
        chosen, _ = chosen_logprob(scaled, token)
        is_forced = state.t < forced.shape[0]
        stopped = alive & ~is_forced & (token[..., None] == stops).any(-1)
        put = lambda buffer, value: jax.lax.dynamic_update_index_in_dim(buffer, value, state.t, axis=2)
        hidden, k, v = _advance(model, context, state, token)
        return _Loop(
            t=state.t + 1,
            hidden=hidden,
            k=k,
            v=v,
            tokens=put(state.tokens, jnp.where(alive, token, 0)),
            logprob=put(state.logprob, jnp.where(alive & ~is_forced, chosen, 0.0)),
            done=state.done | stopped,
            length=state.length + alive,
        )

    state = _start(model, context, group, slots)
    state = jax.lax.while_loop(lambda s: (s.t < slots) & ~s.done.all(), decode, state)
    position = jnp.arange(slots)
    return Rollout(
        tokens=state.tokens,
        length=state.length,
        finish=jnp.where(state.done, int(Finish.STOP), int(Finish.LENGTH)).astype(jnp.int32),
        sampled=(position < state.length[..., None]) & (position >= forced.shape[0]),
        logprob=state.logprob,
    )


def _row_keys(key: jax.Array, row: Array, group: int) -> Array:
    """Keys [B, G]."""
    fold = lambda r, g: jax.random.fold_in(jax.random.fold_in(key, r), g)
    return jax.vmap(lambda r: jax.vmap(lambda g: fold(r, g))(jnp.arange(group)))(row)


def _draw(logits: Array, row_keys: Array, t: Array, sampling: Sampling) -> Array:
    """Next tokens int32 [B, G] by the Gumbel trick; the highest logit where greedy."""
    noise = jax.vmap(jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, t), logits.shape[-1:], jnp.float32)))
    drawn = lambda: jnp.argmax(logits + noise(row_keys), axis=-1)
    return jax.lax.cond(sampling.temperature > 0, drawn, lambda: jnp.argmax(logits, axis=-1)).astype(jnp.int32)


def _force(token: Array, forced: Array, t: Array) -> Array:
    if not forced.shape[0]:
        return token
    return jnp.where(t < forced.shape[0], forced[jnp.minimum(t, forced.shape[0] - 1)], token)


def _start(model: Transformer, context: Context, group: int, slots: int) -> _Loop:
    spec, b = model.spec, context.last_hidden.shape[0]
    cache = jnp.zeros((spec.num_layers, b, group, slots, spec.num_kv_heads, spec.head_dim), model.dtype)
    cache = constrain(cache, "layers", "batch", "rollout", "length", "kv_heads", "head_dim")
    return _Loop(
        t=jnp.int32(0),
        hidden=jnp.broadcast_to(context.last_hidden, (b, group, spec.hidden_size)),
        k=cache,
        v=cache,
        tokens=jnp.zeros((b, group, slots), jnp.int32),
        logprob=jnp.zeros((b, group, slots), jnp.float32),
        done=jnp.zeros((b, group), bool),
        length=jnp.zeros((b, group), jnp.int32),
    )


def _advance(model: Transformer, context: Context, state: _Loop, token: Array) -> tuple[Array, Array, Array]:
    """Runs token t through the model; returns the state that predicts t + 1 and the cache with slot t written."""
    slots = state.tokens.shape[-1]
    past = Segment(state.k, state.v, (jnp.arange(slots) < state.t)[None, None, None])
    positions = jnp.broadcast_to((context.start + state.t)[..., None], (*token.shape, 1))
    hidden, (k, v) = model.extend(token[..., None], positions, (*context.segments, past))
    write = lambda cache, new: jax.lax.dynamic_update_slice_in_dim(cache, new, state.t, axis=3)
    return hidden[:, :, 0], write(state.k, k), write(state.v, v)
