"""``alphaalign plan``: what a config's step takes on a TPU that is described, in tables, JSON and a plot."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax
import rich.table

from alphaalign_jax import config as configs
from alphaalign_jax import output
from alphaalign_jax.display import BYTES, FLOPS, SECONDS, Display, cell, figures_table, number, quantity, unit_for
from alphaalign_jax.planning import plots, sweep
from alphaalign_jax.planning.chips import Chip, topology
from alphaalign_jax.planning.compiled import Compiled, compiler
from alphaalign_jax.planning.estimate import Cost
from alphaalign_jax.planning.plan import Plan, job, plan
from alphaalign_jax.planning.programs import Job, Program, Tokens

Compile = Callable[[Program], Compiled]


def run(
    path: str,
    overrides: Sequence[tuple[str, str]],
    *,
    topology_name: str,
    prefix_tokens: int,
    prompt_tokens: int | None,
    axes: Mapping[str, Sequence[str]] | None,
    effort: str | None,
    dollars_hour: float | None,
    out: str,
    plot: str,
    command: str,
) -> bool:
    """Plans ``path`` or, with ``axes``, all combinations of these settings. Whether it, or one of them, fits.

    ``effort`` is the compiler's; None: ``fast`` for many layouts, ``full`` for one.
    """
    for file in filter(None, (out, plot)):
        output.check(file)
    plots.check(plot)
    sweep.check(path, overrides, axes or {})
    if dollars_hour is not None and not (math.isfinite(dollars_hour) and dollars_hour >= 0):
        raise ValueError(f"--price={dollars_hour}: expected dollars for a chip and an hour, 0 or more")
    chip, devices = topology(topology_name)
    tokens = lambda config: Tokens.of(config, prefix_tokens, prompt_tokens)
    effort = effort or ("fast" if axes else "full")
    compile = compiler(devices, _cache(), effort)
    display, found = Display(), {"command": command, "topology": topology_name, "effort": effort}
    if axes:
        layouts = _sweep(display, path, overrides, axes, chip, devices, tokens, compile, dollars_hour)
        best = sweep.front(layouts)
        shown = [sweep_table(layouts, best, chip, f"{path} on {topology_name}")]
        shown += [f"{rank}: {layout.why}" for rank, layout in enumerate(layouts, 1) if layout.why]
        found["layouts"] = [layout.to_json() | {"front": layout in best} for layout in layouts]
        if plot:
            plots.layouts(layouts, best, chip, plot, f"{path} on {topology_name}")
        fits = bool(best)
    else:
        config = configs.load(path, overrides)
        planned = job(config, devices, tokens(config))
        found |= {"tokens": vars(planned.tokens)}
        made = _one(display, planned, chip, compile, dollars_hour)
        shown = [table(made, f"{path} on {topology_name}"), verdict(made)]
        found |= made.to_json()
        if plot:
            plots.memory(made, plot, f"{path} on {topology_name}")
        fits = made.fits
    output.write(out, json.dumps(found, indent=2) + "\n")
    for text in (*shown, " and ".join(filter(None, (out, plot)))):
        display.say(text)
    return fits


def _cache() -> pathlib.Path | None:
    """Beside the compiled programs."""
    folder = jax.config.jax_compilation_cache_dir
    return pathlib.Path(folder) / "plans" if folder else None


def _one(display: Display, job: Job, chip: Chip, compile: Compile, dollars_hour: float | None) -> Plan:
    count = 4 + bool(job.scored) + (job.critic is not None)
    with display.bar("programs", count) as advance:
        show = lambda name: advance(1, compiling=name)
        return plan(job, chip, compile, dollars_hour=dollars_hour, on_program=show)


def _sweep(display, path, overrides, axes, chip, devices, tokens, compile, dollars_hour) -> list[sweep.Layout]:
    with display.bar("layouts", len(list(sweep.combinations(axes)))) as advance:
        show = lambda layout: advance(1, last=layout.name)
        about = (path, overrides, axes, chip, devices, tokens, compile)
        return sweep.run(*about, dollars_hour=dollars_hour, on_layout=show)


def table(made: Plan, title: str) -> rich.table.Table:
    """A row for each program: memory, work, traffic and time of one chip, in units that suit the largest."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in made.mesh.items() if size > 1) or "one chip"
    sent = [sum(c.bytes for c in cost.collectives) for cost in made.costs]
    memory, one_byte = unit_for([cost.memory.total for cost in made.costs], BYTES)
    traffic, one_moved = unit_for([*sent, *(cost.bytes for cost in made.costs)], BYTES)
    work, one_flop = unit_for([cost.run_flops for cost in made.costs], FLOPS)
    time, one_second = unit_for([cost.seconds for cost in made.costs], SECONDS)
    columns = ("program", "given", "made", "work", "beside", "all", work, "read", "sent", time, "by")
    caption = (
        f"{memory} of a chip: given to the program, made and its working memory, beside it in memory, all; {work}; "
        f"{traffic} read and sent; {time} at least, and what they are bound by."
    )
    found = figures_table(cell(f"{title}: {mesh}"), columns, left=("program", "by"), caption=caption)
    for cost, moved in zip(made.costs, sent, strict=True):
        m = cost.memory
        sizes = [number(size / one_byte) for size in (m.arguments, m.outputs, m.temporaries, m.resident, m.total)]
        figures = [
            number(cost.run_flops / one_flop),
            number(cost.bytes / one_moved),
            number(moved / one_moved),
            number(cost.seconds / one_second),
        ]
        found.add_row(cost.name, *sizes, *figures, cost.bound)
    return found


