"""``alphaalign bench``: what each phase of a config's step takes, and how far that is from what the machine can do."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
from collections.abc import Sequence
from typing import Any

import jax
import rich.table

from alphaalign_jax import output
from alphaalign_jax.bench import ceilings
from alphaalign_jax.bench.phases import Bench, Phase
from alphaalign_jax.config import Config
from alphaalign_jax.display import Display, figures_table
from alphaalign_jax.train import assembly
from alphaalign_jax.train.records import versions

# What there is to measure: a step and its phases; responses of which nine in ten are short; steps with a reward model
# as slow as the update; rollouts of smaller sizes.
PARTS = ("phases", "skewed", "wait", "growth")


def run(config: Config, *, repeats: int, parts: Sequence[str], out: str, command: str = "") -> dict[str, Any]:
    """Measures ``parts`` of ``PARTS``, prints the tables, and writes what was found to ``out`` as JSON."""
    _check(repeats, parts, out)
    bench, display, r = Bench(assembly.prepare(config), repeats), Display(), config.rollout
    sizes = (r.prompts, r.group, r.max_new_tokens)
    devices, shards = bench.p.train_layout.mesh.size, bench.p.engine.layout.size("batch")
    shapes = _growth(*sizes, shards) if "growth" in parts else []
    found: dict[str, Any] = {"command": command, "device": f"{devices} x {jax.devices()[0].device_kind}"}
    with display.bar("bench", len({*parts} - {"growth"}) + len(shapes)) as advance:
        memory = found["memory_bytes_per_second"] = ceilings.memory_rate()
        if "phases" in parts:
            phases = [*bench.rollout(*sizes), *bench.training()]
            phases.append(bench.step(phases))
            found["phases"] = [judged(phase, devices, memory) for phase in phases]
            advance(1)
        if "skewed" in parts:
            found["skewed"] = bench.skewed(*sizes)
            advance(1)
        if "wait" in parts:
            update = next(phase.seconds for phase in phases if phase.name == "update_actor")
            found["reward_wait"] = bench.reward_wait(update)
            advance(1)
        found["growth"] = []
        for count, group, response in shapes:
            fill, decode = bench.rollout(count, group, response, beside=False)
            figures = _rollout_figures(fill, decode)
            found["growth"].append({"prompts": count, "group": group, "response": response, **figures})
            advance(1)
    found |= {"peak_memory_bytes": peak_memory(), "versions": versions(), "config": dataclasses.asdict(config)}
    output.write(out, json.dumps(found, indent=2) + "\n")
    for table in tables(found):
        display.say(table)
    peak = f"peak memory {found['peak_memory_bytes'] / 1024**3:.1f} GiB; {out}"
    display.say("\n".join([*_in_words(found, r.max_new_tokens), peak]))
    return found


def _check(repeats: int, parts: Sequence[str], out: str) -> None:
    if repeats < 1:
        raise ValueError(f"--repeats={repeats}: expected at least 1")
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ValueError(f"--parts={','.join(parts)}: expected some of {', '.join(PARTS)}")
    if "wait" in parts and "phases" not in parts:
        raise ValueError("--parts: wait takes as long as the update, which is one of the phases; ask for phases too")
    output.check(out)


def _in_words(found: dict[str, Any], slots: int) -> list[str]:
    lines = []
    if "skewed" in found:
        rate, ratio = found["skewed"]["dropped_tokens_per_second"], found["skewed"]["ratio"]
        lines.append(
            f"where 9 responses in 10 end after an eighth of {slots} tokens: {rate:.0f} tokens/s, {ratio:.2f} times "
            "those of one static batch"
        )
    if "reward_wait" in found:
        seconds = found["reward_wait"]
        lines.append(
            f"a reward model that takes {seconds['reward_model']:.1f} s makes a step of {seconds['none']:.1f} s one of "
            f"{seconds['waited']:.1f} s, and with rollout.ahead of {seconds['ahead']:.1f} s"
        )
    return lines


def judged(phase: Phase, devices: int, memory: float) -> dict[str, Any]:
    """A phase's figures, None where there is no such limit. ``memory``: bytes per second that one device reads."""
    return {
        "phase": phase.name,
        "seconds": phase.seconds,
        "compile_seconds": phase.compile_seconds,
        "tokens_per_second": phase.tokens / phase.seconds,
        "flops": phase.flops,
        "peak_flops_per_second": phase.peak,
        "mfu": phase.flops / phase.seconds / devices / phase.peak if phase.flops and phase.peak else None,
        "gemm_share": phase.gemm_share,
        # Several devices each read weights of their own: how many bytes, the layout says, not the model.
        "memory_share": phase.bytes / phase.seconds / memory if phase.bytes and devices == 1 else None,
    }


