"""The phases of a config's training step, timed one by one on its own prompts, with the programs that ``train`` runs.

Responses are sampled to their full length: nothing stops early, so that a time belongs to a known amount of work.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from alphaalign_jax.models import cost
from alphaalign_jax.models.cost import Workload
from alphaalign_jax.rollout.engine import Engine, InFlight, place
from alphaalign_jax.train import assembly
from alphaalign_jax.train.assembly import Prepared
from alphaalign_jax.train.iteration import Iteration


@dataclasses.dataclass(frozen=True)
class Phase:
    """One measured phase. ``flops`` and ``bytes`` are what the model asks for (``models.cost``), on all devices."""

    name: str
    seconds: float  # median of the repeats
    first_seconds: float  # of the first call, compiling included
    tokens: float  # that the phase is about: prompt tokens for prefill, response tokens for all others
    flops: float = 0.0
    bytes: float = 0.0

    @property
    def compile_seconds(self) -> float:
        return max(0.0, self.first_seconds - self.seconds)


def timed(name: str, call: Callable, repeats: int, setup: Callable[[], Any] | None = None, **work: float) -> Phase:
    """``call`` once to compile it, then ``repeats`` times; with ``setup``, of what that gives, which is not timed."""
    found = []
    for _ in range(repeats + 1):
        given = () if setup is None else (jax.block_until_ready(setup()),)
        began = time.perf_counter()
        jax.block_until_ready(call(*given))
        found.append(time.perf_counter() - began)
    return Phase(name, float(np.median(found[1:])), found[0], **work)


class SlowScorer:
    """Stands in for ``AsyncScorer``: its scores, all 0, are there ``seconds`` after they were asked for."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def submit(self, questions: Sequence[str], answers: Sequence[str]) -> SlowScores:
        return SlowScores(len(answers), self.seconds)


class SlowScores:
    """As ``ScoreFuture``."""

    def __init__(self, count: int, seconds: float):
        self.count, self.seconds, self._until = count, seconds, time.perf_counter() + seconds

    def result(self) -> np.ndarray:
        time.sleep(max(0.0, self._until - time.perf_counter()))
        return np.zeros(self.count, np.float32)


