"""Alarms about what a run has come to: collapse, reward hacking, figures that a longer run will not mend.

Each watches a figure of the metrics; an alarm is said when it comes on, not at every step that it stays on. Which of
them end the run is the config's (``guards.stop``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from alphaalign_jax.config.settings import Guards as Settings
from alphaalign_jax.errors import ExpectedError

_REWARD, _LENGTH = "critic/score/mean", "response_length/mean"
_NEEDED, _LEFT_OUT = "reward/needed", "reward/left_out"
_HANDFUL = 8  # answers below which a share of them says nothing


@dataclasses.dataclass(frozen=True)
class Alarm:
    name: str  # the setting that holds its limit
    message: str
    stops: bool


class GuardError(ExpectedError):
    """An alarm that ends the run. Its state is saved; the run can go on from there."""


@dataclasses.dataclass(frozen=True)
class _Rule:
    """An alarm where the mean of ``metric`` over the window, or its newest value, is above the setting of its name."""

    metric: str
    says: str  # with {value}
    newest: bool = False


_RULES = {
    "over_refusal": _Rule("safety/refusal_rate_benign", "{value:.0%} of the responses to benign prompts refuse"),
    "echo": _Rule("hacking/echo", "{value:.0%} of the responses repeat the template's instruction"),
    "empty": _Rule("hacking/empty_reasoning", "{value:.0%} of the reasoning blocks have fewer than two words"),
    "tags": _Rule("hacking/repeated_tags", "{value:.0%} of the responses have a tag more than once"),
    "truncated": _Rule("response_length/clip_ratio", "{value:.0%} of the responses are cut off: they earn no format"),
    "flat": _Rule(
        "reward/equal_groups", "the rollouts of {value:.0%} of the prompts all earn the same: little to learn"
    ),
    "kl": _Rule("actor/kl", "the policy is {value:.3g} nats a token from the initial one", newest=True),
}


class Guards:
    """Watches a run's metrics. ``state``, plain data, is all that it remembers: a resumed run goes on from it."""

    def __init__(self, settings: Settings, state: Mapping[str, Any] | None = None):
        self.settings = settings
        self.state: dict[str, Any] = {
            "windows": {},  # metric -> its newest values
            "first_length": None,  # mean response length of the run's first window
            "skipping": 0,  # steps in a row in which an optimizer step was left out
            "no_format": 0,  # steps in a row without a response in format
            "no_score": 0,  # steps with benign prompts, in a row, without a score
            "best": None,  # [score, training reward] of the best look
            "on": [],  # alarms that are on
            "count": {},  # alarm -> times that it came on
            **(state or {}),
        }
        # One that ended the run is said, and ends it, again: who goes on regardless takes it out of guards.stop.
        self.state["on"] = [name for name in self.state["on"] if name not in settings.stop]

    def step(self, metrics: Mapping[str, float]) -> list[Alarm]:
        """Alarms that come on with a training step's metrics."""
        for metric in {rule.metric for rule in _RULES.values()} | {_REWARD, _LENGTH, _NEEDED, _LEFT_OUT}:
            if metric in metrics and math.isfinite(metrics[metric]):
                values = [*self.state["windows"].get(metric, []), float(metrics[metric])]
                self.state["windows"][metric] = values[-self.settings.window :]
        found = {name: self._above(name, rule, metrics) for name, rule in _RULES.items()}
        found |= {"skipped": self._skipped(metrics), "length": self._length(), "unscored": self._unscored()}
        return self._coming_on(found | self._nothing(metrics))

    def look(self, score: float | None, best: float | None) -> list[Alarm]:
        """Alarms that come on with the score of a look. ``best``: that of the best look before it, None without."""
        if score is None:
            return []
        return self._coming_on({"collapse": self.collapse(score, best)} | self._hacked(score))

    def collapse(self, score: float | None, best: float | None) -> str:
        """Return how far a look's score has fallen, '' if that is no collapse."""
        limit = self.settings.collapse
        if not limit or score is None or best is None or best - score <= limit:
            return ""
        return f"the score of a look fell from {best:.2f}, the best, to {score:.2f}"

    def go_back(self) -> None:
        """Forget the steps that led to a state the run has left."""
        self.state |= {"windows": {}, "on": [], "skipping": 0, "no_format": 0, "no_score": 0}

    def _hacked(self, score: float) -> dict[str, str]:
        """Judge whether the score of looks falls while the training reward is up."""
        reward, limit = self._mean(_REWARD), self.settings.heldout
        if reward is None or not limit:
            return {}
        best = self.state["best"]
        if best is None or score > best[0]:
            self.state["best"] = [score, reward]
            return {"heldout": ""}
        fell = best[0] - score > limit and reward > best[1]
        says = f"the score of looks fell from {best[0]:.2f} to {score:.2f} while the reward rose from {best[1]:.2f} to "
        return {"heldout": f"{says}{reward:.2f}" if fell else ""}

    def _above(self, name: str, rule: _Rule, metrics: Mapping[str, float]) -> str:
        limit = getattr(self.settings, name)
        value = metrics.get(rule.metric) if rule.newest else self._mean(rule.metric)
        return rule.says.format(value=value) if limit and value is not None and value > limit else ""

    def _skipped(self, metrics: Mapping[str, float]) -> str:
        left_out = metrics.get("actor/skipped", 0) + metrics.get("critic/skipped", 0)
        steps, limit = self._in_a_row("skipping", bool(left_out)), self.settings.skipped
        if not limit or steps < limit:
            return ""
        return f"in {steps} steps in a row a loss or gradient was no finite number"

    def _unscored(self) -> str:
        """Judge the newest step, or as many of the newest as it takes to have a handful of answers."""
        needed = left_out = 0
        windows = (reversed(self.state["windows"].get(name, [])) for name in (_NEEDED, _LEFT_OUT))
        for answers, without in zip(*windows, strict=True):
            needed += answers
            left_out += without
            if needed >= _HANDFUL:
                break
        limit = self.settings.unscored
        if not limit or needed < _HANDFUL or left_out <= limit * needed:
            return ""
        return f"the reward model could not score {left_out / needed:.0%} of the answers"

    def _nothing(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Judge whether anything was in format, and scored: only of what the step had."""
        found = {}
        if "safety/format_rate" in metrics:
            says = "nothing is in format, and no response earns the format's reward; a warm-up teaches it"
            steps = self._in_a_row("no_format", metrics["safety/format_rate"] == 0)
            limit = self.settings.no_format
            found["no_format"] = f"{says} (warmup.epochs)" if limit and steps >= limit else ""
        if metrics.get("reward/benign"):  # none in a step of harmful prompts, or if the reward is off
            failed = metrics["reward/unscorable"]
            why = f"the reward model failed on all {failed:.0f} answers" if failed else "none had an answer"
            says = f"nothing was scored: of the {metrics['reward/benign']:.0f} responses to benign prompts {why}"
            steps = self._in_a_row("no_score", metrics["reward/scored"] == 0)
            limit = self.settings.no_score
            found["no_score"] = says if limit and steps >= limit else ""
        return found

    def _in_a_row(self, name: str, happened: bool) -> int:
        """Count the steps in a row in which something has happened, this one included."""
        self.state[name] = self.state[name] + 1 if happened else 0
        return self.state[name]

    def _length(self) -> str:
        mean, limit = self._mean(_LENGTH), self.settings.length
        if mean is None:
            return ""
        if self.state["first_length"] is None:
            self.state["first_length"] = mean
        times = mean / max(self.state["first_length"], 1.0)
        return f"responses are {times:.1f} times as long as at the start" if limit and times > limit else ""

    def _mean(self, metric: str) -> float | None:
        """Over the window; None before it is full."""
        values = self.state["windows"].get(metric, [])
        return sum(values) / len(values) if len(values) >= self.settings.window else None

    def _coming_on(self, found: Mapping[str, str]) -> list[Alarm]:
        """``found``: the message of each alarm that is judged now, empty where it is off."""
        alarms = []
        for name, message in found.items():
            if message and name not in self.state["on"]:
                self.state["on"].append(name)
                self.state["count"][name] = self.state["count"].get(name, 0) + 1
                limit = f"guards.{name}={getattr(self.settings, name):g}"
                alarms.append(Alarm(name, f"{name}: {message} ({limit})", name in self.settings.stop))
            elif not message and name in self.state["on"]:
                self.state["on"].remove(name)
        return alarms
