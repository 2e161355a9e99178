"""A run that is killed again and again, and goes on each time, against the same run left in peace.

    bash launch/soak.sh                      200 steps, at least 50 kills
    bash launch/soak.sh --steps=12 --kills=4

A life of the run ends by SIGKILL: while it starts, between two steps, or while a checkpoint is being written; one in
eight ends by SIGTERM, on which it is to save. Then it is started again as a launcher would, with ``--resume=auto``. At
the end every array of the last checkpoint, the exported weights and all metrics but times and the gap of sampler and
trainer, at which each life looks once when it starts, must be those of the other run.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from alphaalign_jax.display import Display, figures_table
from alphaalign_jax.parallel.notice import PREEMPTED

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Small enough that most of a life is not its start.
SETTINGS = {
    "mesh.devices": 1,
    "rollout.prompts": 8,
    "rollout.group": 4,
    "algorithm.minibatches": 2,
    "eval.batch": 24,
    "eval.every": 10,
    "eval.limit": 24,
    "checkpoint.every": 2,
}
KINDS = ("starting", "between steps", "in a save", "SIGTERM")


class Life:
    """One process, and what it leaves in its folder meanwhile."""

    def __init__(self, folder: pathlib.Path, settings: dict[str, object], *more: str):
        self.folder = folder
        options = [f"--config.{key}={value}" for key, value in {**settings, "out": folder}.items()]
        self.log = folder.with_suffix(".log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "alphaalign_jax.cli", "train", f"--config={ROOT}/configs/tiny.py", *options, *more],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            cwd=ROOT,
        )

    def alive(self) -> bool:
        return self.process.poll() is None

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self, seconds: float | None = None) -> int:
        status = self.process.wait(seconds)
        self.log.close()
        return status


def steps_done(folder: pathlib.Path) -> int:
    """Training steps that the run has written down."""
    return max((record["step"] + 1 for record in records(folder) if record["phase"] == "train"), default=0)


def records(folder: pathlib.Path) -> Iterator[dict]:
    file = folder / "metrics.jsonl"
    for line in file.read_text().splitlines(keepends=True) if file.is_file() else ():
        if line.endswith("\n"):
            yield json.loads(line)


def saved_steps(folder: pathlib.Path) -> int:
    """Step of the newest checkpoint."""
    return max((int(path.name) for path in (folder / "checkpoints").glob("[0-9]*") if path.name.isdigit()), default=0)


def half_written(folder: pathlib.Path) -> set[pathlib.Path]:
    return {*(folder / "checkpoints").glob("*orbax-checkpoint-tmp*")}


def wait_for(life: Life, kind: str, draw: random.Random) -> None:
    """Until the moment at which the life is to end; or until it has ended by itself."""
    if kind == "starting":
        until = time.monotonic() + draw.uniform(0.2, 6.0)
        while life.alive() and time.monotonic() < until:
            time.sleep(0.02)
        return
    first = saved_steps(life.folder)
    target = max(first, steps_done(life.folder)) + draw.randint(1, 6)
    left = half_written(life.folder)  # by an earlier life
    while life.alive():
        if kind == "in a save" and half_written(life.folder) - left:
            return
        if kind != "in a save" and steps_done(life.folder) >= target:
            time.sleep(draw.uniform(0.0, 0.4))
            return
        time.sleep(0.002 if kind == "in a save" else 0.05)


def outcome(folder: pathlib.Path) -> dict[str, object]:
    """All that two runs must have in common."""
    last = saved_steps(folder)
    meta = json.loads((folder / f"checkpoints/{last}/meta/metadata").read_text())
    free = ("timing_s/", "perf/", "rollout/logprob_gap/")
    metrics = [{k: v for k, v in record.items() if not k.startswith(free)} for record in records(folder)]
    return {
        "step": last,
        "arrays": meta["arrays"],
        "best": meta["progress"]["best"],
        "guards": meta["progress"]["guards"],
        "export": hashlib.sha256((folder / "export/model.safetensors").read_bytes()).hexdigest(),
        "metrics": sorted(metrics, key=lambda r: (r["phase"], r["step"])),
    }


def rewards(folder: pathlib.Path) -> list[float]:
    """Mean reward of each tenth of the run's steps."""
    found = [record["critic/score/mean"] for record in records(folder) if record["phase"] == "train"]
    size = max(1, len(found) // 10)
    return [round(statistics.fmean(found[i : i + size]), 3) for i in range(0, size * (len(found) // size), size)]


def soak(
    folder: pathlib.Path, steps: int, kills: int, minutes: float, seed: int, display: Display
) -> dict[str, object]:
    began, draw = time.monotonic(), random.Random(seed)
    left = lambda: minutes * 60 - (time.monotonic() - began)

    def to_its_end(life: Life, name: str) -> None:
        if life.wait(max(1.0, left())):
            raise SystemExit(f"{name} failed; its log: {life.folder.with_suffix('.log')}")

    settings = {**SETTINGS, "steps": steps}
    live = lambda place: Life(place, settings, "--resume=auto")
    display.say("the run in peace")
    to_its_end(live(folder / "clean"), "the run in peace")
    ended, lost, lives = collections.Counter(), 0, 0
    kept = folder / "killed"
    with display.bar("kills", kills) as advance:
        while sum(ended.values()) < kills and left() > 0 and not (kept / "summary.json").is_file():
            lives += 1
            life, kind = live(kept), draw.choices(KINDS, (1, 3, 3, 1))[0]
            wait_for(life, kind, draw)
            if not life.alive():
                if life.wait():
                    raise SystemExit(
                        f"a life ended with {life.process.returncode}; the log: {kept.with_suffix('.log')}"
                    )
                break
            status = life.end(signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
            if kind == "SIGTERM" and status not in (PREEMPTED, 0):
                raise SystemExit(f"SIGTERM was answered with {status}; the log: {kept.with_suffix('.log')}")
            ended[kind] += 1
            # A step whose end was not written down yet is not counted: it may be one more for each kill.
            lost += max(0, steps_done(kept) - saved_steps(kept))
            advance(1, steps=f"{saved_steps(kept)}/{steps}", lost=str(lost))
    while not (kept / "summary.json").is_file() and left() > 0:
        lives += 1
        to_its_end(live(kept), "the last life")
    if not (kept / "summary.json").is_file():
        raise SystemExit(f"{minutes:g} minutes were not enough: {saved_steps(kept)} of {steps} steps")
    ours, theirs = outcome(kept), outcome(folder / "clean")
    return {
        "steps": steps,
        "kills": sum(ended.values()),
        "by kind": dict(ended),
        "resumes": lives - 1,
        "steps lost": lost,
        "reward by tenth": rewards(kept),
        "differs in": sorted(key for key in ours if ours[key] != theirs[key]),
        "seconds": round(time.monotonic() - began),
        "seed": seed,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kills", type=int, default=50, help="so many at least, where the steps last that long")
    parser.add_argument("--minutes", type=float, default=60, help="after which it is given up")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; the run's own is the config's")
    parser.add_argument("--out", default="runs/soak")
    args = parser.parse_args(argv)
    folder, display = pathlib.Path(args.out).absolute(), Display()
    if folder.exists():
        print(f"{folder} is there already; move it away, or give another --out", file=sys.stderr)
        return 2
    folder.mkdir(parents=True)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    found = soak(folder, args.steps, args.kills, args.minutes, args.seed, display)
    (folder / "soak.json").write_text(json.dumps(found, indent=2) + "\n")
    table = figures_table("soak", ("a run killed and resumed", "found"), left=("a run killed and resumed",), caption="")
    for name in ("steps", "kills", *KINDS, "resumes", "steps lost", "seconds"):
        value = found["by kind"].get(name, 0) if name in KINDS else found[name]
        table.add_row(f"  {name}" if name in KINDS else name, str(value))
    first, last = found["reward by tenth"][0], found["reward by tenth"][-1]
    table.add_row("reward, first and last tenth", f"{first:.2f}, {last:.2f}")
    table.add_row(
        "equal to the run in peace", "no: " + ", ".join(found["differs in"]) if found["differs in"] else "yes"
    )
    display.say(table)
    return int(bool(found["differs in"]))


if __name__ == "__main__":
    sys.exit(main())
