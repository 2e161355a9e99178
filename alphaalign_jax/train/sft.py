"""Supervised fine-tuning, for the format warm-up and for supervised baselines.

The warm-up is for models too small to follow the template. It teaches the response format, but
never when to refuse: harmful and benign prompts have the same refusal rate, and each step draws the
refusals again, so that none can be memorised.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from alphaalign_jax import config
from alphaalign_jax.algorithms.losses import Denominator
from alphaalign_jax.data.order import PromptOrder
from alphaalign_jax.data.tokenized import PromptSet, check_no_control
from alphaalign_jax.hf.chat import control_texts
from alphaalign_jax.models import Network, Params
from alphaalign_jax.models.distribution import Sampling
from alphaalign_jax.ops import masked_mean
from alphaalign_jax.parallel import Layout, compiled, processes, to_host
from alphaalign_jax.rollout.engine import place
from alphaalign_jax.shapes import common_slots, fitting_slots, paired_slots
from alphaalign_jax.train import objectives, optimizer
from alphaalign_jax.types import Examples

# (row indices of the prompt set [B], step) -> their response texts
Responses = Callable[[np.ndarray, int], Sequence[str]]


def micro_batch(settings: config.Warmup, layout: Layout) -> int:
    """Return the number of examples in a gradient-accumulation slice; 0: all at once.

    Raise ValueError if they do not divide over the mesh.
    """
    layout.check("warmup.batch", (settings.batch,), ("batch",))
    return objectives.even_slice(settings.batch, settings.micro_batch, layout.size("batch"), "warmup.micro_batch")


def steps(settings: config.Warmup, examples: int) -> int:
    """Return the number of optimizer steps for ``examples`` examples.

    Raise ValueError if it exceeds int32.
    """
    found = math.ceil(settings.epochs * examples / settings.batch)
    if found > np.iinfo(np.int32).max:
        raise ValueError(f"warmup.epochs={settings.epochs:g} are {found} steps: expected fewer")
    return found


class Supervised:
    """Maximum-likelihood training on responses to prompts."""

    def __init__(self, run: config.Config, network: Network, layout: Layout, examples: int):
        """Set up the optimizer and the compiled update. ``examples``: size of the prompt set."""
        settings = run.warmup
        self.steps = steps(settings, examples)
        self.settings, self.network, self.layout, self.chunk = settings, network, layout, run.algorithm.logprob_chunk
        self.bucket, self.seed = run.rollout.bucket, run.seed
        self.tx = optimizer.build(settings.optimizer, self.steps)
        self.micro_batch = micro_batch(settings, layout)
        self.update = compiled(self._update, layout, name="supervised update", donate_argnums=0)

    def _update(self, weights: tuple[Params, Any], batch: Examples, total: Denominator, sampling: Sampling):
        def objective(params, part):
            logp, _ = objectives.policy_logprobs(
                self.network, params, part.prompts, part.tokens, sampling, chunk=self.chunk
            )
            loss = masked_mean(-logp, part.sampled, denominator=total.tokens)
            return loss, ({"sft/loss": jax.lax.stop_gradient(loss)}, ())

        params, opt_state = weights
        (loss, (metrics, _)), gradient = objectives.accumulate(objective, params, batch, self.micro_batch)
        params, opt_state, found = objectives.apply_gradient(self.tx, params, opt_state, gradient, loss, total)
        found = {f"sft/{name}": value for name, value in found.items()}
        return (params, opt_state), metrics | found | {"sft/tokens": total.tokens}

    def train(
        self,
        params: Params,
        prompts: PromptSet,
        responses: Responses,
        tokenizer: Any,
        stop_id: int,
        *,
        longest: int,
        on_step: Callable[[int, dict[str, float]], None],
    ) -> Params:
        """Return the trained weights; ``params`` is donated.

        ``longest``: tokens of the longest response, from ``check_responses``. ``on_step`` is called with
        (step, metrics).
        """
        weights = (params, optimizer.init(self.tx, self.network, params, self.layout))
        order = PromptOrder(len(prompts), self.settings.batch, self.seed)
        # Plain log-likelihood over all vocabulary rows. It pushes down rows without a token, so
        # that the model does not draw them in other code, which does not mask them.
        sampling = Sampling.create()
        for step in range(self.steps):
            began = time.perf_counter()
            index = order.indices(step)
            encoded = encode_responses(responses(index, step), tokenizer, stop_id)
            slots = self._slots(prompts, index, max(map(len, encoded)), longest)
            batch = supervised_batch(prompts, encoded, index, slots, self.layout)
            # Counted on the host. On CPU, a sum over the devices that nothing waits for may run
            # concurrently with other collectives and deadlock.
            total = Denominator(np.float32(sum(map(len, encoded))), np.float32(len(encoded)))
            weights, metrics = self.update(weights, batch, total, sampling)
            metrics = {name: float(value) for name, value in to_host(metrics).items()}
            metrics["perf/cpu_memory_used_gb"] = processes.memory_used() / 1024**3
            processes.release_freed_memory()
            on_step(step, metrics | {"timing_s/step": time.perf_counter() - began})
        return weights[0]

    def _slots(self, prompts: PromptSet, index: np.ndarray, response: int, longest: int) -> tuple[int, int]:
        """Return the prompt and response slots of a step's batch. Few distinct pairs occur."""
        widest = prompts.slots()
        if common_slots(widest, longest) is not None:
            return widest, fitting_slots(response, self.bucket, longest)
        return paired_slots((prompts.slots(index), response), (prompts.bucket, self.bucket), (widest, longest))


def check_responses(prompts: PromptSet, possible: Sequence[Sequence[str]], tokenizer: Any, max_positions: int) -> int:
    """Return the number of tokens of the longest response.

    Raise ValueError if a response contains the text of a control token, or is too long for the
    model together with its prompt.

    Args:
      possible: for each prompt, all responses that it may get.
      max_positions: the model's maximum number of positions.
    """
    control, longest = control_texts(tokenizer), 0
    for row, tail, texts in zip(prompts.rows, prompts.tails, possible, strict=True):
        for text in texts:
            check_no_control(text, control, f"{row.named}: its response")
        response = max(map(len, encode_responses(texts, tokenizer, 0)))
        longest = max(longest, response)
        length = len(prompts.prefix) + len(tail) + response
        if length > max_positions:
            raise ValueError(
                f"{row.named}: prompt and response have {length} tokens, more than the model's "
                f"max_position_embeddings={max_positions}; shorten the response, or leave the row out"
            )
    return longest


def encode_responses(texts: Sequence[str], tokenizer: Any, stop_id: int) -> list[list[int]]:
    """Return the token ids of each response with the stop token, so that a policy learns to end."""
    return [tokenizer(text, add_special_tokens=False)["input_ids"] + [stop_id] for text in texts]


def supervised_batch(
    prompts: PromptSet, responses: Sequence[list[int]], index: np.ndarray, slots: tuple[int, int], layout: Layout
) -> Examples:
    """Return right-padded examples on the mesh. ``slots``: prompt slots and response slots."""
    tokens = np.zeros((len(responses), 1, slots[1]), np.int32)
    sampled = np.zeros(tokens.shape, bool)
    for row, ids in enumerate(responses):
        tokens[row, 0, : len(ids)] = ids
        sampled[row, 0, : len(ids)] = True
    put = lambda x: jax.device_put(x, layout.sharding("batch", None, None))
    return Examples(place(prompts.batch(index, slots[0]), layout), put(tokens), put(sampled))
