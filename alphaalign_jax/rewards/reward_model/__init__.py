"""The host reward model: one protocol, three backends (Flax classifier, HTTP, Python callable)."""

from alphaalign_jax.rewards.reward_model.cleaning import clean_answer
from alphaalign_jax.rewards.reward_model.factory import build
from alphaalign_jax.rewards.reward_model.protocol import (
    AsyncScorer,
    RewardModel,
    RewardModelError,
    ScoreFuture,
    checked_scores,
)

__all__ = ["AsyncScorer", "RewardModel", "RewardModelError", "ScoreFuture", "build", "checked_scores", "clean_answer"]
