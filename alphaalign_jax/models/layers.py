"""The parts of a decoder layer. Weights of all layers are stacked on a leading ``layers`` axis; ``__call__`` sees one.

Each parameter names its logical axes (``param.axes``), which is all that sharding needs to know of a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from alphaalign_jax.models.attention import Segment, attend
from alphaalign_jax.models.spec import Llama3Scaling, ModelSpec
from alphaalign_jax.parallel import constrain
from alphaalign_jax.types import Array

# What becomes of a call's own keys [B, G, K, C, T] and values [B, G, K, T, C]: the segment to attend to, and what is
# kept of them.
Own = Callable[[Array, Array], tuple[Segment, Any]]
INIT_STD = 0.02  # initializer_range of every family here


def precision_of(dtype: jnp.dtype) -> jax.lax.Precision:
    """float32 means float32: the default on TPU and on recent GPUs would round its inputs to fewer bits."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else jax.lax.Precision.DEFAULT


def product(x: Array, matrix: Array, axis: int, out_dtype: jnp.dtype | None = None) -> Array:
    """All rows of ``x`` by ``matrix``, contracting its ``axis``: [M, out], M the product of x's leading axes.

    Both are given as matrices: of several axes, XLA makes matrices by copying, where it need not. A kernel with its
    output axes first was copied at every token, and the inputs of a gradient at every layer.
    """
    rows = x.reshape(-1, matrix.shape[axis])
    precision = precision_of(x.dtype)
    return jax.lax.dot_general(
        rows, matrix, (((1,), (axis,)), ((), ())), precision=precision, preferred_element_type=out_dtype
    )


