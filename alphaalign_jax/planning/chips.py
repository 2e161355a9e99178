"""Public figures of Cloud TPU chips, and the devices of a described topology."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of one chip. A float32 product at full precision is six bfloat16 passes of the matrix unit."""

    name: str
    bf16_flops: float  # per second
    hbm_bytes: float
    hbm_rate: float  # bytes per second
    ici_rate: float  # bytes per second that a chip sends over all its links
    dollars_hour: float  # on demand, as listed for us regions; --price sets another
    source: str

    def flops(self, dtype: str) -> float:
        return self.bf16_flops / (6 if dtype == "float32" else 1)


_DOCS = "cloud.google.com/tpu/docs/"
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 197e12, 16 * 2**30, 819e9, 1600e9 / 8, 1.20, f"{_DOCS}v5e"),
        Chip("v5p", 459e12, 95 * 2**30, 2765e9, 4800e9 / 8, 4.20, f"{_DOCS}v5p"),
        Chip("v6e", 918e12, 32 * 2**30, 1600e9, 3200e9 / 8, 2.70, f"{_DOCS}v6e"),
        # Of no meaning but to try a plan, and to compare it with what a run on forced CPU devices uses.
        Chip("cpu", 100e9, 4 * 2**30, 20e9, 10e9, 0.0, "made up"),
    )
}
_TOPOLOGY = re.compile(r"(v5e|v5p|v6e):([0-9]{1,4}(?:x[0-9]{1,4}){1,2})|cpu:([0-9]{1,4})")
# Slices by the names that Cloud TPU gives them (cloud.google.com/tpu/docs/v5e, v5p and v6e): the number counts chips,
# for v5p TensorCores, of which a chip has two. libtpu describes no slice of a single chip.
_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16 16x16x24".split()
_chips = lambda shape: math.prod(map(int, shape.split("x")))
SLICES = {
    **{f"v5litepod-{_chips(shape)}": f"v5e:{shape}" for shape in _FLAT},
    **{f"v5p-{2 * _chips(shape)}": f"v5p:{shape}" for shape in _CUBES},
    **{f"v6e-{_chips(shape)}": f"v6e:{shape}" for shape in _FLAT},
}
_POD = {"v5e": 256, "v5p": 8960, "v6e": 256}  # chips of the largest
_SHAPES = {"v5e": "2x2, 4x4, 8x8", "v5p": "2x2x1, 2x2x4, 4x4x4", "v6e": "2x2, 4x4, 8x8"}


def topology(name: str) -> tuple[Chip, Sequence[Any]]:
    """The chip and the devices of a slice, by its name on Cloud TPU (``v5litepod-16``, ``v5p-16``, ``v6e-16``) or its
    shape (``v5e:8x8``, ``v5p:2x2x4``, ``v6e:4x4``), or of ``cpu:8`` (devices of this host).

    Raises ValueError for another name, a shape that the chip does not come in, or if libtpu is missing.
    """
    match = _TOPOLOGY.fullmatch(SLICES.get(name, name))
    if not match:
        raise ValueError(
            f"--topology={name}: expected a slice, such as v5litepod-16, v5p-16 or v6e-16, a shape, such as v5e:8x8, "
            f"v5p:2x2x4 or v6e:4x4, or cpu:8{_nearest(name)}"
        )
    kind, shape, count = match.groups()
    if count:
        devices = jax.devices("cpu")
        if int(count) < 1:
            raise ValueError(f"--topology={name}: expected a positive number of devices, such as cpu:8")
        if int(count) > len(devices):
            force = f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
            raise ValueError(f"--topology={name}: this host has {len(devices)} CPU devices; set {force}")
        return CHIPS["cpu"], devices[: int(count)]
    return CHIPS[kind], _described(kind, shape)


def _nearest(name: str) -> str:
    """A hint for a name that is none: the slices of its kind of chip, or the nearest name."""
    kind, dash, _ = name.replace("v5e-", "v5litepod-").partition("-")
    slices = [known for known in SLICES if dash and known.startswith(f"{kind}-")]
    if slices:
        return f"; the slices of {kind} are {', '.join(slices)}"
    near = difflib.get_close_matches(name.lower(), [*SLICES, *SLICES.values()], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _described(kind: str, shape: str) -> Sequence[Any]:
    chips = _chips(shape)
    if not 0 < chips <= _POD[kind]:
        raise ValueError(_none_such(kind, shape, f"{chips} chips, 1 to {_POD[kind]} make a pod"))
    # libtpu asks the machine which TPU it is, and locks it: here there is none to ask or lock.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{kind.replace('v5e', 'v5litepod')}-{chips}")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{shape}").devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        text = str(error).splitlines()[0]
        if "INVALID_ARGUMENT" in text:
            raise ValueError(_none_such(kind, shape, text)) from error
        raise ValueError(
            f"--topology={kind}:{shape}: the TPU compiler gave no such topology ({text}); it comes with "
            f"pip install 'alphaalign_jax[tpu]', for Linux on x86-64"
        ) from error


def _none_such(kind: str, shape: str, why: str) -> str:
    return f"--topology={kind}:{shape}: {kind} does not come in this shape ({why}); try {_SHAPES[kind]}"
