"""The sampling distribution: temperature, top-k, top-p. One definition for the sampler and the trainer's log-probs."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from alphaalign_jax.models.transformer import Transformer
from alphaalign_jax.types import Array

_TINY, _HUGE = (float(x) for x in (jnp.finfo(jnp.float32).tiny, jnp.finfo(jnp.float32).max))
_MOST = jnp.iinfo(jnp.int32).max
_OUT = -1e30  # finite: entropy multiplies it by a probability of exactly 0


@flax.struct.dataclass
class Sampling:
    """Sampling settings; traced, so that changing them compiles nothing, but for whether top-k or top-p is on."""

    temperature: Array  # float32 []; 0 is greedy, whose recorded log-probs are those at temperature 1
    top_k: Array  # int32 []; 0 is off
    top_p: Array  # float32 []; 1 is off
    # bool [V]: vocabulary rows that a token owns. Embedding tables are padded (Qwen's by hundreds of rows), and a row
    # without a token can be neither decoded nor verified: it has probability 0. None: every row.
    owned: Array | None = None
    # Whether top-k or top-p is on. Static: a branch with the sort of the vocabulary takes its memory whether or not it
    # is taken, five times that of the logits.
    filtered: bool = flax.struct.field(pytree_node=False, default=False)

    @classmethod
    def create(
        cls, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, owned: Array | None = None
    ) -> Sampling:
        # As float32: what overflows there is infinite, and what rounds to 0 would be greedy, or leave no token.
        heat = temperature == 0 or _TINY <= temperature <= _HUGE
        if not heat or not 0 <= top_k <= _MOST or not _TINY <= top_p <= 1:
            raise ValueError(
                f"sampling temperature={temperature} (0, or {_TINY:.1e} to {_HUGE:.1e}), top_k={top_k} (0 to {_MOST}, "
                f"0 is off), top_p={top_p} (above 0, at most 1, which is off) is out of range"
            )
        return cls(jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p), owned, top_k > 0 or top_p < 1)


def scaled_logits(logits: Array, sampling: Sampling, keep: Array | None = None) -> Array:
    """Logits float32 [..., V] whose softmax is the distribution that is sampled from; -1e30 outside its support.

    ``keep`` int32 [...]: a token that stays in the support whatever top-k and top-p say. The trainer passes the sampled
    token: under updated weights it may leave the top-k, where a log-prob of -inf would make the ratio 0 and the
    gradient vanish.
    """
    logits = logits.astype(jnp.float32) / jnp.where(sampling.temperature > 0, sampling.temperature, 1.0)
    if sampling.owned is not None:
        logits = jnp.where(sampling.owned, logits, _OUT)

    def filtered(x):
        support = _support(x, sampling)
        if keep is not None:
            support |= jnp.arange(x.shape[-1]) == keep[..., None]
        return jnp.where(support, x, _OUT)

    if not sampling.filtered:
        return logits
    return jax.lax.cond(sampling.temperature > 0, filtered, lambda x: x, logits)


def chosen_logprob(logits: Array, token: Array) -> tuple[Array, Array]:
    """Log-prob of ``token`` int32 [...] under softmax(logits), and the normaliser it was found with.

    Both are float32 [...]. One reduction over V: the log-softmax of all V, of which one entry is wanted, is not written
    out.
    """
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    return jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0] - normaliser, normaliser


def _support(logits: Array, sampling: Sampling) -> Array:
    """Tokens kept by top-k, then by top-p of what top-k left (in transformers' order). Ties at an edge are all kept."""
    logits = jax.lax.stop_gradient(logits)
    v = logits.shape[-1]
    ranked = -jnp.sort(-logits, axis=-1)
    rank = jnp.arange(v)
    in_k = (sampling.top_k == 0) | (rank < sampling.top_k)
    probs = jax.nn.softmax(jnp.where(in_k, ranked, _OUT), axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs  # mass ranked above each token
    in_p = (before < sampling.top_p) | (sampling.top_p >= 1.0)
    edge = jnp.min(jnp.where(in_k & in_p, ranked, jnp.inf), axis=-1, keepdims=True)
    return logits >= edge


def token_logprobs(
    model: Transformer, states: Array, tokens: Array, sampling: Sampling, *, chunk: int = 64, entropy: bool = True
) -> tuple[Array, Array | None]:
    """Log-prob of ``tokens`` and (if asked for) entropy, float32 [B, G, T], under the sampling distribution.

    Runs over chunks of T and recomputes logits in the backward pass: nothing of shape [B, G, T, V] is ever held.
    """
    b, g, t, d = states.shape
    chunk = min(chunk, t)
    pad = -t % chunk
    states = jnp.pad(states, ((0, 0), (0, 0), (0, pad), (0, 0)))
    tokens = jnp.pad(tokens, ((0, 0), (0, 0), (0, pad)))
    vocabulary = model.vocabulary()

    @jax.checkpoint
    def one(args):
        h, y = args
        logits = scaled_logits(model.logits(h, vocabulary), sampling, keep=y)
        logprob, normaliser = chosen_logprob(logits, y)
        if not entropy:
            return logprob, None
        return logprob, normaliser - jnp.sum(jnp.exp(logits - normaliser[..., None]) * logits, axis=-1)

    split = lambda x: jnp.moveaxis(x.reshape(b, g, -1, chunk, *x.shape[3:]), 2, 0)
    join = lambda x: jnp.moveaxis(x, 0, 2).reshape(b, g, -1)[..., :t]
    return jax.tree.map(join, jax.lax.map(one, (split(states), split(tokens))))
