"""One step of reinforcement learning.

Rollout, verdicts, reward model beside the scoring pass, advantages, critic, actor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alphaalign_jax.config import Config
from alphaalign_jax.data.order import PromptOrder, minibatches
from alphaalign_jax.evaluation.respond import Response, host_responses
from alphaalign_jax.hf import control_texts
from alphaalign_jax.parallel import compiles, compiles_since, processes, to_host
from alphaalign_jax.rewards import hacking
from alphaalign_jax.rewards.oracle import answer_block
from alphaalign_jax.rewards.reward_model.cleaning import clean_answer
from alphaalign_jax.rewards.reward_model.protocol import ScoreFuture
from alphaalign_jax.rewards.reward_model.together import await_scores
from alphaalign_jax.rewards.verifiers import Verdict
from alphaalign_jax.rollout.engine import place, trim
from alphaalign_jax.shapes import common_slots, fitting_slots
from alphaalign_jax.train import optimizer
from alphaalign_jax.train.assembly import Prepared
from alphaalign_jax.train.steps import Steps
from alphaalign_jax.types import BENIGN, Array, Prompts, Rollout, Scores, TrainBatch, TrainState


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A step's responses, judged, with the reward model at work on them."""

    index: np.ndarray  # int [B], rows of the training set
    prompts: Prompts
    rollout: Rollout  # cut to the bucket of its longest response
    verdict: Verdict
    responses: list[list[Response]]  # B x G
    pending: tuple[ScoreFuture, list] | None


@dataclasses.dataclass(frozen=True)
class Sampled:
    """What a step sampled, on the host: for the dump of samples."""

    index: np.ndarray  # int [B], rows of the training set
    responses: list[list[Response]]  # B x G
    reward: np.ndarray  # float32 [B, G], NaN where the score that it needs is missing
    left_out: TrainBatch | None  # what the update read, where an optimizer step on it was left out


