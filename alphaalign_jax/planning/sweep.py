"""Many layouts of one config: all combinations of given settings, planned, and ranked."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from alphaalign_jax import config as configs
from alphaalign_jax.config import Config
from alphaalign_jax.display import BYTES, quantity
from alphaalign_jax.planning.chips import Chip
from alphaalign_jax.planning.compiled import Compiled
from alphaalign_jax.planning.plan import Plan, job, plan
from alphaalign_jax.planning.programs import Program, Tokens

# Mesh shapes (fsdp takes what tensor leaves), rule tables, slices of a gradient, and what the backward pass keeps.
DEFAULT = {
    "mesh.tensor": ("1", "2", "4"),
    "mesh.rollout_rules": ("tensor", "fsdp_tensor"),
    "algorithm.micro_batch": ("0", "1"),
    "model.remat": ("full", "dots"),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """One combination: its plan, or why there is none."""

    settings: dict[str, str]
    plan: Plan | None
    why: str = ""  # refused, or pruned before any compile

    @property
    def name(self) -> str:
        return ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.settings.items())

    @property
    def fits(self) -> bool:
        return self.plan is not None and self.plan.fits

    def to_json(self) -> dict[str, Any]:
        return {"settings": self.settings, "why": self.why} | (self.plan.to_json() if self.plan else {})


def check(path: str, overrides: Sequence[tuple[str, str]], axes: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError for a config that cannot be read, a setting that there is not, or a value of another type.

    Of these no layout is to be had; what else a layout's settings rule out is said beside it.
    """
    config = configs.read(path, overrides)
    for key, value in ((key, value) for key, values in axes.items() for value in values):
        try:
            configs.override(config, key, value)
        except ValueError as error:
            raise ValueError(str(error).replace("--config.", "--sweep.")) from None


def combinations(axes: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def run(
    path: str,
    overrides: Sequence[tuple[str, str]],
    axes: Mapping[str, Sequence[str]],
    chip: Chip,
    devices: Sequence[Any],
    tokens: Callable[[Config], Tokens],
    compile: Callable[[Program], Compiled],
    *,
    dollars_hour: float | None,
    on_layout: Callable[[Layout], None],
) -> list[Layout]:
    """Every combination of ``axes`` (settings of ``--config``), the fastest that fit first.

    Then comes what does not fit, then what was refused. A layout whose weights and optimizer alone are more than a chip
    holds is not compiled.
    """
    found = []
    for settings in combinations(axes):
        layout = _planned(path, [*overrides, *settings.items()], settings, chip, devices, tokens, compile, dollars_hour)
        on_layout(layout)
        found.append(layout)
    rank = lambda layout: (
        (2, 0.0) if layout.plan is None else (0, layout.plan.step_seconds) if layout.fits else (1, layout.plan.peak)
    )
    return sorted(found, key=rank)


def _planned(path, overrides, settings, chip, devices, tokens, compile, dollars_hour) -> Layout:
    try:
        config = configs.load(path, overrides)
        planned = job(config, devices, tokens(config))
        held = sum(planned.held().values())
        if held > chip.hbm_bytes:
            return Layout(settings, None, f"weights and optimizers alone take {quantity(held, BYTES)} a chip")
        return Layout(settings, plan(planned, chip, compile, dollars_hour=dollars_hour))
    except ValueError as error:
        return Layout(settings, None, str(error))


def front(layouts: Sequence[Layout]) -> list[Layout]:
    """Those that fit and that no other beats both in time and in memory."""
    fitting = [layout for layout in layouts if layout.fits]
    beats = lambda a, b: (
        a.plan.step_seconds <= b.plan.step_seconds
        and a.plan.peak <= b.plan.peak
        and (a.plan.step_seconds, a.plan.peak) != (b.plan.step_seconds, b.plan.peak)
    )
    return [one for one in fitting if not any(beats(other, one) for other in fitting)]
