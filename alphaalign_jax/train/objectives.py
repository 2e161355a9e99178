"""Objectives of the updates, gradient accumulation over micro-batches, and optimizer steps.

All are pure functions of networks and arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from alphaalign_jax import config
from alphaalign_jax.algorithms.kl import kl_penalty
from alphaalign_jax.algorithms.losses import Denominator, entropy_bonus, kl_loss, ppo_policy_loss, value_loss
from alphaalign_jax.models import Network, Params
from alphaalign_jax.models.context import response_states
from alphaalign_jax.models.distribution import Sampling, token_logprobs
from alphaalign_jax.ops import masked_mean
from alphaalign_jax.parallel import whole
from alphaalign_jax.types import Array, Prompts, TrainBatch

Metrics = dict[str, jax.Array]


def policy_logprobs(
    network: Network,
    params: Params,
    prompts: Prompts,
    tokens: Array,
    sampling: Sampling,
    *,
    chunk: int,
    entropy: bool = False,
) -> tuple[Array, Array | None]:
    """Return the log-probs of ``tokens`` and, with ``entropy``, the entropies, else None.

    Both are float32 [B, G, T] and refer to the distribution that was sampled from.
    """
    model = network.bind(params)
    return token_logprobs(
        model, response_states(model, prompts, tokens), tokens, sampling, chunk=chunk, entropy=entropy
    )


def state_values(network: Network, params: Params, prompts: Prompts, tokens: Array) -> Array:
    """Return the critic's value of the state before each token, float32 [B, G, T]."""
    model = network.bind(params)
    return model.logits(response_states(model, prompts, tokens))[..., 0]


def actor_objective(
    network: Network,
    params: Params,
    batch: TrainBatch,
    total: Denominator,
    sampling: Sampling,
    settings: config.Algorithm,
    horizon: int,
) -> tuple[Array, tuple[Metrics, Array]]:
    """Return PPO's policy loss, with optional entropy and KL terms, metrics and log-probs.

    The loss and the metrics are this part's share of the mini-batch, whose counts are ``total``.
    The log-probs are those of the loss, float32 [B, G, T].
    """
    logp, entropy = policy_logprobs(
        network, params, batch.prompts, batch.tokens, sampling, chunk=settings.logprob_chunk, entropy=True
    )
    if not settings.entropy_coef:
        entropy = jax.lax.stop_gradient(entropy)
    reduce = dict(denominator=total, mode=settings.aggregation, horizon=horizon)
    loss, metrics = ppo_policy_loss(
        logp,
        batch.old_logprob,
        batch.advantage,
        batch.sampled,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        dual_clip=settings.dual_clip or None,
        level=settings.ratio,
        weight=batch.weight,
        **reduce,
    )
    metrics = {f"actor/{name}": value for name, value in metrics.items()} | {"actor/pg_loss": loss}
    moved = jnp.abs(logp - batch.old_logprob)
    metrics["actor/logprob_shift"] = masked_mean(moved, batch.sampled, denominator=total.tokens)
    metrics["actor/entropy"] = masked_mean(entropy, batch.sampled, denominator=total.tokens)
    if settings.entropy_coef:
        loss = loss + entropy_bonus(entropy, batch.sampled, coef=settings.entropy_coef, **reduce)
    if settings.reference:
        kl = masked_mean(kl_penalty(logp, batch.ref_logprob, kind="k3"), batch.sampled, denominator=total.tokens)
        metrics["actor/kl"] = kl
    if settings.kl_loss:
        loss = loss + kl_loss(
            logp, batch.ref_logprob, batch.sampled, kind=settings.kl_kind, coef=settings.kl_loss, **reduce
        )
    return loss, jax.lax.stop_gradient((metrics, logp))


def critic_objective(
    network: Network, params: Params, batch: TrainBatch, total: Denominator, settings: config.Critic
) -> tuple[Array, tuple[Metrics, tuple]]:
    """Return the clipped value loss, metrics, and an empty tuple in place of per-row results.

    The loss is this part's share of the mini-batch, whose counts are ``total``.
    """
    value = state_values(network, params, batch.prompts, batch.tokens)
    loss, metrics = value_loss(
        value, batch.old_value, batch.target, batch.sampled, clip=settings.value_clip or None, denominator=total
    )
    metrics = {f"critic/{name}": value for name, value in metrics.items()}
    return loss, (metrics | {"critic/vf_loss": jax.lax.stop_gradient(loss)}, ())


