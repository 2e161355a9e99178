"""A training run: format warm-up, a look at the held-out prompts, reinforcement learning, another look, export."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from alphaalign_jax import buckets, hf
from alphaalign_jax.config import Config
from alphaalign_jax.display import Display
from alphaalign_jax.evaluation import outcome
from alphaalign_jax.evaluation.outcome import Outcome
from alphaalign_jax.evaluation.respond import respond
from alphaalign_jax.models import Params
from alphaalign_jax.models.distribution import Sampling
from alphaalign_jax.parallel import processes
from alphaalign_jax.rewards.reward_model.protocol import RewardModelError
from alphaalign_jax.train import assembly
from alphaalign_jax.train.assembly import Prepared
from alphaalign_jax.train.checkpoint import Checkpoints, result_item
from alphaalign_jax.train.iteration import Iteration, Sampled
from alphaalign_jax.train.records import Records, brief, check_unused, finished, versions
from alphaalign_jax.train.sft import Supervised
from alphaalign_jax.types import TrainState

_ROLLOUT, _EVALUATION = range(2)  # folded into the run's key first, so that no two uses share noise


def train(
    config: Config, *, resume: bool | str = False, command: str = "", display: Display | None = None
) -> dict[str, Any]:
    """Runs ``config`` to its end and returns the summary, which bears ``command`` so that others can run it again.

    ``resume``: from the newest checkpoint; with "auto" where there is one, and a run that has ended stays as it is.
    Raises ValueError for a run that cannot work, before it compiles anything, and RewardModelError for a reward model
    that is down: the state is then saved, and the run goes on with ``resume``.
    """
    began, display = time.perf_counter(), display or Display()
    with (
        buckets.mirrored(config.location) as mirror,
        contextlib.closing(Checkpoints(config.checkpoints_dir, config.checkpoint)) as checkpoints,
    ):
        if resume == "auto":
            ended = finished(mirror.folder, config.steps)
            if ended is not None:
                display.say(f"{config.location} has ended: {config.steps} steps")
                return ended
            resume = checkpoints.latest() is not None
        rounds = checkpoints.check(config, resume)
        if not resume:
            check_unused(mirror.folder)
        if config.export:
            hf.check_target(config.export_dir)
        if rounds:
            display.say(f"the run goes on with other settings, equal to the run so far up to rounding: {rounds}")
        prepared = assembly.prepare(config, mirror)
        resume_step = checkpoints.latest() if resume else None
        with contextlib.closing(Records(mirror.folder, resume_step=resume_step)) as records:
            with _ending_together():
                summary = Run(prepared, checkpoints, records, mirror, display, began).train()
            records.summary({"command": command, **summary})
        return summary


@contextlib.contextmanager
def _ending_together() -> Iterator[None]:
    """An error of one process ends it before it waits for the others, as closing the checkpoints would: they may be at
    a collective that waits for this one. The reward model's is raised by all."""
    try:
        yield
    except RewardModelError:
        raise
    except Exception as error:
        processes.abandon(1, error)
        raise


