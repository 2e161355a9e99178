"""Every setting of a run, with its default, its unit and why it has that value.

A config file (``configs/*.py``) has ``get_config(arg) -> ConfigDict``: it calls ``defaults()`` and changes fields. The
command line changes them again (``--config.rollout.group=4``). ``resolve`` turns the result into the frozen dataclasses
below, which is all that the code reads.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import pathlib
import sys
import typing
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict


def _section(cls):
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def _field(cls):
    return dataclasses.field(default_factory=cls)


@_section
class Model:
    path: str = (
        ""  # Hugging Face directory, GGUF file, package:NAME, hub id, or builtin:tiny (built and trained in the run)
    )
    dtype: str = "float32"  # compute dtype of the trainer; master weights are float32
    rollout_dtype: str = "float32"  # compute and weight dtype of the sampler
    remat: str = "none"  # what the backward pass keeps of a layer: none (all), dots, full (its input only)


@_section
class Mesh:
    devices: int = 0  # use the first so many; 0 is all
    data: int = 1
    fsdp: int = -1  # -1: what the other axes leave
    tensor: int = 1
    train_rules: str = "fsdp_tensor"
    rollout_rules: str = "tensor"
    train_overrides: tuple = ()  # rows (logical axis, mesh axis, ...) that replace rows of the table
    rollout_overrides: tuple = ()


@_section
class Data:
    train: tuple = ("demo/train",)  # demo/..., a .jsonl/.csv/.parquet file, or a data.Source as a dict
    heldout: tuple = ("demo/heldout",)
    harmful_fraction: float = 0.5  # of every training batch
    max_prompt_tokens: int = 512
    on_long: str = "error"  # or drop (counted) for a training prompt longer than that; evaluation never drops
    bucket: int = 32  # prompt slots are a multiple of it


@_section
class Optimizer:
    learning_rate: float = 1e-6
    warmup_steps: int = 0  # linear from 0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # global norm; 0 is off


@_section
class Warmup:
    epochs: float = 0.0  # of the warm-up examples; 0 is off
    batch: int = 16  # examples a step
    micro_batch: int = 0  # examples a gradient-accumulation slice; 0 is all at once
    refusal_rate: float = 0.3  # of harmful and of benign examples alike
    max_examples: int = 0  # 0 is all
    optimizer: Optimizer = dataclasses.field(default_factory=lambda: Optimizer(learning_rate=1e-4, warmup_steps=5))


@_section
class Rollout:
    prompts: int = 16  # prompts a step
    group: int = 8  # rollouts a prompt
    max_new_tokens: int = 2048
    temperature: float = 1.0
    top_k: int = 0  # 0 is off
    top_p: float = 1.0  # 1 is off
    bucket: int = 32  # response slots of the trainer are a multiple of it
    max_logprob_gap: float = 0.05  # nats, mean: a run whose trainer and sampler differ by more at its start is stopped


@_section
class Reward:
    format_mode: str = "strict"  # or paper
    # The paper gives no values. Correctness must outweigh form, or a policy that always complies in good form (r_f)
    # beats one that still gets the form wrong while it learns to refuse; and form must pay at all, or it decays.
    r_f: float = 0.5
    r_a: float = 1.0
    helpfulness: str = "normalised"  # or raw (the ablation), off (AlphaAlign-Zero)
    std_floor: float = 0.01  # units of the reward model's score: a group whose std is no larger earns nothing
    relative_std_floor: float = 2.0**-6  # likewise, as a share of the group's largest score: two bfloat16 ulps


@_section
class RewardModel:
    kind: str = "none"  # none, classifier, http, callable
    target: str = ""  # classifier: Hugging Face directory or hub id; http: URL; callable: module:function
    batch: int = 32  # rows the classifier scores at a time, or an HTTP request carries
    max_length: int = 2048  # classifier: tokens of question and answer
    dtype: str = "float32"  # classifier: compute dtype
    token_env: str = ""  # http: environment variable that holds the bearer token
    timeout_s: float = 60.0  # http: to the first byte of an answer
    retries: int = 5  # http: after the first try


@_section
class Critic:
    path: str = ""  # its body; empty: the policy's own initial weights
    num_layers: int = 0  # keep only the first n layers; 0 is all
    value_clip: float = 0.5  # 0 is off
    optimizer: Optimizer = dataclasses.field(default_factory=lambda: Optimizer(learning_rate=1e-5))


@_section
class Algorithm:
    advantage: str = "gae"  # gae (PPO, with a critic), grpo, dr_grpo, rloo, reinforce_plus_plus, reinforce_batch
    gamma: float = 1.0
    lam: float = 1.0
    std_floor: float = 1e-3  # of grpo, in units of the reward
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 3.0  # 0 is off
    ratio: str = "token"  # or sequence: GSPO, with aggregation=seq-mean-token-mean and dual_clip=0
    aggregation: str = "token-mean"
    sampler_cap: float = 0.0  # weighs tokens by trainer's over sampler's probability up to this (2 is usual); 0 is off
    entropy_coef: float = 0.0
    kl_in_reward: float = 0.0  # coefficient of k1 in the token rewards
    kl_loss: float = 0.0  # coefficient of the KL loss term
    kl_kind: str = "k3"  # of the KL loss: k2 or k3
    kl_controller: str = "fixed"  # or adaptive, of kl_in_reward
    kl_target: float = 0.1  # adaptive: nats a token
    kl_horizon: int = 10000  # adaptive: responses
    reference: bool = True  # keep the initial policy, to log the KL to it; the KL terms need it
    epochs: int = 1  # passes over a step's rollouts
    minibatches: int = 1  # optimizer steps a pass
    micro_batch: int = 0  # prompts a gradient-accumulation slice; 0 is the whole mini-batch
    truncated: str = "terminal"  # or bootstrap, mask
    logprob_chunk: int = 64  # response slots whose logits are held at a time
    critic_warmup: int = 0  # first steps that train the critic alone


@_section
class Evaluation:
    every: int = 0  # steps; 0: only before and after
    batch: int = 32  # prompts at a time
    max_new_tokens: int = 0  # 0: rollout.max_new_tokens
    limit: int = 0  # held-out prompts in the periodic evaluation; 0 is all. Before and after always take all
    temperature: float = 0.0


@_section
class Checkpoint:
    every: int = 0  # steps; 0: only at the end
    keep: int = 2


@_section
class Config:
    name: str = "run"
    out: str = ""  # run folder; empty: runs/<name>
    seed: int = 0
    steps: int = 200  # rollout-and-update steps
    samples: int = 8  # responses dumped a step
    export: bool = True  # write a Hugging Face directory at the end
    model: Model = _field(Model)
    mesh: Mesh = _field(Mesh)
    data: Data = _field(Data)
    warmup: Warmup = _field(Warmup)
    rollout: Rollout = _field(Rollout)
    reward: Reward = _field(Reward)
    reward_model: RewardModel = _field(RewardModel)
    algorithm: Algorithm = _field(Algorithm)
    optimizer: Optimizer = _field(Optimizer)
    critic: Critic = _field(Critic)
    eval: Evaluation = _field(Evaluation)
    checkpoint: Checkpoint = _field(Checkpoint)

    @property
    def run_dir(self) -> pathlib.Path:
        return pathlib.Path(self.out or f"runs/{self.name}")


def defaults() -> ConfigDict:
    """The default settings as a ConfigDict: typed, and locked so that a misspelt field is an error."""
    return ConfigDict(_to_dict(Config())).lock()


def _to_dict(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def load(path: str, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """Config of ``file.py`` or ``file.py:argument`` with dotted overrides, checked."""
    name, _, argument = path.partition(":")
    file = pathlib.Path(name)
    if not file.is_file():
        known = ", ".join(sorted(str(p) for p in pathlib.Path("configs").glob("[!_]*.py"))) or "none in ./configs"
        raise ValueError(f"--config={path}: no such file; configs here: {known}")
    spec = importlib.util.spec_from_file_location(f"alphaalign_config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    # What several configs share lies beside them (configs/_paper.py).
    sys.path.insert(0, str(file.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    config = module.get_config(argument)
    for key, text in overrides:
        override(config, key, text)
    return resolve(config)


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets ``a.b.c`` from command-line text, typed as the present value is."""
    node: Any = config
    *parents, leaf = key.split(".")
    for i, part in enumerate([*parents, leaf]):
        if not isinstance(node, ConfigDict) or part not in node:
            raise ValueError(f"--config.{key}: unknown config key{_nearest(key, config)}")
        if i < len(parents):
            node = node[part]
    if isinstance(node[leaf], ConfigDict):
        raise ValueError(f"--config.{key}: is a section; set one of its fields: {', '.join(node[leaf])}")
    node[leaf] = _parse(key, text, node[leaf])


