"""AdamW with global-norm clipping, and the sharding of its state.

Updates are counted twice. After a rollback, Adam's count is restored with its moments. The
schedule's count continues, so that a decaying learning rate still reaches 0 at the end of the run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from alphaalign_jax import config
from alphaalign_jax.models import Network, Params
from alphaalign_jax.parallel import Layout


class Scheduled(NamedTuple):
    """The position of an optimizer on its learning-rate schedule."""

    count: jax.Array  # int32 [], updates made, without skipped ones
    scale: jax.Array  # float32 [], factor on the scheduled rate; below 1 after a rollback


def schedule(settings: config.Optimizer, updates: int) -> optax.Schedule:
    """Return the learning rate as a function of the update n = 0, 1, ..., ``updates`` - 1.

    It rises linearly over the first ``warmup_steps`` updates, stays constant, and falls linearly
    over the last share ``decay`` of the updates:

        rate * min(1, (n + 1) / warmup_steps) * min(1, (updates - n) / (updates - start))
    """
    rise = settings.warmup_steps
    start = max(rise, round((1 - settings.decay) * updates))

    def rate(n: Any) -> jax.Array:
        # Update 0 has 1 / warmup_steps of the rate: with a rate of 0 its gradient would be wasted.
        risen = jnp.minimum(1.0, (n + 1) / max(rise, 1))
        left = jnp.clip((updates - n) / max(updates - start, 1), 0.0, 1.0) if settings.decay else 1.0
        return jnp.asarray(settings.learning_rate * risen * left, jnp.float32)

    return rate


def updates_made(opt_state: Any) -> jax.Array:
    """Return the updates made so far, int32 []: Adam's count, which leaves out skipped ones."""
    return optax.tree_utils.tree_get(opt_state, "count", filtering=_is_adam)


def _is_adam(path: tuple, _: Any) -> bool:
    return getattr(path[-1], "tuple_name", "") == optax.ScaleByAdamState.__name__


def scheduled(opt_state: Any) -> Scheduled:
    """Return the position of ``opt_state`` on its schedule."""
    return next(part for part in jax.tree.leaves(opt_state, is_leaf=_is_scheduled) if _is_scheduled(part))


def reschedule(opt_state: Any, place: Scheduled) -> Any:
    """Return ``opt_state`` at another position on its schedule, with Adam's state unchanged."""
    move = lambda part: place if _is_scheduled(part) else part
    return jax.tree.map(move, opt_state, is_leaf=_is_scheduled)


def _is_scheduled(part: Any) -> bool:
    return isinstance(part, Scheduled)


def learning_rate(settings: config.Optimizer, updates: int, opt_state: Any) -> jax.Array:
    """Return the learning rate of the next update from ``opt_state``, float32 []."""
    place = scheduled(opt_state)
    return schedule(settings, updates)(place.count) * place.scale


def _follow(settings: config.Optimizer, updates: int) -> optax.GradientTransformation:
    """Return a transformation that multiplies updates by the negative scheduled learning rate.

    ``updates``: number of updates in the run.
    """
    rate = schedule(settings, updates)

    def init(_: Params) -> Scheduled:
        return Scheduled(jnp.zeros((), jnp.int32), jnp.ones((), jnp.float32))

    def update(steps: Params, place: Scheduled, _: Params | None = None) -> tuple[Params, Scheduled]:
        size = -rate(place.count) * place.scale
        scaled = jax.tree.map(lambda x: size.astype(x.dtype) * x, steps)
        return scaled, place._replace(count=optax.safe_increment(place.count))

    return optax.GradientTransformation(init, update)


def build(settings: config.Optimizer, updates: int) -> optax.GradientTransformation:
    """Return the optimizer: global-norm clipping, then AdamW on ``schedule``.

    ``updates``: number of updates in the run.
    """
    parts = [
        optax.scale_by_adam(b1=settings.b1, b2=settings.b2, eps=settings.eps),
        optax.add_decayed_weights(settings.weight_decay),
        _follow(settings, updates),
    ]
    return optax.chain(*([optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []), *parts)


def state_shardings(tx: optax.GradientTransformation, network: Network, layout: Layout) -> Any:
    """Return the shardings of the optimizer state.

    Moments are sharded like their parameters; counters are replicated.
    """
    return optax.tree_utils.tree_map_params(
        tx,
        lambda _, sharding: sharding,
        jax.eval_shape(tx.init, network.shapes()),
        layout.tree_shardings(network.axes),
        transform_non_params=lambda _: layout.replicated,
    )


def init(tx: optax.GradientTransformation, network: Network, params: Params, layout: Layout) -> Any:
    """Return the initial optimizer state for these weights, created in its sharded layout."""
    return jax.jit(tx.init, out_shardings=state_shardings(tx, network, layout))(params)
