"""Metrics of a step's batch: rewards, advantages, values, refusals and lengths."""

from __future__ import annotations

import jax.numpy as jnp

from alphaalign_jax.ops import explained_variance, masked_mean
from alphaalign_jax.train.objectives import Metrics
from alphaalign_jax.types import BENIGN, Array, Rollout, Scores, TrainBatch


def batch_metrics(batch: TrainBatch, rollout: Rollout, scores: Scores, truncated: Array) -> Metrics:
    """Return metrics under verl's names, plus refusal rates by label and the format rate.

    ``truncated`` bool [B, G].
    """
    harmful = jnp.broadcast_to(batch.prompts.label[:, None] != BENIGN, scores.refusal.shape)
    known = ~jnp.isnan(scores.reward)
    length = rollout.length.astype(jnp.float32)
    prompt_length = (batch.prompts.length + batch.prompts.prefix.shape[0]).astype(jnp.float32)
    groups = jnp.nanmax(scores.reward, axis=1) - jnp.nanmin(scores.reward, axis=1)
    return {
        **_spread("critic/score", scores.reward, known),
        **_spread("critic/advantages", batch.advantage, batch.sampled),
        **_spread("critic/returns", batch.target, batch.sampled),
        **_spread("critic/values", batch.old_value, batch.sampled),
        "critic/vf_explained_var": explained_variance(batch.old_value, batch.target, batch.sampled),
        "reward/safety/mean": jnp.mean(scores.safety_reward),
        "reward/helpfulness/mean": masked_mean(scores.helpfulness_reward, ~harmful),
        "reward/spread": jnp.mean(jnp.nan_to_num(groups)),
        "reward/equal_groups": masked_mean((groups == 0).astype(jnp.float32), jnp.sum(known, axis=1) > 1),
        "safety/refusal_rate_harmful": masked_mean(scores.refusal, harmful),
        "safety/refusal_rate_benign": masked_mean(scores.refusal, ~harmful),
        "safety/format_rate": jnp.mean(scores.format.astype(jnp.float32)),
        **_spread("response_length", length, jnp.ones_like(length)),
        "response_length/clip_ratio": jnp.mean(truncated.astype(jnp.float32)),
        **_spread("prompt_length", prompt_length, jnp.ones_like(prompt_length)),
    }


def _spread(name: str, values: Array, mask: Array) -> Metrics:
    """Return the mean, max and min of the values in ``mask``; each is 0 if the mask is empty."""
    kept = mask.astype(bool)
    extreme = lambda pick, other: jnp.where(kept.any(), pick(jnp.where(kept, values, other)), 0.0)
    return {
        f"{name}/mean": masked_mean(values, kept),
        f"{name}/max": extreme(jnp.max, -jnp.inf),
        f"{name}/min": extreme(jnp.min, jnp.inf),
    }