class Bench:
    """A config's model and first prompts, with what is needed to time each phase."""

    def __init__(self, prepared: Prepared, repeats: int):
        p, self.repeats = prepared, repeats
        engine = lambda in_flight: Engine(
            p.engine.network, p.engine.layout, p.engine.verifiers, (), in_flight=in_flight
        )
        endless, self.static = engine(p.engine.in_flight), engine(InFlight(cache=0, fewest_rows=0))
        self.p = dataclasses.replace(p, engine=endless)
        self.iteration = Iteration(self.p, jax.random.key(p.config.seed))
        params = assembly.load_params(self.p)
        self.state = self.iteration.steps.init_state(params, assembly.critic_params(self.p, params))

    def prompts(self, count: int) -> Any:
        index = np.arange(count) % len(self.p.train)
        return self.p.train.batch(index, row=np.arange(count))

    def workload(self, count: int, group: int, response: int) -> Workload:
        prompts = self.prompts(count)
        return Workload(count, group, len(prompts.prefix), float(np.mean(prompts.length)), response)

    def rollout(self, count: int, group: int, response: int) -> list[Phase]:
        """Prefill and decoding."""
        engine, prompts, work = self.p.engine, self.prompts(count), self.workload(count, group, response)
        spec, itemsize = self.p.policy.spec, np.dtype(engine.network.dtype).itemsize
        params, sampling = jax.block_until_ready(engine.prepare(self.state.actor)), self.iteration.sampling
        fill = lambda: engine.prefill(params, prompts, self.iteration.key, group=group, slots=response)
        filled = timed("prefill", fill, self.repeats, tokens=work.prompt_tokens, flops=cost.prefill_flops(spec, work))
        decoded = timed(
            "decode",
            lambda state: engine.complete(params, state, sampling),
            self.repeats,
            setup=fill,
            tokens=work.response_tokens,
            flops=cost.response_flops(spec, work),
            bytes=cost.decode_bytes(spec, work, itemsize),
        )
        return [filled, decoded]

    def skewed(self, count: int, group: int, response: int) -> dict[str, float]:
        """Tokens a second where nine responses in ten end after an eighth of the slots; and the same with no row
        dropped and the whole cache from the start, called in turns, so that a drift of the machine meets both."""
        prompts, key, sampling = self.prompts(count), self.iteration.key, self.iteration.sampling
        limit = np.full(count * group, max(1, response // 8), np.int32)
        limit[::10] = response
        limit = np.random.default_rng(0).permutation(limit).reshape(count, group)
        params = jax.block_until_ready(self.p.engine.prepare(self.state.actor))
        seconds: dict[str, list[float]] = {"dropped": [], "static": []}
        for _ in range(self.repeats + 1):
            for name, engine in (("dropped", self.p.engine), ("static", self.static)):
                began = time.perf_counter()
                run = engine.rollout(params, prompts, key, sampling, group=group, slots=response, limit=limit)
                jax.block_until_ready(run)
                seconds[name].append(time.perf_counter() - began)
        rate = {name: float(limit.sum() / np.median(found[1:])) for name, found in seconds.items()}
        return {f"{name}_tokens_per_second": value for name, value in rate.items()} | {
            "ratio": float(np.median(np.divide(seconds["static"][1:], seconds["dropped"][1:])))
        }

    def training(self) -> list[Phase]:
        """Verdicts, scoring, and the updates of one step, all epochs and mini-batches."""
        r, a, steps, sampling = (
            self.p.config.rollout,
            self.p.config.algorithm,
            self.iteration.steps,
            self.iteration.sampling,
        )
        prompts, work = self.prompts(r.prompts), self.workload(r.prompts, r.group, r.max_new_tokens)
        rollout = self.p.engine.rollout(
            self.p.engine.prepare(self.state.actor),
            prompts,
            self.iteration.key,
            sampling,
            group=r.group,
            slots=r.max_new_tokens,
        )
        found = [timed("verify", lambda: self.p.engine.judge(rollout), self.repeats, tokens=work.response_tokens)]
        policy, reference = a.old_logprob == "trainer", self.state.reference is not None
        prompts, scored = place(prompts, self.p.train_layout), {}
        if policy or reference or self.p.critic is not None:
            flops = (policy + reference) * cost.forward_flops(self.p.policy.spec, work)
            if self.p.critic is not None:
                flops += cost.forward_flops(self.p.critic.spec, work, head=False)
            score = lambda: steps.score(self.state, prompts, rollout.tokens, rollout.sampled, sampling, policy=policy)
            found.append(timed("score", score, self.repeats, tokens=work.response_tokens, flops=flops))
            scored = score()
        return found + self._updates(prompts, rollout, scored, work)

    def _updates(self, prompts, rollout, scored: dict, work: Workload) -> list[Phase]:
        steps, sampling, a = self.iteration.steps, self.iteration.sampling, self.p.config.algorithm
        verdict = self.p.engine.judge(rollout)
        unscored = np.zeros(verdict.refusal.shape, np.float32)
        batch = steps.assemble(self.state.kl_coef, prompts, rollout, verdict, unscored, scored)[0]
        found = []
        for name, update, network, extra in (
            ("critic", steps.update_critic, self.p.critic, ()),
            ("actor", steps.update_actor, self.p.actor, (sampling,)),
        ):
            if network is not None:
                flops = 3 * a.epochs * cost.forward_flops(network.spec, work, head=network.head == "lm")
                run = lambda name=name, update=update, extra=extra: self._advance(name, update, batch, extra)
                found.append(timed(f"update_{name}", run, self.repeats, tokens=work.response_tokens, flops=flops))
        return found

    def _advance(self, name: str, update: Callable, batch: Any, extra: tuple) -> Any:
        """The optimizer steps of one network on ``batch``; its new weights."""
        weights = getattr(self.state, name), getattr(self.state, f"{name}_opt")
        label = np.asarray(batch.prompts.label)
        weights, _ = self.iteration.updates(weights, update, batch, label, 0, {}, *extra)
        self.state = self.state.replace(**{name: weights[0], f"{name}_opt": weights[1]})
        return weights[0]

    def reward_wait(self, seconds: float) -> dict[str, float]:
        """Seconds of a step with no reward model, and of one whose reward model takes ``seconds``, with and without
        ``rollout.ahead``. One after the other: between two steps of a kind its reward model would go on."""
        found, first = {"reward_model": seconds}, self.p.config.algorithm.critic_warmup
        for name in ("none", "waited", "ahead"):
            loop = copy.copy(self.iteration)
            loop.p = dataclasses.replace(self.p, scorer=None if name == "none" else SlowScorer(seconds))
            ahead = dataclasses.replace(self.p.config.rollout, ahead=name == "ahead")
            loop.config, times = dataclasses.replace(self.p.config, rollout=ahead), []
            for step in range(first, first + self.repeats + 1):
                began = time.perf_counter()
                self.state, _, _ = loop(self.state, step)
                times.append(time.perf_counter() - began)
            self.state, found[name] = self.state.replace(ahead=None), float(np.median(times[1:]))
        return found

    def step(self, parts: list[Phase]) -> Phase:
        """A whole step as ``train`` makes it, with the work of its ``parts``. What the reward model takes is shown only
        by a policy that writes the format: other answers are not sent to it."""
        r, first = self.p.config.rollout, self.p.config.algorithm.critic_warmup  # before it the actor is not updated

        def step():
            self.state, _, _ = self.iteration(self.state, first + int(self.state.step))
            return self.state.actor

        tokens = float(r.prompts * r.group * r.max_new_tokens)
        return timed("step", step, self.repeats, tokens=tokens, flops=sum(part.flops for part in parts))
