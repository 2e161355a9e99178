"""A run's checkpoints: one Orbax step holds the whole training state, written atomically and off the critical path."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from alphaalign_jax import buckets
from alphaalign_jax import config as config_lib
from alphaalign_jax.types import TrainState

# The policy and its average are items of their own, so that either can be read without the rest (``hf.load`` of a run's
# folder).
_POLICY = ("actor", "average")
_REST = ("step", "actor_opt", "critic", "critic_opt", "reference", "ahead", "kl_coef")
# What may differ between a run and its resumption: nothing that a step or an evaluation computes (``steps``: unless a
# rate decays over them).
_FREE = ("name", "out", "steps", "samples", "export", "eval.every", "eval.limit", "eval.batch", "checkpoint")
_FREE += (
    "algorithm.reference_on_host",
    "reward_model.on_host",
    "reward_model.timeout_s",
    "reward_model.retries",
    "reward_model.token_env",
)
# What changes the rounding of a result and nothing else: to go on where memory ran out.
_ROUNDS = ("model.remat", "algorithm.micro_batch", "algorithm.micro_tokens", "algorithm.logprob_chunk", "rollout.cache")
_ROUNDS += ("rollout.fewest_rows", "rollout.scan_layers", "model.attention")


def result_item(config: config_lib.Config) -> str:
    """Item of a checkpoint that holds the weights of ``TrainState.result``."""
    return "average" if config.algorithm.ema_decay else "actor"


def _items(state: TrainState) -> dict[str, Any]:
    """The state by item of a checkpoint. Only what is there: Orbax has no leaf for None."""
    there = lambda names: {name: getattr(state, name) for name in names if getattr(state, name) is not None}
    return there(_POLICY) | {"rest": there(_REST)}


class Checkpoints:
    """Training states by step under ``directory``. The data position and every random key are functions of the step."""

    def __init__(self, directory: str | pathlib.Path, settings: config_lib.Checkpoint):
        """``directory``: one that all processes see, local or ``gs://...``."""
        self.directory = epath.Path(directory if buckets.remote(directory) else pathlib.Path(directory).absolute())
        self._settings = settings
        self._manager: ocp.CheckpointManager | None = None
        if buckets.remote(directory):  # what may not be used is found out now
            with buckets.saying(str(directory), "used"):
                self._open()
        elif self.directory.is_dir():
            self._open()

    def _open(self) -> ocp.CheckpointManager:
        """The folder is made by the first save, not by a run that is refused."""
        if self._manager is None:
            options = ocp.CheckpointManagerOptions(max_to_keep=self._settings.keep, create=True)
            items = {name: ocp.StandardCheckpointHandler() for name in (*_POLICY, "rest")}
            handlers = {**items, "meta": ocp.JsonCheckpointHandler()}
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
        return self._manager

    def latest(self) -> int | None:
        """The newest finished step, None where there is none."""
        return None if self._manager is None else self._manager.latest_step()

    def check(self, config: config_lib.Config, resume: bool) -> str:
        """Raises ValueError unless the folder fits: empty for a new run; for a resumption, this config's checkpoints.

        Returns what differs from the run so far in rounding alone, empty where nothing does.
        """
        latest = self.latest()
        if not resume and latest is not None:
            raise ValueError(
                f"{config.location} already holds checkpoints (newest: step {latest}); continue with --resume, or "
                "choose another --config.out"
            )
        if not resume:
            return ""
        if latest is None:
            raise ValueError(f"--resume: {self.directory} holds no finished checkpoint; run without it")
        meta = self._manager.restore(latest, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        free = _FREE if config.reward_model.kind != "http" else (*_FREE, "reward_model.target")  # a server may move
        found = _differences(meta["config"], _plain(dataclasses.asdict(config)), free)
        differing = [line for line in found if not line.startswith(_ROUNDS)]
        if config.steps != meta["config"]["steps"] and (config.optimizer.decay or config.critic.optimizer.decay):
            differing.append(
                f"steps: {meta['config']['steps']} then, {config.steps} now, and the learning rate's decay"
            )
        if differing:
            raise ValueError(f"--resume: the config differs from the run's in {'; '.join(differing)}")
        if config.steps < latest:
            raise ValueError(f"--resume: steps={config.steps}, but the run is already at step {latest}")
        return "; ".join(line for line in found if line.startswith(_ROUNDS))

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts writing ``state`` under its step; a step that is there already is left as it is."""
        step, manager = int(state.step), self._open()
        if step in manager.all_steps():
            return
        items = {name: ocp.args.StandardSave(item) for name, item in _items(state).items()}
        manager.save(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(_plain(meta))))

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest state and its meta, laid out as ``like`` (ShapeDtypeStructs with shardings)."""
        items = {name: ocp.args.StandardRestore(item) for name, item in _items(like).items()}
        args = ocp.args.Composite(**items, meta=ocp.args.JsonRestore())
        restored = self._manager.restore(self._manager.latest_step(), args=args)
        policy = {name: restored[name] for name in items if name != "rest"}
        return like.replace(**policy, **restored["rest"]), restored["meta"]

    def close(self) -> None:
        """Waits for writes under way."""
        if self._manager is not None:
            self._manager.wait_until_finished()
            self._manager.close()


def _plain(value: Any) -> Any:
    """As JSON gives it back: tuples become lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _differences(old: dict[str, Any], new: dict[str, Any], free: Sequence[str], prefix: str = "") -> list[str]:
    """Dotted keys of settings that differ, with both values; those that are ``free`` to left out."""
    found = []
    for key in sorted({*old, *new}):
        if f"{prefix}{key}" in free:
            continue
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, free, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a!r} then, {b!r} now")
    return found
