"""Draw curves over the steps of a run as text.

The charts are plain ASCII, so that log files and terminals without UTF-8 can show them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import rich.text

ROWS = 9  # odd, so that 50 % has its own row
COLUMNS = 64
# Maximum columns of a step: two steps stretched over the full width would look like a long run.
_STEP_COLUMNS = 6
_MARGIN = 7  # "100 % |"
_BOTH = "*"


@dataclass(frozen=True)
class Curve:
    """A share for each step.

    Attributes:
      glyph: one character, which draws the curve.
      style: a colour name of rich.
      values: a number from 0 to 1 for each step; None if a step has no value.
    """

    name: str
    glyph: str
    style: str
    values: Sequence[float | None]


def draw(curves: Sequence[Curve], *, width: int = _MARGIN + COLUMNS) -> list[rich.text.Text]:
    """Return the lines of a chart: the plot, its axis and a legend.

    The chart shows 0 to 100 % over the steps, which count from 1. If there are more steps than
    columns, each column shows the mean of its steps. Curves without values are omitted; without any
    curve the result is []. ``width``: columns of the terminal.
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
    """Return the mean of the steps in each column, None if none has a value.

    A step may also be several columns wide.
    """
    means = []
    for column in range(columns):
        first = column * steps // columns
        last = max(first + 1, (column + 1) * steps // columns)
        known = [value for value in values[first:last] if value is not None]
        means.append(sum(known) / len(known) if known else None)
    return means


def _ticks(steps: int, columns: int) -> str:
    """Return the axis labels: the first, middle and last step, each under its column if it fits."""
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
