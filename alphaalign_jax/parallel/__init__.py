"""Meshes and logical-axis rules. Only this room knows mesh axes."""

from alphaalign_jax.parallel.mesh import MESH_AXES, build_mesh, first_devices, local_devices
from alphaalign_jax.parallel.processes import to_host
from alphaalign_jax.parallel.programs import compiled, compiles, compiles_since, reporting
from alphaalign_jax.parallel.rules import (
    LOGICAL_AXES,
    Layout,
    constrain,
    host_memory,
    platform,
    rule_table,
    sharded,
    shards,
    use,
    whole,
)

__all__ = [
    "LOGICAL_AXES",
    "MESH_AXES",
    "Layout",
    "build_mesh",
    "compiled",
    "compiles",
    "compiles_since",
    "constrain",
    "first_devices",
    "host_memory",
    "local_devices",
    "platform",
    "reporting",
    "rule_table",
    "sharded",
    "shards",
    "to_host",
    "use",
    "whole",
]
