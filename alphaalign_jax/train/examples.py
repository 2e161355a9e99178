"""Show a few held-out prompts with their responses before and after training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import rich.cells
import rich.console
import rich.text

from alphaalign_jax.evaluation.outcome import source_and_kind
from alphaalign_jax.text import printable

COUNT = 4
_PROMPT_LINES = 2
_PART_LINES = 2  # lines each for the reasoning and the answer
_ANSWER = "<answer>"
_CUT = "[...] "

Record = Mapping[str, Any]  # a line of samples.jsonl


def choose(before: Iterable[Record], after: Iterable[Record]) -> list[tuple[Record, Record]]:
    """Return up to ``COUNT`` prompts of an evaluation, each as its records (before, after).

    Choose the first harmful, the first ordinary benign and the first adversarial benign prompt.
    Then add the first other prompt that is decided wrongly after training, preferably of a label
    with no mistake among the chosen prompts. If fewer than ``COUNT`` are found, fill up with the
    remaining prompts, harmful ones first. Quality plays no part, so these are not the best-looking
    responses. Prompts without both records are skipped.
    """
    earlier: dict[str, Record] = {}
    for record in before:
        earlier.setdefault(_identity(record), record)
    pairs = {}
    for record in after:
        identity = _identity(record)
        if identity in earlier:
            pairs.setdefault(identity, (earlier[identity], record))
    left = list(pairs.values())
    chosen: list[tuple[Record, Record]] = []

    def take(fits: Callable[[Record], bool]) -> bool:
        found = next((pair for pair in left if fits(pair[1])), None)
        if found is not None:
            left.remove(found)
            chosen.append(found)
        return found is not None

    for kind in ("harmful", "ordinary benign", "adversarial benign"):
        take(lambda record, kind=kind: kind_of(record) == kind)
    shown = {record["label"] for _, record in chosen if is_wrong(record)}
    take(lambda record: is_wrong(record) and record["label"] not in shown) or take(is_wrong)
    while len(chosen) < min(COUNT, len(pairs)):
        take(lambda record: record["label"] == "harmful") or take(lambda record: True)
    return chosen


def kind_of(record: Record) -> str:
    """Return "harmful", "ordinary benign" or "adversarial benign".

    Benign prompts are ordinary unless their source marks them.
    """
    if record["label"] == "harmful":
        return "harmful"
    kind = source_and_kind(record["source"])[1]
    return "adversarial benign" if kind == "adversarial benign" else "ordinary benign"


def is_wrong(record: Record) -> bool:
    """Return whether a harmful prompt was answered or a benign one refused."""
    return record["refusal"] != (record["label"] == "harmful")


def show(pairs: Sequence[tuple[Record, Record]], *, width: int) -> list[rich.text.Text]:
    """Return the printed lines: at most 12 for each prompt, none wider than ``width`` columns."""
    lines = []
    for number, (before, after) in enumerate(pairs, start=1):
        turns = len(after.get("context", ()))
        heading = f"{number}. {kind_of(after)}{f', after {turns} earlier turns' if turns else ''}: "
        lines += _wrapped(heading + one_line(after["prompt"]), width, "   ", _PROMPT_LINES, "bold")
        for time, record in (("before", before), ("after", after)):
            lines.append(rich.text.Text(f"   {time}: ").append(*_verdict(record)))
            lines += _response(record["response"], width)
    return lines


def _identity(record: Record) -> str:
    return json.dumps([record["prompt"], record.get("context"), record["label"]])


def _verdict(record: Record) -> tuple[str, str]:
    """Return a short verdict on a response, and its style."""
    wrong = is_wrong(record)
    words = [f"{'refused' if record['refusal'] else 'answered'} ({'wrong' if wrong else 'right'})"]
    if not record["format"]:
        words.append("not in the format")
    if record["finish"] == "length":
        words.append("cut off at the length limit")
    return ", ".join(words), "red" if wrong else "green"


def _response(text: str, width: int) -> list[rich.text.Text]:
    """Return the lines of a response. Reasoning and answer are limited separately, so both show."""
    reasoning, tag, answer = one_line(text).partition(_ANSWER)
    parts = [part.strip() for part in (reasoning, tag + answer) if part.strip()] or ["(empty)"]
    room = _PART_LINES * 2 // len(parts)
    return [line for part in parts for line in _wrapped(part, width, "     ", room, "")]


def one_line(text: str) -> str:
    """Return untrusted text on one line: collapse white space and escape control characters."""
    return printable(" ".join(text.split()))


def _wrapped(text: str, width: int, indent: str, room: int, style: str) -> list[rich.text.Text]:
    """Wrap a text at words into at most ``room`` lines of ``width`` terminal columns.

    If it does not fit, the last line shows the end of the text. All lines are indented, except the
    first of a heading, which is a text with a ``style``.
    """
    columns = max(20, width - len(indent))
    console = rich.console.Console(width=columns)
    lines = list(rich.text.Text(text, style).wrap(console, columns))
    if len(lines) > room:
        lines = [*lines[: room - 1], rich.text.Text(_CUT + _end_of(text, columns - len(_CUT)), style)]
    for line in lines:
        line.rstrip()
    heading = bool(style)
    return [line if heading and i == 0 else rich.text.Text(indent).append_text(line) for i, line in enumerate(lines)]


def _end_of(text: str, columns: int) -> str:
    """Return the end of a text that fits into ``columns``, starting at a word if one is near."""
    end = text[-columns:]
    while rich.cells.cell_len(end) > columns:
        end = end[1:]
    word = end.find(" ") + 1
    return end[word:] if word <= columns // 3 else end
