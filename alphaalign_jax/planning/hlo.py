"""What a compiled program does, counted as often as it does it: collectives, and products of matrices.

The compiler's own cost analysis counts a loop's body once. Here the text of the program is read: which computation
calls which, how often each loop turns, and what each instruction moves or computes.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|condition|body|(?:branch|called|true|false)_computations?)=(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
# The devices that one collective joins, in the three ways that they are written: {{0,1},{2,3}}, [2,2]<=[4], and
# mesh['a'=2,'b'=2] {'b'}.
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\]|mesh\[([^\]]*)\].*?\{([^}]*)\})")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_FUSED = ("fused_computation", "async_collective_fusion")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_BYTES = {"pred": 1.0, "s4": 0.5, "u4": 0.5}


@dataclasses.dataclass(frozen=True)
class Collective:
    kind: str  # one of KINDS
    count: float  # times that it runs
    bytes: float  # that a chip sends, all times together


@dataclasses.dataclass(frozen=True)
class _Instruction:
    op: str
    shape: str  # as text; of a tuple, all of it
    rest: str  # operands and attributes


_Bodies = dict[str, dict[str, _Instruction]]
_Executed = tuple[str, _Instruction, float]  # its computation, the instruction, how often it runs


def collectives(text: str, *, turns: float) -> list[Collective]:
    """Those of a program's HLO text, one entry a kind.

    ``turns``: of loops whose number the compiler does not know, as of decoding, which ends when the responses do.
    """
    found = {kind: [0.0, 0.0] for kind in KINDS}
    for kind, times, sent in _collectives(_executed(*_computations(text), turns)):
        found[kind][0] += times
        found[kind][1] += sent
    return [Collective(kind, count, sent) for kind, (count, sent) in found.items() if count]


def product_flops(text: str, *, turns: float) -> float:
    """Of a program's matrix products on one device, two for each multiply-add. Of CPU programs: the TPU's compiler
    makes convolutions of them."""
    bodies, entry = _computations(text)
    total = 0.0
    for name, instruction, times in _executed(bodies, entry, turns):
        if instruction.op == "dot":
            left = instruction.rest.split(",")[0].split()[-1].strip("%()")
            shape = _dimensions(bodies[name][left].shape)
            contracted = [shape[int(i)] for i in _CONTRACTED.search(instruction.rest)[1].split(",") if i]
            total += times * 2 * math.prod(_dimensions(instruction.shape)) * math.prod(contracted)
    return total


def _computations(text: str) -> tuple[_Bodies, str]:
    bodies: _Bodies = {}
    entry, name = "", None
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            name = header[2]
            bodies[name] = {}
            entry = name if header[1] else entry
        elif line == "}":  # a kernel's attributes may have lines that begin with one
            name = None
        elif name is not None and (match := _INSTRUCTION.match(line)):
            instruction, shape, op, rest = match.groups()
            bodies[name][instruction] = _Instruction(op, shape, rest)
    if not entry:
        raise ValueError("no ENTRY computation in the text of a compiled program")
    return bodies, entry


def _executed(bodies: _Bodies, name: str, turns: float, times: float = 1.0) -> Iterator[_Executed]:
    """All below a computation."""
    for instruction in bodies[name].values():
        yield name, instruction, times
        if instruction.op.endswith(("-done", "-update")):  # names what its start has called
            continue
        inner = times
        if instruction.op == "while":
            inner *= _trips(bodies, instruction, turns)
        names = (several or one for several, one in _CALLED.findall(instruction.rest))
        called = [name for each in names for name in each.replace("%", "").split(", ") if name in bodies]
        below = [list(_executed(bodies, name, turns, inner)) for name in called]
        if instruction.op == "conditional":
            # Of the branches, the one that sends least: a floor, as all here. (Sampling's are a sort, and none.)
            below = [min(below, key=lambda branch: sum(sent for _, _, sent in _collectives(branch)), default=[])]
        for found in below:
            yield from found


def _collectives(executed: Iterable[_Executed]) -> Iterator[tuple[str, float, float]]:
    """(kind, how often it runs, bytes that a chip sends in all).

    The TPU's compiler fuses one that runs beside products into each of them, start and end included: all those pieces
    have its channel, and are one.
    """
    seen = set()
    for name, instruction, times in executed:
        kind = instruction.op.removesuffix("-start")
        if kind in KINDS and name.startswith(_FUSED) and (channel := _CHANNEL.search(instruction.rest)):
            if channel[1] in seen:
                continue
            seen.add(channel[1])
        if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
            # The TPU's compiler names so what sums an array and keeps a part: no chip is sent the rest.
            yield "reduce-scatter", times, times * _sent(kind, instruction) / 2
        elif kind in KINDS:
            yield kind, times, times * _sent(kind, instruction)


def _trips(bodies: _Bodies, loop: _Instruction, turns: float) -> float:
    """How often a loop turns: what the compiler wrote down, or the constant that its counter, from 0, stays below."""
    known = _TRIPS.search(loop.rest)
    if known:
        return float(known[1])
    condition = bodies[re.search(r"condition=%?([\w.\-]+)", loop.rest)[1]]
    *_, root = condition.values()
    if root.op != "compare" or "direction=LT" not in root.rest:
        return turns
    limit = re.findall(r"%([\w.\-]+)", root.rest.partition(")")[0])[-1]
    constant = condition.get(limit)
    return float(constant.rest.partition(")")[0]) if constant is not None and constant.op == "constant" else turns


def _sent(kind: str, instruction: _Instruction) -> float:
    """Bytes that a chip sends, by a ring over its group of n: each part goes to n - 1 others."""
    sizes = [_size(dtype, dims) for dtype, dims in _ARRAY.findall(instruction.shape)]
    n = _group_size(instruction.rest)
    if kind == "collective-permute":
        return max(sizes)
    if n <= 1:
        return 0.0
    # A started one gives operands and results: the largest is what was gathered, or is to be scattered.
    started = instruction.op.endswith("-start")
    if kind == "reduce-scatter":
        return max(sizes) * (n - 1) / n if started else sum(sizes) * (n - 1)
    whole = max(sizes) if started and kind == "all-gather" else sum(sizes)
    return whole * (n - 1) / n * (2 if kind == "all-reduce" else 1)


def _group_size(attributes: str) -> int:
    found = _GROUPS.search(attributes)
    if found is None:
        return 1
    listed, size, mesh, axes = found.groups()
    if mesh is not None:
        sizes = {name: int(count) for name, count in re.findall(r"'(\w+)'=(\d+)", mesh)}
        return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", axes))
    return int(size) if size else len(listed.split(","))


def _size(dtype: str, dims: str) -> float:
    width = re.search(r"\d+", dtype)
    size = _BYTES.get(dtype, int(width[0]) / 8 if width else 0.0)
    return size * math.prod(int(d) for d in dims.split(",") if d)


def _dimensions(shape: str) -> list[int]:
    return [int(d) for d in _ARRAY.search(shape)[2].split(",") if d]
