"""The phases of a config's training step, timed one by one on its own prompts, with the programs that ``train`` runs.

Responses are sampled to their full length: nothing stops early, so that a time belongs to a known amount of work.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from alphaalign_jax.bench.ceilings import Limits, Product
from alphaalign_jax.models import Network, cost
from alphaalign_jax.models.cost import Workload, layer_gemms
from alphaalign_jax.models.spec import ModelSpec
from alphaalign_jax.rollout.engine import Engine, InFlight, place
from alphaalign_jax.train import assembly, objectives
from alphaalign_jax.train.assembly import Prepared
from alphaalign_jax.train.iteration import Iteration
from alphaalign_jax.types import TrainBatch


@dataclasses.dataclass(frozen=True)
class Phase:
    """One measured phase. ``flops`` and ``bytes`` are what the model asks for (``models.cost``), on all devices."""

    name: str
    seconds: float  # median of the repeats
    first_seconds: float  # of the first call, compiling included
    tokens: float  # that the phase is about: prompt tokens for prefill, response tokens for all others
    flops: float = 0.0
    bytes: float = 0.0
    peak: float | None = None  # FLOP/s of a square product, medians of what was measured beside the repeats
    gemm_share: float | None = None  # the phase's own products' time alone, as a share of the phase's

    @property
    def compile_seconds(self) -> float:
        return max(0.0, self.first_seconds - self.seconds)


def timed(
    name: str,
    call: Callable,
    repeats: int,
    setup: Callable[[], Any] | None = None,
    limits: Callable[[], Limits] | None = None,
    **work: float,
) -> Phase:
    """``call`` once to compile it, then ``repeats`` times; with ``setup``, of what that gives, which is not timed.

    ``limits`` measures the machine after each of the repeats.
    """
    found, beside = [], []
    for repeat in range(repeats + 1):
        given = () if setup is None else (jax.block_until_ready(setup()),)
        began = time.perf_counter()
        jax.block_until_ready(call(*given))
        found.append(time.perf_counter() - began)
        if repeat and limits is not None:
            beside.append((limits(), found[-1]))
    judged = {}
    if beside:
        share = float(np.median([limit.products / seconds for limit, seconds in beside]))
        judged = {"peak": float(np.median([limit.peak for limit, _ in beside])), "gemm_share": share or None}
    return Phase(name, float(np.median(found[1:])), found[0], **work, **judged)


def layer_products(spec: ModelSpec, rows: int, times: float = 1.0) -> list[Product]:
    """The weight products of ``rows`` tokens in all layers."""
    sizes = collections.Counter(layer_gemms(spec).values())
    return [Product(rows, m, n, times * spec.num_layers * count) for (m, n), count in sizes.items()]


def gradients(products: Sequence[Product]) -> list[Product]:
    """The products of a forward pass, and for each those of its gradients by either side."""
    backward = lambda p: (Product(p.m, p.n, p.k, p.times), Product(p.k, p.m, p.n, p.times))
    return [each for p in products for each in (p, *backward(p))]


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

    def wait(self, seconds: float) -> bool:
        left = self._until - time.perf_counter()
        time.sleep(max(0.0, min(seconds, left)))
        return left <= seconds

    def result(self) -> np.ndarray:
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

    def limits(self, dtype: str, products: Sequence[Product] = ()) -> Callable[[], Limits]:
        """Measures what one device can do. How several would share ``products`` is not measured: none are then."""
        return lambda: Limits.measure(products if self.p.train_layout.mesh.size == 1 else (), dtype)

    def rollout(self, count: int, group: int, response: int, *, beside: bool = True) -> list[Phase]:
        """Prefill and decoding; ``beside``: with the machine's limits."""
        engine, prompts, work = self.p.engine, self.prompts(count), self.workload(count, group, response)
        spec, dtype = self.p.policy.spec, str(engine.network.dtype)
        params, sampling = jax.block_until_ready(engine.prepare(self.state.actor)), self.iteration.sampling
        fill = lambda: engine.prefill(params, prompts, self.iteration.key, group=group, slots=response)
        filled = timed(
            "prefill",
            fill,
            self.repeats,
            limits=self.limits(dtype) if beside else None,
            tokens=work.prompt_tokens,
            flops=cost.prefill_flops(spec, work),
        )
        head = Product(work.rows, spec.hidden_size, spec.vocab_size, response)
        products = [*layer_products(spec, work.rows, response), head]
        decoded = timed(
            "decode",
            lambda state: engine.complete(params, state, sampling),
            self.repeats,
            setup=fill,
            limits=self.limits(dtype, products) if beside else None,
            tokens=work.response_tokens,
            flops=cost.response_flops(spec, work),
            bytes=cost.decode_bytes(spec, work, np.dtype(engine.network.dtype).itemsize),
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
            beside = self.limits(self.p.config.model.dtype)
            phase = timed("score", score, self.repeats, limits=beside, tokens=work.response_tokens, flops=flops)
            found.append(phase)
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
                passes = objectives.passes(a, name) * a.epochs
                flops = passes * cost.forward_flops(network.spec, work, head=network.head == "lm")
                run = lambda name=name, update=update, extra=extra: self._advance(name, update, batch, extra)
                limits = self.limits(self.p.config.model.dtype, self._update_products(network, batch, work))
                phase = timed(
                    f"update_{name}", run, self.repeats, limits=limits, tokens=work.response_tokens, flops=flops
                )
                found.append(phase)
        return found

    def _update_products(self, network: Network, batch: TrainBatch, work: Workload) -> list[Product]:
        """The weight products of all of a step's updates of ``network``, slice by slice."""
        a, spec = self.p.config.algorithm, network.spec
        each = work.prompts // a.minibatches
        slots = batch.prompts.tokens.shape[1] + batch.tokens[0].size
        prompts = objectives.micro_batch(a, each, slots, self.p.train_layout.size("batch")) or each
        times, responses = a.epochs * work.prompts / prompts, prompts * batch.tokens[0].size
        rows = round(work.prefix + prompts * work.prompt) + responses
        products = layer_products(spec, rows, times)
        if network.head == "lm":
            chunks = -(-batch.tokens.shape[-1] // a.logprob_chunk)
            products.append(Product(responses // chunks, spec.hidden_size, spec.vocab_size, times * chunks))
        return gradients(products)

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
        beside, flops = self.limits(self.p.config.model.dtype), sum(part.flops for part in parts)
        return timed("step", step, self.repeats, limits=beside, tokens=tokens, flops=flops)
