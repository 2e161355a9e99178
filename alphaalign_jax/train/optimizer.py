"""AdamW with global-norm clipping, and the layout of its state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from alphaalign_jax import config
from alphaalign_jax.models import Network, Params
from alphaalign_jax.parallel import Layout


def schedule(settings: config.Optimizer, decay_over: int = 0) -> optax.Schedule:
    """Learning rate of update n = 0, 1, ...: it rises linearly over ``warmup_steps``, then stays.

    With ``decay_over`` it falls linearly instead, to reach 0 after so many updates, those of the rise included.
    """
    rate, rise = settings.learning_rate, settings.warmup_steps
    # Update 0 takes 1 / warmup_steps of the rate: a first update of exactly 0 would be a step thrown away.
    rising = optax.linear_schedule(rate / rise, rate, rise - 1) if rise else optax.constant_schedule(rate)
    if not decay_over:
        return rising
    falling = optax.linear_schedule(rate, 0.0, max(decay_over - rise, 1))
    return optax.join_schedules([rising, falling], [rise])


def learning_rate(settings: config.Optimizer, opt_state: Any) -> jax.Array:
    """Learning rate of the next update from ``opt_state``, float32 []."""
    # Adam and the schedule count alike; either count will do.
    updates = optax.tree_utils.tree_get_all_with_path(opt_state, "count")[0][1]
    return jnp.asarray(schedule(settings)(updates), jnp.float32)


def build(settings: config.Optimizer, decay_over: int = 0) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW on ``schedule``."""
    moments = dict(b1=settings.b1, b2=settings.b2, eps=settings.eps)
    adamw = optax.adamw(schedule(settings, decay_over), **moments, weight_decay=settings.weight_decay)
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
