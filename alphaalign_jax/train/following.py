"""Report steps and alarms to the terminal and to the log files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from alphaalign_jax.config.settings import Guards as Settings
from alphaalign_jax.display import Display
from alphaalign_jax.parallel import compiles_since
from alphaalign_jax.train.guards import Alarm, GuardError, Guards
from alphaalign_jax.train.records import Records


def sound(alarms: Sequence[Alarm], phase: str, step: int, records: Records, display: Display) -> Alarm | None:
    """Show and record the alarms. Return the first one that stops the run, else None."""
    for alarm in alarms:
        records.alarm(phase, step, alarm.name, alarm.message)
        display.say(f"alarm at {phase} step {step}: {alarm.message}")
    return next((alarm for alarm in alarms if alarm.stops), None)


def figures(metrics: Mapping[str, float]) -> dict[str, str]:
    """Return a step's metrics for the progress bar, most important first: the rest may wrap."""
    return {
        "refuses harmful": f"{100 * metrics['safety/refusal_rate_harmful']:.0f} %",
        "benign": f"{100 * metrics['safety/refusal_rate_benign']:.0f} %",
        "format": f"{100 * metrics['safety/format_rate']:.0f} %",
        "reward": f"{metrics['critic/score/mean']:.2f}",
    }


def compiled(before: tuple[int, float]) -> dict[str, float]:
    """Return the programs and the compile seconds since ``compiles`` returned ``before``."""
    programs, seconds = compiles_since(before)
    return {"programs": programs, "seconds": seconds}


def supervised(
    phase: str, settings: Settings, records: Records, display: Display, advance: Callable[..., None]
) -> Callable[[int, Mapping[str, float]], None]:
    """Return the ``on_step`` callback of supervised training.

    It records metrics, and raises GuardError if the alarm about skipped updates stops the training.
    Supervised training saves no state to resume from.
    """
    guards = Guards(settings)

    def on_step(step: int, values: Mapping[str, float]) -> None:
        records.metrics(phase, step, values)
        advance(1, loss=f"{values['sft/loss']:.3f}")
        ends = sound(guards.step({"actor/skipped": values["sft/skipped"]}), phase, step, records, display)
        if ends is not None:
            raise GuardError(f"{phase} step {step}: {ends.message}; nothing of it is kept")

    return on_step
