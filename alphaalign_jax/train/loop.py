"""The training loop: format warm-up, then rollout, reward, update, over and over; before and after, the held-out table."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import sys
import time
from typing import Any, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from alphaalign_jax import hf
from alphaalign_jax.config import Config
from alphaalign_jax.data.order import PromptOrder
from alphaalign_jax.data.prompts import PromptRow
from alphaalign_jax.evaluation import outcome
from alphaalign_jax.evaluation.outcome import Outcome
from alphaalign_jax.evaluation.respond import Response, host_responses, respond
from alphaalign_jax.models import Params
from alphaalign_jax.models.distribution import Sampling
from alphaalign_jax.rewards.oracle import answer_block
from alphaalign_jax.rewards.reward_model.cleaning import clean_answer
from alphaalign_jax.rewards.reward_model.protocol import ScoreFuture
from alphaalign_jax.rewards.verifiers import Verdict
from alphaalign_jax.rollout.engine import place, trim
from alphaalign_jax.train import assembly
from alphaalign_jax.train.assembly import Prepared
from alphaalign_jax.train.checkpoint import Checkpoints
from alphaalign_jax.train.records import Display, Records
from alphaalign_jax.train.sft import Supervised
from alphaalign_jax.train.steps import Steps
from alphaalign_jax.types import BENIGN, LABELS, Rollout, TrainState

_WARMUP_KEY, _ROLLOUT_KEY, _EVAL_KEY = range(3)  # folded into the run's key first, so that no two uses share noise


class Run:
    """One training run, from a prepared config to its summary."""

    def __init__(self, prepared: Prepared, *, display: Display | None = None, resume: bool = False):
        self.p, self.config = prepared, prepared.config
        self.display = display or Display()
        self.key = jax.random.key(self.config.seed)
        self.steps = Steps(self.config, prepared.actor, prepared.critic, prepared.train_layout)
        r = self.config.rollout
        self.sampling = Sampling.create(r.temperature, r.top_k, r.top_p)
        self.order = PromptOrder(
            len(prepared.train),
            r.prompts,
            self.config.seed,
            labels=prepared.train.label,
            harmful_fraction=self.config.data.harmful_fraction,
        )
        self.checkpoints = Checkpoints(self.config.run_dir / "checkpoints", self.config.checkpoint)
        self.resume_step = self.checkpoints.latest() if resume else None
        if resume and self.resume_step is None:
            raise ValueError(
                f"--resume: {self.config.run_dir / 'checkpoints'} holds no finished checkpoint; run without it"
            )
        if not resume and self.checkpoints.latest() is not None:
            raise ValueError(
                f"{self.config.run_dir} already holds checkpoints (newest: step {self.checkpoints.latest()}); "
                "continue with --resume, or choose another --config.out"
            )
        self.records = Records(self.config.run_dir, resume_step=self.resume_step)

    # The run ----------------------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Runs to the end; returns the summary that is written beside the metrics."""
        began = time.perf_counter()
        self._introduce()
        self._describe()
        state, meta = self._start()
        with self.display.bar("train", self.config.steps, int(state.step)) as advance:
            for step in range(int(state.step), self.config.steps):
                state, metrics = self.step(state, step)
                self.records.metrics("train", step, metrics)
                advance(1, **_figures(metrics))
                self._periodic(state, step + 1, meta)
        after = self.evaluate(state.actor, "after", step=self.config.steps)
        self.checkpoints.save(state, meta)
        self.checkpoints.close()
        if self.config.export:
            self.export(state.actor)
        return self._conclude(meta, after, time.perf_counter() - began)

    def _introduce(self) -> None:
        p = self.p
        self.display.say(
            f"{self.config.name}: {p.actor.spec.num_parameters / 1e6:.1f} M parameters ({p.policy.path.name}) on "
            f"{jax.device_count()} {jax.devices()[0].platform} device(s), mesh {dict(p.train_layout.mesh.shape)}; "
            f"{len(p.train)} training prompts ({p.train.dropped} dropped for length), {len(p.heldout)} held out, "
            f"template prefix of {len(p.train.prefix)} tokens"
        )
        if not p.audit.clean:
            self.display.say(str(p.audit))

    def _start(self) -> tuple[TrainState, dict[str, Any]]:
        """The state of the first step: resumed, or warmed up and measured."""
        if self.resume_step is not None:
            like = self._fresh_state(self.p.params)
            state, meta = self.checkpoints.restore(like, self.resume_step)
            self.display.say(f"resumed at step {self.resume_step}")
            return state, meta
        params = self.p.params
        if self.config.warmup.epochs:
            params = self.warm_up(params)
        before = self.evaluate(params, "before", step=0)
        state, meta = self._fresh_state(params), {"before": _with_groups(before)}
        self.checkpoints.save(state, meta)  # a run stopped in its first steps need not warm up again
        return state, meta

    def _describe(self) -> None:
        """Makes the run's folder a model that ``generate`` and ``evaluate`` read: its newest checkpoint."""
        source = self.p.policy
        hf.describe_run(
            self.config.run_dir,
            self.p.actor,
            source.tokenizer,
            hf.load_config(source.path),
            hf.load_generation_config(source.path),
        )

    def _fresh_state(self, params: Params) -> TrainState:
        return self.steps.init_state(params, assembly.critic_params(self.p, params))

    def _periodic(self, state: TrainState, done: int, meta: dict[str, Any]) -> None:
        """What happens every so many steps; the end of the run does both by itself."""
        if done == self.config.steps:
            return
        if self.config.checkpoint.every and done % self.config.checkpoint.every == 0:
            self.checkpoints.save(state, meta)
        if self.config.eval.every and done % self.config.eval.every == 0:
            self.evaluate(state.actor, "eval", step=done, limit=self.config.eval.limit)

    # Warm-up ----------------------------------------------------------------------------------------------------------

    def warm_up(self, params: Params) -> Params:
        """The format warm-up on the training prompts."""
        p, settings = self.p, self.config.warmup
        trainer = Supervised(settings, p.actor, p.train_layout, chunk=self.config.algorithm.logprob_chunk)
        rows = p.train.subset(settings.max_examples, self.config.seed) if settings.max_examples else p.train
        with self.display.bar("warm-up", trainer.steps(len(rows))) as advance:

            def on_step(step: int, metrics: dict[str, float]) -> None:
                self.records.metrics("warmup", step, metrics)
                advance(1, loss=f"{metrics['sft/loss']:.3f}")

            return trainer.train(
                params,
                rows,
                lambda epoch: assembly.warmup_responses(rows.rows, self.config, epoch),
                p.policy.tokenizer,
                p.policy.end_id,
                bucket=self.config.rollout.bucket,
                seed=self.config.seed,
                on_step=on_step,
            )

    # One step of reinforcement learning ---------------------------------------------------------------------------------

    def step(self, state: TrainState, step: int) -> tuple[TrainState, dict[str, float]]:
        """Rollout, verdicts, reward model beside the scoring pass, advantages, critic, actor."""
        clock = _Clock()
        index = self.order.indices(step)
        prompts = self.p.train.batch(index, row=step * len(index) + np.arange(len(index)))
        with clock("gen"):
            rollout, verdict, responses = self._rollout(state, prompts, step)
        pending = self._ask_reward_model(index, responses)
        with clock("old_log_prob"):
            prompts = place(prompts, self.p.train_layout)
            scored = self.steps.score(state, prompts, rollout.tokens, rollout.sampled, self.sampling)
            jax.block_until_ready(scored)
        with clock("reward_wait"):
            helpfulness = _await_scores(pending, verdict.refusal.shape)
        with clock("adv"):
            batch, scores, metrics, kl_coef = self.steps.assemble(state, prompts, rollout, verdict, helpfulness, scored)
            jax.block_until_ready(batch)
        actor, critic = (state.actor, state.actor_opt), (state.critic, state.critic_opt)
        train_actor = step >= self.config.algorithm.critic_warmup or self.p.critic is None
        with clock("update_critic"):
            critic = (
                self._updates(critic, self.steps.update_critic, batch, step, metrics)
                if self.p.critic is not None
                else critic
            )
        with clock("update_actor"):
            if train_actor:
                actor = self._updates(actor, self.steps.update_actor, batch, step, metrics, self.sampling)
        state = state.replace(
            step=jnp.int32(step + 1),
            actor=actor[0],
            actor_opt=actor[1],
            critic=critic[0],
            critic_opt=critic[1],
            kl_coef=kl_coef,
        )
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()} | clock.metrics()
        metrics["perf/throughput"] = metrics["response_length/mean"] * verdict.format.size / metrics["timing_s/step"]
        self._dump_samples(step, index, responses, np.asarray(scores.reward))
        return state, metrics

    def _rollout(self, state: TrainState, prompts, step: int) -> tuple[Rollout, Verdict, list[list[Response]]]:
        r = self.config.rollout
        params = self.p.engine.prepare(state.actor)
        key = self._key(_ROLLOUT_KEY, step)
        rollout = self.p.engine.rollout(params, prompts, key, self.sampling, group=r.group, slots=r.max_new_tokens)
        verdict = self.p.engine.judge(rollout)
        responses = host_responses(rollout, verdict, self.p.policy, prompts.batch)
        longest = int(np.max(jax.device_get(rollout.length)))
        return trim(rollout, min(-(-longest // r.bucket) * r.bucket, r.max_new_tokens)), verdict, responses

    def _ask_reward_model(self, index: np.ndarray, responses: list[list[Response]]) -> tuple[ScoreFuture, list] | None:
        """Sends benign questions with their answers; harmful prompts and missing answers have nothing to score."""
        if self.p.scorer is None:
            return None
        specials = self.p.policy.tokenizer.all_special_tokens
        questions, answers, places = [], [], []
        for b, i in enumerate(index):
            row = self.p.train.rows[i]
            for g, response in enumerate(responses[b]):
                block = answer_block(response.text.encode())
                if row.label == BENIGN and block is not None and block.strip():
                    questions.append(row.prompt)
                    answers.append(clean_answer(block, specials))
                    places.append((b, g))
        return self.p.scorer.submit(questions, answers), places

    def _updates(self, weights, update, batch, step: int, metrics: dict[str, Any], *extra) -> tuple:
        """All optimizer steps on one batch: epochs of shuffled mini-batches. Metrics are means over them."""
        a, n = self.config.algorithm, self.config.rollout.prompts
        seen = []
        for epoch in range(a.epochs):
            shuffled = np.random.default_rng([self.config.seed, step, epoch]).permutation(n)
            for index in np.split(shuffled, a.minibatches):
                weights, got = update(weights, batch, jnp.asarray(index, jnp.int32), *extra)
                seen.append(got)
        jax.block_until_ready(weights)
        metrics.update({name: jnp.mean(jnp.stack([m[name] for m in seen])) for name in seen[0]})
        return weights

    def _dump_samples(self, step: int, index: np.ndarray, responses: list[list[Response]], reward: np.ndarray) -> None:
        group = self.config.rollout.group
        for n in range(min(self.config.samples, len(index))):
            row, g = self.p.train.rows[index[n]], step % group
            response = responses[n][g]
            brief = _brief(row, response)
            self.records.sample({"phase": "train", "step": step, **brief, "reward": float(reward[n, g])})

    # Evaluation and the end -----------------------------------------------------------------------------------------------

    def evaluate(self, params: Params, name: str, *, step: int, limit: int = 0) -> dict[str, Outcome]:
        """Outcomes on the held-out prompts: ``all`` and by source."""
        p, e = self.p, self.config.eval
        indices = (
            np.random.default_rng(self.config.seed).permutation(len(p.heldout))[:limit]
            if limit
            else np.arange(len(p.heldout))
        )
        with self.display.bar(f"evaluate ({name})", len(indices)) as advance:
            answers = respond(
                p.engine,
                p.engine.prepare(params),
                p.heldout,
                p.policy,
                sampling=Sampling.create(e.temperature),
                key=self._key(_EVAL_KEY, step),
                batch=e.batch,
                slots=e.max_new_tokens or self.config.rollout.max_new_tokens,
                indices=indices.tolist(),
                on_batch=advance,
            )
        rows, responses = [p.heldout.rows[i] for i in indices], [samples[0] for samples in answers]
        for row, response in zip(rows, responses, strict=True):
            self.records.sample({"phase": name, "step": step, "source": outcome.group_of(row), **_brief(row, response)})
        outcomes = {"all": outcome.count(rows, responses), **outcome.by_group(rows, responses)}
        shown = {f"eval/{key}": value for key, value in outcomes["all"].to_json().items() if value is not None}
        self.records.metrics(name, step, shown)
        return outcomes

    def export(self, params: Params) -> None:
        target = self.config.run_dir / "export"
        self.p.policy.export(params, self.p.actor, target)
        self.display.say(f"exported to {target}")

    def _conclude(self, meta: dict[str, Any], after: dict[str, Outcome], seconds: float) -> dict[str, Any]:
        summary = {
            "before": meta["before"]["all"],
            "after": after["all"].to_json(),
            "before_by_source": {k: v for k, v in meta["before"].items() if k != "all"},
            "after_by_source": {k: v.to_json() for k, v in after.items() if k != "all"},
            "steps": self.config.steps,
            "wall_seconds": seconds,
            "command": " ".join(sys.argv),
            "versions": versions(),
            "config": dataclasses.asdict(self.config),
        }
        self.records.summary(summary)
        self.records.close()
        if self.p.scorer is not None:
            self.p.scorer.close()
        self.display.say(outcome.comparison(meta["before"], _with_groups(after)))
        self.display.say(f"{self.config.steps} steps, {seconds:.0f} s; {self.config.run_dir / 'summary.json'}")
        return summary

    def _key(self, purpose: int, step: int) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(self.key, purpose), step)


class _Clock:
    """Wall seconds by phase, under verl's metric names."""

    def __init__(self):
        self._began, self._phases = time.perf_counter(), {}

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._phases[phase] = time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        timings = {f"timing_s/{phase}": seconds for phase, seconds in self._phases.items()}
        return timings | {"timing_s/step": time.perf_counter() - self._began}


def _await_scores(pending: tuple[ScoreFuture, list] | None, shape: tuple[int, int]) -> np.ndarray:
    """float32 [B, G], NaN where nothing was asked or nothing could be said."""
    helpfulness = np.full(shape, np.nan, np.float32)
    if pending is not None:
        future, places = pending
        for (b, g), score in zip(places, future.result(), strict=True):
            helpfulness[b, g] = score
    return helpfulness


def _brief(row: PromptRow, response: Response) -> dict[str, Any]:
    return {
        "prompt": row.prompt,
        "label": LABELS[row.label],
        "response": response.text,
        "finish": response.finish,
        "format": response.format,
        "refusal": response.refusal,
    }


def _with_groups(outcomes: dict[str, Outcome]) -> dict[str, Any]:
    return {name: value.to_json() for name, value in outcomes.items()}


def _figures(metrics: dict[str, float]) -> dict[str, str]:
    """What the progress bar shows."""
    return {
        "reward": f"{metrics['critic/score/mean']:.2f}",
        "refuses harmful": f"{100 * metrics['safety/refusal_rate_harmful']:.0f} %",
        "benign": f"{100 * metrics['safety/refusal_rate_benign']:.0f} %",
        "format": f"{100 * metrics['safety/format_rate']:.0f} %",
        "s/step": f"{metrics['timing_s/step']:.1f}",
    }


def versions() -> dict[str, str]:
    """Versions a figure depends on."""
    import importlib.metadata as metadata

    names = (
        "alphaalign_jax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "transformers",
        "tokenizers",
        "numpy",
    )
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return {"python": platform.python_version(), "platform": platform.platform(), **found}


def train(config: Config, *, resume: bool = False, display: Display | None = None) -> dict[str, Any]:
    """Runs ``config`` to its end and returns the summary."""
    return Run(assembly.prepare(config), display=display, resume=resume).train()
