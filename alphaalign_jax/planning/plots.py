"""Pictures of plans, by matplotlib where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from alphaalign_jax.planning.chips import Chip
from alphaalign_jax.planning.plan import Plan
from alphaalign_jax.planning.sweep import Layout

_SUFFIXES = (".png", ".svg", ".pdf")


def check(path: str) -> None:
    """Raises ValueError where the plot ``path`` could not be drawn."""
    if path and not path.endswith(_SUFFIXES):
        raise ValueError(f"--plot={path}: expected a file that ends in one of {', '.join(_SUFFIXES)}")
    if path and importlib.util.find_spec("matplotlib") is None:
        raise ValueError(f"--plot={path}: needs matplotlib; pip install 'alphaalign_jax[plan]'")


def memory(plan: Plan, path: str, title: str) -> None:
    """A chip's memory while each program runs, against what it has."""
    figure, axes = _figure(title)
    names, left = [cost.name for cost in plan.costs], [0.0] * len(plan.costs)
    for part in ("resident", "arguments", "outputs", "temporaries"):
        sizes = [getattr(cost.memory, part) / 2**30 for cost in plan.costs]
        axes.barh(names, sizes, left=left, label=part)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    axes.axvline(plan.chip.hbm_bytes / 2**30, color="black", linestyle="--", label=f"{plan.chip.name} has")
    axes.invert_yaxis()
    axes.set_xlabel("GiB a chip")
    axes.legend()
    figure.savefig(path)


def layouts(found: Sequence[Layout], best: Sequence[Layout], chip: Chip, path: str, title: str) -> None:
    """Memory and time of each layout that was compiled, numbered as in the table; those alike are one point."""
    figure, axes = _figure(title)
    points: dict[tuple[float, float, str], list[int]] = {}
    for number, layout in enumerate(found, 1):
        if layout.plan is not None and layout.plan.failed is None:
            kind = "none is faster and smaller" if layout in best else "fits" if layout.fits else "does not fit"
            points.setdefault((layout.plan.peak / 2**30, layout.plan.step_seconds, kind), []).append(number)
    for kind, color in (("none is faster and smaller", "tab:green"), ("fits", "tab:blue"), ("does not fit", "tab:red")):
        of_kind = [(x, y) for x, y, other in points if other == kind]
        if of_kind:
            axes.scatter(*zip(*of_kind), color=color, label=kind)
    for (x, y, _), numbers in points.items():
        axes.annotate(", ".join(map(str, numbers)), (x, y), xytext=(5, 5), textcoords="offset points")
    axes.axvline(chip.hbm_bytes / 2**30, color="black", linestyle="--", label=f"{chip.name} has")
    axes.margins(0.1)
    axes.set_xlabel("GiB a chip")
    axes.set_ylabel("seconds a step, at least")
    axes.legend()
    figure.savefig(path)


def _figure(title: str):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes
