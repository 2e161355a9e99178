"""A run's checkpoints: one Orbax step holds the whole training state, written atomically and off the critical path."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from alphaalign_jax import config
from alphaalign_jax.types import TrainState

_FIELDS = ("step", "actor", "actor_opt", "critic", "critic_opt", "reference", "kl_coef")


def _tree(state: TrainState) -> dict[str, Any]:
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
        self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(_tree(state)), meta=ocp.args.JsonSave(meta)))

    def restore(self, like: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        """State and meta of ``step``, laid out as ``like`` (arrays or ShapeDtypeStructs with shardings)."""
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _tree(like))
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore())
        )
        return like.replace(**restored["state"]), restored["meta"]

    def close(self) -> None:
        """Waits for writes under way."""
        self._manager.wait_until_finished()
        self._manager.close()