class Run:
    """One training run, from a prepared config to its summary."""

    def __init__(
        self,
        prepared: Prepared,
        checkpoints: Checkpoints,
        records: Records,
        mirror: buckets.Mirror,
        display: Display,
        began: float,
    ):
        self.p, self.config = prepared, prepared.config
        self.checkpoints, self.records, self.mirror = checkpoints, records, mirror
        self.display, self.began = display, began
        key = jax.random.key(self.config.seed)
        self.evaluation_key = jax.random.fold_in(key, _EVALUATION)
        self.iteration = Iteration(prepared, jax.random.fold_in(key, _ROLLOUT))

    def train(self) -> dict[str, Any]:
        self._introduce()
        state, meta = self._resumed() if self.checkpoints.latest() is not None else self._fresh()
        state = self._reinforce(state, meta)
        self._save(state, meta)
        after = self.evaluate(state.result, "after", step=self.config.steps)
        if self.config.export:
            self.p.policy.export(state.result, self.p.actor, self.config.export_dir)
            self.display.say(f"exported to {self.config.location}/export")
        return self._conclude(meta, after)

    def _introduce(self) -> None:
        p, source = self.p, self.p.policy
        self.display.say(
            f"{self.config.name}: {p.actor.spec.num_parameters / 1e6:.1f} M parameters ({source.path.name}) on "
            f"{jax.device_count()} {jax.devices()[0].platform} device(s), mesh {dict(p.train_layout.mesh.shape)}; "
            f"{len(p.train)} training prompts ({p.train.dropped} dropped for length), {len(p.heldout)} held out, "
            f"template prefix of {len(p.train.prefix)} tokens"
        )
        if not p.audit.clean:
            self.display.say(str(p.audit))
        # The run's folder becomes a model that generate, evaluate and convert read: its newest checkpoint.
        configs = hf.load_config(source.path), hf.load_generation_config(source.path)
        item = result_item(self.config)
        hf.describe_run(self.config.run_dir, p.actor, source.tokenizer, *configs, item=item)

    # The state of the first step --------------------------------------------------------------------------------------

    def _fresh(self) -> tuple[TrainState, dict[str, Any]]:
        """Warmed up and measured."""
        params = assembly.load_params(self.p)
        if self.config.warmup.epochs:
            params = self._warm_up(params)
        before = self.evaluate(params, "before", step=0)
        state = self.iteration.steps.init_state(params, assembly.critic_params(self.p, params))
        meta = {"before": as_json(before), "config": dataclasses.asdict(self.config), "seconds": 0.0}
        self._save(state, meta)  # a run stopped in its first steps need not warm up again
        return state, meta

    def _resumed(self) -> tuple[TrainState, dict[str, Any]]:
        state, meta = self.checkpoints.restore(self.iteration.steps.abstract_state(self.checkpoints.latest()))
        state = self.iteration.steps.settled(state)
        self.began -= meta["seconds"]
        self.display.say(f"resumed at step {int(state.step)}")
        return state, meta

    def _warm_up(self, params: Params) -> Params:
        """The format warm-up on the training prompts."""
        p, count = self.p, self.config.warmup.max_examples
        rows = p.train.subset(count, self.config.seed) if count else p.train
        responses, longest = assembly.warmup_source(rows, self.config)
        trainer = Supervised(self.config, p.actor, p.train_layout, len(rows))
        trainer.check_length(rows, longest, p.policy.tokenizer)
        with self.display.bar("warm-up", trainer.steps) as advance:
            recorded = self.records.advancing("warmup", advance)
            return trainer.train(params, rows, responses, p.policy.tokenizer, p.policy.end_id, on_step=recorded)

    # Reinforcement learning -------------------------------------------------------------------------------------------

    def _reinforce(self, state: TrainState, meta: dict[str, Any]) -> TrainState:
        c, first = self.config, int(state.step)
        with self.display.bar("train", c.steps, first) as advance:
            for step in range(first, c.steps):
                try:
                    state, metrics, sampled = self.iteration(state, step)
                except RewardModelError:
                    self._save(state, meta)
                    raise
                self.records.metrics("train", step, metrics)
                self._dump(step, sampled)
                self.mirror.push()
                advance(1, **_figures(metrics))
                done = step + 1
                if c.eval.every and done % c.eval.every == 0 and done < c.steps:
                    self.evaluate(state.result, "eval", step=done, limit=c.eval.limit)
                if c.checkpoint.every and done % c.checkpoint.every == 0:
                    self._save(state, meta)
        return state

    def _save(self, state: TrainState, meta: dict[str, Any]) -> None:
        self.records.flush()  # a run that goes on from here has what was written before
        try:
            self.mirror.settle()
        finally:
            self.checkpoints.save(state, meta | {"seconds": time.perf_counter() - self.began})

    def _dump(self, step: int, sampled: Sampled) -> None:
        """A few responses of the step, another member of the group each time."""
        g = step % self.config.rollout.group
        for b in range(min(self.config.samples, len(sampled.index))):
            row, reward = self.p.train.rows[sampled.index[b]], float(sampled.reward[b, g])
            shown = brief(row, sampled.responses[b][g])
            self.records.sample(
                {"phase": "train", "step": step, **shown, "reward": reward if np.isfinite(reward) else None}
            )

    # Looking at it ----------------------------------------------------------------------------------------------------

    def evaluate(self, params: Params, name: str, *, step: int, limit: int = 0) -> dict[str, Outcome]:
        """Outcomes on the held-out prompts: ``all`` and by source."""
        p, e = self.p, self.config.eval
        drawn = np.random.default_rng(self.config.seed).permutation(len(p.heldout))[:limit]
        indices = sorted(drawn.tolist()) if limit else list(range(len(p.heldout)))
        with self.display.bar(f"evaluate ({name})", len(indices)) as advance:
            answers = respond(
                p.engine,
                p.engine.prepare(params),
                p.heldout,
                p.policy,
                sampling=Sampling.create(e.temperature),
                key=jax.random.fold_in(self.evaluation_key, step),
                slots=e.max_new_tokens or self.config.rollout.max_new_tokens,
                batch=e.batch,
                indices=indices,
                on_batch=advance,
            )
        rows, responses = [p.heldout.rows[i] for i in indices], [samples[0] for samples in answers]
        for row, response in zip(rows, responses, strict=True):
            shown = {"source": outcome.group_of(row), **brief(row, response)}
            self.records.sample({"phase": name, "step": step, **shown})
        outcomes = {"all": outcome.count(rows, responses), **outcome.by_group(rows, responses)}
        figures = {f"eval/{key}": value for key, value in outcomes["all"].to_json().items() if value is not None}
        self.records.metrics(name, step, figures)
        return outcomes

    def _conclude(self, meta: dict[str, Any], after: dict[str, Outcome]) -> dict[str, Any]:
        seconds = time.perf_counter() - self.began
        found = as_json(after)
        rest = lambda outcomes: {name: value for name, value in outcomes.items() if name != "all"}
        summary = {
            "before": meta["before"]["all"],
            "after": found["all"],
            "before_by_source": rest(meta["before"]),
            "after_by_source": rest(found),
            "data": self.p.audit.to_json(),
            "steps": self.config.steps,
            "wall_seconds": seconds,
            "versions": versions(),
            "config": dataclasses.asdict(self.config),
        }
        if self.p.scorer is not None:
            self.p.scorer.close()
        self.display.say(outcome.comparison(meta["before"], found))
        self.display.say(f"{self.config.steps} steps, {seconds:.0f} s; {self.config.location}/summary.json")
        return summary


def as_json(outcomes: dict[str, Outcome]) -> dict[str, Any]:
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
