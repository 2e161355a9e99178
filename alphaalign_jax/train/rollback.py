"""Return to the best state of a run: to continue from it after a collapse, or to export it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from alphaalign_jax.models import Params
from alphaalign_jax.parallel import to_host
from alphaalign_jax.train import optimizer
from alphaalign_jax.train.checkpoint import CheckpointError, Checkpoints, result_item
from alphaalign_jax.train.iteration import Iteration
from alphaalign_jax.types import TrainState


def go_back(
    checkpoints: Checkpoints, iteration: Iteration, state: TrainState, best: int, factor: float
) -> tuple[TrainState, float]:
    """Return checkpoint ``best`` as a state that continues at the step of ``state``, and a scale.

    The weights, their average, the moments and the KL coefficient come from the checkpoint. The
    step does not. So the run does not meet the prompts and noise of the collapse again, and does
    not get longer. The positions on the learning-rate schedules are kept too, but all rates are
    multiplied by ``factor``. The returned scale is the total factor on the actor's rate.

    ``state`` is deleted first, because two states may not fit in memory. Raise CheckpointError if
    the checkpoint cannot be read.
    """
    steps, step = iteration.steps, int(state.step)
    states = {name: getattr(state, name) for name in ("actor_opt", "critic_opt")}
    places = {name: to_host(optimizer.scheduled(opt)) for name, opt in states.items() if opt is not None}
    checkpoints.wait()  # a save of this state may be in progress
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    state = checkpoints.read(best, steps.abstract_state(best))
    for name, place in places.items():
        count, scale = steps.scalar(place.count, jnp.int32), steps.scalar(place.scale * factor, jnp.float32)
        moved = optimizer.reschedule(getattr(state, name), optimizer.Scheduled(count, scale))
        state = state.replace(**{name: moved})
    state = steps.settled(state.replace(step=steps.scalar(step, jnp.int32)))
    return iteration.sampled_anew(state, step), float(places["actor_opt"].scale * factor)


def choose(
    checkpoints: Checkpoints, iteration: Iteration, state: TrainState, best: int, say: Callable[[str], Any]
) -> tuple[Params, int]:
    """Return the result weights of a run that ends with ``state``, and their step.

    They are the ``TrainState.result`` of checkpoint ``best``. If it cannot be read, report that and
    return those of ``state``: a worse export is better than none.
    """
    last = int(state.step)
    if best == last:
        return state.result, last
    like, item = iteration.steps.abstract_state(best), result_item(iteration.config)
    others = {field.name: None for field in dataclasses.fields(like) if field.name != item}
    try:
        return checkpoints.read(best, like.replace(**others)).result, best
    except CheckpointError as error:
        say(f"the result is the last state, not the best, of step {best}: {error}")
        return state.result, last
