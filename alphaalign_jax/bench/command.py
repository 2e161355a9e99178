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
from alphaalign_jax.display import Display
from alphaalign_jax.models.cost import layer_gemms
from alphaalign_jax.models.spec import ModelSpec
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
        limits = Ceilings(bench)
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
            fill, decode = bench.rollout(count, group, response)
            grown.append({"prompts": count, "group": group, "response": response, **_rollout_figures(fill, decode)})
            advance(1)
    found = {
        "command": command,
        "device": f"{limits.devices} x {jax.devices()[0].device_kind}",
        "ceilings": limits.to_json(),
        "phases": [limits.judge(phase) for phase in phases],
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


class Ceilings:
    """The machine's limits for a bench's model, measured once, and phases judged by them."""

    def __init__(self, bench: Bench):
        p, r = bench.p, bench.p.config.rollout
        self.devices = p.train_layout.mesh.size
        self.dtypes = {"rollout": p.config.model.rollout_dtype, "train": p.config.model.dtype}
        self.peak = {dtype: ceilings.peak_gemm_rate(dtype) for dtype in sorted({*self.dtypes.values()})}
        self.memory = ceilings.memory_rate()
        # Floors: the time of the weight products alone, at the rate measured for their shapes. How several devices
        # share the shapes is not measured here: there are none then.
        self.floors: dict[str, float] = {}
        if self.devices > 1:
            return
        work = bench.workload(r.prompts, r.group, r.max_new_tokens)
        part = r.prompts // p.config.algorithm.minibatches
        decode = self._products(p.policy.spec, work.rows, "rollout", logits=work.rows)
        self.floors["decode"] = r.max_new_tokens * decode
        for name, network in (("actor", p.actor), ("critic", p.critic)):
            if network is not None:
                responses = round(part * work.group * work.response)
                rows = round(part * work.prompt + work.prefix) + responses
                once = self._products(network.spec, rows, "train", logits=responses if network.head == "lm" else 0)
                times = 3 * p.config.algorithm.minibatches * p.config.algorithm.epochs
                self.floors[f"update_{name}"] = times * once

    def _products(self, spec: ModelSpec, rows: int, use: str, *, logits: int) -> float:
        """Seconds of one pass of ``rows`` tokens through all layers, and of ``logits`` of them through the head."""
        dtype, rates = self.dtypes[use], {}
        seconds = spec.num_layers * ceilings.gemm_seconds(rows, list(layer_gemms(spec).values()), dtype, rates)
        if logits:
            seconds += ceilings.gemm_seconds(logits, [(spec.hidden_size, spec.vocab_size)], dtype, rates)
        return seconds

    def judge(self, phase: Phase) -> dict[str, Any]:
        """A phase's figures, None where it has no such limit."""
        dtype = self.dtypes["rollout" if phase.name in ("prefill", "decode") else "train"]
        floor = self.floors.get(phase.name)
        return {
            "phase": phase.name,
            "seconds": phase.seconds,
            "compile_seconds": phase.compile_seconds,
            "tokens_per_second": phase.tokens / phase.seconds,
            "flops": phase.flops,
            "mfu": phase.flops / phase.seconds / self.devices / self.peak[dtype] if phase.flops else None,
            "gemm_share": floor / phase.seconds if floor else None,
            # Several devices each read weights of their own: how many bytes, the layout says, not the model.
            "memory_share": phase.bytes / phase.seconds / self.memory if phase.bytes and self.devices == 1 else None,
        }

    def to_json(self) -> dict[str, Any]:
        """Of one device."""
        return {"gemm_flops_per_second": self.peak, "memory_bytes_per_second": self.memory}


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
    limits = found["ceilings"]
    peaks = ", ".join(f"{rate / 1e9:.0f} GFLOP/s {dtype}" for dtype, rate in limits["gemm_flops_per_second"].items())
    title = f"{found['device']}: {peaks}, {limits['memory_bytes_per_second'] / 1024**3:.1f} GiB/s read"
    phases = rich.table.Table(title=title, title_justify="left")
    for name in ("phase", "compile s", "s", "tokens/s", "GFLOP/s", "MFU", "of its GEMMs", "of memory"):
        phases.add_column(name, justify="left" if name == "phase" else "right", no_wrap=name == "phase")
    for phase in found["phases"]:
        phases.add_row(
            phase["phase"],
            f"{phase['compile_seconds']:.1f}",
            f"{phase['seconds']:.3f}",
            f"{phase['tokens_per_second']:.0f}",
            f"{phase['flops'] / phase['seconds'] / 1e9:.0f}" if phase["flops"] else "-",
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
