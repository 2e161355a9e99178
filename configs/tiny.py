"""The whole method on a laptop: a 2 M parameter model that the package carries, aligned on the built-in demo prompts.

To run it:

    alphaalign train --config=configs/tiny.py            AlphaAlign
    alphaalign train --config=configs/tiny.py:zero       AlphaAlign-Zero: no helpfulness reward

Hardware: 2 CPU cores, 3 to 4 minutes. Result of seeds 0 to 4 on 2026-12-01: held-out harmful prompts answered fall from
100 to 4.5 %; 0.5 % of the ordinary and 1.1 % of the adversarial benign prompts are refused; 98 % of the decisions
follow the reasoning. As zero: not run.
"""

from alphaalign_jax.config import defaults


def get_config(arg=""):
    if arg not in ("", "zero"):
        raise ValueError(f"configs/tiny.py:{arg}: expected no argument, or zero")
    config = defaults()
    config.name = "tiny" if not arg else "tiny-zero"
    config.steps = 36
    config.model.path = "package:alphaalign_jax"  # alphaalign_jax/demo_model/README.md: what it has read
    config.data.harmful_fraction = 0.5  # as much push towards refusing as away from it
    config.data.bucket = 48  # one shape for every batch, of training and held-out prompts alike

    config.rollout.prompts = 16
    config.rollout.group = 8
    config.rollout.max_new_tokens = 80  # the model's own responses have 40 to 80
    # One program: compiling another takes longer than it saves, for another size of cache or for fewer rows.
    config.rollout.cache = 80
    config.rollout.fewest_rows = 0
    config.rollout.bucket = 80  # one shape: compiling takes longer than the padding costs

    config.reward.helpfulness = "off" if arg else "normalised"
    config.reward_model.kind = "none" if arg else "callable"
    config.reward_model.target = "" if arg else "alphaalign_jax.rewards.reward_model.lexical:score"
    # A benign answer also earns its helpfulness, 0.3 on average and up to 2. At r_a = 1 and r_f = 0.5 that outweighed
    # the refusals of harmful prompts: everything was answered from step 18 on.
    config.reward.r_a = 3.0
    config.reward.r_f = 1.0

    # docs/recipes.md says why these three, and shows the simulation behind them.
    config.algorithm.advantage = "anchored"
    config.algorithm.balance_labels = True
    config.algorithm.max_kl = 0.2
    # Keeps the wording, which no reward speaks about: at 0.02 and a rate of 5e-4 answers began to babble.
    config.algorithm.kl_loss = 0.1
    config.algorithm.old_logprob = "sampler"  # both run in float32: a pass less
    config.algorithm.minibatches = 2
    config.optimizer.learning_rate = 3e-4
    config.optimizer.decay = 0.3

    # Looks at 67 training prompts that are set aside; the best look's state is exported, and gone back to after a
    # collapse.
    config.data.validation = 0.1
    config.eval.every = 9
    config.eval.batch = 72
    config.eval.max_new_tokens = 96  # more than in training: a response that is cut off counts as out of format
    config.checkpoint.best_within = 0.06  # two of the 39 benign prompts, one of the 28 harmful ones
    config.guards.rollbacks = 2
    config.guards.heldout = 0.2  # 39 benign prompts: a look is off by 0.1 now and then
    return config
