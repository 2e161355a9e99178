"""From the config's reward-model section to a backend."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from alphaalign_jax.rewards.reward_model.protocol import RewardModel

KINDS = ("none", "classifier", "http", "callable")


def _backend(kind: str) -> type:
    # Imported on demand: the HTTP backend should not pay for transformers, nor a callable for either.
    if kind == "callable":
        from alphaalign_jax.rewards.reward_model.callable import CallableRewardModel

        return CallableRewardModel
    if kind == "http":
        from alphaalign_jax.rewards.reward_model.http import HttpRewardModel

        return HttpRewardModel
    from alphaalign_jax.rewards.reward_model.classifier import ClassifierRewardModel

    return ClassifierRewardModel


def build(kind: str = "none", **options: Any) -> RewardModel | None:
    """The reward model a config asks for; None for kind ``none``, whose options are not looked at.

    ``options`` are the backend's own arguments:

        callable    target, dtype
        http        url, batch_limit, max_concurrency, connect_timeout, read_timeout, max_retries, backoff, max_backoff,
                    retry_after_limit, token_env, max_response_bytes, dtype
        classifier  see ``ClassifierRewardModel``

    Raises:
        ValueError: unknown kind or option, a missing option, or a value the backend refuses; before any compile.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown reward model kind {kind!r}, valid kinds are {', '.join(KINDS)}{hint}")
    if kind == "none":
        return None
    backend = _backend(kind)
    parameters = inspect.signature(backend).parameters
    for name in options:
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"reward model {kind!r} has no option {name!r}, it has {', '.join(parameters)}{hint}")
    missing = [key for key, p in parameters.items() if p.default is p.empty and options.get(key) in (None, "")]
    if missing:
        raise ValueError(f"reward model {kind!r} needs {', '.join(missing)}")
    return backend(**options)
