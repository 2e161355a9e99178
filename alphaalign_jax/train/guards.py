"""Alarms about a failing run: collapse, reward hacking, and problems that more steps will not fix.

Each alarm watches a metric. It is reported when it switches on, not at every step that it stays on.
The alarms named in ``guards.stop`` end the run.
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
_HANDFUL = 8  # fewest answers for a meaningful share of them


@dataclasses.dataclass(frozen=True)
class Alarm:
    name: str  # the name of the setting in ``guards`` that holds its limit
    message: str
    stops: bool


class GuardError(ExpectedError):
    """An alarm stopped the run. Reinforcement learning saves its state first, and can resume."""


@dataclasses.dataclass(frozen=True)
class _Rule:
    """An alarm that is on while a metric exceeds the setting with the alarm's name."""

    metric: str
    says: str  # message template with {value}
    newest: bool = False  # compare the newest value instead of the mean over the window


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
    """Watch a run's metrics. All memory is in ``state``, plain data that a resumed run restores."""

    def __init__(self, settings: Settings, state: Mapping[str, Any] | None = None):
        self.settings = settings
        self.state: dict[str, Any] = {
            "windows": {},  # metric -> its newest values
            "first_length": None,  # mean response length of the run's first window
            "skipping": 0,  # consecutive steps with a skipped optimizer step
            "no_format": 0,  # consecutive steps without a response in format
            "no_score": 0,  # consecutive steps with benign prompts, but without a score
            "best": None,  # [score, training reward] of the best periodic evaluation
            "on": [],  # alarms that are on
            "count": {},  # alarm -> how often it switched on
            **(state or {}),
        }
        # Re-arm alarms that stop the run: it stops again unless guards.stop no longer names them.
        self.state["on"] = [name for name in self.state["on"] if name not in settings.stop]

    def step(self, metrics: Mapping[str, float]) -> list[Alarm]:
        """Return the alarms that switch on with the metrics of a training step."""
        for metric in {rule.metric for rule in _RULES.values()} | {_REWARD, _LENGTH, _NEEDED, _LEFT_OUT}:
            if metric in metrics and math.isfinite(metrics[metric]):
                values = [*self.state["windows"].get(metric, []), float(metrics[metric])]
                self.state["windows"][metric] = values[-self.settings.window :]
        found = {name: self._above(name, rule, metrics) for name, rule in _RULES.items()}
        found |= {"skipped": self._skipped(metrics), "length": self._length(), "unscored": self._unscored()}
        return self._coming_on(found | self._nothing(metrics))

    def look(self, score: float | None, best: float | None) -> list[Alarm]:
        """Return the alarms that switch on with the score of a periodic evaluation.

        ``best``: the best score before it, None if there is none.
        """
        if score is None:
            return []
        return self._coming_on({"collapse": self.collapse(score, best)} | self._hacked(score))

    def collapse(self, score: float | None, best: float | None) -> str:
        """Return a message with both scores if an evaluation's score has collapsed, else ''."""
        limit = self.settings.collapse
        if not limit or score is None or best is None or best - score <= limit:
            return ""
        return f"the score of a look fell from {best:.2f}, the best, to {score:.2f}"

    def go_back(self) -> None:
        """Forget the steps before a rollback: they led to a state that the run has left."""
        self.state |= {"windows": {}, "on": [], "skipping": 0, "no_format": 0, "no_score": 0}

    def _hacked(self, score: float) -> dict[str, str]:
        """Return the "heldout" alarm: on if evaluations get worse while the training reward rises.

        Both are compared with the best evaluation. Return {} if the reward's window is not full or
        the limit ``guards.heldout`` is 0.
        """
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
        return f"in {steps} steps in a row a loss or gradient was non-finite"

    def _unscored(self) -> str:
        """Return the message if too few answers were scored, else ''.

        Go back through the window only until ``_HANDFUL`` answers are found.
        """
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
        """Return the "no_format" and "no_score" alarms, each only if the step has its metrics."""
        found = {}
        if "safety/format_rate" in metrics:
            says = "nothing is in format, and no response earns the format's reward; a warm-up teaches it"
            steps = self._in_a_row("no_format", metrics["safety/format_rate"] == 0)
            limit = self.settings.no_format
            found["no_format"] = f"{says} (warmup.epochs)" if limit and steps >= limit else ""
        if metrics.get("reward/benign"):  # 0 if all prompts are harmful or the reward is off
            failed = metrics["reward/unscorable"]
            why = f"the reward model failed on all {failed:.0f} answers" if failed else "none had an answer"
            says = f"nothing was scored: of the {metrics['reward/benign']:.0f} responses to benign prompts {why}"
            steps = self._in_a_row("no_score", metrics["reward/scored"] == 0)
            limit = self.settings.no_score
            found["no_score"] = says if limit and steps >= limit else ""
        return found

    def _in_a_row(self, name: str, happened: bool) -> int:
        """Update and return the number of consecutive steps, this one included, with an event."""
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
        """Return the mean of a metric over the window, None before the window is full."""
        values = self.state["windows"].get(metric, [])
        return sum(values) / len(values) if len(values) >= self.settings.window else None

    def _coming_on(self, found: Mapping[str, str]) -> list[Alarm]:
        """Return the alarms that switch on now, and update the state.

        ``found``: the message of each alarm judged now, '' if it is off.
        """
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
