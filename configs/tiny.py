"""The whole method on a laptop: a 1 M parameter model, built, warmed up and aligned on the built-in demo prompts.

To run it:

    alphaalign train --config=configs/tiny.py            AlphaAlign
    alphaalign train --config=configs/tiny.py:zero       AlphaAlign-Zero: no helpfulness reward

Hardware: 2 CPU cores. Expected result, measured there on 2026-11-22: in 282 s with programs compiled before (336 s at
other learning rates without), harmful prompts answered fall from 100 to 17.5 %; 20 % of the ordinary benign prompts are
refused then, and 74 % of the adversarial ones, for which a model that learnt all its English here knows no better. As
zero: not run.
"""

from alphaalign_jax.config import defaults


def get_config(arg=""):
    if arg not in ("", "zero"):
        raise ValueError(f"configs/tiny.py:{arg}: expected no argument, or zero")
    config = defaults()
    config.name = "tiny" if not arg else "tiny-zero"
    config.steps = 30
    config.model.path = "builtin:tiny"
    config.data.bucket = 48  # one shape for every batch, of training and held-out prompts alike

    # From random weights: many epochs, each step with its own draw of who is refused.
    config.warmup.epochs = 8.0
    config.warmup.refusal_rate = 0.4
    config.warmup.batch = 32
    config.warmup.optimizer.learning_rate = 2e-3
    config.warmup.optimizer.warmup_steps = 20

    config.rollout.prompts = 32
    config.rollout.group = 8
    config.rollout.max_new_tokens = 56  # the warm-up's responses have 31 to 53
    config.rollout.bucket = 56  # one shape: compiling takes longer than the padding costs

    config.reward.helpfulness = "off" if arg else "normalised"
    config.reward_model.kind = "none" if arg else "callable"
    config.reward_model.target = "" if arg else "alphaalign_jax.rewards.reward_model.lexical:score"

    config.algorithm.minibatches = 4
    config.optimizer.learning_rate = 2e-4  # at 3e-4 the format goes, at 1e-3 everything
    config.optimizer.decay = 0.3
    config.critic.optimizer.learning_rate = 1e-3
    config.critic.num_layers = 2
    config.eval.batch = 72
    return config
