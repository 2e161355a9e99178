"""``alphaalign bench``: what each phase of a config's step takes, and how far that is from what the machine can do."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
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


def run(config: Config, *, repeats: int, growth: bool, wait: bool, out: str, command: str = "") -> dict[str, Any]:
    """Measures ``config``, prints the tables, and writes what was found to ``out`` as JSON."""
    if repeats < 1:
        raise ValueError(f"--repeats={repeats}: expected at least 1")
    output.check(out)
    display, r = Display(), config.rollout
    bench = Bench(assembly.prepare(config), repeats)
    shards = bench.p.engine.layout.size("batch")
    shapes = _growth(r.prompts, r.group, r.max_new_tokens, shards) if growth else []
    with display.bar("bench", 5 + wait + len(shapes)) as advance:
        memory = ceilings.memory_rate()
        advance(1)
        parts = bench.rollout(r.prompts, r.group, r.max_new_tokens)
        advance(1)
        parts += bench.training()
        advance(1)
        phases = [*parts, bench.step(parts)]
        advance(1)
        skew = bench.skewed(r.prompts, r.group, r.max_new_tokens)
        advance(1)
        waited = None
        if wait:
            waited = bench.reward_wait(next(part.seconds for part in parts if part.name == "update_actor"))
            advance(1)
        grown = []
        for count, group, response in shapes:
            fill, decode = bench.rollout(count, group, response, beside=False)
            grown.append({"prompts": count, "group": group, "response": response, **_rollout_figures(fill, decode)})
            advance(1)
    devices = bench.p.train_layout.mesh.size
    found = {
        "command": command,
        "device": f"{devices} x {jax.devices()[0].device_kind}",
        "memory_bytes_per_second": memory,
        "phases": [judged(phase, devices, memory) for phase in phases],
        "skewed": skew,
        "reward_wait": waited,
        "growth": grown,
        "peak_memory_bytes": peak_memory(),
        "versions": versions(),
        "config": dataclasses.asdict(config),
    }
    output.write(out, json.dumps(found, indent=2) + "\n")
    for table in tables(found):
        display.say(table)
    display.say(
        f"where 9 responses in 10 end after an eighth of {r.max_new_tokens} tokens: "
        f"{skew['dropped_tokens_per_second']:.0f} tokens/s, {skew['ratio']:.2f} times those of one static batch"
    )
    if waited:
        display.say(
            f"a reward model that takes {waited['reward_model']:.1f} s makes a step of {waited['none']:.1f} s one of "
            f"{waited['waited']:.1f} s, and with rollout.ahead of {waited['ahead']:.1f} s"
        )
    display.say(f"peak memory {found['peak_memory_bytes'] / 1024**3:.1f} GiB; {out}")
    return found


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
    """Phases, and how the rollout's time grows."""
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
    if not found["growth"]:
        return [phases]
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
    return [phases, growth]
