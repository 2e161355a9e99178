"""AdamW with global-norm clipping, and the layout of its state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from alphaalign_jax import config
from alphaalign_jax.models import Network, Params
from alphaalign_jax.parallel import Layout


def schedule(settings: config.Optimizer, updates: int) -> optax.Schedule:
    """Learning rate of update n = 0, 1, ... of a run of ``updates``.

    It rises linearly over the first ``warmup_steps``, stays, and falls linearly over the last share ``decay`` of them:

        rate * min(1, (n + 1) / warmup_steps) * min(1, (updates - n) / (updates - start))
    """
    rise = settings.warmup_steps
    start = max(rise, round((1 - settings.decay) * updates))

    def rate(n: Any) -> jax.Array:
        # Update 0 takes 1 / warmup_steps of the rate: a first update of exactly 0 would be a step thrown away.
        risen = jnp.minimum(1.0, (n + 1) / max(rise, 1))
        left = jnp.clip((updates - n) / max(updates - start, 1), 0.0, 1.0) if settings.decay else 1.0
        return jnp.asarray(settings.learning_rate * risen * left, jnp.float32)

    return rate


def updates_made(opt_state: Any) -> jax.Array:
    """Return the updates that ``opt_state`` has seen, int32 []; those left out are not among them."""
    # Adam and the schedule count alike; either count will do.
    return optax.tree_utils.tree_get_all_with_path(opt_state, "count")[0][1]


def learning_rate(settings: config.Optimizer, updates: int, opt_state: Any) -> jax.Array:
    """Learning rate of the next update from ``opt_state``, float32 []."""
    return schedule(settings, updates)(updates_made(opt_state))


def build(settings: config.Optimizer, updates: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW on ``schedule``, for a run of ``updates``."""
    moments = dict(b1=settings.b1, b2=settings.b2, eps=settings.eps)
    adamw = optax.adamw(schedule(settings, updates), **moments, weight_decay=settings.weight_decay)
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), adamw) if settings.clip_norm else adamw


def state_shardings(tx: optax.GradientTransformation, network: Network, layout: Layout) -> Any:
    """Shardings of the optimizer's state: moments lie as their parameters do, counters are replicated."""
    return optax.tree_utils.tree_map_params(
        tx,
        lambda _, sharding: sharding,
        jax.eval_shape(tx.init, network.shapes()),
        layout.tree_shardings(network.axes),
        transform_non_params=lambda _: layout.replicated,
    )


def init(tx: optax.GradientTransformation, network: Network, params: Params, layout: Layout) -> Any:
    """The optimizer's state for these weights, made where it lies."""
    return jax.jit(tx.init, out_shardings=state_shardings(tx, network, layout))(params)
