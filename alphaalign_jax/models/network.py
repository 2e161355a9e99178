"""A network without its weights: what jitted steps close over. Weights travel beside it as a nested dict of arrays."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from alphaalign_jax.models.spec import ModelSpec
from alphaalign_jax.models.transformer import Transformer

Params = Any  # nested dict of arrays, keyed as the modules' attributes are


@dataclasses.dataclass(frozen=True)
class Network:
    """Architecture, head and compute choices. Hashable, so that it can be a static argument of a jitted function."""

    spec: ModelSpec
    head: str = "lm"  # lm, value, score
    dtype: str = "float32"  # compute dtype
    remat: str = "full"  # none, dots, full
    scan: bool = True  # layers stacked and scanned; without, each has weights and a program of its own
    attention: str = "auto"  # one of ``models.attention.KINDS``

    def _build(self, rngs: nnx.Rngs, param_dtype: Any) -> Transformer:
        types = dict(dtype=jnp.dtype(self.dtype), param_dtype=param_dtype)
        how = dict(remat=self.remat, scan=self.scan, attention=self.attention)
        return Transformer(self.spec, head=self.head, rngs=rngs, **how, **types)

    @functools.lru_cache  # noqa: B019 - neither the key nor the cached shapes keep arrays alive
    def _abstract(self, param_dtype: str = "float32") -> Transformer:
        return nnx.eval_shape(lambda: self._build(nnx.Rngs(0), jnp.dtype(param_dtype)))

    def shapes(self, param_dtype: str = "float32") -> Params:
        """Nested dict of ``jax.ShapeDtypeStruct``."""
        return nnx.to_pure_dict(nnx.state(self._abstract(param_dtype)))

    @property
    def axes(self) -> Params:
        """Nested dict of logical-axis tuples, one a parameter."""
        return nnx.to_pure_dict(nnx.map_state(lambda _, variable: variable.axes, nnx.state(self._abstract())))

    def init(self, key: jax.Array, param_dtype: str = "float32") -> Params:
        """Freshly initialised weights. Jittable: jit it with output shardings to initialise in place."""
        return nnx.to_pure_dict(nnx.state(self._build(nnx.Rngs(key), jnp.dtype(param_dtype))))

    def from_stacked(self, params: Params) -> Params:
        """Weights with stacked layers, as they are kept and stored, as this network has them."""
        if self.scan:
            return params
        axes = [dataclasses.replace(self, scan=scan).axes["layers"] for scan in (True, False)]
        is_axes = lambda x: isinstance(x, tuple)
        # Axes of one array have names of their own, so a name tells where its axis goes.
        one = lambda i: lambda from_, to, x: x[i].transpose([from_[1:].index(name) for name in to])
        layer = lambda i: jax.tree.map(one(i), axes[0], axes[1][i], params["layers"], is_leaf=is_axes)
        return {**params, "layers": {i: layer(i) for i in range(self.spec.num_layers)}}

    def bind(self, params: Params) -> Transformer:
        """The module with these weights."""
        graphdef, state = nnx.split(self._abstract())
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graphdef, state)
