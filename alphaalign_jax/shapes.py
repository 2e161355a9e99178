"""Static shapes in few sizes: a program is compiled for each that occurs."""

from __future__ import annotations


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
