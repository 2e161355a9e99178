"""Curves over the steps of a run, drawn with characters.

ASCII alone, so that a log file or a terminal without UTF-8 shows them too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import rich.text

ROWS = 9  # an odd number, so that 50 % has a row of its own
COLUMNS = 64
_STEP_COLUMNS = 6  # columns of one step, at most: two steps stretched over the whole width would look like a long one
_MARGIN = 7  # "100 % |"
_BOTH = "*"


@dataclass(frozen=True)
class Curve:
    """A share by step.

    Attributes:
      glyph: the one character it is drawn with.
      style: its colour, as rich names it.
      values: between 0 and 1, one a step; None for a step that has none.
    """

    name: str
    glyph: str
    style: str
    values: Sequence[float | None]


def draw(curves: Sequence[Curve], *, width: int = _MARGIN + COLUMNS) -> list[rich.text.Text]:
    """Return the lines of a chart of 0 to 100 % over the steps, which are counted from 1: the plot, its axis, a legend.

    ``width``: columns of the terminal. With more steps than columns, a column is the mean of its steps. Curves without
    any value are left out; without any curve there are no lines.
    """
    curves = [curve for curve in curves if any(value is not None for value in curve.values)]
    if not curves:
        return []
    steps = max(len(curve.values) for curve in curves)
    room = max(1, min(COLUMNS, width - _MARGIN))
    columns = room if steps >= room else steps * min(_STEP_COLUMNS, room // steps)
    grid = [[rich.text.Text(" ") for _ in range(columns)] for _ in range(ROWS)]
    for curve in curves:
        for column, value in enumerate(_means(curve.values, steps, columns)):
            if value is not None:
                row = round((1 - value) * (ROWS - 1))
                free = grid[row][column].plain == " "
                glyph = (curve.glyph, curve.style) if free else (_BOTH, "bold")
                grid[row][column] = rich.text.Text(*glyph)
    labels = {0: "100 %", ROWS // 2: "50 %", ROWS - 1: "0 %"}
    lines = [rich.text.Text(f"{labels.get(i, ''):>5} |").append_text(_joined(row)) for i, row in enumerate(grid)]
    lines.append(rich.text.Text(" " * (_MARGIN - 1) + "+" + "-" * columns))
    lines.append(rich.text.Text(f"{'step':>5}  {_ticks(steps, columns)}".rstrip()))
    return [*lines, *_legend(curves)]


def _joined(cells: Sequence[rich.text.Text]) -> rich.text.Text:
    return rich.text.Text().join(cells)


def _means(values: Sequence[float | None], steps: int, columns: int) -> list[float | None]:
    """Return the mean of the steps that fall into each column; a step may also be several columns wide."""
    means = []
    for column in range(columns):
        first = column * steps // columns
        last = max(first + 1, (column + 1) * steps // columns)
        known = [value for value in values[first:last] if value is not None]
        means.append(sum(known) / len(known) if known else None)
    return means


def _ticks(steps: int, columns: int) -> str:
    """Return the numbers of the first, a middle and the last step, under their columns, as far as there is room."""
    line = "1"
    middle = (steps + 1) // 2
    for step in sorted({middle, steps} - {1}):
        first = math.ceil((step - 1) * columns / steps)  # the step's first column
        start = columns - len(str(step)) if step == steps else first
        if start > len(line) and (step == steps or start + len(str(step)) < columns - len(str(steps))):
            line = line.ljust(start) + str(step)
    return line


def _legend(curves: Sequence[Curve]) -> list[rich.text.Text]:
    entries = [rich.text.Text(curve.glyph, curve.style).append(f" {curve.name}", "default") for curve in curves]
    if len(curves) > 1:
        entries.append(rich.text.Text(_BOTH, "bold").append(" both", "default"))
    return [rich.text.Text(" " * _MARGIN).append_text(rich.text.Text("   ").join(entries))]
