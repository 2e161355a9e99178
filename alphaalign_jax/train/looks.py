"""Evaluations during a run: responses and records, the schedule of looks, and the best look.

"Looks" are the periodic evaluations of ``eval.every``: of the initial policy, during training, and
at the end. All use the same prompts, so their scores form one series, which selects the best state
of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from alphaalign_jax.data.tokenized import PromptSet
from alphaalign_jax.display import Display
from alphaalign_jax.evaluation import outcome
from alphaalign_jax.evaluation.outcome import Outcome
from alphaalign_jax.evaluation.respond import Response, respond
from alphaalign_jax.models import Params
from alphaalign_jax.parallel.notice import Notice
from alphaalign_jax.train.assembly import Prepared
from alphaalign_jax.train.checkpoint import Progress
from alphaalign_jax.train.guards import Alarm
from alphaalign_jax.train.records import Records, brief


class Looks:
    """Evaluate a run's policy and record the results."""

    def __init__(self, prepared: Prepared, key: jax.Array, records: Records, display: Display, notice: Notice):
        """``key``: random key of all evaluations, into which each step is folded."""
        self.p, self.config, self.key = prepared, prepared.config, key
        self.records, self.display, self.notice = records, display, notice
        # The score's name in messages.
        self.named = "held-out" if prepared.validation is None else "validation"
        # The newest responses, with their step and prompts.
        self._given: tuple[tuple, list[Response]] | None = None

    @property
    def choose(self) -> bool:
        """Return whether the run keeps its best state and exports it."""
        return bool(self.config.eval.every and self.config.checkpoint.keep_best)

    def due(self, progress: Progress, done: int) -> bool:
        """Return whether a look is due after ``done`` steps and has not run yet."""
        every = self.config.eval.every
        periodic = bool(every) and (done % every == 0 or done == self.config.steps)
        return progress.evaluated < done and (periodic or done == progress.look_at)

    def rollbacks_left(self, progress: Progress) -> int:
        return max(0, self.config.guards.rollbacks - len(progress.rollbacks))

    def bring_forward(self, progress: Progress, alarms: Sequence[Alarm], done: int) -> None:
        """Make a look due after ``done`` steps if an alarm requests one.

        Ignore the request if neither a rollback nor a stop could follow. Also ignore it within
        ``guards.window`` steps of the last look, which has already covered some of the alarm's
        steps.
        """
        guards = self.config.guards
        asked = any(alarm.name in guards.look_on for alarm in alarms)
        matters = self.rollbacks_left(progress) or "collapse" in guards.stop
        if asked and matters and done - progress.evaluated >= guards.window:
            progress.look_at = done

    def score(self, params: Params, step: int) -> float | None:
        """Return the score of the policy after ``step`` steps; None if a label has no prompts."""
        prompts, limit = self.p.looked_at, self.config.eval.limit
        return self.evaluate(params, "eval", prompts, step=step, limit=limit)["all"].score

    def note(self, progress: Progress, step: int, score: float | None) -> bool:
        """Add a look to the series. Return whether it is the best so far.

        Among looks within ``checkpoint.best_within`` of the highest score, the latest is the best.
        """
        progress.evaluated = step
        progress.looks.append({"step": step, "score": score})
        if not self.choose or score is None:
            return False
        if score < self._highest(progress) - self.config.checkpoint.best_within:
            return False
        progress.best = {"step": step, "score": score}
        return True

    @staticmethod
    def _highest(progress: Progress) -> float:
        """Return the highest score of the looks so far, at least one of them scored."""
        return max(look["score"] for look in progress.looks if look["score"] is not None)

    def conclusion(self, progress: Progress, exported: int) -> str:
        """Return the line that reports the state exported by a run with a best state."""
        last = progress.looks[-1]
        score = f"{self.named} score {progress.best['score']:.2f}"
        if last["score"] is not None and last["step"] != progress.best["step"]:
            score += f"; last {last['score']:.2f}"
        result = "exported" if self.config.export else "result"
        which = "the best" if exported == progress.best["step"] else "not the best"
        highest = self._highest(progress)
        if progress.best["score"] < highest:
            score += f"; highest {highest:.2f}, which checkpoint.best_within counts as equal"
        return f"{result}: step {exported}, {which} of {len(progress.looks)} looks ({score})"

    def evaluate(
        self, params: Params, name: str, prompts: PromptSet, *, step: int, limit: int = 0
    ) -> dict[str, Outcome]:
        """Return outcomes of ``params``, the policy after ``step`` steps: ``all`` and by source.

        ``name``: phase in the records. ``limit``: number of prompts, drawn by the seed; 0: all.
        """
        indices = draw(prompts.label, limit, self.config.seed) if limit else list(range(len(prompts)))
        rows, responses = [prompts.rows[i] for i in indices], self._respond(params, name, prompts, indices, step)
        for row, response in zip(rows, responses, strict=True):
            shown = {"source": outcome.group_of(row), **brief(row, response)}
            self.records.sample({"phase": name, "step": step, **shown})
        outcomes = {"all": outcome.count(rows, responses), **outcome.by_group(rows, responses)}
        figures = {f"eval/{key}": value for key, value in outcomes["all"].to_json().items() if value is not None}
        self.records.metrics(name, step, figures)
        return outcomes

    def forget(self) -> None:
        """Discard the cached responses: the same step now has other weights."""
        self._given = None

    def _respond(
        self, params: Params, name: str, prompts: PromptSet, indices: Sequence[int], step: int
    ) -> list[Response]:
        """Return one response to each prompt. Reuse the last ones if step and prompts match."""
        e, which = self.config.eval, (step, id(prompts), tuple(indices))
        if self._given is not None and self._given[0] == which:
            return self._given[1]
        with self.display.bar(f"evaluate ({name})", len(indices)) as advance:

            def on_batch(rows: int) -> None:
                advance(rows)
                self.notice.check(f"in the evaluation {name} of step {step}")

            answers = respond(
                self.p.engine,
                self.p.engine.prepare(params),
                prompts,
                self.p.policy,
                sampling=self.p.policy.sampling(e.temperature),
                key=jax.random.fold_in(self.key, step),
                slots=e.max_new_tokens or self.config.rollout.max_new_tokens,
                batch=e.batch,
                indices=indices,
                on_batch=on_batch,
            )
        self._given = which, [samples[0] for samples in answers]
        return self._given[1]


def draw(label: np.ndarray, limit: int, seed: int) -> list[int]:
    """Return the indices of at most ``limit`` prompts, drawn by the seed, in ascending order.

    The draw keeps the set's mix of labels. A plain draw of a few prompts could miss a label, so
    that the score would be None and the run would have no best state.

    ``label``: int [prompts].
    """
    order = np.random.default_rng(seed).permutation(len(label))
    place = np.zeros(len(label))
    # Spread each label's prompts evenly over [0, 1): every prefix then has the mix of labels.
    for value in np.unique(label):
        members = order[label[order] == value]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return sorted(np.argsort(place, kind="stable")[:limit].tolist())


def as_json(outcomes: dict[str, Outcome]) -> dict[str, Any]:
    return {name: value.to_json() for name, value in outcomes.items()}