def take(batch: Any, index: Array) -> Any:
    """Return rows ``index`` of a batch. Keep the shared template prefix: it has no batch axis."""
    # Replicate first: gathering from one-row shards fails a check in libtpu 0.0.42, "reshape vs.
    # constant".
    return _with_prefix(jax.tree.map(lambda x: whole(x)[index], _batch_led(batch)), batch)


def _batch_led(batch: Any) -> Any:
    """Replace the batch's prefix with an empty stand-in, so that all leaves have a batch axis."""
    size = batch.sampled.shape[0]
    return batch.replace(prompts=batch.prompts.replace(prefix=jnp.zeros((size, 0), jnp.int32)))


def _with_prefix(rows: Any, batch: Any) -> Any:
    return rows.replace(prompts=rows.prompts.replace(prefix=batch.prompts.prefix))


def accumulate(
    objective: Callable[[Params, Any], tuple[Array, tuple[Metrics, Any]]], params: Params, batch: Any, micro: int
) -> tuple[tuple[Array, tuple[Metrics, Any]], Params]:
    """Sum the loss, metrics and gradient of ``objective`` over micro-batches.

    A micro-batch has ``micro`` prompts (0: all at once). The objective returns shares of the whole
    batch, so the sum does not depend on ``micro``. Next to its metrics it returns arrays with a
    batch axis, or nothing; they are joined in the batch's order. Micro-batch m of M takes the
    strided rows m, m + M, m + 2M, ..., so that each one is spread over all devices like the batch.
    """
    size = batch.sampled.shape[0]
    micro = micro or size
    gradient = jax.value_and_grad(objective, has_aux=True)
    if micro == size:
        return gradient(params, batch)
    strided = _strided(batch, micro)

    def part(rows):
        (loss, (metrics, kept)), grads = gradient(params, _with_prefix(rows, batch))
        return (loss, metrics, grads), kept

    def add(total, rows):
        share, kept = part(rows)
        return jax.tree.map(jnp.add, total, share), kept

    shapes = jax.eval_shape(part, jax.tree.map(lambda x: x[0], strided))[0]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (loss, metrics, grads), kept = jax.lax.scan(add, zeros, strided)
    return (loss, (metrics, _joined(kept, size))), grads


def largest_slice(size: int, slots: int, budget: int, shards: int) -> int:
    """Return the largest slice, in prompts, with at most ``budget`` token slots on each shard.

    A prompt has ``slots`` token slots. The slice divides ``size`` and is a multiple of ``shards``.
    Raise ValueError if one prompt exceeds the budget.
    """
    if slots > budget:
        raise ValueError(f"algorithm.micro_tokens={budget}: a prompt with its rollouts has {slots} token slots")
    return max(n for n in range(shards, size + 1, shards) if size % n == 0 and n // shards * slots <= budget)


def even_slice(size: int, each: int, shards: int, name: str) -> int:
    """Return the rows of a slice that has ``each`` rows on each shard; 0: all at once.

    Raise ValueError, with the setting's ``name``, if ``size`` does not divide into such slices.
    """
    if each and size % (each * shards):
        raise ValueError(f"{name}={each} on each of {shards} shard(s): {size} rows do not divide into such slices")
    return each * shards


def micro_batch(settings: config.Algorithm, size: int, slots: int, shards: int) -> int:
    """Return the number of prompts in a gradient slice; 0: all at once.

    The mini-batch has ``size`` prompts of ``slots`` token slots each, over ``shards`` shards. The
    settings count per shard, so that a config needs the same memory of each chip on any number of
    chips.
    """
    if settings.micro_tokens:
        return largest_slice(size, slots, settings.micro_tokens, shards)
    return even_slice(size, settings.micro_batch, shards, "algorithm.micro_batch")


def map_rows(function: Callable[[Any], Any], batch: Any, micro: int) -> Any:
    """Map ``function`` over micro-batches cut as in ``accumulate``.

    Its results have a leading batch axis and are joined in the batch's order.
    """
    size = batch.sampled.shape[0]
    if micro in (0, size):
        return function(batch)
    found = jax.lax.map(lambda rows: function(_with_prefix(rows, batch)), _strided(batch, micro))
    return _joined(found, size)


def _strided(batch: Any, micro: int) -> Any:
    """Cut leaves [B, ...] into [B // micro, micro, ...]: part m has rows m, m + B // micro, ..."""
    parts = batch.sampled.shape[0] // micro
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(micro, parts, *x.shape[1:]), 0, 1), _batch_led(batch))


