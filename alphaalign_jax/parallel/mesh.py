"""The device mesh: three named axes, checked against the devices before anything is compiled."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh

MESH_AXES = ("data", "fsdp", "tensor")


def first_devices(count: int) -> list[jax.Device]:
    """The first ``count`` devices, all of them for 0."""
    devices = jax.devices()
    if not 0 <= count <= len(devices):
        raise ValueError(f"{count} devices requested, {len(devices)} available; 0 means all")
    return devices[: count or None]


def local_devices(count: int) -> list[jax.Device]:
    """Those of ``first_devices(count)`` that belong to this process."""
    return [device for device in first_devices(count) if device.process_index == jax.process_index()]


def build_mesh(*, data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over ``devices`` (default: all). At most one size may be -1: it takes what the others leave."""
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    free = [axis for axis, size in sizes.items() if size == -1]
    bad = {axis: size for axis, size in sizes.items() if size != -1 and size < 1}
    if bad or len(free) > 1:
        raise ValueError(f"mesh {sizes}: sizes are positive, and at most one may be -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free:
        if len(devices) % fixed:
            raise ValueError(
                f"mesh {sizes}: {len(devices)} devices do not divide by {fixed}, the product of the fixed axes"
            )
        sizes[free[0]] = len(devices) // fixed
    elif fixed != len(devices):
        raise ValueError(f"mesh {sizes} takes {fixed} devices, but there are {len(devices)}; set one axis to -1 to fit")
    shape = tuple(sizes[axis] for axis in MESH_AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        # On TPU the order of devices decides which neighbours talk; elsewhere this is a plain reshape. An axis of 4 may
        # take half a side of 8 x 8 chips.
        return Mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), MESH_AXES)
    # Between slices lies a slower network, which the data axis alone is made for.
    if sizes["data"] % slices:
        raise ValueError(
            f"mesh {sizes}: its {len(devices)} devices are {slices} slices, which only the data axis may go across: "
            f"set mesh.data to {slices} or a multiple"
        )
    within = (sizes["data"] // slices, *shape[1:])
    between = (slices, 1, 1)
    return Mesh(
        mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True), MESH_AXES
    )