class Dense(nnx.Module):
    """``x @ kernel + bias`` contracting the first ``contract`` axes of ``shape``, stacked over ``stack`` layers.

    ``out_first``: the kernel is held with its output axes first. For a few rows of ``x`` that is the order in which a
    CPU's products read it, a tenth faster (measured at 32 rows).
    """

    def __init__(
        self,
        shape: Sequence[int],
        axes: Sequence[str],
        *,
        rngs: nnx.Rngs,
        contract: int = 1,
        out_first: bool = False,
        bias: bool = False,
        stack: int | None = None,
        dtype: jnp.dtype = jnp.float32,
        param_dtype: jnp.dtype = jnp.float32,
        std: float = INIT_STD,
    ):
        lead, lead_axes = ((stack,), ("layers",)) if stack is not None else ((), ())
        turned = lambda sizes: (*sizes[contract:], *sizes[:contract]) if out_first else tuple(sizes)
        kernel = std * jax.random.normal(rngs.params(), (*lead, *turned(shape)), param_dtype)
        self.kernel = nnx.Param(kernel, axes=(*lead_axes, *turned(axes)))
        self.bias = (
            nnx.Param(jnp.zeros((*lead, *shape[contract:]), param_dtype), axes=(*lead_axes, *axes[contract:]))
            if bias
            else None
        )
        self.contract, self.out_first, self.dtype = contract, out_first, dtype

    def __call__(self, x: Array, out_dtype: jnp.dtype | None = None) -> Array:
        """[..., *shape[:contract]] -> [..., *shape[contract:]] in the compute dtype, or unrounded in ``out_dtype``."""
        kernel, lead = self.kernel[...].astype(self.dtype), x.shape[: x.ndim - self.contract]
        first = kernel.ndim - self.contract if self.out_first else self.contract
        width = kernel.shape[:first] if self.out_first else kernel.shape[first:]
        matrix = kernel.reshape(math.prod(kernel.shape[:first]), -1)
        y = product(x.astype(self.dtype), matrix, int(self.out_first), out_dtype).reshape(*lead, *width)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis, in float32 as transformers computes it."""

    def __init__(
        self, width: int, axis: str, eps: float, *, stack: int | None = None, param_dtype: jnp.dtype = jnp.float32
    ):
        lead, lead_axes = ((stack,), ("layers",)) if stack is not None else ((), ())
        self.scale = nnx.Param(jnp.ones((*lead, width), param_dtype), axes=(*lead_axes, axis))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (x32.astype(x.dtype) * self.scale[...].astype(x.dtype)).astype(x.dtype)


def rope_frequencies(spec: ModelSpec) -> jax.Array:
    """Inverse frequencies, float32 [C // 2]. Llama-3 scaling as in Llama 3.1's reference ``apply_scaling``."""
    exponent = jnp.arange(0, spec.head_dim, 2, dtype=jnp.float32) / spec.head_dim
    inv = 1.0 / (spec.rope_theta**exponent)
    scaling = spec.rope_scaling
    return inv if scaling is None else _llama3_scaled(inv, scaling)


def _llama3_scaled(inv: jax.Array, s: Llama3Scaling) -> jax.Array:
    wavelength = 2 * math.pi / inv
    low_wavelength = s.original_max_positions / s.low_freq_factor
    high_wavelength = s.original_max_positions / s.high_freq_factor
    smooth = (s.original_max_positions / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    blended = (1 - smooth) * inv / s.factor + smooth * inv
    return jnp.where(wavelength > low_wavelength, inv / s.factor, jnp.where(wavelength < high_wavelength, inv, blended))


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embedding of [B, G, T, heads, C] by [B, G, T, C // 2] angles, halves layout of Hugging Face weights."""
    halves = x.reshape(*x.shape[:-1], 2, -1).astype(jnp.float32)
    cos, sin = cos[..., None, None, :], sin[..., None, None, :] * jnp.array([[-1.0], [1.0]], jnp.float32)
    # The halves are exchanged by reversing them, which fuses with the sums; a concatenation would be written out.
    return (halves * cos + jnp.flip(halves, -2) * sin).reshape(x.shape).astype(x.dtype)


class Attention(nnx.Module):
    """Causal self-attention that also sees a context of earlier segments."""

    def __init__(self, spec: ModelSpec, *, attention: str, **common):
        d, h, k, c = spec.hidden_size, spec.num_heads, spec.num_kv_heads, spec.head_dim
        self.q = Dense((d, h, c), ("embed", "heads", "head_dim"), bias=spec.qkv_bias, **common)
        self.k = Dense((d, k, c), ("embed", "kv_heads", "head_dim"), bias=spec.qkv_bias, **common)
        self.v = Dense((d, k, c), ("embed", "kv_heads", "head_dim"), bias=spec.qkv_bias, **common)
        self.o = Dense((h, c, d), ("heads", "head_dim", "embed"), contract=2, bias=spec.o_bias, **common)
        norm = {name: common[name] for name in ("stack", "param_dtype")}
        self.q_norm = RMSNorm(c, "head_dim", spec.norm_eps, **norm) if spec.qk_norm else None
        self.k_norm = RMSNorm(c, "head_dim", spec.norm_eps, **norm) if spec.qk_norm else None
        self.attention, self.dtype = attention, common["dtype"]

    def __call__(self, x: Array, cos: Array, sin: Array, context: tuple[Segment, ...], own: Own) -> tuple[Array, Any]:
        """x [B, G, T, D]; returns the output and what ``own`` keeps."""
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q = constrain(rotate(q, cos, sin), "batch", "rollout", "length", "heads", "head_dim")
        k = constrain(jnp.moveaxis(rotate(k, cos, sin), 2, -1), "batch", "rollout", "kv_heads", "head_dim", "length")
        v = constrain(jnp.moveaxis(v, 2, 3), "batch", "rollout", "kv_heads", "length", "head_dim")
        segment, kept = own(k, v)
        out = attend(q, (*context, segment), precision_of(self.dtype), self.attention)
        return self.o(out), kept


class MLP(nnx.Module):
    """SwiGLU feed-forward."""

    def __init__(self, spec: ModelSpec, **common):
        d, f = spec.hidden_size, spec.intermediate_size
        self.gate = Dense((d, f), ("embed", "mlp"), bias=spec.mlp_bias, **common)
        self.up = Dense((d, f), ("embed", "mlp"), bias=spec.mlp_bias, **common)
        self.down = Dense((f, d), ("mlp", "embed"), bias=spec.mlp_bias, **common)

    def __call__(self, x: Array) -> Array:
        hidden = jax.nn.silu(self.gate(x)) * self.up(x)
        return self.down(constrain(hidden, "batch", "rollout", "length", "mlp"))


class DecoderLayer(nnx.Module):
    """Pre-norm attention and feed-forward: ``stack`` layers' weights together, or one layer's."""

    def __init__(self, spec: ModelSpec, *, rngs: nnx.Rngs, stack: int | None, attention: str, dtype, param_dtype):
        # Layers apart are those of the sampler (``Network.scan``).
        common = dict(rngs=rngs, stack=stack, out_first=stack is None, dtype=dtype, param_dtype=param_dtype)
        norm = dict(stack=stack, param_dtype=param_dtype)
        self.attn_norm = RMSNorm(spec.hidden_size, "embed", spec.norm_eps, **norm)
        self.attn = Attention(spec, attention=attention, **common)
        self.mlp_norm = RMSNorm(spec.hidden_size, "embed", spec.norm_eps, **norm)
        self.mlp = MLP(spec, **common)

    def __call__(self, x: Array, cos: Array, sin: Array, context: tuple[Segment, ...], own: Own) -> tuple[Array, Any]:
        h, kept = self.attn(self.attn_norm(x), cos, sin, context, own)
        x = constrain(x + h, "batch", "rollout", "act_length", "act_embed")
        x = x + self.mlp(self.mlp_norm(x))
        return constrain(x, "batch", "rollout", "act_length", "act_embed"), kept
