"""Run training from start to end.

The order is: format warm-up, held-out evaluation, reinforcement learning, held-out evaluation,
export.
"""

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
from alphaalign_jax.errors import ends_with, explaining_memory
from alphaalign_jax.evaluation import outcome
from alphaalign_jax.evaluation.outcome import Outcome
from alphaalign_jax.models import Params
from alphaalign_jax.parallel import compiles, processes
from alphaalign_jax.parallel.notice import Ended, Notice
from alphaalign_jax.parallel.programs import keep_programs
from alphaalign_jax.rewards.reward_model.protocol import AsyncScorer, RewardModelError
from alphaalign_jax.train import (
    assembly,
    closing,
    description,
    following,
    memory,
    own_texts,
    provenance,
    resumption,
    rollback,
    warmup,
)
from alphaalign_jax.train.assembly import Prepared
from alphaalign_jax.train.checkpoint import CheckpointError, Checkpoints, Progress, result_item
from alphaalign_jax.train.guards import Alarm, GuardError, Guards
from alphaalign_jax.train.iteration import Iteration, Sampled
from alphaalign_jax.train.looks import Looks, as_json
from alphaalign_jax.train.records import Records, brief, check_unused, finished, versions
from alphaalign_jax.train.sft import Supervised
from alphaalign_jax.types import TrainState

# Folded into the run's key first, so that rollouts and evaluations never share noise.
_ROLLOUT, _EVALUATION = range(2)


def train(
    config: Config,
    *,
    resume: bool | str = False,
    dry_run: bool = False,
    command: str = "",
    display: Display | None = None,
) -> dict[str, Any]:
    """Run ``config`` to its end and return the summary.

    Raise ValueError for a config that cannot work, before anything is compiled, and CheckpointError
    if the disk is full. These errors save the state first, so that the run can resume:
    RewardModelError if the reward model is down, GuardError for an alarm in ``guards.stop``, Ended
    after a request to end.

    Args:
      resume: True continues from the newest checkpoint. "auto" does so if there is one, and leaves
        a finished run unchanged. "extend" also permits another number of steps with a decaying
        learning rate, and recomputes the decay.
      dry_run: show the plan and return an empty summary, before the first compile.
      command: the command line, stored in the summary so that others can repeat the run.
    """
    began, display = time.perf_counter(), display or Display()
    keep_programs()
    with (
        buckets.mirrored(config.location, display.say) as mirror,
        contextlib.closing(Checkpoints(config.checkpoints_dir, config.checkpoint)) as checkpoints,
        Notice() as notice,
    ):
        if resume == "auto":
            ended = finished(mirror.folder, config.steps)
            if ended is not None:
                resumption.check(ended["config"], config, config.steps)
                if not resumption.moved(ended["config"], config):  # else compare the inputs first
                    display.say(f"{config.location} has ended: {config.steps} steps")
                    return ended
            resume = bool(checkpoints.steps())
        then = checkpoints.check(config, bool(resume), extend=resume == "extend")
        if not resume:
            check_unused(mirror.folder)
        if config.export:
            hf.check_target(config.export_dir)
        if dry_run:
            resumed = checkpoints.steps()[0] if then else None
            description.rehearse(config, mirror, then, resumed, display, notice.check)
            return {}
        prepared = assembly.prepare(config, mirror, notice.check, display.say, resumes=then is not None)
        with contextlib.closing(Records(mirror.folder)) as records, _closing(prepared.scorer), _ending_together():
            run = Run(prepared, then, checkpoints, records, mirror, display, notice, began)
            with explaining_memory(memory.advice(config, prepared.memory)):
                return run.train(command)


@contextlib.contextmanager
def _ending_together() -> Iterator[None]:
    """End a process of a cluster at once after an error that other processes may not share.

    A normal exit closes the checkpoints, which waits for the other processes, while they may wait
    for this one in a collective. Errors that all processes raise together propagate normally.
    """
    try:
        yield
    except (RewardModelError, GuardError, Ended):
        raise
    except Exception as error:
        processes.abandon(*ends_with(error))
        raise


def _closing(scorer: AsyncScorer | None) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if scorer is None else contextlib.closing(scorer)


