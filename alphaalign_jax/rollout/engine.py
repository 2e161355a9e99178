"""The rollout engine: a policy's weights in rollout layout, compiled sampling, and the verifiers' verdicts on it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from alphaalign_jax import parallel
from alphaalign_jax.models import Network, Params
from alphaalign_jax.models.distribution import Sampling
from alphaalign_jax.parallel import Layout
from alphaalign_jax.rewards.verifiers import Verdict, Verifiers
from alphaalign_jax.rollout.sampler import sample
from alphaalign_jax.types import Array, Prompts, Rollout


def compiled(function: Callable, layout: Layout, **jit_options) -> Callable:
    """Jits ``function`` so that the activations it names are laid out by ``layout``."""

    @functools.wraps(function)
    def traced(*args, **kwargs):
        with parallel.use(layout):
            return function(*args, **kwargs)

    return jax.jit(traced, **jit_options)


def place(prompts: Prompts, layout: Layout) -> Prompts:
    """Prompts on the mesh: rows over the batch axes, the template prefix everywhere."""
    layout.check("prompts", prompts.tokens.shape, ("batch", None))
    put = lambda x, *axes: jax.device_put(np.asarray(x, np.int32), layout.sharding(*axes))
    return Prompts(
        prefix=put(prompts.prefix),
        tokens=put(prompts.tokens, "batch", None),
        length=put(prompts.length, "batch"),
        label=put(prompts.label, "batch"),
        row=put(prompts.row, "batch"),
    )


class Engine:
    """Samples from weights that it is handed; owns none, so the trainer can hand it fresh ones every step."""

    def __init__(
        self,
        network: Network,
        layout: Layout,
        verifiers: Verifiers,
        stop_ids: tuple[int, ...],
        *,
        dtype: str = "float32",
    ):
        """``network``: the policy's; it is run in ``dtype`` (weights too) and without remat."""
        self.network = dataclasses.replace(network, dtype=dtype, remat="none")
        self.layout, self.stop_ids = layout, stop_ids
        self.verifiers = jax.device_put(verifiers, layout.replicated)
        shardings = layout.tree_shardings(network.axes, network.shapes(), "rollout layout, policy")
        cast = functools.partial(jax.tree.map, lambda x: x.astype(dtype))
        # Cast on the way: half the bytes move where the rollout runs in bfloat16.
        self.prepare: Callable[[Params], Params] = jax.jit(cast, out_shardings=shardings)
        self._sample = compiled(self._sample_fn, layout, static_argnames=("group", "slots"))
        self._judge = compiled(lambda v, tokens, length, finish: v.judge(tokens, length, finish), layout)

    def _sample_fn(
        self,
        params: Params,
        prompts: Prompts,
        key: Any,
        sampling: Sampling,
        forced: Array | None,
        *,
        group: int,
        slots: int,
    ):
        model = self.network.bind(params)
        return sample(model, prompts, key, sampling, group=group, slots=slots, stop_ids=self.stop_ids, forced=forced)

    def rollout(
        self,
        params: Params,
        prompts: Prompts,
        key: jax.Array,
        sampling: Sampling,
        *,
        group: int,
        slots: int,
        forced: Array | None = None,
    ) -> Rollout:
        """``group`` responses of at most ``slots`` tokens for each prompt; ``params`` from ``prepare``."""
        return self._sample(params, place(prompts, self.layout), key, sampling, forced, group=group, slots=slots)

    def judge(self, rollout: Rollout) -> Verdict:
        return self._judge(self.verifiers, rollout.tokens, rollout.length, rollout.finish)


def trim(rollout: Rollout, slots: int) -> Rollout:
    """The first ``slots`` response positions; the caller has seen that no response is longer."""
    cut = lambda x: x[..., :slots]
    return rollout.replace(tokens=cut(rollout.tokens), sampled=cut(rollout.sampled), logprob=cut(rollout.logprob))