def _parse(key: str, text: str, present: Any) -> Any:
    kind = type(present)
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind in (int, float):
            return kind(text)
        if kind is tuple:
            # A bare comma-separated list of words, or a Python literal for anything nested.
            return tuple(ast.literal_eval(text)) if text[:1] in "([" else tuple(p for p in text.split(",") if p)
    except (KeyError, ValueError, SyntaxError, TypeError):
        raise ValueError(f"--config.{key}={text}: expected {kind.__name__}, as the present value {present!r}") from None
    return text


def _keys(config: Any, prefix: str = "") -> list[str]:
    out = []
    for name, value in config.items():
        out += _keys(value, f"{prefix}{name}.") if isinstance(value, (dict, ConfigDict)) else [prefix + name]
    return out


def _nearest(key: str, config: ConfigDict) -> str:
    known = _keys(config)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    tail = key.rsplit(".", 1)[-1]
    close = close or [k for k in known if k.rsplit(".", 1)[-1] == tail][:1]
    return f"; did you mean --config.{close[0]}?" if close else f"; sections: {', '.join(config)}"


def resolve(config: ConfigDict) -> Config:
    """Typed, frozen settings; raises ValueError for an unknown key, a wrong type or values that cannot go together."""
    out = _build(Config, config.to_dict(), "")
    _check(out)
    return out


