"""What the paper's three runs share (arXiv 2507.14987, section 4 and its verl settings). Not a config itself."""

import dataclasses

from _layouts import lay_out, take

from alphaalign_jax.config import defaults
from alphaalign_jax.data.prompts import Source
from alphaalign_jax.data.recipes import paper


def paper_config(name, hub, arg, *, layout, heads):
    """``layout``: of ``_layouts``, where ``arg`` names none; ``heads``: chips that the model's heads are laid over."""
    zero, chosen = take(arg, f"configs/{name}.py")
    config = defaults()
    config.name = "-".join([name, *(["zero"] if zero else []), *([chosen] if chosen else [])])
    lay_out(config, chosen or layout, heads)
    config.steps = 200
    config.model.path = hub
    config.model.dtype = config.model.rollout_dtype = "bfloat16"
    config.model.remat = "full"
    # SCoT's harmful prompts are not on the hub: put your copy here, a JSON object {"prompt": ...} a line. To change the
    # shares of SCoT, Dolly and XSTest: --config.data.ratios="(0.5, 0.3, 0.2)".
    config.data.train = tuple(dataclasses.asdict(source) for source in paper(Source("scot_harmful.jsonl")))
    config.data.heldout = ("heldout.jsonl",)
    config.data.max_prompt_tokens = 1024
    config.data.on_long = "drop"
    config.data.bucket = 128

    config.rollout.prompts = 16
    config.rollout.group = 8
    config.rollout.max_new_tokens = 2048
    config.rollout.bucket = 256

    config.reward.helpfulness = "off" if zero else "normalised"
    config.reward_model.kind = "none" if zero else "classifier"
    config.reward_model.target = "" if zero else "sfairXC/FsfairX-LLaMA3-RM-v0.1"
    config.reward_model.dtype = "bfloat16"
    config.reward_model.on_host = True  # 16 GB over the four chips of a v5e host are a quarter of their memory

    config.optimizer.learning_rate = 1e-6
    config.critic.optimizer.learning_rate = 1e-5
    config.algorithm.epochs = 2
    config.algorithm.micro_batch = 1  # a prompt's rollouts are 17,000 token slots

    # The paper keeps the last state of one run. A run of RL can end in a hole (refuse all, answer all) that no gradient
    # leads out of, so this one looks at itself: 75 prompts of the mix, set aside, every ten steps, which is 6 % of the
    # responses that it samples. It exports the best look's state, and goes back to it when the score falls by
    # guards.collapse, at most twice, with half the step size each time. Nothing of this changes a run that does not
    # collapse, but for the prompts set aside.
    config.data.validation = 0.03
    config.eval.every = 10
    config.checkpoint.best_within = 0.05  # two of some 37 prompts of a label
    config.guards.rollbacks = 2
    config.checkpoint.every = 20
    return config
