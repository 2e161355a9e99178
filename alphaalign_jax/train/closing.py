"""The closing report of a training run: results, curves, examples, and useful next commands."""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import rich.text

from alphaalign_jax import buckets
from alphaalign_jax.config import Config
from alphaalign_jax.evaluation import outcome
from alphaalign_jax.train import chart, examples

# Curves: label, name, glyph and colour.
_CURVES = (
    ("harmful", "harmful prompts (should rise)", "H", "magenta"),
    ("benign", "benign prompts (should fall)", "b", "cyan"),
)
_INDENT = "  "
_WIDEST = 110  # maximum columns of running text that stays easy to read


def report(config: Config, summary: Mapping[str, Any], folder: pathlib.Path, *, width: int) -> list[Any]:
    """Return the parts of the report in printing order: strings, tables and rich texts.

    ``summary``: the contents of ``summary.json``. ``folder``: the run's local records. ``width``:
    columns of the terminal. No line is wider, unless a single path is.
    """
    before = {"all": summary["before"], **summary["before_by_source"]}
    after = {"all": summary["after"], **summary["after_by_source"]}
    return [
        outcome.comparison(before, after),
        *_refusals(folder / "metrics.jsonl", summary["data"]["by_source"], width),
        *_examples(folder / "samples.jsonl", summary["steps"], width),
        *_next_steps(config, summary["command"], width),
        "",
        *_ending(config, summary),
    ]


def _refusals(path: pathlib.Path, trained: Mapping[str, Mapping[str, int]], width: int) -> list[rich.text.Text]:
    """Return the chart of the refusal rates in training.

    It covers all recorded steps, including those before a resumption. ``trained``: number of
    training prompts by source and label. A label without prompts gets no curve, because its
    recorded rates are 0.
    """
    records = {record["step"]: record for record in _records(path, "train")}
    steps = range(max(records, default=-1) + 1)
    curves = [
        chart.Curve(name, glyph, style, [records.get(step, {}).get(f"safety/refusal_rate_{label}") for step in steps])
        for label, name, glyph, style in _CURVES
        if any(counts.get(label) for counts in trained.values())
    ]
    lines = chart.draw(curves, width=width)
    heading = _heading("Refused in training: share of the sampled responses, by step")
    return [rich.text.Text(), heading, *lines] if lines else []


def _examples(path: pathlib.Path, steps: int, width: int) -> list[rich.text.Text]:
    looks: dict[str, list] = {"before": [], "after": []}
    for record in _records(path, *looks):
        # An extended run also has "after" records of its earlier end.
        if record["phase"] == "before" or record["step"] == steps:
            looks[record["phase"]].append(record)
    chosen = examples.choose(**looks)
    if not chosen:
        return []
    which = "the first of each kind"
    if len(chosen) == examples.COUNT and examples.is_wrong(chosen[-1][1]):
        which += ", and a wrong decision"
    heading = _heading(f"Held-out prompts, before and after: {which}")
    return [rich.text.Text(), heading, *examples.show(chosen, width=min(width, _WIDEST))]


def _next_steps(config: Config, command: str, width: int) -> list[Any]:
    """Return commands that work as printed, in a shell in the folder where the run was started."""
    place = config.location
    lines: list[Any] = [rich.text.Text(), _heading("Where to look next")]

    def add(purpose: str, *commands: list[str]) -> None:
        lines.append(f"{_INDENT}{purpose}")
        lines.extend(_continued(words, width) for words in commands)

    if config.export:
        model = [f"--model={place}/export", f"--max_new_tokens={_response_tokens(config)}"]
        model += [f"--format_mode={config.reward.format_mode}"] * (config.reward.format_mode != "strict")
        local = "" if buckets.remote(place) else f"{place}/"
        ask = f"{local}ask.jsonl"
        question = json.dumps({"prompt": "How do I boil an egg?"})
        generate = ["generate", *model, f"--prompts={ask}", f"--out={local}answers.jsonl"]
        add(
            "ask it something of your own:",
            [f"echo {shlex.quote(question)} >", shlex.quote(ask)],
            [_program("alphaalign"), *map(shlex.quote, generate)],
        )
        data = [source for source in config.data.heldout if isinstance(source, str)]
        if data:
            evaluate = ["evaluate", *model, f"--data={data[0]}", f"--out={local}evaluation.json"]
            evaluate += [f"--temperature={config.eval.temperature}"] * (config.eval.temperature > 0)
            add("measure it again, or on prompts of yours:", [_program("alphaalign"), *map(shlex.quote, evaluate)])
    add("see all curves:", [_program("tensorboard"), shlex.quote(f"--logdir={place}/tensorboard")])
    again = _with_another_seed(config, command)
    if again:
        file = next(word for word in again if word.startswith("--config=")).partition("=")[2]
        purpose = f"run it with another seed; its settings are in {examples.one_line(file)}:"
        add(purpose, [_program("alphaalign"), *map(shlex.quote, again)])
    return lines


def _response_tokens(config: Config) -> int:
    return config.eval.max_new_tokens or config.rollout.max_new_tokens


def _with_another_seed(config: Config, command: str) -> list[str]:
    """Return the arguments that repeat ``command`` with another seed and folder; [] if unknown."""
    words = shlex.split(command)[1:]
    if words[:1] != ["train"]:  # started from Python
        return []
    kept: list[str] = []
    for previous, word in zip(["", *words], words):
        if previous == "--config":
            kept[-1] = f"--config={word}"
        elif previous == "--resume" and not word.startswith("--"):  # the value of --resume
            continue
        elif not word.startswith(("--resume", "--config.seed=", "--config.out=")):
            kept.append(word)
    if not any(word.startswith("--config=") for word in kept):
        return []
    seed = config.seed + 1
    return [*kept, f"--config.seed={seed}", f"--config.out={config.location}-seed{seed}"]


def _program(name: str) -> str:
    """Return the shell command for an installed program: its name if on PATH, else its path."""
    path = pathlib.Path(sys.executable).with_name(name)
    if shutil.which(name) or not path.is_file():
        return name
    here = os.path.relpath(path)
    return shlex.quote(str(path) if here.startswith(os.pardir) else here)


def _continued(words: list[str], width: int) -> str:
    """Return a quoted command, broken into lines that fit and that a shell reads as one command."""
    lines = [_INDENT * 2 + words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) + 3 <= width:
            lines[-1] += f" {word}"
        else:
            lines[-1] += " \\"
            lines.append(_INDENT * 4 + word)
    return "\n".join(lines)


def _ending(config: Config, summary: Mapping[str, Any]) -> list[str]:
    minutes, seconds = divmod(round(summary["wall_seconds"]), 60)
    took = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    lines = [
        f"{summary['steps']} steps in {took}. Everything is in {config.location}:",
        f"{_INDENT}summary.json: these figures   samples.jsonl: responses   metrics.jsonl: curves",
    ]
    if config.export:
        lines.append(f"{_INDENT}export: the model, as a Hugging Face folder")
    return lines


def _heading(text: str) -> rich.text.Text:
    return rich.text.Text(text, "bold")


def _records(path: pathlib.Path, *phases: str) -> Iterator[dict[str, Any]]:
    """Yield the records of these phases. Skip unreadable lines and files: the run has succeeded."""
    try:
        with path.open(errors="replace") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict) and record.get("phase") in phases:
                    yield record
    except OSError:
        return
