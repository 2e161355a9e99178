"""Two programs that take turns, each in a process of its own: the one that waits gives its free memory back.

What counts is the ratio of two turns one after the other: a machine's speed drifts by more than most differences.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from alphaalign_jax import hf, output
from alphaalign_jax.display import Display

HERE = pathlib.Path(__file__).parent


class Worker:
    """A program that was started to take turns (``peers/worker.py``)."""

    def __init__(self, command: list[str]):
        self.command = command
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def turn(self) -> dict[str, float]:
        """What the program says of its turn."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{' '.join(self.command)} ended with {self.process.wait()} in its turn")
        return json.loads(answer)

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(
    script: str, peer: str, ours: str, args: argparse.Namespace, prepare: Callable[[str], Any], display: Display
) -> tuple[dict[str, dict[str, float]], float]:
    """Runs ``peers/{peer}_{script}.py`` and our program ``ours`` in turns.

    ``prepare`` writes into a folder what the peer reads beside the model. Returns the medians of what each said, and
    of the rounds' ratios of their seconds; ``args.out`` is written.
    """
    work = json.dumps(vars(args))
    with tempfile.TemporaryDirectory() as folder:
        hf.convert(args.model, f"{folder}/hf", "hf")
        prepare(folder)
        commands = {
            peer: [args.peer_python, str(HERE / "peers" / f"{peer}_{script}.py"), folder, work],
            "alphaalign": [sys.executable, str(HERE / ours), work],
        }
        turns = _alternate(commands, args.rounds, display)
    ratio = _median([a["seconds"] / b["seconds"] for a, b in zip(*turns.values(), strict=True)])
    if args.out:
        output.write(args.out, json.dumps({**vars(args), "turns": turns, "ratio": ratio}, indent=2) + "\n")
    return {
        name: {key: _median([turn[key] for turn in said]) for key in said[0]} for name, said in turns.items()
    }, ratio


def _alternate(commands: dict[str, list[str]], rounds: int, display: Display) -> dict[str, list[dict[str, float]]]:
    """What each program says in ``rounds`` turns, after a first one that compiles and is left out."""
    workers = {name: Worker(command) for name, command in commands.items()}
    said: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    try:
        with display.bar("rounds", rounds + 1) as advance:
            for _ in range(rounds + 1):
                for name, worker in workers.items():
                    said[name].append(worker.turn())
                advance(1, **{name: f"{turns[-1]['seconds']:.1f} s" for name, turns in said.items()})
    finally:
        for worker in workers.values():
            worker.end()
    return {name: turns[1:] for name, turns in said.items()}


def _median(values: list[float]) -> float:
    return float(np.median(values))
