"""Static shapes in few sizes: a program is compiled for each that occurs."""

from __future__ import annotations

from collections.abc import Sequence

_PADDING = 0.25  # of the slots beside it, which the padding of one width for all may add


def fitting_slots(length: int, unit: int, longest: int) -> int:
    """Return the smallest of ``unit``, 2 ``unit``, 4 ``unit``, ... that holds ``length`` slots.

    No more than ``longest``, rounded up to a multiple of ``unit``, which is all that anything needs. Doubling bounds
    the padding by the length itself and the number of sizes by its logarithm; multiples of ``unit`` would be as many
    programs as there are multiples.
    """
    if not 0 <= length <= longest or unit < 1:
        raise ValueError(f"{length} slots in units of {unit}: expected 0 to {longest} slots, and a unit of 1 or more")
    size = unit
    while size < length:
        size *= 2
    return min(size, -(-max(longest, 1) // unit) * unit)


def common_slots(widest: int, beside: int) -> int | None:
    """Return ``widest``, as the width of every batch, or None if each batch should take one of few widths.

    Each width compiles all programs of a step again. One for all is cheaper if its padding is little against the
    ``beside`` slots that every row has anyway.
    """
    return widest if widest <= _PADDING * beside else None


def paired_slots(lengths: Sequence[int], units: Sequence[int], longest: Sequence[int]) -> tuple[int, ...]:
    """Return the slots of several axes, which are doubled together until each holds its length.

    Fitted on their own, two axes of six sizes each would occur in up to 36 pairs. ``units`` and ``longest``: of
    each axis, as for ``fitting_slots``.
    """
    fitted = [fitting_slots(*axis) for axis in zip(lengths, units, longest, strict=True)]
    doublings = max((-(-slots // unit) - 1).bit_length() for slots, unit in zip(fitted, units, strict=True))
    return tuple(
        fitting_slots(min(unit << doublings, limit), unit, limit) for unit, limit in zip(units, longest, strict=True)
    )
