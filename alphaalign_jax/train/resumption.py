"""Decide whether a run may resume with a changed config, and which changes matter."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from alphaalign_jax.config import Config

# Settings that may change on resuming, because they affect neither a step's results nor the
# evaluation of a prompt. ``steps`` is free unless a learning rate decays over the steps.
# ``eval.limit`` changes only the number of prompts in periodic evaluations.
_FREE = ("name", "out", "steps", "samples", "export", "eval.every", "eval.limit", "eval.batch", "checkpoint", "guards")
_FREE += (
    "rollout.max_logprob_gap",
    "algorithm.reference_on_host",
    "reward_model.on_host",
    "reward_model.timeout_s",
    "reward_model.retries",
    "reward_model.token_env",
)
# Locations of inputs. Inputs may move, because their digests are compared (``provenance``).
_PLACES = ("data.train", "data.heldout", "model.path", "reward_model.target")
# Settings that change results only by rounding. They may change, so that a run can resume after it
# ran out of memory, or on other chips.
_ROUNDS = ("model.remat", "algorithm.micro_batch", "algorithm.micro_tokens", "algorithm.logprob_chunk", "rollout.cache")
_ROUNDS += ("rollout.fewest_rows", "rollout.scan_layers", "model.attention", "mesh", "reward_model.tensor")


def check(then: dict[str, Any], now: Config, step: int, *, extend: bool = False) -> None:
    """Raise ValueError, which names the keys, if config ``now`` cannot continue a run at ``step``.

    ``then``: the run's config. If a learning rate decays over the run, the number of steps must
    stay the same, unless ``extend`` is set.
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
    """Return the changed input locations. Digests decide whether the inputs are still the same."""
    return [line for line in _lasting(then, now) if line.startswith(_PLACES)]


def rescheduled(then: dict[str, Any], now: Config) -> bool:
    """Return whether a learning-rate decay, which ends with the run, now ends at another step."""
    return now.steps != then["steps"] and bool(_decays(now))


def _decays(config: Config) -> str:
    decays = {"optimizer.decay": config.optimizer.decay, "critic.optimizer.decay": config.critic.optimizer.decay}
    return ", ".join(f"{key}={value:g}" for key, value in decays.items() if value)


def _function(reward_model: dict[str, Any]) -> str:
    """Return the function name of a callable reward model, '' for other kinds.

    Its file may move, but the file's digest cannot distinguish two functions in it.
    """
    return reward_model["target"].rpartition(":")[2] if reward_model["kind"] == "callable" else ""


def rounding(then: dict[str, Any], now: Config) -> list[str]:
    """Return the changed settings that affect results only by rounding."""
    return [line for line in _lasting(then, now) if line.startswith(_ROUNDS)]


def _lasting(then: dict[str, Any], now: Config) -> list[str]:
    """Return the changed settings that a step's results depend on, including input locations."""
    free = _FREE if now.reward_model.kind != "http" else (*_FREE, "reward_model.target")  # a server may move
    return _differences(then, plain(dataclasses.asdict(now)), free)


def plain(value: Any) -> Any:
    """Return a value after a JSON round trip: tuples become lists, and keys strings.

    The keys of a label_map may be numbers.
    """
    return json.loads(json.dumps(value))


def _differences(old: dict[str, Any], new: dict[str, Any], free: Sequence[str], prefix: str = "") -> list[str]:
    """Return the dotted keys of changed settings, with both values, except the ``free`` ones."""
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
