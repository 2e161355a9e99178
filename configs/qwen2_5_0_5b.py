"""Qwen2.5-0.5B-Instruct, the paper's way: no warm-up, no text but the template; the format must appear by itself.

    alphaalign train --config=configs/qwen2_5_0_5b.py          AlphaAlign
    alphaalign train --config=configs/qwen2_5_0_5b.py:zero     AlphaAlign-Zero: no helpfulness reward
    alphaalign train --config=configs/qwen2_5_0_5b.py:grpo     GRPO's baseline instead of the anchored one

The model is fetched from the hub; any local copy or GGUF file works as well (--config.model.path=DIR).

Hardware: meant for 2 CPU cores and 24 GB. Not run yet; no result is claimed.
"""

from alphaalign_jax.config import defaults


def get_config(arg=""):
    if arg not in ("", "zero", "grpo"):
        raise ValueError(f"configs/qwen2_5_0_5b.py:{arg}: expected no argument, zero or grpo")
    config = defaults()
    config.name = "-".join(["qwen2_5_0_5b", *([arg] if arg else [])])
    config.steps = 40
    config.model.path = "Qwen/Qwen2.5-0.5B-Instruct"
    config.model.remat = "full"  # memory
    config.data.harmful_fraction = 0.5  # as much push towards refusing as away from it
    config.data.bucket = 32
    config.data.max_prompt_tokens = 192  # the template and a question of about 50 tokens
    config.data.on_long = "drop"

    config.rollout.prompts = 4
    config.rollout.group = 8  # a full format is rare at first: more rollouts of a prompt find one
    config.rollout.temperature = 1.0
    config.rollout.max_new_tokens = 160
    config.rollout.bucket = 32
    config.rollout.cache = 64
    config.rollout.scan_layers = False  # faster decoding on CPU

    config.reward.helpfulness = "off" if arg == "zero" else "normalised"
    config.reward_model.kind = "none" if arg == "zero" else "callable"
    # A reward model does not fit in memory; this lexical scorer keeps the whole code path in use.
    config.reward_model.target = "" if arg == "zero" else "alphaalign_jax.rewards.reward_model.lexical:score"
    config.reward.r_a = 3.0
    config.reward.r_f = 1.0

    config.algorithm.advantage = "grpo" if arg == "grpo" else "anchored"  # docs/recipes.md
    config.algorithm.balance_labels = arg != "grpo"
    config.algorithm.max_kl = 0.5
    config.algorithm.kl_loss = 0.02
    config.algorithm.minibatches = 2
    config.algorithm.micro_batch = 1  # memory
    config.algorithm.old_logprob = "sampler"  # both run in float32: a pass less
    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 2
    config.eval.batch = 24
    config.data.validation = 0.05
    config.eval.every = 10
    config.guards.rollbacks = 2
    config.checkpoint.keep = 1  # a checkpoint has 6 GB
    config.checkpoint.every = 20
    return config
