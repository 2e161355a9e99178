"""One decoder for every family: embed, scan over stacked layers, norm, head.

There is one forward path, ``extend``: tokens attend causally to themselves and to a context of earlier segments.
Prefill of the template prefix, prefill of prompts, a decode step and the trainer's pass over responses are all calls
of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from alphaalign_jax.models.attention import KINDS, Cache, Segment
from alphaalign_jax.models.layers import INIT_STD, DecoderLayer, Dense, RMSNorm, product, rope_frequencies
from alphaalign_jax.models.spec import ModelSpec
from alphaalign_jax.parallel import constrain
from alphaalign_jax.types import Array

HEADS = ("lm", "value", "score")
# What the backward pass keeps of each layer: everything, the matrix products, or only the layer's input.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Embedding(nnx.Module):
    def __init__(self, spec: ModelSpec, *, rngs: nnx.Rngs, param_dtype):
        table = INIT_STD * jax.random.normal(rngs.params(), (spec.vocab_size, spec.hidden_size), param_dtype)
        self.table = nnx.Param(table, axes=("vocab", "embed"))


class Transformer(nnx.Module):
    """Decoder with a language-model, value or sequence-classification head."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        head: str = "lm",
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: str = "full",
        scan: bool = True,
        attention: str = "auto",
    ):
        """``scan``: layers are stacked, and one program runs all. Without, each has its own weights and program."""
        if head not in HEADS:
            raise ValueError(f"head {head!r} is not known; known: {', '.join(HEADS)}")
        if remat not in REMAT:
            raise ValueError(f"remat {remat!r} is not known; known: {', '.join(REMAT)}")
        self.spec, self.head_kind, self.dtype, self.remat = spec, head, jnp.dtype(dtype), remat
        if attention not in KINDS:
            raise ValueError(f"attention {attention!r} is not known; known: {', '.join(KINDS)}")
        common = dict(rngs=rngs, dtype=self.dtype, param_dtype=param_dtype)
        self.embed = Embedding(spec, rngs=rngs, param_dtype=param_dtype)
        self.scan = scan
        layer = lambda stack: DecoderLayer(spec, stack=stack, attention=attention, **common)
        self.layers = layer(spec.num_layers) if scan else nnx.List([layer(None) for _ in range(spec.num_layers)])
        self.final_norm = RMSNorm(spec.hidden_size, "embed", spec.norm_eps, param_dtype=param_dtype)
        self.head = _head(spec, head, common)

    def extend(
        self,
        tokens: Array,
        positions: Array,
        context: tuple[Segment, ...] = (),
        *,
        cache: Cache | None = None,
        keep_kv: bool = True,
    ) -> tuple[Array, Any]:
        """Runs ``tokens`` int32 [B, G, T] at ``positions`` int32 [B, G, T] after ``context``.

        ``context`` segments carry a leading L axis on ``k`` and ``v`` (not on ``visible``), or lists of L where layers
        are not scanned. Returns the normed hidden states [B, G, T, D] and, with ``keep_kv``, this call's own keys and
        values likewise, [L, B, G, K, C, T] and [L, B, G, K, T, C]. With a ``cache`` T is 1, and the cache with this
        token is returned instead.
        """
        table = constrain(self.embed.table[...].astype(self.dtype), "vocab", None)
        x = constrain(jnp.take(table, tokens, axis=0), "batch", "rollout", "act_length", "act_embed")
        angles = positions[..., None].astype(jnp.float32) * rope_frequencies(self.spec)
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        visible = [segment.visible for segment in context]

        def run(module, x, cache, kv, layer):
            segments = tuple(Segment(k, v, slots) for (k, v), slots in zip(kv, visible, strict=True))
            if cache is None:
                x, kept = module(x, cos, sin, segments, lambda k, v: (Segment(k, v, causal=True), (k, v)))
                return (x, None), kept if keep_kv else None
            return module(x, cos, sin, segments, functools.partial(cache.written, layer)), None

        (x, cache), kv = (self._scanned if self.scan else self._in_turn)(run, x, cache, [(s.k, s.v) for s in context])
        return self.final_norm(x), kv if cache is None else cache

    def _scanned(self, run: Callable, x: Array, cache: Cache | None, context: list) -> tuple[tuple, Any]:
        graphdef, weights = nnx.split(self.layers)
        layer = lambda carry, xs: run(nnx.merge(graphdef, xs[0]), *carry, *xs[1:])
        policy = REMAT[self.remat]
        if policy is not None:
            layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
        return jax.lax.scan(layer, (x, cache), (weights, context, jnp.arange(self.spec.num_layers)))

    def _in_turn(self, run: Callable, x: Array, cache: Cache | None, context: list) -> tuple[tuple, Any]:
        carry, found = (x, cache), []
        for i, layer in enumerate(self.layers):
            carry, kv = run(layer, *carry, [(k[i], v[i]) for k, v in context], i)
            found.append(kv)
        return carry, None if found[0] is None else tuple(map(list, zip(*found, strict=True)))

    def cache(self, *rows: int, slots: int) -> tuple[Any, Any]:
        """Zeros for the keys and the values of ``rows``: [L, *rows, K, C, slots] and [L, *rows, K, slots, C], or lists
        of L where layers are not scanned."""
        count, heads, width = self.spec.num_layers, self.spec.num_kv_heads, self.spec.head_dim
        zeros = lambda *shape: jnp.zeros(shape, self.dtype)
        of = lambda *shape: zeros(count, *shape) if self.scan else [zeros(*shape) for _ in range(count)]
        return of(*rows, heads, width, slots), of(*rows, heads, slots, width)

    def vocabulary(self) -> Array:
        """The language-model head's matrix, gathered from the devices that share out its rows: for ``logits`` in many
        parts, each of which would gather it, and scatter its gradient, again."""
        if self.head is None:
            return constrain(self.embed.table[...], "vocab", None)
        return constrain(self.head.kernel[...], None, "vocab")

    def logits(self, hidden: Array, vocabulary: Array | None = None) -> Array:
        """Head outputs in float32: [..., D] -> [..., V], [..., 1] or [..., num_labels].

        Products of bfloat16 inputs are summed and handed on in float32: rounded to bfloat16, a logit near 30 moves by
        1/8, and the scores of a group tie.
        """
        if self.head is not None and vocabulary is None:
            return self.head(hidden, out_dtype=jnp.float32)
        matrix = (self.embed.table[...] if vocabulary is None else vocabulary).astype(self.dtype)
        return product(hidden, matrix, int(self.head is None), jnp.float32).reshape(*hidden.shape[:-1], -1)

    def __call__(self, tokens: Array) -> Array:
        """Head outputs for whole sequences int32 [B, T]: the plain path, for classifiers and parity tests."""
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1], dtype=jnp.int32), tokens.shape)
        hidden, _ = self.extend(tokens[:, None], positions[:, None], keep_kv=False)
        return self.logits(hidden[:, 0])


def _head(spec: ModelSpec, kind: str, common: dict) -> Dense | None:
    if kind == "lm":
        return None if spec.tie_embeddings else Dense((spec.hidden_size, spec.vocab_size), ("embed", "vocab"), **common)
    if kind == "value":
        # Zero, so that the first advantages are the rewards themselves and not an untrained critic's noise.
        return Dense((spec.hidden_size, 1), ("embed", "labels"), std=0.0, **common)
    if not spec.num_labels:
        raise ValueError(f"a score head needs num_labels in the spec, got {spec.num_labels}")
    return Dense((spec.hidden_size, spec.num_labels), ("embed", "labels"), **common)