def _build(cls: type, values: dict, prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            raise ValueError(
                f"config.{prefix}{name}: unknown config key"
                + (f"; did you mean config.{prefix}{close[0]}?" if close else "")
            )
    built = {}
    for name, value in values.items():
        kind = hints[name]
        if dataclasses.is_dataclass(kind):
            value = _build(kind, value, f"{prefix}{name}.")
        elif kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"config.{prefix}{name}={value!r}: expected {kind.__name__}")
        built[name] = value
    return cls(**built)


_CHOICES = {
    "model.dtype": ("float32", "bfloat16"),
    "model.rollout_dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "dots", "full"),
    "data.on_long": ("error", "drop"),
    "reward.format_mode": ("strict", "paper"),
    "reward.helpfulness": ("normalised", "raw", "off"),
    "reward_model.kind": ("none", "classifier", "http", "callable"),
    "algorithm.advantage": ("gae", "grpo", "dr_grpo", "rloo", "reinforce_plus_plus", "reinforce_batch"),
    "algorithm.ratio": ("token", "sequence"),
    "algorithm.aggregation": ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"),
    "algorithm.kl_kind": ("k2", "k3"),
    "algorithm.kl_controller": ("fixed", "adaptive"),
    "algorithm.truncated": ("terminal", "bootstrap", "mask"),
}
_POSITIVE = """steps rollout.prompts rollout.group rollout.max_new_tokens rollout.bucket data.bucket
    data.max_prompt_tokens algorithm.epochs algorithm.minibatches algorithm.logprob_chunk eval.batch checkpoint.keep
    warmup.batch optimizer.learning_rate critic.optimizer.learning_rate warmup.optimizer.learning_rate
    reward.std_floor""".split()
_FRACTIONS = "data.harmful_fraction warmup.refusal_rate algorithm.gamma algorithm.lam".split()


def _get(config: Config, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def _check_algorithm(config: Config) -> None:
    """Numbers that the losses and estimators would refuse, or not read, once everything is compiled."""
    a, critic = config.algorithm, config.critic
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
    if a.dual_clip and a.dual_clip <= 1:
        raise ValueError(f"algorithm.dual_clip={a.dual_clip}: expected a number above 1, or 0 for no dual clip")
    if critic.value_clip < 0 or a.std_floor <= 0:
        raise ValueError(
            f"critic.value_clip={critic.value_clip} must be 0 (off) or more, algorithm.std_floor={a.std_floor} positive"
        )
    rows = config.rollout.prompts * config.rollout.group
    if a.kl_controller == "adaptive" and (a.kl_target <= 0 or a.kl_horizon <= rows / 5):
        raise ValueError(
            f"algorithm.kl_target={a.kl_target} must be positive, kl_horizon={a.kl_horizon} above "
            f"{rows / 5:g} (a fifth of a step's responses)"
        )
    if config.eval.temperature < 0:
        raise ValueError(f"config.eval.temperature={config.eval.temperature}: expected 0 (greedy) or more")


def _check(config: Config) -> None:
    for key, valid in _CHOICES.items():
        if _get(config, key) not in valid:
            raise ValueError(f"config.{key}={_get(config, key)!r}: expected one of {', '.join(valid)}")
    for key in _POSITIVE:
        if not _get(config, key) > 0:
            raise ValueError(f"config.{key}={_get(config, key)}: expected a positive number")
    for key in _FRACTIONS:
        if not 0 <= _get(config, key) <= 1:
            raise ValueError(f"config.{key}={_get(config, key)}: expected a number from 0 to 1")
    r, a = config.rollout, config.algorithm
    if r.prompts % a.minibatches:
        raise ValueError(f"rollout.prompts={r.prompts} does not divide into algorithm.minibatches={a.minibatches}")
    minibatch = r.prompts // a.minibatches
    if a.micro_batch and minibatch % a.micro_batch:
        raise ValueError(
            f"a mini-batch of {minibatch} prompts does not divide into algorithm.micro_batch={a.micro_batch}"
        )
    if config.warmup.micro_batch and config.warmup.batch % config.warmup.micro_batch:
        raise ValueError(
            f"warmup.batch={config.warmup.batch} does not divide into warmup.micro_batch={config.warmup.micro_batch}"
        )
    _check_algorithm(config)
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
    if r.temperature <= 0:
        raise ValueError(
            f"rollout.temperature={r.temperature}: training samples; greedy rollouts of a prompt would be equal"
        )
    if config.reward.helpfulness != "off" and config.reward_model.kind == "none":
        raise ValueError(
            f"reward.helpfulness={config.reward.helpfulness!r} needs a reward model: set reward_model.kind, or "
            "reward.helpfulness='off' (AlphaAlign-Zero)"
        )