def _growth(prompts: int, group: int, response: int, shards: int) -> list[tuple[int, int, int]]:
    """Shapes that halve one size at a time, twice; prompts as far as they divide over ``shards`` devices."""
    cut = lambda n: [n // divisor for divisor in (2, 4) if n // divisor]
    shapes = [(prompts, group, t) for t in cut(response)]
    shapes += [(b, group, response) for b in cut(prompts) if b % shards == 0]
    return shapes + [(prompts, g, response) for g in cut(group)]


def _rollout_figures(fill: Phase, decode: Phase) -> dict[str, float]:
    total = fill.seconds + decode.seconds
    return {
        "prefill_seconds": fill.seconds,
        "decode_seconds": decode.seconds,
        "tokens_per_second": decode.tokens / total,
    }


def peak_memory() -> int:
    """Bytes: the fullest device's peak, or this process's where devices keep no count (CPU)."""
    counts = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    unit = 1 if sys.platform == "darwin" else 1024
    return max(counts) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def tables(found: dict[str, Any]) -> list[rich.table.Table]:
    """Phases, and how the rollout's time grows; what was measured of them."""
    made = [_phases(found)] if "phases" in found else []
    return [*made, _grown(found)] if found["growth"] else made


def _phases(found: dict[str, Any]) -> rich.table.Table:
    percent = lambda share: "-" if share is None else f"{100 * share:.0f} %"
    limit = lambda rate: "-" if rate is None else f"{rate / 1e9:.0f}"
    title = f"{found['device']}, of one device: {found['memory_bytes_per_second'] / 1024**3:.1f} GiB/s read"
    columns = ("phase", "compile", "s", "tokens/s", "GFLOP/s", "square", "MFU", "GEMMs", "memory")
    caption = (
        "compile: seconds. square: GFLOP/s of a square product, measured beside the phase. GEMMs: the time of the "
        "phase's own weight products alone, as a share of the phase's. memory: what must be read, at the rate above."
    )
    phases = figures_table(title, columns, left=("phase",), caption=caption)
    for phase in found["phases"]:
        rate = phase["tokens_per_second"]
        phases.add_row(
            phase["phase"],
            f"{phase['compile_seconds']:.1f}",
            f"{phase['seconds']:.3f}" if phase["seconds"] < 10 else f"{phase['seconds']:.1f}",
            f"{rate:.0f}" if rate < 1e6 else "-",  # verdicts: next to nothing
            f"{phase['flops'] / phase['seconds'] / 1e9:.0f}" if phase["flops"] else "-",
            limit(phase["peak_flops_per_second"]),
            *map(percent, (phase["mfu"], phase["gemm_share"], phase["memory_share"])),
        )
    return phases


def _grown(found: dict[str, Any]) -> rich.table.Table:
    growth = rich.table.Table(title="rollout by size", title_justify="left")
    for name in ("prompts", "samples each", "new tokens", "prefill s", "decode s", "tokens/s"):
        growth.add_column(name, justify="right")
    for row in found["growth"]:
        growth.add_row(
            *(str(row[key]) for key in ("prompts", "group", "response")),
            f"{row['prefill_seconds']:.3f}",
            f"{row['decode_seconds']:.3f}",
            f"{row['tokens_per_second']:.0f}",
        )
    return growth
