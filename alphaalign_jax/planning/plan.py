"""A config on a described topology: each program compiled, its cost, and what they make of a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from alphaalign_jax import hf
from alphaalign_jax.config import Config
from alphaalign_jax.models import ModelSpec, published
from alphaalign_jax.planning.chips import Chip
from alphaalign_jax.planning.compiled import Compiled, TooLarge
from alphaalign_jax.planning.estimate import Cost, estimate
from alphaalign_jax.planning.programs import Job, Program, Tokens
from alphaalign_jax.train import assembly


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step costs. ``costs`` ends before the first program that the compiler gave up on (``failed``)."""

    config: Config
    chip: Chip
    chips: int
    mesh: dict[str, int]
    held: dict[str, float]  # bytes a chip of each part of the state
    costs: tuple[Cost, ...]
    failed: TooLarge | None
    dollars_hour: float  # of a chip

    @property
    def peak(self) -> float:
        """Bytes a chip of the program that takes most."""
        alone = (self.failed.bytes,) if self.failed else ()
        return max((*alone, *(cost.memory.total for cost in self.costs)))

    @property
    def fits(self) -> bool:
        return self.failed is None and self.peak <= self.chip.hbm_bytes

    @property
    def step_seconds(self) -> float:
        return sum(cost.seconds for cost in self.costs)

    @property
    def tokens_second_chip(self) -> float:
        r = self.config.rollout
        return r.prompts * r.group * r.max_new_tokens / self.step_seconds / self.chips

    @property
    def mfu(self) -> float:
        return sum(cost.flops for cost in self.costs) / self.step_seconds / self.chip.flops(self.config.model.dtype)

    @property
    def chip_hours(self) -> float:
        """Of the whole run's steps."""
        return self.config.steps * self.step_seconds * self.chips / 3600

    def to_json(self) -> dict[str, Any]:
        c = self.config
        found = {
            "chip": dataclasses.asdict(self.chip),
            "chips": self.chips,
            "mesh": self.mesh,
            "train_rules": c.mesh.train_rules,
            "rollout_rules": c.mesh.rollout_rules,
            "micro_batch": c.algorithm.micro_batch,
            "remat": c.model.remat,
            "held_bytes": self.held,
            "programs": [
                dataclasses.asdict(cost)
                | {"seconds": cost.seconds, "total_bytes": cost.memory.total, "bound": cost.bound}
                for cost in self.costs
            ],
            "peak_bytes": self.peak,
            "fits": self.fits,
            "failed": str(self.failed) if self.failed else None,
        }
        if self.failed is None:
            found |= {
                "step_seconds": self.step_seconds,
                "tokens_per_second_per_chip": self.tokens_second_chip,
                "mfu": self.mfu,
                "chip_hours": self.chip_hours,
                "dollars": self.chip_hours * self.dollars_hour,
            }
        return found


def architecture(path: str) -> ModelSpec:
    """Return the architecture of the model at ``path``; of a published one also if its files are not at hand."""
    known = published.config_of(path)
    return hf.spec_of(known) if known else hf.load_spec(path)


def job(config: Config, devices: Sequence[Any], tokens: Tokens) -> Job:
    """What there is to plan."""
    rewards = assembly.reward_classifier(config)
    return Job(
        config,
        architecture(config.model.path),
        devices,
        tokens,
        reward_model=architecture(rewards) if rewards else None,
    )


def plan(
    job: Job,
    chip: Chip,
    compile: Callable[[Program], Compiled],
    *,
    dollars_hour: float | None = None,
    on_program: Callable[[str], None] = lambda name: None,
) -> Plan:
    """Lowers and compiles every program of a step. ``on_program`` is called with the name of each before."""
    costs: list[Cost] = []

    def announced(program: Program) -> Compiled:
        on_program(program.name)
        return compile(program)

    failed = None
    try:
        for program, made in job.programs(announced):
            costs.append(estimate(job, chip, program, made))
    except TooLarge as error:
        failed = error
    price = chip.dollars_hour if dollars_hour is None else dollars_hour
    return Plan(job.config, chip, job.chips, dict(job.layout.mesh.shape), job.held(), tuple(costs), failed, price)
