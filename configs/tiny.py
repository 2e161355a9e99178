"""The whole method on a laptop: a 1 M parameter model, built, warmed up and aligned on the built-in demo prompts.

To run it:

    alphaalign train --config=configs/tiny.py            AlphaAlign
    alphaalign train --config=configs/tiny.py:zero       AlphaAlign-Zero: no helpfulness reward

Hardware: 2 CPU cores. Expected result: the recipe is not settled, none is claimed.
"""

from alphaalign_jax.config import defaults


def get_config(arg=""):
    if arg not in ("", "zero"):
        raise ValueError(f"configs/tiny.py:{arg}: expected no argument, or zero")
    config = defaults()
    config.name = "tiny" if not arg else "tiny-zero"
    config.steps = 60
    config.model.path = "builtin:tiny"
    config.data.bucket = 32

    # From random weights: many epochs, each with its own draw of who is refused.
    config.warmup.epochs = 8.0
    config.warmup.refusal_rate = 0.4
    config.warmup.batch = 32
    config.warmup.optimizer.learning_rate = 2e-3
    config.warmup.optimizer.warmup_steps = 20

    config.rollout.prompts = 16
    config.rollout.group = 4
    config.rollout.max_new_tokens = 64
    config.rollout.bucket = 64  # one shape for every batch: compiling takes longer than the padding costs

    config.reward.helpfulness = "off" if arg else "normalised"
    config.reward_model.kind = "none" if arg else "callable"
    config.reward_model.target = "" if arg else "alphaalign_jax.rewards.reward_model.lexical:score"

    config.algorithm.minibatches = 2
    config.optimizer.learning_rate = 5e-4
    config.critic.optimizer.learning_rate = 1e-3
    config.eval.batch = 72
    return config