def verdict(made: Plan) -> str:
    """Whether it fits, and what a step and the run take."""
    limit, c = made.chip.hbm_bytes, made.config
    if not made.fits:
        what = f"{made.failed}" if made.failed else f"it takes {quantity(made.peak, BYTES)} a chip"
        above = f"{quantity(made.peak - limit, BYTES)} more than the {quantity(limit, BYTES)} of a {made.chip.name}"
        return f"does not fit: {what}, {above}"
    hours = quantity(made.chip_hours, (("chip-hours", 1.0), ("chip-minutes", 1 / 60), ("chip-seconds", 1 / 3600)))
    return (
        f"fits: {quantity(made.peak, BYTES)} of {quantity(limit, BYTES)} a chip\n"
        f"a step takes at least {quantity(made.step_seconds, SECONDS)}: {made.tokens_second_chip:.0f} response "
        f"tokens/s a chip, MFU {number(100 * made.mfu)} % at most\n"
        f"{c.steps} steps on {made.chips} chips: {hours}, ${number(made.chip_hours * made.dollars_hour)} at "
        f"${made.dollars_hour:.2f} (--price sets another; peaks: {made.chip.source})\n" + _sent(made.costs)
    )


def _sent(costs: Sequence[Cost]) -> str:
    parts = (
        f"{cost.name} " + ", ".join(f"{c.kind} {quantity(c.bytes, BYTES)} ({c.count:.0f}x)" for c in cost.collectives)
        for cost in costs
        if cost.collectives
    )
    return "sent by a chip: " + ("; ".join(parts) or "nothing")


def sweep_table(
    layouts: Sequence[sweep.Layout], best: Sequence[sweep.Layout], chip: Chip, title: str
) -> rich.table.Table:
    """A row for each layout, numbered by rank, with a column for each setting that was tried."""
    settings = [key.rpartition(".")[2] for key in layouts[0].settings]
    plans = [layout.plan for layout in layouts if layout.plan is not None]
    memory, one_byte = unit_for([made.peak for made in plans], BYTES)
    time, one_second = unit_for([made.step_seconds for made in plans if made.failed is None], SECONDS)
    caption = (
        f"{memory} of a chip, which has {quantity(chip.hbm_bytes, BYTES)}; +: at least, where the compiler gave up. "
        f"{time} of a step at least, response tokens/s of a chip at most, dollars of a run at least. *: fits, and none "
        "that fits is both faster and smaller."
    )
    figures = (memory, time, "tokens/s", "$")
    found = figures_table(cell(title), ("", "#", *settings, *figures), left=settings, caption=caption)
    for rank, layout in enumerate(layouts, 1):
        made, cells = layout.plan, ["-"] * 4
        if made is not None:
            cells[0] = number(made.peak / one_byte) + "+" * (made.failed is not None)
        if made is not None and made.failed is None:
            dollars = made.chip_hours * made.dollars_hour
            cells[1:] = number(made.step_seconds / one_second), f"{made.tokens_second_chip:.0f}", number(dollars)
        found.add_row("*" if layout in best else "", str(rank), *map(cell, layout.settings.values()), *cells)
    return found
