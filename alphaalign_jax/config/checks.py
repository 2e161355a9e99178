"""Checks for invalid or incompatible settings, made before anything is loaded or compiled."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from alphaalign_jax.config import urls
from alphaalign_jax.config.chat import DEFAULT_DATE, ChatSettings
from alphaalign_jax.config.settings import Config

CHOICES = {
    "model.dtype": ("float32", "bfloat16"),
    "model.rollout_dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "dots", "full"),
    "model.attention": ("auto", "plain", "splash", "triton"),
    "data.on_long": ("error", "drop"),
    "warmup.source": ("texts", "self"),
    "reward.format_mode": ("strict", "paper"),
    "reward.helpfulness": ("normalised", "raw", "off"),
    "reward_model.kind": ("none", "classifier", "http", "callable"),
    "reward_model.dtype": ("float32", "bfloat16", "float16"),
    "algorithm.advantage": ("gae", "grpo", "dr_grpo", "rloo", "reinforce_plus_plus", "reinforce_batch", "anchored"),
    "algorithm.old_logprob": ("trainer", "sampler"),
    "algorithm.ratio": ("token", "sequence"),
    "algorithm.aggregation": ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"),
    "algorithm.kl_kind": ("k2", "k3"),
    "algorithm.kl_controller": ("fixed", "adaptive"),
    "algorithm.truncated": ("terminal", "bootstrap", "mask"),
}
_POSITIVE = """steps rollout.prompts rollout.group rollout.max_new_tokens rollout.bucket data.bucket
    data.max_prompt_tokens algorithm.epochs algorithm.minibatches algorithm.logprob_chunk eval.batch checkpoint.keep
    warmup.batch warmup.thought_tokens warmup.answer_tokens
    optimizer.learning_rate critic.optimizer.learning_rate warmup.optimizer.learning_rate
    reward.std_floor algorithm.std_floor guards.window optimizer.eps critic.optimizer.eps warmup.optimizer.eps
    rollout.max_logprob_gap reward_model.batch reward_model.max_length reward_model.tensor reward_model.timeout_s
    algorithm.kl_target algorithm.kl_horizon algorithm.anchor""".split()
_NOT_NEGATIVE = """seed samples mesh.memory_gb mesh.devices warmup.epochs warmup.max_examples
    warmup.micro_batch warmup.temperature rollout.top_k
    rollout.cache rollout.fewest_rows reward.r_f reward.r_a reward_model.retries
    optimizer.warmup_steps optimizer.clip_norm optimizer.weight_decay critic.optimizer.warmup_steps
    critic.optimizer.clip_norm critic.optimizer.weight_decay warmup.optimizer.warmup_steps warmup.optimizer.clip_norm
    warmup.optimizer.weight_decay critic.num_layers critic.value_clip algorithm.sampler_cap algorithm.entropy_coef
    algorithm.kl_in_reward algorithm.kl_loss algorithm.max_kl
    algorithm.micro_batch algorithm.micro_tokens algorithm.critic_warmup
    eval.every eval.max_new_tokens eval.limit eval.temperature checkpoint.every checkpoint.keep_every guards.skipped
    guards.length guards.kl guards.no_format guards.no_score guards.rollbacks""".split()
_FRACTIONS = """data.label_noise warmup.refusal_rate algorithm.gamma algorithm.lam optimizer.decay
    critic.optimizer.decay warmup.optimizer.decay guards.over_refusal guards.echo guards.empty guards.tags
    guards.truncated guards.flat guards.heldout guards.collapse guards.unscored checkpoint.best_within""".split()
_BELOW_ONE = """optimizer.b1 optimizer.b2 critic.optimizer.b1 critic.optimizer.b2 warmup.optimizer.b1
    warmup.optimizer.b2 algorithm.ema_decay""".split()
_SIZES = "mesh.data mesh.fsdp mesh.tensor".split()
_NO_ALARMS = ("window", "stop", "rollbacks", "rollback_scale", "look_on")  # the other fields of guards are limits


_TARGETS = {
    "classifier": "a Hugging Face directory or hub id",
    "http": "a URL, such as http://host:8000/score",
    "callable": "a function, such as my_rewards:score or path/my_rewards.py:score",
}


def _get(config: Config, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def check(config: Config) -> None:
    """Raise ValueError for the first setting that is out of range or incompatible with another."""
    for key, valid in CHOICES.items():
        if _get(config, key) not in valid:
            raise ValueError(f"config.{key}={_get(config, key)!r}: expected one of {', '.join(valid)}")
    _check_ranges(config)
    if not re.fullmatch(r"\w[\w.-]*", config.name):
        raise ValueError(f"config.name={config.name!r}: expected letters, digits, '_', '-' and '.': it names a folder")
    share = config.data.harmful_fraction
    if share != -1 and not 0 <= share <= 1:
        raise ValueError(f"config.data.harmful_fraction={share}: expected 0 to 1, or -1 to leave it to the mix")
    _check_target(config)
    try:
        ChatSettings(config.model.chat_date or DEFAULT_DATE, config.model.chat_args)
    except ValueError as error:
        raise ValueError(f"config.model.{error}") from None
    _check_slices(config)
    r, a = config.rollout, config.algorithm
    _check_algorithm(config)
    _check_guards(config)
    _check_looks(config)
    if a.reference_on_host and not a.reference:
        raise ValueError("algorithm.reference_on_host=True, and algorithm.reference=False keeps no reference")
    if not a.reference and (a.kl_in_reward or a.kl_loss):
        raise ValueError(f"algorithm.kl_in_reward={a.kl_in_reward}, kl_loss={a.kl_loss} need algorithm.reference=True")
    if a.truncated == "bootstrap" and a.advantage != "gae":
        raise ValueError(
            f"algorithm.truncated='bootstrap' needs a critic; algorithm.advantage={a.advantage!r} has none"
        )
    if a.advantage in ("grpo", "dr_grpo", "rloo") and r.group < 2:
        raise ValueError(
            f"algorithm.advantage={a.advantage!r} compares rollouts of one prompt: "
            f"rollout.group={r.group} must be at least 2"
        )
    if r.ahead and a.old_logprob == "trainer" and not a.sampler_cap:
        raise ValueError(
            "rollout.ahead=True samples from the policy before its last update: set algorithm.old_logprob='sampler' or "
            "algorithm.sampler_cap (2 is usual)"
        )
    if r.temperature <= 0:
        raise ValueError(
            f"rollout.temperature={r.temperature}: training samples; greedy rollouts of a prompt would be equal"
        )
    if config.reward.helpfulness != "off" and config.reward_model.kind == "none":
        raise ValueError(
            f"reward.helpfulness={config.reward.helpfulness!r} needs a reward model: set reward_model.kind, or "
            "reward.helpfulness='off' (AlphaAlign-Zero)"
        )
    if config.reward.helpfulness == "normalised" and r.group < 2:
        raise ValueError(
            "reward.helpfulness='normalised' compares rollouts of one prompt: rollout.group=1 must be at least 2, or "
            "reward.helpfulness 'raw' or 'off'"
        )


def _check_ranges(config: Config) -> None:
    """Check the range of each number on its own."""
    within = (
        (_POSITIVE, lambda x: x > 0, "a positive number"),
        (_NOT_NEGATIVE, lambda x: x >= 0, "0 or more"),
        (_FRACTIONS, lambda x: 0 <= x <= 1, "a number from 0 to 1"),
        (_BELOW_ONE, lambda x: 0 <= x and np.float32(x) < 1, "a number from 0 to below 1"),
        (_SIZES, lambda x: x == -1 or x >= 1, "a positive number, or -1 for what the other axes leave"),
        (["reward_model.label"], lambda x: x >= -1, "0 or more, or -1 for the only one"),
        (["data.validation"], lambda x: 0 <= x <= 0.5, "a share of the training prompts from 0 to 0.5"),
        (["guards.rollback_scale"], lambda x: 0 < x <= 1, "a factor above 0 and at most 1"),
        (["rollout.top_p"], lambda x: 0 < x <= 1, "a number above 0 and at most 1, which is off"),
    )
    for keys, holds, expected in within:
        for key in keys:
            if not holds(_get(config, key)):
                raise ValueError(f"config.{key}={_get(config, key)}: expected {expected}")


def _check_target(config: Config) -> None:
    """Check the reward model's target.

    Its URL is checked even if the run does not use it, because it is saved with the config. Paths
    and names are not checked here.
    """
    kind, target = config.reward_model.kind, config.reward_model.target
    if not target and kind != "none" and config.reward.helpfulness != "off":
        raise ValueError(f"reward_model.target is empty, and reward_model.kind={kind!r} needs one: {_TARGETS[kind]}")
    try:
        if kind == "http" and "://" in target:
            urls.checked(target)
        elif kind == "http" or "://" in target:
            urls.check_secrets(target)
    except ValueError as error:
        raise ValueError(f"config.reward_model.target: {error}") from None


def _check_slices(config: Config) -> None:
    """Check that batches divide into mini-batches, and mini-batches into gradient slices."""
    r, a = config.rollout, config.algorithm
    updates = config.steps * a.epochs * a.minibatches
    if updates > np.iinfo(np.int32).max:
        raise ValueError(
            f"steps={config.steps}, algorithm.epochs={a.epochs} and minibatches={a.minibatches} are {updates} updates: "
            f"expected at most {np.iinfo(np.int32).max}"
        )
    if r.prompts % a.minibatches:
        raise ValueError(f"rollout.prompts={r.prompts} does not divide into algorithm.minibatches={a.minibatches}")
    minibatch = r.prompts // a.minibatches
    if a.micro_batch and minibatch % a.micro_batch:
        raise ValueError(
            f"a mini-batch of {minibatch} prompts does not divide into algorithm.micro_batch={a.micro_batch}"
        )
    if a.micro_batch and a.micro_tokens:
        raise ValueError(
            f"algorithm.micro_batch={a.micro_batch} and micro_tokens={a.micro_tokens} both set a slice's size; set one"
        )
    if config.warmup.micro_batch and config.warmup.batch % config.warmup.micro_batch:
        raise ValueError(
            f"warmup.batch={config.warmup.batch} does not divide into warmup.micro_batch={config.warmup.micro_batch}"
        )


def _check_guards(config: Config) -> None:
    g = config.guards
    names = [field.name for field in dataclasses.fields(g) if field.name not in _NO_ALARMS]
    for setting in ("stop", "look_on"):
        listed = getattr(g, setting)
        for name in listed:
            if name not in names:
                raise ValueError(f"guards.{setting}={listed}: no alarm {name!r}; expected some of {', '.join(names)}")
            if setting == "stop" and not getattr(g, name):
                raise ValueError(f"guards.stop={g.stop}: guards.{name}=0 turns that alarm off; set its limit")
    for name in ("heldout", "collapse"):
        if name in g.stop and not config.eval.every:
            raise ValueError(f"guards.stop={g.stop}: {name!r} needs eval.every, which is 0")
    if config.guards.kl and not config.algorithm.reference:
        raise ValueError(f"guards.kl={config.guards.kl:g} needs algorithm.reference=True: without, no KL is known")


def _check_looks(config: Config) -> None:
    """Check the settings that depend on periodic evaluations (``eval.every``)."""
    g, every = config.guards, config.eval.every
    if config.data.validation and not every:
        raise ValueError(
            f"data.validation={config.data.validation} sets prompts aside, and eval.every=0 never looks at them: "
            "set eval.every to a number of steps, or data.validation=0 (and guards.rollbacks=0)"
        )
    if g.rollbacks and not (every and config.checkpoint.keep_best and g.collapse):
        raise ValueError(
            f"guards.rollbacks={g.rollbacks} needs looks that see a collapse, and a best checkpoint to go back to: "
            f"set eval.every (it is {every}), checkpoint.keep_best=True (it is {config.checkpoint.keep_best}) and "
            f"guards.collapse (it is {g.collapse:g}), or guards.rollbacks=0"
        )


def _check_algorithm(config: Config) -> None:
    """Check numbers that losses and estimators would reject or ignore only after compiling."""
    a = config.algorithm
    gae = a.advantage == "gae"
    if not gae and a.lam != 1.0:
        raise ValueError(f"algorithm.lam={a.lam}: algorithm.advantage={a.advantage!r} does not read it; leave it at 1")
    if a.gamma != 1.0 and a.advantage not in ("gae", "reinforce_plus_plus"):
        raise ValueError(
            f"algorithm.gamma={a.gamma}: algorithm.advantage={a.advantage!r} does not discount; leave it at 1"
        )
    if not 0 < a.clip_low <= 1 or a.clip_high <= 0:
        raise ValueError(f"algorithm.clip_low={a.clip_low} must be in (0, 1], clip_high={a.clip_high} positive")
    if a.sampler_cap and a.sampler_cap < 1:
        raise ValueError(f"algorithm.sampler_cap={a.sampler_cap}: expected at least 1, or 0 for no weights")
    if a.sampler_cap and a.old_logprob == "sampler":
        raise ValueError(
            f"algorithm.sampler_cap={a.sampler_cap} weighs by trainer's over sampler's probability, which "
            "algorithm.old_logprob='sampler' takes to be 1; set one of them"
        )
    if a.dual_clip and a.dual_clip <= 1:
        raise ValueError(f"algorithm.dual_clip={a.dual_clip}: expected a number above 1, or 0 for no dual clip")
    rows = config.rollout.prompts * config.rollout.group
    if not gae and a.critic_warmup:
        raise ValueError(
            f"algorithm.critic_warmup={a.critic_warmup}: algorithm.advantage={a.advantage!r} has no critic"
        )
    if a.kl_controller == "adaptive" and not a.kl_in_reward:
        raise ValueError("algorithm.kl_controller='adaptive' adapts algorithm.kl_in_reward, which is 0: set it")
    if a.kl_controller == "adaptive" and (a.kl_target <= 0 or a.kl_horizon <= rows / 5):
        raise ValueError(
            f"algorithm.kl_target={a.kl_target} must be positive, kl_horizon={a.kl_horizon} above "
            f"{rows / 5:g} (a fifth of a step's responses)"
        )