def _joined(parts: Any, size: int) -> Any:
    """Undo ``_strided``: reshape leaves [B // micro, micro, ...] to [B, ...], with B = ``size``."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(size, *x.shape[2:]), parts)


def apply_gradient(
    tx: optax.GradientTransformation,
    params: Params,
    opt_state: Any,
    gradient: Params,
    loss: Array,
    total: Denominator,
) -> tuple[Params, Any, dict[str, Array]]:
    """Make one optimizer step. Return the weights, the optimizer state and two metrics.

    The metrics are ``grad_norm``, the gradient's norm before clipping, and ``skipped``, 1 or 0.

    Weights and moments stay unchanged in two cases. If the loss or the gradient is non-finite, the
    step is skipped: one NaN in Adam's moments would make every later update NaN. If the mini-batch
    has no trained token (``total``), its gradient is 0, but earlier moments and weight decay would
    still move the weights. That case does not count as ``skipped``.
    """
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    taken = finite & (total.tokens > 0)
    updates, new_state = tx.update(gradient, opt_state, params)
    keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(taken, a, b), new, old)
    params, opt_state = keep(optax.apply_updates(params, updates), params), keep(new_state, opt_state)
    return params, opt_state, {"grad_norm": norm, "skipped": (~finite).astype(jnp.int32)}


def passes(settings: config.Algorithm, name: str) -> int:
    """Return the cost of an update in forward passes over its rows.

    A forward pass costs 1 and a backward pass 2. Limited actor steps (``limit_step``) cost 1 more.
    ``name``: "actor" or "critic".
    """
    return 4 if name == "actor" and settings.max_kl else 3


def limit_step(
    limit: float,
    before: Params,
    after: Params,
    batch: TrainBatch,
    logp: Array,
    log_prob: Callable[[Params, Any], Array],
    micro: int,
) -> tuple[Params, dict[str, Array]]:
    """Shorten an optimizer step that moves the policy by more than ``limit`` nats per response.

    Adam's steps have the size of the learning rate, however small the gradient is. A change that
    all prompts share, such as the overall refusal rate, adds up over all weights. One step can
    therefore turn a policy that refuses some prompts into one that refuses all. Then no group
    disagrees, so no gradient leads back. This function measures the step by

        KL = mean over responses of the sum over tokens of (log p_after - log p_before)^2 / 2

    which is the KL divergence to second order, on responses of nearly the same policy. It grows
    with the square of the step, so a step with KL > limit is multiplied by sqrt(limit / KL).

    Args:
        limit: nats per response.
        before, after: weights.
        batch: the rows of the step.
        logp: float32 [B, G, T], log-probs under ``before``.
        log_prob: (weights, rows) -> float32 [B, G, T].
        micro: prompts in a slice, as for ``map_rows``.

    Returns:
        The weights and two metrics: ``step_kl``, the KL of the proposed step, and ``step_scale``,
        the factor on the step. The scale is 0, so no step is made, if the KL is non-finite.
    """
    change = jnp.where(batch.sampled, map_rows(lambda rows: log_prob(after, rows), batch, micro) - logp, 0.0)
    rows = jnp.maximum(jnp.sum(jnp.any(batch.sampled, axis=-1)), 1)
    kl = jnp.sum(jnp.square(change)) / (2 * rows)
    scale = jnp.where(jnp.isfinite(kl), jnp.minimum(1.0, jnp.sqrt(limit / jnp.maximum(kl, 1e-12))), 0.0)
    # Selected, not multiplied: at scale 0, non-finite values in ``after`` must not leak through.
    moved = lambda old, new: jnp.where(scale == 1.0, new, jnp.where(scale > 0, old + scale * (new - old), old))
    return jax.tree.map(moved, before, after), {"step_kl": kl, "step_scale": scale}
