"""``alphaalign data audit``: find labels that are likely wrong, and leaks into evaluation sets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import rich.table

from alphaalign_jax import output
from alphaalign_jax.data.audit import Audit, audit, name_row
from alphaalign_jax.data.labels import map_of_text
from alphaalign_jax.data.near import Pair, near_pairs
from alphaalign_jax.data.prompts import Source, read
from alphaalign_jax.data.row import PromptRow, show
from alphaalign_jax.display import Display, cell
from alphaalign_jax.evaluation.commands import sample
from alphaalign_jax.types import BENIGN, HARMFUL, LABELS


@dataclasses.dataclass(frozen=True)
class Doubt:
    """How far a model disagrees with the label of a row.

    ``disagreement``: share of the row's responses that fit the other label, in [0, 1].
    """

    row: int
    disagreement: float


def run(args: Any) -> None:
    """Print the most important findings, and write all findings to ``args.out``."""
    output.check(args.out, *args.data.split(","), *args.heldout.split(","))
    if args.model and args.n > 1 and not args.temperature:
        raise ValueError(f"--n={args.n} with --temperature=0 gives {args.n} times the same; set --temperature=1.0")
    display = Display()
    rows = _read(args.data, args.label_map)
    heldout = _read(args.heldout, args.label_map)
    findings = audit(rows, heldout)
    contradictions, leaks = opposite_labels(rows, args.similarity), also_held_out(rows, heldout, args.similarity)
    doubts = []
    if args.model:
        doubts = disagreement(rows, [[r.refusal for r in each] for each in sample(args, rows, display, group=args.n)])
    output.write(args.out, json.dumps(_report(args, rows, heldout, findings, contradictions, leaks, doubts), indent=2))
    display.say(str(findings))
    _say_pairs(display, "nearly the same prompt, opposite labels", contradictions, rows, rows, args.show)
    _say_pairs(display, "nearly the same prompt, held out", leaks, rows, heldout, args.show)
    if doubts:
        display.say(_doubts_table(doubts, rows, args))
    display.say(f"all of it: {args.out}")


def _read(paths: str, label_map: str) -> list[PromptRow]:
    """Read the rows of all files of a comma-separated list."""
    sources = [Source(path=path, label_map=map_of_text(label_map)) for path in paths.split(",") if path]
    return [row for source in sources for row in read(source, answers=False)]


def opposite_labels(rows: Sequence[PromptRow], cutoff: float) -> list[Pair]:
    """Return pairs (harmful row, benign row) that are nearly the same, nearest first."""
    harmful, benign = ([i for i, row in enumerate(rows) if row.label == label] for label in (HARMFUL, BENIGN))
    pairs = near_pairs([rows[i].question for i in harmful], [rows[j].question for j in benign], cutoff)
    return [Pair(harmful[pair.i], benign[pair.j], pair.similarity) for pair in pairs]


def also_held_out(rows: Sequence[PromptRow], heldout: Sequence[PromptRow], cutoff: float) -> list[Pair]:
    """Return pairs (row, held-out row) that are nearly the same, nearest first."""
    return near_pairs([row.question for row in rows], [row.question for row in heldout], cutoff)


def disagreement(rows: Sequence[PromptRow], refusals: Sequence[Sequence[bool]]) -> list[Doubt]:
    """Return all rows by how often the model's responses contradict their labels, most often first.

    The disagreement with a harmful row is the share of its responses that do not refuse; with a
    benign row, the share that do. ``refusals[i][k]`` is whether response k to row i refuses.
    """
    against = lambda row, each: sum(refused != (row.label == HARMFUL) for refused in each) / len(each)
    doubts = [Doubt(i, against(row, each)) for i, (row, each) in enumerate(zip(rows, refusals, strict=True))]
    return sorted(doubts, key=lambda doubt: (-doubt.disagreement, doubt.row))


def _say_pairs(
    display: Display, title: str, pairs: Sequence[Pair], rows: Sequence[PromptRow], others: Sequence[PromptRow], n: int
) -> None:
    display.say(f"{title}: {len(pairs)} pairs")
    for pair in pairs[:n]:
        a, b = rows[pair.i], others[pair.j]
        display.say(f"  {pair.similarity:.0%}  {name_row(rows, pair.i)} ({LABELS[a.label]}): {show(a.prompt)}")
        display.say(f"        {name_row(others, pair.j)} ({LABELS[b.label]}): {show(b.prompt)}")


def _doubts_table(doubts: Sequence[Doubt], rows: Sequence[PromptRow], args: Any) -> rich.table.Table:
    table = rich.table.Table(
        title=f"labels that the model follows least, {args.n} responses each", title_justify="left", box=None
    )
    for name, justify in (("against", "right"), ("row", "left"), ("label", "left"), ("prompt", "left")):
        table.add_column(name, justify=justify)
    for doubt in doubts[: args.show]:
        row = rows[doubt.row]
        cells = f"{doubt.disagreement:.0%}", name_row(rows, doubt.row), LABELS[row.label], show(row.prompt)
        table.add_row(*map(cell, cells))
    return table


def _report(
    args: Any,
    rows: Sequence[PromptRow],
    heldout: Sequence[PromptRow],
    findings: Audit,
    contradictions: Sequence[Pair],
    leaks: Sequence[Pair],
    doubts: Sequence[Doubt],
) -> dict[str, Any]:
    def pair(one: Pair, others: Sequence[PromptRow]) -> dict[str, Any]:
        a, b = rows[one.i], others[one.j]
        texts = {"prompts": [a.question, b.question], "labels": [LABELS[a.label], LABELS[b.label]]}
        return {"rows": [one.i, one.j], "places": [a.place, b.place], "similarity": one.similarity, **texts}

    return {
        "data": args.data,
        "heldout": args.heldout,
        "model": args.model,
        "similarity": args.similarity,
        "exact": findings.to_json(),
        "opposite_labels": [pair(one, rows) for one in contradictions],
        "also_held_out": [pair(one, heldout) for one in leaks],
        "disagreement": [
            {
                **dataclasses.asdict(doubt),
                "place": rows[doubt.row].place,
                "label": LABELS[rows[doubt.row].label],
                **rows[doubt.row].to_json(),
            }
            for doubt in doubts
        ],
    }
