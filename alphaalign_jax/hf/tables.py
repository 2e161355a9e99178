"""Where each parameter lives in a Hugging Face checkpoint. Import and export read the same rows.

A row says which of our axes make up each axis of the Hugging Face tensor; both transforms follow from that:

    q kernel [D, H, C]  groups ((1, 2), (0,))  <->  q_proj.weight [H * C, D]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from alphaalign_jax.models import Network
from alphaalign_jax.types import Array

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor name and one parameter; with ``{layer}`` in the name, one tensor for each slice of the L axis."""

    name: str
    path: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]  # for each axis of the tensor, our axes it flattens, L not counted

    @property
    def stacked(self) -> bool:
        return "{layer}" in self.name

    def names(self, layers: range) -> list[str]:
        return [self.name.format(layer=i) for i in layers] if self.stacked else [self.name]

    def hf_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Tensor shape for a parameter of ``shape``, L left out."""
        return tuple(int(np.prod([shape[axis] for axis in group])) for group in self.groups)

    def to_hf(self, x: np.ndarray) -> np.ndarray:
        """One layer's parameter as the checkpoint stores it."""
        return np.ascontiguousarray(x.transpose(self._order).reshape(self.hf_shape(x.shape)))

    def hf_index(self, shape: Sequence[int], index: Index) -> Index:
        """The smallest block of the tensor, contiguous along each axis, that holds ``index`` of the parameter.

        ``index`` has explicit bounds. An axis that is not the first of its group is read whole.
        """
        out = []
        for lead, *rest in self.groups:
            inner = int(np.prod([shape[axis] for axis in rest]))
            out.append(slice(index[lead].start * inner, index[lead].stop * inner))
        return tuple(out)

    def from_hf(self, block: np.ndarray, shape: Sequence[int], index: Index) -> np.ndarray:
        """``index`` of one layer's parameter, from the block that ``hf_index`` names."""
        leads = {group[0] for group in self.groups}
        sizes = [index[axis].stop - index[axis].start if axis in leads else shape[axis] for axis in self._order]
        ours = block.reshape(sizes).transpose(np.argsort(self._order))
        return ours[tuple(slice(None) if axis in leads else index[axis] for axis in range(len(shape)))]

    @property
    def _order(self) -> list[int]:
        return [axis for group in self.groups for axis in group]


_VECTOR = ((0,),)
_MATRIX = ((0,), (1,))
_LINEAR = ((1,), (0,))  # [in, out] <-> [out, in]
_HEADS_OUT = ((1, 2), (0,))  # [D, heads, C] <-> [heads * C, D]
_HEADS_IN = ((2,), (0, 1))  # [H, C, D] <-> [D, H * C]
_HEADS_BIAS = ((0, 1),)  # [heads, C] <-> [heads * C]


def _layer(name: str, path: str, groups: tuple[tuple[int, ...], ...]) -> Row:
    return Row(f"model.layers.{{layer}}.{name}", ("layers", *path.split(".")), groups)


_BODY = (
    Row("model.embed_tokens.weight", ("embed", "table"), _MATRIX),
    _layer("input_layernorm.weight", "attn_norm.scale", _VECTOR),
    _layer("self_attn.q_proj.weight", "attn.q.kernel", _HEADS_OUT),
    _layer("self_attn.k_proj.weight", "attn.k.kernel", _HEADS_OUT),
    _layer("self_attn.v_proj.weight", "attn.v.kernel", _HEADS_OUT),
    _layer("self_attn.o_proj.weight", "attn.o.kernel", _HEADS_IN),
    _layer("post_attention_layernorm.weight", "mlp_norm.scale", _VECTOR),
    _layer("mlp.gate_proj.weight", "mlp.gate.kernel", _LINEAR),
    _layer("mlp.up_proj.weight", "mlp.up.kernel", _LINEAR),
    _layer("mlp.down_proj.weight", "mlp.down.kernel", _LINEAR),
    Row("model.norm.weight", ("final_norm", "scale"), _VECTOR),
)
_QKV_BIAS = (
    _layer("self_attn.q_proj.bias", "attn.q.bias", _HEADS_BIAS),
    _layer("self_attn.k_proj.bias", "attn.k.bias", _HEADS_BIAS),
    _layer("self_attn.v_proj.bias", "attn.v.bias", _HEADS_BIAS),
)
_O_BIAS = (_layer("self_attn.o_proj.bias", "attn.o.bias", _VECTOR),)
_MLP_BIAS = (
    _layer("mlp.gate_proj.bias", "mlp.gate.bias", _VECTOR),
    _layer("mlp.up_proj.bias", "mlp.up.bias", _VECTOR),
    _layer("mlp.down_proj.bias", "mlp.down.bias", _VECTOR),
)
_QK_NORM = (
    _layer("self_attn.q_norm.weight", "attn.q_norm.scale", _VECTOR),
    _layer("self_attn.k_norm.weight", "attn.k_norm.scale", _VECTOR),
)

# Every tensor a family can have; a spec without biases, say, has no parameter for those rows.
TABLES: dict[str, tuple[Row, ...]] = {
    "llama": _BODY + _QKV_BIAS + _O_BIAS + _MLP_BIAS,
    "mistral": _BODY,
    "qwen2": _BODY + _QKV_BIAS,
    "qwen3": _BODY + _QKV_BIAS + _O_BIAS + _QK_NORM,
}
# A value head is ours alone: no Hugging Face class has a tensor for it.
HEADS: dict[str, Row | None] = {
    "lm": Row("lm_head.weight", ("head", "kernel"), _LINEAR),
    "score": Row("score.weight", ("head", "kernel"), _LINEAR),
    "value": None,
}


def rows(network: Network) -> list[Row]:
    """The rows of the parameters that ``network`` has: all of them, but for a value head."""
    table = TABLES[network.spec.family]
    head = HEADS[network.head]
    if head is not None:
        table += (head,)
    shapes = network.shapes()
    return [row for row in table if get(shapes, row.path) is not None]


def get(tree: Any, path: Sequence[str]) -> Array | None:
    """The leaf of a nested dict, or None."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