class Iteration:
    """Calls the compiled steps in order. The data position and all keys are functions of the step."""

    def __init__(self, prepared: Prepared, key: jax.Array, *, look: Callable[[str], None] = lambda _: None):
        """``key``: of the rollouts; the step is folded in.

        ``look`` is called in long waits, with what is waited for: on all processes alike, and may raise.
        """
        self.p, self.config, self.key, self._look = prepared, prepared.config, key, look
        self.steps = Steps(self.config, prepared.actor, prepared.critic, prepared.train_layout)
        r = self.config.rollout
        self.sampling = prepared.policy.sampling(r.temperature, r.top_k, r.top_p)
        share = self.config.data.harmful_fraction
        balance = {} if share < 0 else {"labels": prepared.train.label, "harmful_fraction": share}
        self.order = PromptOrder(len(prepared.train), r.prompts, self.config.seed, **balance)
        self._prompt_slots = common_slots(prepared.train.slots(), r.group * r.max_new_tokens)
        self._controls = control_texts(prepared.policy.tokenizer)
        self.gap_checked = False  # sampler and trainer have been compared, in this life or, as they are, before it
        self._ahead: tuple[int, _Asked] | None = None  # what ``TrainState.ahead`` became, by its step

    def __call__(self, state: TrainState, step: int) -> tuple[TrainState, dict[str, float], Sampled]:
        """The state after ``step``, its metrics, and what was sampled. ``state`` is donated once the rewards are in: an
        error of the reward model, or of ``look``, leaves it usable."""
        clock = _Clock()
        # Responses that waited in a checkpoint are an earlier policy's: they say nothing of sampler and trainer.
        self.gap_checked |= state.ahead is not None
        with clock("gen"):
            asked, ahead = self._responses(state, step)
        rollout, verdict = asked.rollout, asked.verdict
        with clock("old_log_prob"):
            prompts = place(asked.prompts, self.p.train_layout)
            scored = self._score(state, prompts, rollout, step)
        with clock("reward_wait"):
            helpfulness = _await_scores(
                asked.pending,
                verdict.refusal.shape,
                lambda: self._look(f"in step {step}, waiting for the reward model"),
            )
        with clock("adv"):
            known = (prompts, rollout, verdict, helpfulness, scored)
            batch, scores, metrics, kl_coef = self._assemble(state.kl_coef, step, *known)
            if not self.gap_checked:
                check_gap(float(metrics["rollout/logprob_gap/mean"]), self.config)
                self.gap_checked = True
        label = self.p.train.label[asked.index]
        actor, critic = (state.actor, state.actor_opt), (state.critic, state.critic_opt)
        with clock("update_critic"):
            if self.p.critic is not None:
                critic, _ = self.updates(critic, self.steps.update_critic, batch, label, step, metrics)
        with clock("update_actor"):
            if step >= self.steps.actor_from:
                update = self.steps.update_actor
                actor, first = self.updates(actor, update, batch, label, step, metrics, self.sampling)
                if self.config.algorithm.old_logprob == "sampler":
                    # The first mini-batch meets the weights that sampled it: what it sees is the gap, at no cost.
                    metrics.setdefault("rollout/logprob_gap/mean", first["actor/logprob_shift"])
        state = TrainState(
            step=self.steps.scalar(step + 1, jnp.int32),
            actor=actor[0],
            average=self._average(state.average, *actor),
            actor_opt=actor[1],
            critic=critic[0],
            critic_opt=critic[1],
            reference=state.reference,
            ahead=ahead,
            kl_coef=kl_coef,
        )
        metrics = {name: float(value) for name, value in to_host(metrics).items()} | clock.metrics()
        metrics |= hacking.rates(response.text for group in asked.responses for response in group)
        skipped = metrics.get("actor/skipped", 0) + metrics.get("critic/skipped", 0)
        if asked.pending is not None:
            # All of it; reward_wait is what the device did not hide.
            metrics["timing_s/reward"] = asked.pending[0].seconds
        tokens = (metrics["prompt_length/mean"] + metrics["response_length/mean"]) * verdict.format.size
        metrics["perf/total_num_tokens"] = tokens
        metrics["perf/throughput"] = tokens / metrics["timing_s/step"] / self.p.train_layout.mesh.size
        metrics["perf/cpu_memory_used_gb"] = processes.memory_used() / 1024**3
        processes.release_freed_memory()
        left_out = to_host(batch) if skipped else None
        return state, metrics, Sampled(asked.index, asked.responses, to_host(scores.reward), left_out)

    def _assemble(self, kl_coef: Array, step: int, *known: Any) -> tuple[TrainBatch, Scores, dict[str, Any], Array]:
        """``Steps.assemble``; the coefficient waits until the policy can move: until then a KL of 0 means nothing."""
        batch, scores, metrics, updated = self.steps.assemble(kl_coef, *known)
        if step < self.steps.actor_from and "actor/kl_coef" in metrics:
            updated = metrics["actor/kl_coef"] = kl_coef
        return batch, scores, metrics, updated

    def _average(self, average: Any, actor: Any, actor_opt: Any) -> Any:
        """Return the moving average with the actor's new weights in it; None if the run keeps none."""
        return None if average is None else self.steps.average(average, actor, optimizer.updates_made(actor_opt))

    def _responses(self, state: TrainState, step: int) -> tuple[_Asked, Rollout | None]:
        """The step's responses, and with ``rollout.ahead`` the next step's: sampled, and on their way to the reward
        model, before those of this step are awaited."""
        if self._ahead is not None and self._ahead[0] == step:
            asked = self._ahead[1]
        else:  # the first step since a start or a resumption
            asked = self._ask(step, self._sample(state, step) if state.ahead is None else state.ahead)
        if not self.config.rollout.ahead:
            return asked, None
        rollout = self._sample(state, step + 1)
        self._ahead = step + 1, self._ask(step + 1, rollout)
        return asked, rollout

    def sampled_anew(self, state: TrainState, step: int) -> TrainState:
        """Return the state with responses of its own policy for ``step``, where ``rollout.ahead`` keeps some: it takes
        the place of another state."""
        self._ahead = None
        return state.replace(ahead=self._sample(state, step) if self.config.rollout.ahead else None)

    def _prompts(self, step: int) -> tuple[np.ndarray, Prompts]:
        index = self.order.indices(step)
        # Rows are numbered through the run, so that a prompt met again draws other noise even under an equal step key.
        row = step * len(index) + np.arange(len(index))
        return index, self.p.train.batch(index, slots=self._prompt_slots, row=row)

    def _sample(self, state: TrainState, step: int) -> Rollout:
        r, engine = self.config.rollout, self.p.engine
        params, key = engine.prepare(state.actor), jax.random.fold_in(self.key, step)
        prompts = self._prompts(step)[1]
        return engine.rollout(params, prompts, key, self.sampling, group=r.group, slots=r.max_new_tokens)

    def _ask(self, step: int, rollout: Rollout) -> _Asked:
        index, prompts = self._prompts(step)
        verdict = self.p.engine.judge(rollout)
        responses = host_responses(rollout, verdict, self.p.policy, prompts.batch)
        longest, r = max(len(response.token_ids) for group in responses for response in group), self.config.rollout
        slots = min(fitting_slots(longest, r.bucket, r.max_new_tokens), r.max_new_tokens)
        rollout = trim(rollout, slots)
        return _Asked(index, prompts, rollout, verdict, responses, self._ask_reward_model(index, responses))

    def _ask_reward_model(self, index: np.ndarray, responses: list[list[Response]]) -> tuple[ScoreFuture, list] | None:
        """Sends benign questions with their answers; harmful prompts and missing answers have nothing to score.

        Each process sends its own rows: every n-th prompt.
        """
        if self.p.scorer is None:
            return None
        questions, answers, places = [], [], []
        for b, i in enumerate(index):
            if b % jax.process_count() != jax.process_index():
                continue
            row = self.p.train.rows[i]
            for g, response in enumerate(responses[b]):
                block = answer_block(response.text.encode())
                if row.label == BENIGN and block is not None and block.strip():
                    questions.append(row.question)
                    answers.append(clean_answer(block, self._controls))
                    places.append((b, g))
        return self.p.scorer.submit(questions, answers), places

    def _score(self, state: TrainState, prompts: Prompts, rollout: Rollout, step: int) -> dict[str, Array]:
        """What ``Steps.score`` finds and the update needs; waits for it."""
        # With the sampler's log-probs as the old ones, the trainer's are needed once before the first update, to see
        # that they are the same, and while there is no update of the policy to show it.
        a = self.config.algorithm
        idle = step < self.steps.actor_from
        policy = a.old_logprob == "trainer" or not self.gap_checked or idle
        if not policy and self.p.critic is None and state.reference is None:
            return {}
        found = self.steps.score(state, prompts, rollout.tokens, rollout.sampled, self.sampling, policy=policy)
        return jax.block_until_ready(found)

    def updates(self, weights, update, batch, label: np.ndarray, step: int, metrics: dict[str, Any], *extra) -> tuple:
        """All optimizer steps on one batch, epochs of shuffled mini-batches; their mean metrics go into ``metrics``.

        Returns the weights and the first mini-batch's own metrics.
        """
        a, seed = self.config.algorithm, self.config.seed
        order = [minibatches(label, a.minibatches, seed, step=step, epoch=epoch) for epoch in range(a.epochs)]
        weights, seen = jax.block_until_ready(update(weights, batch, np.concatenate(order), *extra))
        count = lambda name: jnp.sum if name.endswith("/skipped") else jnp.mean
        metrics.update({name: count(name)(each) for name, each in seen.items()})
        return weights, {name: each[0] for name, each in seen.items()}


