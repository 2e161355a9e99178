"""Fingerprints of a run's inputs and environment, so that resuming detects changes.

The same settings may refer to other data, code or devices at the next start.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

import alphaalign_jax
from alphaalign_jax import hf
from alphaalign_jax.data.tokenized import PromptSet
from alphaalign_jax.models import Params
from alphaalign_jax.parallel import processes
from alphaalign_jax.parallel.digest import digests
from alphaalign_jax.rollout.policy import Policy
from alphaalign_jax.train import assembly, resumption
from alphaalign_jax.train.assembly import Prepared
from alphaalign_jax.train.checkpoint import Progress
from alphaalign_jax.train.records import packages


def inputs(prepared: Prepared) -> dict[str, str]:
    """Return a fingerprint for each input that every step reads, by the setting that names it.

    The initial weights are not included, because a resumed run reads its weights from the
    checkpoint. HTTP reward servers cannot be fingerprinted. Raise ValueError if the processes of a
    cluster read different inputs.
    """
    found = {
        "data.train": _rows(prepared.train),
        "data.heldout": _rows(prepared.heldout),
    }
    sets = [prepared.train, prepared.heldout]
    if prepared.validation is not None:
        found["data.validation"] = _rows(prepared.validation)
        sets.append(prepared.validation)
    found["model.path's tokenizer"] = _tokenizer(prepared.policy, *sets)
    if prepared.scorer is not None:
        found["reward_model.target"] = prepared.scorer.identity
    _check_alike(found)
    return found


def computed_by(prepared: Prepared) -> dict[str, str]:
    """Return the environment: package versions, code, devices, mesh and processes.

    If it changes, results may change by rounding, or by the change in the code.
    """
    code = sorted(pathlib.Path(alphaalign_jax.__file__).parent.rglob("*.py"))
    return packages() | {
        "code": _sha256(part for file in code for part in (file.name.encode(), file.read_bytes())),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "mesh": ", ".join(f"{axis} {size}" for axis, size in prepared.train_layout.mesh.shape.items()),
        "processes": str(jax.process_count()),
    }


def weights_id(params: Params) -> str:
    """Return an id of the weights, the same on any mesh.

    It identifies the initial policy, which is the reference of the KL.
    """
    return _sha256([json.dumps(digests(params), sort_keys=True).encode()])


def check_resumed(then: Progress, prepared: Prepared, now: dict[str, str]) -> list[str]:
    """Raise ValueError if the inputs of a resumed run have changed, wherever they are stored now.

    Return lines to show: inputs that have moved, and a learning rate whose decay has changed.
    ``then``: saved progress. ``now``: the current ``inputs``.
    """
    config = prepared.config
    check_inputs(then.inputs, now)
    moved = resumption.moved(then.config, config)
    if any(line.startswith("model.path") for line in moved):
        _check_initial(then.initial, prepared, assembly.model_path(config))
    shown = [f"the same input in another place: {line}" for line in moved]
    if resumption.rescheduled(then.config, config):
        steps = then.config["steps"]
        shown.append(f"the learning rate's decay is computed anew over {config.steps} steps ({steps} before)")
    return shown


def _check_initial(then: str, prepared: Prepared, path: pathlib.Path) -> None:
    """Raise ValueError if the model at ``path`` differs from the run's initial weights.

    ``then``: their ``weights_id``. A resumed run reads its weights from the checkpoint, so this
    check is needed only if model.path has changed.
    """
    try:
        now = weights_id(hf.load(path, network=prepared.actor, layout=prepared.train_layout)[1])
        reason = "" if now == then else f"weights: sha256 {then} then, {now} now"
    except ValueError as error:  # the model is missing or has another shape
        reason = str(error)
    if reason:
        raise ValueError(
            f"--resume: model.path={prepared.config.model.path} is not the model that the run began with ({reason}); "
            "leave model.path as it was: the run's folder has all that it needs"
        )


def check_inputs(then: dict[str, str], now: dict[str, str]) -> None:
    """Raise ValueError, which names the settings, if the inputs of a resumed run have changed."""
    changed = differences(then, now)
    if changed:
        raise ValueError(
            f"--resume: the run's inputs have changed ({'; '.join(changed)}); put it back, or start a new run "
            "with another --config.out"
        )


def differences(then: dict[str, str], now: dict[str, str]) -> list[str]:
    return [
        f"{name}: {then.get(name, 'nothing')} then, {now.get(name, 'nothing')} now"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]


def _check_alike(found: dict[str, str]) -> None:
    """Raise ValueError if the hosts, each of which reads its own files, found different inputs."""
    for name, line in found.items():
        own = np.frombuffer(hashlib.sha256(line.encode()).digest(), np.uint8)
        everyone = processes.gather_rows(own)
        others = [i for i in range(len(everyone)) if not np.array_equal(everyone[i], everyone[0])]
        if others:
            raise ValueError(
                f"{name}: processes {others} read something else than process 0 (here: {line}); give all hosts the "
                "same files"
            )


def _rows(prompts: PromptSet) -> str:
    parts = [[row.prompt, row.label, row.context] if row.context else [row.prompt, row.label] for row in prompts.rows]
    lines = (json.dumps(part).encode() for part in parts)
    return f"{len(prompts)} prompts, sha256 {_sha256(lines)}"


def _tokenizer(policy: Policy, *sets: PromptSet) -> str:
    """Return a fingerprint of the tokenizer and chat template.

    It covers the tokenized prompts, the stop tokens and the bytes of each token.
    """
    ids = (np.asarray(ids, np.int32).tobytes() for prompts in sets for ids in (prompts.prefix, *prompts.tails))
    return f"sha256 {_sha256([repr(policy.stop_ids).encode(), *policy.token_bytes, *ids])}"


def _sha256(parts: Iterable[Any]) -> str:
    """Return the first 16 hex digits of a hash of the parts. Each part's length is hashed too."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()[:16]