class Run:
    """One training run, from a prepared config to its summary."""

    def __init__(
        self,
        prepared: Prepared,
        then: Progress | None,
        checkpoints: Checkpoints,
        records: Records,
        mirror: buckets.Mirror,
        display: Display,
        notice: Notice,
        began: float,
    ):
        """Set up the run. ``then``: saved progress when resuming, else None.

        Raise ValueError if the inputs of a resumed run have changed.
        """
        self.p, self.config = prepared, prepared.config
        self.checkpoints, self.records, self.mirror = checkpoints, records, mirror
        self.display, self.notice, self.began = display, notice, began
        self.inputs, self.computed_by = provenance.inputs(prepared), provenance.computed_by(prepared)
        self.resumes, changed = then is not None, []
        if then is not None:
            for line in provenance.check_resumed(then, prepared, self.inputs):
                display.say(line)
            changed = resumption.rounding(then.config, self.config)
            changed += provenance.differences(then.computed_by, self.computed_by)
        if changed:
            display.say(
                f"changed since the checkpoint; the run goes on as before, up to rounding: {'; '.join(changed)}"
            )
        key = jax.random.key(self.config.seed)
        self.looks = Looks(prepared, jax.random.fold_in(key, _EVALUATION), records, display, notice)
        # All processes must agree: one that compared sampler and trainer alone would wait forever.
        self.as_it_was = self.resumes and not processes.gather_rows(np.asarray(bool(changed))).any()
        self.compiled = compiles()  # programs and seconds before this run
        self.iteration = Iteration(prepared, jax.random.fold_in(key, _ROLLOUT), look=self.notice.check)
        self.progress: Progress  # set with the initial state, like ``guards``
        self.guards: Guards
        self.exported: int  # the step whose state is the run's result
        self.due = ""  # pending save: "kept" must happen, "newest" may be postponed; "" is none
        self.saving = 0.0  # seconds that saves have blocked training since the last recorded step

    def train(self, command: str) -> dict[str, Any]:
        self._introduce()
        state = self._resumed() if self.resumes else self._fresh()
        if self.progress.before is None:
            before = self.looks.evaluate(state.result, "before", self.p.heldout, step=0)
            self.progress.before = as_json(before)
        state = self._reinforce(state)
        best = self.progress.best["step"] if self.looks.choose and self.progress.best else self.config.steps
        result, self.exported = rollback.choose(self.checkpoints, self.iteration, state, best, self.display.say)
        if self.exported != self.config.steps:
            self.looks.forget()
        del state  # frees the optimizer moments before the evaluation
        after = self.looks.evaluate(result, "after", self.p.heldout, step=self.config.steps)
        if self.config.export:
            self.p.policy.export(result, self.p.actor, self.config.export_dir)
            self.display.say(f"exported to {self.config.location}/export")
        return self._conclude(after, command)

    def _introduce(self) -> None:
        p, source = self.p, self.p.policy
        for line in description.introduction(p):
            self.display.say(line)
        if self.resumes and assembly.kept_model(self.mirror):
            return
        # Lets generate, evaluate and convert read the newest checkpoint from the run's folder.
        configs = hf.load_config(source.path), hf.load_generation_config(source.path)
        item = result_item(self.config)
        critic = hf.load_config(self.config.critic.path) if p.critic and self.config.critic.path else None
        known = dict(item=item, critic_config=critic, chat=source.chat)
        hf.describe_run(self.config.run_dir, p.actor, source.tokenizer, *configs, **known)

    # The state of the first step --------------------------------------------------------------------------------------

    def _fresh(self) -> TrainState:
        """Return the state before the first step, warmed up and saved.

        If the run stops before its first step, it need not warm up again.
        """
        self.records.begin()
        self.guards = Guards(self.config.guards)
        params = assembly.load_params(self.p)
        known = dataclasses.asdict(self.config), self.inputs, self.computed_by, provenance.weights_id(params)
        self.progress = Progress(*known)
        if self.config.warmup.epochs:
            params = self._warm_up(params)
        state = self.iteration.steps.init_state(params, assembly.critic_params(self.p, params))
        self._save(state, wait=True)
        return state

    def _resumed(self) -> TrainState:
        state, self.progress, damaged = self.checkpoints.restore(self.iteration.steps.abstract_state)
        ended = finished(self.mirror.folder, int(state.step))
        # The last evaluation of an extended run may be missing from every checkpoint.
        if ended is not None and ended["looks"]:
            self.progress.best, self.progress.looks = ended["best"], ended["looks"]
            self.progress.evaluated = ended["looks"][-1]["step"]
        looked = self.progress.before is not None
        for line in (*damaged, *self.records.begin(int(state.step), self.progress.evaluated, looked)):
            self.display.say(line)
        # The gap is checked in the first step, which is complete once the step count is above 0.
        self.iteration.gap_checked = self.as_it_was and int(state.step) > 0
        self.guards = Guards(self.config.guards, self.progress.guards)
        # Earlier scores are of other prompts if the limit has changed.
        if self.progress.config["eval"]["limit"] != self.config.eval.limit:
            self.progress.best = self.guards.state["best"] = None
            self.progress.looks = []
        # The next resumption is compared with these.
        self.progress.config, self.progress.computed_by = dataclasses.asdict(self.config), self.computed_by
        self.began -= self.progress.seconds
        self.display.say(f"resumed at step {int(state.step)}")
        return self.iteration.steps.settled(state)

    def _warm_up(self, params: Params) -> Params:
        """Run the format warm-up on the training prompts. Return the new weights."""
        p = self.p
        watch = lambda: self.notice.check("while the model writes texts for the warm-up", kept=False)
        chosen, about = warmup.prompts(p.train, self.config), (self.progress.initial, self.mirror.folder)
        material = own_texts.material(self.config, p.policy, p.engine, params, chosen, *about, self.display, watch)
        trainer = Supervised(self.config, p.actor, p.train_layout, len(material.prompts))
        with self.display.bar("warm-up", trainer.steps) as advance:
            followed = following.supervised("warmup", self.config.guards, self.records, self.display, advance)

            def on_step(step: int, metrics: dict[str, float]) -> None:
                followed(step, metrics)
                self.notice.check("during the warm-up, whose progress is not saved", kept=False)

            about = (params, material.prompts, material.responses(self.config), p.policy.tokenizer, p.policy.end_id)
            return trainer.train(*about, longest=material.longest, on_step=on_step)

    # Reinforcement learning -------------------------------------------------------------------------------------------

    def _reinforce(self, state: TrainState) -> TrainState:
        c, first = self.config, int(state.step)
        with self.display.bar("train", c.steps, first) as advance:
            state = self._look(state, first)  # if the run was stopped before this evaluation
            self._save_if_due(state, first)
            for step in range(first, c.steps):
                try:
                    state, metrics, sampled = self.iteration(state, step)
                except (RewardModelError, Ended):  # the state is still usable
                    self._save_whole(state)
                    raise
                metrics["timing_s/save_checkpoint"], self.saving = self.saving, 0.0
                self.records.metrics("train", step, metrics)
                self._dump(step, sampled)
                advance(1, **following.figures(metrics))
                alarms = self.guards.step(metrics)
                self.looks.bring_forward(self.progress, alarms, step + 1)
                self._raise(state, "train", step, alarms)
                self._end_if_asked(state, step + 1)
                state = self._look(state, step + 1)
                self._save_if_due(state, step + 1)
                self.mirror.push()
        self._save_whole(state)
        return state

    def _look(self, state: TrainState, done: int) -> TrainState:
        """Run the periodic evaluation if it is due.

        Return the state to continue from: the best one if this one has collapsed and a rollback is
        left.
        """
        if not self.looks.due(self.progress, done):
            return state
        try:
            score = self.looks.score(state.result, done)
        except Ended:
            self._save_whole(state)
            raise
        best = None if self.progress.best is None else self.progress.best["score"]
        alarms, fell = self.guards.look(score, best), self.guards.collapse(score, best)
        if self.looks.note(self.progress, done, score):
            self.due = "kept"
        if fell and done < self.config.steps and self.looks.rollbacks_left(self.progress):
            # The rollback answers these alarms, so none of them ends the run.
            following.sound(alarms, "eval", done, self.records, self.display)
            return self._go_back(state, done, fell)
        self._raise(state, "eval", done, alarms)
        return state

    def _go_back(self, state: TrainState, done: int, reason: str) -> TrainState:
        """Roll back after ``done`` steps. Return the best state, which replaces the current one.

        ``reason`` describes the collapse. Raise CheckpointError if the best state cannot be read.
        """
        best, guards = self.progress.best["step"], self.config.guards
        try:
            state, scale = rollback.go_back(self.checkpoints, self.iteration, state, best, guards.rollback_scale)
        except CheckpointError as error:
            raise CheckpointError(
                f"step {done}: {reason}, and {error}; to go on without going back: --resume --config.guards.rollbacks=0"
            ) from error
        self.progress.rollbacks.append({"step": done, "to": best, "reason": reason, "lr_scale": scale})
        self.guards.go_back()
        number = len(self.progress.rollbacks)
        message = (
            f"back to the best state, of step {best}, with learning rates times {scale:g} from here on (rollback "
            f"{number} of at most {guards.rollbacks})"
        )
        self.records.metrics("rollback", done, {"rollback/to": best, "rollback/lr_scale": scale})
        self.records.alarm("rollback", done, "rollback", message)
        self.display.say(f"step {done}: {message}")
        return state

    def _raise(self, state: TrainState, phase: str, step: int, alarms: list[Alarm]) -> None:
        """Show and record the alarms. If one stops the run, save the state and raise GuardError."""
        ends = following.sound(alarms, phase, step, self.records, self.display)
        if ends is not None:
            self._save_whole(state)
            raise GuardError(
                f"step {step}: {ends.message}; the state is saved. To continue from it: --resume --config.guards.stop="
            )

    # Saving -----------------------------------------------------------------------------------------------------------

    def _end_if_asked(self, state: TrainState, done: int) -> None:
        if self.notice.reached() and done < self.config.steps:
            self._save_whole(state)
            raise self.notice.ended(f"saved after step {done} of {self.config.steps}")

    def _save_if_due(self, state: TrainState, done: int) -> None:
        """Save the state if a save is due.

        If an earlier save is still in progress, a "newest" save is postponed to the next step. A
        "kept" save waits for the earlier one instead.
        """
        c = self.config.checkpoint
        self.checkpoints.check_written()
        if c.every and done % c.every == 0:
            self.due = self.due or "newest"
        if c.keep_every and done % c.keep_every == 0:
            self.due = "kept"
        if self.due and self._save(state, wait=self.due != "newest"):
            self.due = ""

    def _save_whole(self, state: TrainState) -> None:
        """Save and block until the checkpoint is on disk."""
        self._save(state, wait=True)
        self.checkpoints.wait()  # the records are uploaded on leaving the mirror

    def _save(self, state: TrainState, *, wait: bool) -> bool:
        """Start saving. Return False if a save is in progress and ``wait`` is False."""
        began = time.perf_counter()
        try:
            self.records.flush()  # so that the bucket gets all records up to this checkpoint
            self.mirror.push(now=True)
        finally:
            self.progress.seconds, self.progress.guards = time.perf_counter() - self.began, self.guards.state
            saved = self.checkpoints.save(state, self.progress, wait=wait)
            self.saving += time.perf_counter() - began
        return saved

    def _dump(self, step: int, sampled: Sampled) -> None:
        """Record a few responses of the step, from another member of each group at every step.

        If an optimizer step was skipped, save the whole batch too.
        """
        if sampled.left_out is not None:
            said = self.records.batch(step, sampled.left_out)
            self.display.say(f"step {step}: non-finite loss or gradient; update skipped; batch: {said}")
        g = step % self.config.rollout.group
        for b in range(min(self.config.samples, len(sampled.index))):
            row, reward = self.p.train.rows[sampled.index[b]], float(sampled.reward[b, g])
            shown = brief(row, sampled.responses[b][g])
            self.records.sample(
                {"phase": "train", "step": step, **shown, "reward": reward if np.isfinite(reward) else None}
            )

    def _conclude(self, after: dict[str, Outcome], command: str) -> dict[str, Any]:
        seconds = time.perf_counter() - self.began
        before = {name: outcome.with_intervals(shares) for name, shares in self.progress.before.items()}
        found = {name: outcome.with_intervals(shares) for name, shares in as_json(after).items()}
        summary = {
            "command": command,
            "before": before.pop("all"),
            "after": found.pop("all"),
            "before_by_source": before,
            "after_by_source": found,
            "data": self.p.audit.to_json(),
            "inputs": {**self.inputs, "model.path": self.progress.initial},
            "steps": self.config.steps,
            "looks": self.progress.looks,
            "best": self.progress.best,
            "exported_step": self.exported,
            "rollbacks": self.progress.rollbacks,
            "alarms": self.guards.state["count"],
            "wall_seconds": seconds,
            "compiled": following.compiled(self.compiled),
            "versions": versions(),
            "config": dataclasses.asdict(self.config),
        }
        self.records.summary(summary)
        if self.progress.best is not None:
            self.display.say(self.looks.conclusion(self.progress, self.exported))
        if processes.first():
            width = self.display.console.width
            for part in closing.report(self.config, summary, self.records.directory, width=width):
                self.display.say(part)
        return summary
