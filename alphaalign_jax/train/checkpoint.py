"""A run's checkpoints: one Orbax step holds the whole training state, written atomically and off the critical path."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from alphaalign_jax import config
from alphaalign_jax.types import TrainState

# The policy is an item of its own, so that it can be read without the rest (``hf.load`` of a run's folder).
_FIELDS = ("step", "actor_opt", "critic", "critic_opt", "reference", "kl_coef")


def _rest(state: TrainState) -> dict[str, Any]:
    """Only what is there: Orbax has no leaf for None."""
    return {name: getattr(state, name) for name in _FIELDS if getattr(state, name) is not None}


class Checkpoints:
    """Training states by step under ``directory``. The data position and every random key are functions of the step."""

    def __init__(self, directory: pathlib.Path, settings: config.Checkpoint):
        options = ocp.CheckpointManagerOptions(max_to_keep=settings.keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(pathlib.Path(directory).absolute(), options=options)

    def latest(self) -> int | None:
        """The newest finished step, None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts writing ``state`` under its step; a step that is there already is left as it is."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            actor=ocp.args.StandardSave(state.actor),
            rest=ocp.args.StandardSave(_rest(state)),
            meta=ocp.args.JsonSave(meta),
        )
        self._manager.save(step, args=items)

    def restore(self, like: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        """State and meta of ``step``, laid out as ``like`` (arrays or ShapeDtypeStructs with shardings)."""
        abstract = lambda tree: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
        items = ocp.args.Composite(actor=abstract(like.actor), rest=abstract(_rest(like)), meta=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        return like.replace(actor=restored["actor"], **restored["rest"]), restored["meta"]

    def close(self) -> None:
        """Waits for writes under way."""
        self._manager.wait_until_finished()
        self._manager.close()