def check_gap(gap: float, config: Config) -> None:
    """Before the first update the trainer must score samples as the sampler drew them: ValueError where the mean gap of
    the log-probs, in nats, is above ``rollout.max_logprob_gap`` or no number."""
    if not gap <= config.rollout.max_logprob_gap:
        m = config.model
        raise ValueError(
            f"sampler and trainer disagree: mean log-prob gap {gap:.4f} nats, rollout.max_logprob_gap="
            f"{config.rollout.max_logprob_gap}; they run in model.rollout_dtype={m.rollout_dtype} and "
            f"model.dtype={m.dtype}"
        )


class _Clock:
    """Wall seconds by phase, under verl's metric names, and what was compiled meanwhile."""

    def __init__(self):
        self._began, self._phases, self._compiled = time.perf_counter(), {}, compiles()

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._phases[phase] = time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        timings = {f"timing_s/{phase}": seconds for phase, seconds in self._phases.items()}
        count, seconds = compiles_since(self._compiled)
        timings |= {"perf/compiles": count, "timing_s/compile": seconds}
        return timings | {"timing_s/step": time.perf_counter() - self._began}


def _await_scores(
    pending: tuple[ScoreFuture, list] | None, shape: tuple[int, int], look: Callable[[], None] = lambda: None
) -> np.ndarray:
    """float32 [B, G], NaN where nothing was asked or nothing could be said. ``look``: of ``await_scores``."""
    helpfulness = np.full(shape, np.nan, np.float32)
    if pending is None:
        return helpfulness
    future, places = pending
    for (b, g), score in zip(places, await_scores(future, look), strict=True):
        helpfulness[b, g] = score
    # A row is scored by one process and NaN on all others.
    everyone = processes.gather_rows(helpfulness)
    scored = np.isfinite(everyone)
    return np.where(scored.any(0), np.where(scored, everyone, 0).sum(0), np.nan).astype(np.float32)
