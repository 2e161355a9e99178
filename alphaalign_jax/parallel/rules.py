"""Logical-axis rules: models name axes, a table says which mesh axes each one is laid over.

A layout is a mesh with a rule table. Training and rollout use two tables; a change of layout is a change of table,
never of model code.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Every logical axis that models and carriers may name.
LOGICAL_AXES = (
    "batch",  # B, prompts
    "rollout",  # G
    "length",  # P, S, T, U: whole on every device
    "layers",  # L
    "embed",  # D of weights
    "act_embed",  # D of activations
    "act_length",  # T of activations between attention and feed-forward
    "mlp",  # F
    "heads",  # H
    "kv_heads",  # K
    "head_dim",  # C
    "vocab",  # V
    "labels",  # classes of a score head
)

RuleTable = Mapping[str, tuple[str, ...]]

# Every activation that ``constrain`` is asked to lay out: a table is tried on all of them before anything is traced.
ACTIVATIONS = (
    ("batch", "rollout", "act_length", "act_embed"),
    ("batch", "rollout", "length", "heads", "head_dim"),
    ("batch", "rollout", "length", "mlp"),
    *(
        (*rows, heads, *head)
        for heads in ("kv_heads", "heads")  # as they are held; copied for the query heads of each device
        for rows in (("batch", "rollout"), ("layers", "batch", "rollout"), ("layers", "batch"), ("batch",), ())
        for head in (("head_dim", "length"), ("length", "head_dim"))  # keys, values
    ),
    ("batch", "length"),
    ("batch", "rollout", "length"),
    ("batch", "rollout"),
    ("vocab", None),
    (None, "vocab"),
)

FSDP_TENSOR: RuleTable = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "vocab": ("tensor",),
}
# Decoding reads every weight once a token: gathering them over fsdp each time would cost more than holding them.
TENSOR_ONLY: RuleTable = {axes: mesh for axes, mesh in FSDP_TENSOR.items() if axes != "embed"}
# A layer's input, which the backward pass keeps, is cut along the responses over the devices that share its weights:
# for long ones (Korthikanti et al. 2022, "sequence parallelism").
SEQUENCE: RuleTable = FSDP_TENSOR | {"act_length": ("tensor",)}
# Every device has all heads, a part of every weight and some of a prompt's rollouts: for training on more devices than
# there are prompts, without sums of activations over them.
FSDP_ROLLOUT: RuleTable = {"batch": ("data", "fsdp"), "rollout": ("tensor",), "embed": ("fsdp", "tensor")}
TABLES: dict[str, RuleTable] = {
    "fsdp_tensor": FSDP_TENSOR,
    "fsdp_rollout": FSDP_ROLLOUT,
    "sequence": SEQUENCE,
    "tensor": TENSOR_ONLY,
}


def rule_table(name: str, overrides: Sequence[Sequence[str]] = ()) -> RuleTable:
    """A named table with rows replaced. ``overrides`` rows are ``(logical axis, mesh axis, mesh axis, ...)``."""
    if name not in TABLES:
        raise ValueError(f"rule table {name!r} is not known; known: {', '.join(TABLES)}")
    table = dict(TABLES[name])
    for row in overrides:
        if not isinstance(row, (tuple, list)) or not row or not all(isinstance(axis, str) for axis in row):
            raise ValueError(f"rule {row!r}: expected (logical axis, mesh axis, ...), such as ('mlp', 'tensor')")
        logical, *mesh_axes = row
        if logical not in LOGICAL_AXES:
            raise ValueError(f"rule for {logical!r}: not a logical axis; the axes are {', '.join(LOGICAL_AXES)}")
        if logical == "length":
            raise ValueError("rule for 'length': attention reads whole responses; shard 'act_length' instead")
        table[logical] = tuple(mesh_axes)
    return table


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and the rule table that lays logical axes over it."""

    mesh: Mesh
    rules: RuleTable

    def __post_init__(self):
        for logical, mesh_axes in self.rules.items():
            unknown = [axis for axis in mesh_axes if axis not in self.mesh.axis_names]
            if unknown:
                raise ValueError(
                    f"rule {logical} -> {mesh_axes}: the mesh has no axis {unknown[0]!r}, only {self.mesh.axis_names}"
                )
        for axes in ACTIVATIONS:
            self.spec(axes)

    def size(self, logical: str) -> int:
        """Shards that the axis is cut into."""
        return math.prod(self.mesh.shape[axis] for axis in self.rules.get(logical, ()))

    def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
        """Partition spec of an array with these logical axes. Two axes on one mesh axis are refused."""
        parts, used = [], {}
        for logical in axes:
            mesh_axes = self.rules.get(logical, ()) if logical else ()
            for axis in mesh_axes:
                if axis in used:
                    raise ValueError(
                        f"axes {tuple(axes)}: {used[axis]!r} and {logical!r} are both laid over mesh axis {axis!r}"
                    )
                used[axis] = logical
            parts.append(mesh_axes[0] if len(mesh_axes) == 1 else (tuple(mesh_axes) or None))
        return PartitionSpec(*parts)

    def sharding(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, self.spec(axes))

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def check(self, what: str, shape: Sequence[int], axes: Sequence[str | None]) -> None:
        """Raises ValueError with the numbers where a dimension does not divide over its mesh axes."""
        for dim, logical in zip(shape, axes, strict=True):
            shards = self.size(logical) if logical else 1
            if dim % shards:
                over = {axis: self.mesh.shape[axis] for axis in self.rules[logical]}
                raise ValueError(
                    f"{what} {tuple(shape)}: axis {logical!r} of size {dim} does not divide over mesh axes {over} "
                    f"({shards} shards)"
                )

    def tree_shardings(self, axes_tree: Any, shapes: Any = None, what: str = "parameter") -> Any:
        """Shardings of a pytree of logical-axis tuples; with ``shapes`` (same tree), divisibility is checked first."""
        is_axes = lambda x: isinstance(x, tuple)
        if shapes is not None:
            flat, _ = jax.tree_util.tree_flatten_with_path(axes_tree, is_leaf=is_axes)
            for (path, axes), leaf in zip(flat, jax.tree.leaves(shapes), strict=True):
                self.check(f"{what} {jax.tree_util.keystr(path)}", leaf.shape, axes)
        return jax.tree.map(lambda axes: self.sharding(*axes), axes_tree, is_leaf=is_axes)


