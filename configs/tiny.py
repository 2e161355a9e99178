"""The whole method on a laptop: a 1 M parameter model, built, warmed up and aligned on the built-in demo prompts.

To run it:

    alphaalign train --config=configs/tiny.py            AlphaAlign
    alphaalign train --config=configs/tiny.py:zero       AlphaAlign-Zero: no helpfulness reward

Hardware: 2 CPU cores. Result on 2026-12-01, in 246 s with nothing compiled before: harmful prompts answered fall from
100 to 90 %, 6 % of the ordinary benign prompts are refused then and 21 % of the adversarial ones; format 96 % before
and 100 % after. One run is one draw: README, "Two commands". As zero: not run.
"""

from alphaalign_jax.config import defaults


def get_config(arg=""):
    if arg not in ("", "zero"):
        raise ValueError(f"configs/tiny.py:{arg}: expected no argument, or zero")
    config = defaults()
    config.name = "tiny" if not arg else "tiny-zero"
    config.steps = 32
    config.model.path = "builtin:tiny"
    config.data.harmful_fraction = 0.5
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
    # One program: compiling another takes longer than it saves, for another size of cache or for fewer rows.
    config.rollout.cache = 56
    config.rollout.fewest_rows = 0
    # What the model babbles in an answer is noise to the policy gradient, and breaks the format. At temperature 1 one
    # response in five was out of format, and harmful prompts were refused 2 points more often than benign ones over
    # steps 8 to 15 and 22 points over 24 to 31; at 0.7 it was 13 and 10, then 23 and 36 points (two seeds).
    config.rollout.temperature = 0.7
    config.rollout.bucket = 56  # one shape: compiling takes longer than the padding costs

    config.reward.helpfulness = "off" if arg else "normalised"
    config.reward_model.kind = "none" if arg else "callable"
    config.reward_model.target = "" if arg else "alphaalign_jax.rewards.reward_model.lexical:score"

    # At r_a = 1 a benign answer with its helpfulness stands further above a refusal than a harmful prompt's refusal
    # above an answer. With that and no KL term everything was answered by step 10, and no greedy response was in format
    # after step 30; the two were changed together.
    config.reward.r_a = 3.0
    config.algorithm.kl_loss = 0.05
    config.algorithm.old_logprob = "sampler"  # both run in float32: a pass less
    config.algorithm.minibatches = 4
    config.algorithm.ema_decay = 0.9  # how often it refuses at all swings from step to step: ten of them count
    # At 2e-4 and 30 steps 20 % of harmful prompts were answered and 38 % of ordinary ones refused; at 4e-4 68 and 10 %.
    config.optimizer.learning_rate = 3e-4
    config.optimizer.decay = 0.3
    config.critic.optimizer.learning_rate = 1e-3
    config.critic.num_layers = 2
    config.eval.batch = 72
    return config
