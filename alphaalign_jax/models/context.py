"""Prompt work done once: the template prefix for the batch, a prompt for its G rollouts.

Sampler and trainer both enter the model here, so what one samples from is what the other differentiates.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from alphaalign_jax.models.attention import Segment
from alphaalign_jax.models.transformer import Transformer
from alphaalign_jax.types import Array, Prompts


@flax.struct.dataclass
class Context:
    """A prefilled batch of prompts."""

    segments: tuple[Segment, ...]  # prefix and prompts, ``k`` and ``v`` with a leading L axis
    last_hidden: Array  # compute dtype [B, 1, D], state that predicts the first response token
    start: Array  # int32 [B, 1], position of the first response token


def prefill(model: Transformer, prompts: Prompts) -> Context:
    """Runs the prefix once and each prompt once. Each prompt must have at least one token after the prefix."""
    prefix_len, slots = prompts.prefix.shape[0], prompts.tokens.shape[1]
    segments: tuple[Segment, ...] = ()
    if prefix_len:
        positions = jnp.arange(prefix_len, dtype=jnp.int32)[None, None]
        _, (k, v) = model.extend(prompts.prefix[None, None], positions)
        segments = (_segment(k, v, (-5, -4)),)
    positions = jnp.broadcast_to(prefix_len + jnp.arange(slots, dtype=jnp.int32), prompts.tokens.shape)
    hidden, (k, v) = model.extend(prompts.tokens[:, None], positions[:, None], segments)
    visible = jnp.arange(slots) < prompts.length[:, None]  # [B, S]
    segments += (_segment(k, v, -4, visible),)
    last = jnp.take_along_axis(hidden[:, 0], (prompts.length - 1)[:, None, None], axis=1)
    return Context(segments, last, (prefix_len + prompts.length)[:, None].astype(jnp.int32))


def _segment(k: Any, v: Any, axes: int | tuple[int, ...], visible: Array | None = None) -> Segment:
    """Without the axes of size 1 that ``extend`` leaves where there are no rollouts, or no batch; counted from the end,
    so that it does not matter whether layers are stacked."""
    squeezed = lambda tree: jax.tree.map(lambda x: jnp.squeeze(x, axes), tree)
    return Segment(squeezed(k), squeezed(v), visible)


def response_states(model: Transformer, prompts: Prompts, tokens: Array) -> Array:
    """Hidden states [B, G, T, D] that predict ``tokens`` int32 [B, G, T].

    Slot t holds the state just before token t.
    """
    context = prefill(model, prompts)
    b, g, t = tokens.shape
    first = jnp.broadcast_to(context.last_hidden[:, :, None], (b, g, 1, context.last_hidden.shape[-1]))
    if t == 1:
        return first
    positions = jnp.broadcast_to(context.start[..., None] + jnp.arange(t - 1, dtype=jnp.int32), (b, g, t - 1))
    hidden, _ = model.extend(tokens[..., :-1], positions, context.segments, keep_kv=False)
    return jnp.concatenate([first, hidden], axis=2)
