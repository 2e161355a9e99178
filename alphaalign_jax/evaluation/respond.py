"""A policy's responses to a whole prompt set, with the verifiers' verdicts.

Evaluation, generation and the training loop share this path from prompts to text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from alphaalign_jax.data.tokenized import PromptSet
from alphaalign_jax.models import Params
from alphaalign_jax.models.distribution import Sampling
from alphaalign_jax.parallel import processes, to_host
from alphaalign_jax.rewards.oracle import response_bytes
from alphaalign_jax.rewards.verifiers import Verdict
from alphaalign_jax.rollout.engine import Engine
from alphaalign_jax.rollout.policy import Policy
from alphaalign_jax.types import Finish, Rollout

WIDE = 256  # wider prompts are sampled in smaller batches: prefill memory grows with width squared


@dataclasses.dataclass(frozen=True)
class Response:
    """One sampled response, on the host."""

    text: str
    token_ids: list[int]  # stop token included
    logprobs: list[float | None]  # one per token, nats; None for forced (not sampled) tokens
    finish: str  # stop or length
    format: bool  # V_f
    refusal: bool  # V_r

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def host_responses(rollout: Rollout, verdict: Verdict, policy: Policy, rows: int) -> list[list[Response]]:
    """Return the responses to the first ``rows`` prompts, on the host."""
    sampling = (rollout.tokens, rollout.length, rollout.finish, rollout.sampled, rollout.logprob)
    tokens, length, finish, sampled, logprob, form, refusal = (
        x[:rows] for x in to_host((*sampling, verdict.format, verdict.refusal))
    )

    def one(b: int, g: int) -> Response:
        n = int(length[b, g])
        ids = tokens[b, g, :n].tolist()
        raw = response_bytes(ids, n, int(finish[b, g]), policy.token_bytes, policy.stop_ids)
        return Response(
            text=raw.decode("utf-8", errors="replace"),
            token_ids=ids,
            logprobs=[float(p) if own else None for p, own in zip(logprob[b, g, :n], sampled[b, g, :n])],
            finish="stop" if finish[b, g] == Finish.STOP else "length",
            format=bool(form[b, g]),
            refusal=bool(refusal[b, g]),
        )

    return [[one(b, g) for g in range(tokens.shape[1])] for b in range(tokens.shape[0])]


def respond(
    engine: Engine,
    params: Params,
    prompts: PromptSet,
    policy: Policy,
    *,
    sampling: Sampling,
    key: jax.Array,
    slots: int,
    batch: int,
    group: int = 1,
    forced: Sequence[int] = (),
    indices: Sequence[int] | None = None,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> list[list[Response]]:
    """Sample ``group`` responses to each prompt of ``indices`` (default: all), in that order.

    Prompts are grouped by width, so that one of 2,000 tokens does not pad all others. Batches of
    wide prompts are smaller.
    """
    indices = list(range(len(prompts)) if indices is None else indices)
    forced_ids = jnp.asarray(forced, jnp.int32) if len(forced) else None
    found: dict[int, list[Response]] = {}
    for width, members in by_width(prompts, indices).items():
        size = batch_size(batch, width, len(members), engine.layout.size("batch"))
        for start in range(0, len(members), size):
            chosen = members[start : start + size]
            # A short last batch is padded with its last row, so that each width has one program.
            filled = chosen + [chosen[-1]] * (size - len(chosen))
            rollout = engine.rollout(
                params, prompts.batch(filled, slots=width), key, sampling, group=group, slots=slots, forced=forced_ids
            )
            found.update(zip(chosen, host_responses(rollout, engine.judge(rollout), policy, len(chosen)), strict=True))
            processes.release_freed_memory()
            on_batch(len(chosen))
    return [found[i] for i in indices]


def by_width(prompts: PromptSet, indices: Sequence[int]) -> dict[int, list[int]]:
    """Return indices by padded width, which is the set's bucket times a power of four.

    Each width costs a compilation. Padding costs little, because decoding, which takes most of the
    time, does not depend on it.
    """
    groups: dict[int, list[int]] = {}
    for i in indices:
        width = prompts.bucket
        while width < len(prompts.tails[i]):
            width *= 4
        groups.setdefault(width, []).append(i)
    return dict(sorted(groups.items()))


def batch_size(batch: int, width: int, count: int, shards: int) -> int:
    """Return the batch size for ``count`` prompts: at most ``batch``, and less for wide prompts.

    All batches have this size, a multiple of the ``shards`` of the batch axis.
    """
    fitting = min(batch, max(1, batch * WIDE // width))
    even = -(-count // -(-count // fitting))
    return -(-even // shards) * shards
