"""Terminal output of a command: text, tables and progress, printed by one process for all."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import rich.box
import rich.console
import rich.progress
import rich.table
import rich.text

from alphaalign_jax.parallel import processes, reporting
from alphaalign_jax.terminal import Stream
from alphaalign_jax.text import inline, printable


def cell(text: str) -> rich.text.Text:
    """Return a table cell for untrusted text: no markup, no control characters, one line."""
    return rich.text.Text(inline(text))


def figures_table(title: str, columns: Sequence[str], *, left: Sequence[str], caption: str) -> rich.table.Table:
    """Return a table of many narrow columns that fits 80 columns of terminal.

    Columns in ``left`` are left-aligned; the others hold numbers and are right-aligned.
    """
    found = rich.table.Table(
        title=title, caption=caption, box=rich.box.SIMPLE_HEAD, padding=0, title_justify="left", caption_justify="left"
    )
    for name in columns:
        found.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    return found


Units = Sequence[tuple[str, float]]  # names and sizes, largest first
BYTES: Units = (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10))
SECONDS: Units = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
FLOPS: Units = (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6))


def unit_for(values: Iterable[float], units: Units) -> tuple[str, float]:
    """Return the unit for a column, with its size.

    The unit is the largest that gives at least 4 for one of ``values``, so that much smaller ones
    do not all show as 0.
    """
    return _largest_unit(max(values, default=0.0) / 4, units)


def number(value: float) -> str:
    """Format a number of 0 or more, in at most five characters up to 99,999.

    Examples: 0, <.01, 0.02, 1.23, 12.3, 123.
    """
    if 0 < value < 0.005:
        return "<.01"
    decimals = 0 if value == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{decimals}f}"


def _largest_unit(value: float, units: Units) -> tuple[str, float]:
    return next((unit for unit in units if unit[1] <= value), units[-1])


def quantity(value: float, units: Units) -> str:
    """Format a number in the unit that suits it, such as 31.2 MiB."""
    name, size = _largest_unit(value, units)
    return f"{number(value / size)} {name}"


class Display:
    """A progress bar with live figures on a terminal; in a file, one line every few seconds."""

    LINE_SECONDS = 10.0

    def __init__(self, console: rich.console.Console | None = None):
        self.console = console or rich.console.Console(file=Stream(sys.stdout), quiet=not processes.first())

    def say(self, text: Any) -> None:
        """Print a table, or text without markup and wrapping.

        Text that looks like markup may be a quoted prompt. A line wrapped at 80 columns could not
        be copied as a command, and a search in a log would miss it.
        """
        if isinstance(text, str):
            self.console.print(printable(text), markup=False, emoji=False, highlight=False, soft_wrap=True)
        else:
            self.console.print(text)

    @contextlib.contextmanager
    def bar(self, name: str, total: int, done: int = 0) -> Iterator[Any]:
        """Yield ``advance(n, **figures)``. Programs that compile in the block are shown."""
        began = time.perf_counter()
        last = 0.0
        text = ""
        # On a terminal of 80 columns the figures wrap to a second line; the other columns do not.
        whole = functools.partial(rich.table.Column, no_wrap=True)
        columns = (
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(bar_width=10, table_column=whole()),
            rich.progress.MofNCompleteColumn(table_column=whole()),
            rich.progress.TimeRemainingColumn(compact=True, elapsed_when_finished=True, table_column=whole()),
            rich.progress.TextColumn("{task.fields[figures]}", markup=False, table_column=rich.table.Column()),
        )
        live = self.console.is_terminal
        with rich.progress.Progress(*columns, console=self.console, disable=not live) as progress:
            task = progress.add_task(name, total=total, completed=done, figures="")

            def advance(n: int = 1, **figures: str) -> None:
                nonlocal done, last, text
                done += n
                text = inline("  ".join(f"{key} {value}" for key, value in figures.items()))
                progress.update(task, advance=n, figures=text)
                now = time.perf_counter()
                if not live and not self.console.quiet and (now - last > self.LINE_SECONDS or done >= total):
                    last = now
                    self.say(f"{name} {done}/{total}  {now - began:.0f} s  {text}")

            def compiling(program: str) -> None:
                progress.update(task, figures=f"compiling {program} ...")
                if not live and not self.console.quiet:
                    self.say(f"{name} {done}/{total}  {time.perf_counter() - began:.0f} s  compiling {program} ...")

            def compiled() -> None:
                progress.update(task, figures=text)

            with reporting(compiling, compiled):
                yield advance