def host_memory(shardings: Any) -> Any:
    """The same shardings in the hosts' memory: where weights wait that are needed once a step."""
    return jax.tree.map(lambda sharding: sharding.with_memory_kind("pinned_host"), shardings)


_CURRENT: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


@contextlib.contextmanager
def use(layout: Layout | None):
    """Within it, ``constrain`` lays activations out by this layout. Entered while a step is traced."""
    token = _CURRENT.set(layout)
    try:
        yield layout
    finally:
        _CURRENT.reset(token)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """States the logical axes, one of ``ACTIVATIONS``; outside ``use`` it is the identity. Size-1 axes stay whole."""
    spec = _spec(x, axes)
    return x if spec is None else jax.lax.with_sharding_constraint(x, NamedSharding(_CURRENT.get().mesh, spec))


def whole(x: jax.Array) -> jax.Array:
    """``x`` on every device, outside ``use`` as it is: for small arrays."""
    layout = _CURRENT.get()
    return x if layout is None else jax.lax.with_sharding_constraint(x, layout.replicated)


def _spec(x: jax.Array, axes: tuple[str | None, ...]) -> PartitionSpec | None:
    if axes not in ACTIVATIONS:
        raise ValueError(f"activation {axes} is not among ACTIVATIONS, where rule tables are checked; add it there")
    layout = _CURRENT.get()
    whole = [None if dim == 1 else axis for dim, axis in zip(x.shape, axes, strict=True)]
    return None if layout is None else layout.spec(whole)


def platform() -> str:
    """Of the devices that are traced for: cpu, gpu, tpu."""
    layout = _CURRENT.get()
    return jax.default_backend() if layout is None else layout.mesh.devices.flat[0].platform


def shards(logical: str) -> int:
    """Parts into which the axis is cut while a step is traced."""
    layout = _CURRENT.get()
    return 1 if layout is None else layout.size(logical)


def sharded(function: Callable[..., jax.Array], *arguments: tuple[jax.Array, tuple[str | None, ...]]) -> jax.Array:
    """``function`` of arrays, run by each device on its parts of them, for what XLA cannot lay over a mesh itself.

    ``arguments``: arrays with their logical axes, one of ``ACTIVATIONS``. The result lies as the first does.
    """
    layout, arrays = _CURRENT.get(), [x for x, _ in arguments]
    specs = tuple(_spec(x, axes) for x, axes in arguments)
    if layout is None:
        return function(*arrays)
    with use(None):  # each device's part is no more to lay out
        return jax.shard_map(function, mesh=layout.mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)
