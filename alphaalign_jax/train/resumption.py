"""Whether a run may resume under another config: the settings that differ, and which of them matter."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from alphaalign_jax.config import Config

# What may differ between a run and its resumption: nothing that a step computes (``steps``: unless a rate decays over
# them), or an evaluation of a prompt (``eval.limit`` is how many prompts the periodic one takes).
_FREE = ("name", "out", "steps", "samples", "export", "eval.every", "eval.limit", "eval.batch", "checkpoint", "guards")
_FREE += (
    "rollout.max_logprob_gap",
    "algorithm.reference_on_host",
    "reward_model.on_host",
    "reward_model.timeout_s",
    "reward_model.retries",
    "reward_model.token_env",
)
# Where inputs are read from. The inputs themselves are compared, by their digests (``provenance``), so they may move.
_PLACES = ("data.train", "data.heldout", "model.path", "reward_model.target")
# What changes the rounding of a result and nothing else: to go on where memory ran out, or on other chips.
_ROUNDS = ("model.remat", "algorithm.micro_batch", "algorithm.micro_tokens", "algorithm.logprob_chunk", "rollout.cache")
_ROUNDS += ("rollout.fewest_rows", "rollout.scan_layers", "model.attention", "mesh", "reward_model.tensor")


def check(then: dict[str, Any], now: Config, step: int, *, extend: bool = False) -> None:
    """Raise ValueError, with the keys, if ``now`` would not continue the run of config ``then``, which is at ``step``.

    A learning rate that decays over the run ties it to its number of steps, unless ``extend`` is set.
    """
    differing = [line for line in _lasting(then, now) if not line.startswith((*_ROUNDS, *_PLACES))]
    if _function(then["reward_model"]) != _function(dataclasses.asdict(now.reward_model)):
        differing += [line for line in moved(then, now) if line.startswith("reward_model.target")]
    if rescheduled(then, now) and not extend:
        differing.append(
            f"steps: {then['steps']} then, {now.steps} now, and the learning rate's decay ends with the run "
            f"({_decays(now)}); set --config.steps={then['steps']}, or take --resume=extend, which computes the decay "
            f"anew over {now.steps} steps"
        )
    if differing:
        raise ValueError(f"--resume: the config differs from the run's in {'; '.join(differing)}")
    if now.steps < step:
        raise ValueError(f"--resume: steps={now.steps}, but the run is already at step {step}")


def moved(then: dict[str, Any], now: Config) -> list[str]:
    """Differing settings that name where inputs are read from: digests decide whether these are the same inputs."""
    return [line for line in _lasting(then, now) if line.startswith(_PLACES)]


def rescheduled(then: dict[str, Any], now: Config) -> bool:
    """Whether the learning rate's decay, which ends with the run, ends at another step than it would have."""
    return now.steps != then["steps"] and bool(_decays(now))


def _decays(config: Config) -> str:
    decays = {"optimizer.decay": config.optimizer.decay, "critic.optimizer.decay": config.critic.optimizer.decay}
    return ", ".join(f"{key}={value:g}" for key, value in decays.items() if value)


def _function(reward_model: dict[str, Any]) -> str:
    """The name of a callable reward model: its file may move, and the file's digest tells no two functions apart."""
    return reward_model["target"].rpartition(":")[2] if reward_model["kind"] == "callable" else ""


def rounding(then: dict[str, Any], now: Config) -> list[str]:
    """Differing settings that change the rounding of results and nothing else."""
    return [line for line in _lasting(then, now) if line.startswith(_ROUNDS)]


def _lasting(then: dict[str, Any], now: Config) -> list[str]:
    """Differing settings that a step's results depend on, places of inputs included."""
    free = _FREE if now.reward_model.kind != "http" else (*_FREE, "reward_model.target")  # a server may move
    return _differences(then, plain(dataclasses.asdict(now)), free)


def plain(value: Any) -> Any:
    """Return a value as JSON gives it back: tuples become lists, and keys text (a label_map may have numbers)."""
    return json.loads(json.dumps(value))


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
