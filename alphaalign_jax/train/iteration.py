"""One step of reinforcement learning.

The order is: rollout, verdicts, scoring pass (the reward model runs at the same time), advantages,
critic update, actor update.
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
    """A step's verified responses, with their reward-model scores pending."""

    index: np.ndarray  # int [B], rows of the training set
    prompts: Prompts
    rollout: Rollout  # trimmed to the bucket of its longest response
    verdict: Verdict
    responses: list[list[Response]]  # B x G
    pending: tuple[ScoreFuture, list] | None


@dataclasses.dataclass(frozen=True)
class Sampled:
    """A step's responses and rewards on the host, for the dump of samples."""

    index: np.ndarray  # int [B], rows of the training set
    responses: list[list[Response]]  # B x G
    reward: np.ndarray  # float32 [B, G], NaN if the required score is missing
    left_out: TrainBatch | None  # the step's batch if an optimizer step on it was skipped


class Iteration:
    """Run the compiled steps in order. Data position and random keys are functions of the step."""

    def __init__(self, prepared: Prepared, key: jax.Array, *, look: Callable[[str], None] = lambda _: None):
        """Set up the compiled steps, the prompt order and the sampling.

        ``key``: random key of the rollouts, into which each step is folded. ``look`` is called in
        long waits, on all processes alike, with a text that names the wait. It may raise.
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
        # Sampler and trainer were compared: in this process, or before an unchanged resumption.
        self.gap_checked = False
        self._ahead: tuple[int, _Asked] | None = None  # a step and its responses, sampled early

    def __call__(self, state: TrainState, step: int) -> tuple[TrainState, dict[str, float], Sampled]:
        """Return the state after ``step``, its metrics, and its samples.

        ``state`` is donated only after the rewards have arrived, so it survives an error of the
        reward model or of ``look``.
        """
        clock = _Clock()
        # Restored responses (``ahead``) are an earlier policy's: their gap would mean nothing.
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
                    # The first mini-batch runs on the sampling weights, so its shift is the gap.
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
            # Total time; reward_wait is the part that device work did not hide.
            metrics["timing_s/reward"] = asked.pending[0].seconds
        tokens = (metrics["prompt_length/mean"] + metrics["response_length/mean"]) * verdict.format.size
        metrics["perf/total_num_tokens"] = tokens
        metrics["perf/throughput"] = tokens / metrics["timing_s/step"] / self.p.train_layout.mesh.size
        metrics["perf/cpu_memory_used_gb"] = processes.memory_used() / 1024**3
        processes.release_freed_memory()
        left_out = to_host(batch) if skipped else None
        return state, metrics, Sampled(asked.index, asked.responses, to_host(scores.reward), left_out)

    def _assemble(self, kl_coef: Array, step: int, *known: Any) -> tuple[TrainBatch, Scores, dict[str, Any], Array]:
        """Run ``Steps.assemble``, but keep the KL coefficient fixed until the actor's first update.

        Until then the policy cannot move, and a KL of 0 means nothing.
        """
        batch, scores, metrics, updated = self.steps.assemble(kl_coef, *known)
        if step < self.steps.actor_from and "actor/kl_coef" in metrics:
            updated = metrics["actor/kl_coef"] = kl_coef
        return batch, scores, metrics, updated

    def _average(self, average: Any, actor: Any, actor_opt: Any) -> Any:
        """Return the moving average updated with the actor's new weights; None without one."""
        return None if average is None else self.steps.average(average, actor, optimizer.updates_made(actor_opt))

    def _responses(self, state: TrainState, step: int) -> tuple[_Asked, Rollout | None]:
        """Return the step's responses and the next step's rollout, None without ``rollout.ahead``.

        The next step's responses are sampled and sent to the reward model before this step awaits
        its own scores.
        """
        if self._ahead is not None and self._ahead[0] == step:
            asked = self._ahead[1]
        else:  # the first step after a start, a resumption or a rollback
            asked = self._ask(step, self._sample(state, step) if state.ahead is None else state.ahead)
        if not self.config.rollout.ahead:
            return asked, None
        rollout = self._sample(state, step + 1)
        self._ahead = step + 1, self._ask(step + 1, rollout)
        return asked, rollout

    def sampled_anew(self, state: TrainState, step: int) -> TrainState:
        """Return a state that replaces another, with its own policy's responses for ``step``.

        Without ``rollout.ahead`` there are none to sample.
        """
        self._ahead = None
        return state.replace(ahead=self._sample(state, step) if self.config.rollout.ahead else None)

    def _prompts(self, step: int) -> tuple[np.ndarray, Prompts]:
        index = self.order.indices(step)
        # Unique row numbers give a repeated prompt new noise even under an equal step key.
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
        """Send benign questions with their answers to the reward model.

        Return the pending scores and the place (b, g) of each, or None without a reward model.
        Harmful prompts and missing answers have nothing to score. Each of n processes sends every
        n-th prompt.
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
        """Return the results of ``Steps.score`` that the update needs, once they are computed.

        Return {} if it needs none.
        """
        # If the sampler's log-probs are the old ones, the trainer's are needed only for the gap:
        # once before the first update, and in every step that does not update the policy.
        a = self.config.algorithm
        idle = step < self.steps.actor_from
        policy = a.old_logprob == "trainer" or not self.gap_checked or idle
        if not policy and self.p.critic is None and state.reference is None:
            return {}
        found = self.steps.score(state, prompts, rollout.tokens, rollout.sampled, self.sampling, policy=policy)
        return jax.block_until_ready(found)

    def updates(self, weights, update, batch, label: np.ndarray, step: int, metrics: dict[str, Any], *extra) -> tuple:
        """Make all optimizer steps on one batch, in epochs of shuffled mini-batches.

        Add their mean metrics to ``metrics``; ``skipped`` is a sum. Return the updated weights and
        optimizer state, and the metrics of the first mini-batch alone.
        """
        a, seed = self.config.algorithm, self.config.seed
        order = [minibatches(label, a.minibatches, seed, step=step, epoch=epoch) for epoch in range(a.epochs)]
        weights, seen = jax.block_until_ready(update(weights, batch, np.concatenate(order), *extra))
        count = lambda name: jnp.sum if name.endswith("/skipped") else jnp.mean
        metrics.update({name: count(name)(each) for name, each in seen.items()})
        return weights, {name: each[0] for name, each in seen.items()}


def check_gap(gap: float, config: Config) -> None:
    """Raise ValueError if sampler and trainer disagree about the log-probs before the first update.

    ``gap`` is the mean gap in nats. It must not exceed ``rollout.max_logprob_gap`` or be NaN.
    """
    if not gap <= config.rollout.max_logprob_gap:
        m = config.model
        raise ValueError(
            f"sampler and trainer disagree: mean log-prob gap {gap:.4f} nats, rollout.max_logprob_gap="
            f"{config.rollout.max_logprob_gap}; they run in model.rollout_dtype={m.rollout_dtype} and "
            f"model.dtype={m.dtype}"
        )


class _Clock:
    """Measure wall seconds by phase, under verl's metric names, and count compiled programs."""

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
    """Return scores, float32 [B, G]: NaN if no score was requested or the reward model had none.

    ``look``: as for ``await_scores``.
    """
    helpfulness = np.full(shape, np.nan, np.float32)
    if pending is None:
        return helpfulness
    future, places = pending
    for (b, g), score in zip(places, await_scores(future, look), strict=True):
        helpfulness[b, g] = score
    # Each row is scored by one process and is NaN on all others.
    everyone = processes.gather_rows(helpfulness)
    scored = np.isfinite(everyone)
    return np.where(scored.any(0), np.where(scored, everyone, 0).sum(0), np.nan).astype(np.float32)
