"""AdamW with global-norm clipping, and the layout of its state."""

from __future__ import annotations

from typing import Any

import jax
import optax

from alphaalign_jax import config
from alphaalign_jax.models import Network, Params
from alphaalign_jax.parallel import Layout


def build(settings: config.Optimizer) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW; the learning rate rises linearly over ``warmup_steps``, then stays."""
    rate: Any = settings.learning_rate
    if settings.warmup_steps:
        # Step 0 takes 1 / warmup_steps of the rate: a first update of exactly 0 would be a step thrown away.
        rate = optax.linear_schedule(rate / settings.warmup_steps, rate, settings.warmup_steps - 1)
    adamw = optax.adamw(rate, b1=settings.b1, b2=settings.b2, eps=settings.eps, weight_decay=settings.weight_decay)
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
