"""Build everything a run needs from its config.

All checks that need no compiled program are made here, before the first compile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from alphaalign_jax import buckets, hf
from alphaalign_jax.algorithms.advantages import get_estimator
from alphaalign_jax.config import Config
from alphaalign_jax.data.audit import Audit, audit
from alphaalign_jax.data.recipes import mix, turn_labels
from alphaalign_jax.data.row import PromptRow
from alphaalign_jax.data.source import as_source
from alphaalign_jax.data.tokenized import PromptSet, build_sets
from alphaalign_jax.data.validation import set_aside
from alphaalign_jax.models import ModelSpec, Network, Params
from alphaalign_jax.parallel import Layout, build_mesh, first_devices, local_devices, rule_table
from alphaalign_jax.rewards import reward_model
from alphaalign_jax.rewards.reward_model.protocol import AsyncScorer
from alphaalign_jax.rewards.reward_model.together import probe
from alphaalign_jax.rewards.template import render
from alphaalign_jax.rollout.engine import Engine, InFlight
from alphaalign_jax.rollout.policy import Policy
from alphaalign_jax.train import memory, objectives, sft, warmup


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A checked and loaded run. Only its reward classifier has compiled anything yet."""

    config: Config
    policy: Policy
    actor: Network
    critic: Network | None
    train_layout: Layout
    engine: Engine
    train: PromptSet
    validation: PromptSet | None  # split off the training prompts; None without data.validation
    heldout: PromptSet
    audit: Audit
    memory: memory.Estimate
    warmup_slots: int  # tokens of the longest possible warm-up response; 0 without a warm-up
    scorer: AsyncScorer | None

    @property
    def looked_at(self) -> PromptSet:
        """The prompts of the periodic evaluations, whose scores choose the best state."""
        return self.heldout if self.validation is None else self.validation


@dataclasses.dataclass(frozen=True)
class Rows:
    """The prompts of a run, as rows."""

    train: list[PromptRow]
    validation: list[PromptRow]  # split off the rows of data.train
    heldout: list[PromptRow]
    audit: Audit  # covers every row of data.train, validation rows included


def layouts(config: Config, devices: Sequence[jax.Device] | None = None) -> tuple[Layout, Layout]:
    """Return the training and the rollout layout, both on one mesh.

    The mesh spans ``devices`` if given, else the first ``mesh.devices`` of this machine.
    """
    m = config.mesh
    devices = first_devices(m.devices) if devices is None else devices
    mesh = build_mesh(data=m.data, fsdp=m.fsdp, tensor=m.tensor, devices=devices)
    return (
        Layout(mesh, rule_table(m.train_rules, m.train_overrides)),
        Layout(mesh, rule_table(m.rollout_rules, m.rollout_overrides)),
    )


def read_rows(config: Config) -> Rows:
    """Read the prompts of a run. Reference answers are read only if the warm-up uses them."""
    sources, ratios = [as_source(entry) for entry in config.data.train], config.data.ratios
    if ratios:
        if len(ratios) != len(sources):
            raise ValueError(f"data.ratios={ratios}: expected {len(sources)} numbers, one a source of data.train")
        sources = [dataclasses.replace(source, ratio=ratio) for source, ratio in zip(sources, ratios)]
    answers = config.warmup.epochs > 0 and config.warmup.source == "texts"
    mixed = mix(sources, config.seed, answers=answers)
    rows = turn_labels(mixed, config.data.label_noise, config.seed)
    heldout_sources = [as_source(entry) for entry in config.data.heldout]
    heldout = [row for source in heldout_sources for row in mix([source], config.seed, answers=False)]
    return Rows(*set_aside(rows, config.data.validation, config.seed), heldout, audit(rows, heldout))


def build_scorer(config: Config) -> AsyncScorer | None:
    """Return the asynchronous reward model, or None if it is off or its score is unused."""
    r = config.reward_model
    if r.kind == "none" or config.reward.helpfulness == "off":
        return None
    options: dict[str, Any] = {"dtype": r.dtype}
    if r.kind == "callable":
        options |= {"target": r.target}
    elif r.kind == "http":
        options |= {"url": r.target, "token_env": r.token_env or None, "batch_limit": r.batch}
        options |= {"read_timeout": r.timeout_s, "max_retries": r.retries}
    elif r.kind == "classifier":
        options |= {"path": hf.resolve(r.target), "batch_size": r.batch, "max_length": r.max_length}
        options |= {"label": None if r.label < 0 else r.label, "on_host": r.on_host}
        options |= classifier_layout(config, local_devices(config.mesh.devices))
    return AsyncScorer(reward_model.build(r.kind, **options))


def open_scorer(config: Config, look: Callable[[str], None] = lambda _: None) -> AsyncScorer | None:
    """Return the reward model once it has scored a first row.

    Raise RewardModelError on all processes if it fails. ``look`` is called about once a second
    during the wait, with a text that names the wait. It may raise.
    """
    scorer = build_scorer(config)
    if scorer is None:
        return None
    try:
        probe(scorer, lambda: look("waiting for the reward model's first answer"))
    except BaseException:
        scorer.close()
        raise
    return scorer


def classifier_layout(config: Config, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Return the arguments that place a reward classifier on one host's ``devices``."""
    return {
        "mesh": {"fsdp": -1, "tensor": config.reward_model.tensor},
        "devices": devices,
        "rules": config.mesh.train_rules,
    }


def reward_classifier(config: Config) -> str:
    """Return the reward model whose weights stay on the devices throughout; "" if there is none."""
    r = config.reward_model
    there = r.kind == "classifier" and config.reward.helpfulness != "off" and not r.on_host
    return r.target if there else ""


def model_path(config: Config) -> pathlib.Path:
    """Return the local directory or file of the initial policy."""
    if not config.model.path:
        raise ValueError("model.path is empty; give a Hugging Face directory, GGUF file, hub id or package:NAME")
    return hf.resolve(config.model.path)


def kept_model(mirror: buckets.Mirror) -> pathlib.Path | None:
    """Return the run's copy of its model configs and tokenizer, None if it has none yet.

    ``hf.describe_run`` writes this folder.
    """
    folder = mirror.folder / "model"
    return folder if (folder / "config.json").is_file() else None


def prepare(
    config: Config,
    mirror: buckets.Mirror | None = None,
    look: Callable[[str], None] = lambda _: None,
    say: Callable[[str], Any] = lambda _: None,
    *,
    resumes: bool = False,
) -> Prepared:
    """Open the reward model, read the data and the model, and build the layouts.

    A run that ``resumes`` reads neither ``model.path`` nor ``critic.path``: its weights are in its
    checkpoint, and everything else is in its folder. ``look``: as for ``open_scorer``. ``say`` is
    called with a warning if memory may be too small.

    Raise ValueError for a config that cannot work, and RewardModelError if the reward model fails
    on a first row.
    """
    mirror = mirror or buckets.Mirror(config.location)
    train_layout, rollout_layout = layouts(config)
    rollout_layout.check("rollout.prompts, group", (config.rollout.prompts, config.rollout.group), ("batch", "rollout"))
    rollout_layout.check("eval.batch", (config.eval.batch,), ("batch",))
    if config.warmup.epochs:
        sft.micro_batch(config.warmup, train_layout)
    scorer = open_scorer(config, look)
    with contextlib.ExitStack() as undo:
        if scorer is not None:
            undo.enter_context(contextlib.closing(scorer))
        rows = read_rows(config)
        kept = kept_model(mirror) if resumes else None
        path = kept or model_path(config)
        policy = open_policy(config, path)
        sets = tokenized_sets(config, policy, rows)
        warmup_slots = 0
        if config.warmup.epochs:
            warmup_slots = warmup.longest(sets["train"], config, policy)
        actor = actor_network(config, policy.spec)
        _check_length(config, policy.spec, sets)
        _check_slices(config, sets["train"], train_layout)
        valued = get_estimator(config.algorithm.advantage).critic
        critic = critic_network(config, policy.spec, kept) if valued else None
        evaluated = [prompts for name, prompts in sets.items() if name != "train"]
        sizes = memory.Sizes.of(config, sets["train"], evaluated, warmup_slots)
        made = memory_estimator(policy.spec, critic, (train_layout, rollout_layout), sizes)
        expected = memory.check(config, made, say)
        sampled = rollout_network(config, policy.spec)
        how = InFlight.of(config.rollout)
        engine = Engine(sampled, rollout_layout, policy.verifiers, policy.stop_ids, in_flight=how)
        undo.pop_all()  # from here on the run owns the reward model and closes it
    return Prepared(
        config=config,
        policy=policy,
        actor=actor,
        critic=critic,
        train_layout=train_layout,
        engine=engine,
        train=sets["train"],
        validation=sets.get("validation"),
        heldout=sets["heldout"],
        audit=rows.audit,
        memory=expected,
        warmup_slots=warmup_slots,
        scorer=scorer,
    )


def open_policy(config: Config, path: pathlib.Path) -> Policy:
    """Open the policy at ``path`` with the config's verifiers and chat settings."""
    m = config.model
    return Policy.open(path, config.reward.format_mode, m.chat_date, m.chat_args or None)


def tokenized_sets(config: Config, policy: Policy, rows: Rows) -> dict[str, PromptSet]:
    """Tokenize the prompts with one shared prefix. Return the sets by the field names of ``rows``.

    Without ``data.validation`` there is no "validation" set.
    """
    d = config.data
    validation = {"validation": rows.validation} if rows.validation else {}
    return build_sets(
        {"train": rows.train, **validation, "heldout": rows.heldout},
        policy.tokenizer,
        render,
        bucket=d.bucket,
        max_prompt_tokens=dict.fromkeys(("train", *validation), d.max_prompt_tokens),
        on_long=d.on_long,
        settings=policy.chat,
    )


def memory_estimator(
    spec: ModelSpec, critic: Network | None, layouts: tuple[Layout, Layout], sizes: memory.Sizes
) -> Callable[[Config], memory.Estimate]:
    """Return a function that estimates memory for variants of the prepared config."""

    def made(config: Config) -> memory.Estimate:
        reward = reward_classifier(config)
        scored_by = hf.load_spec(reward) if reward else None
        valued_by = critic and actor_network(config, critic.spec, head="value")
        return memory.estimate(config, actor_network(config, spec), valued_by, layouts, sizes, scored_by)

    return made


def actor_network(config: Config, spec: ModelSpec, head: str = "lm") -> Network:
    """Return the policy's network for training; with ``head="value"``, a critic's."""
    m = config.model
    return Network(spec, head, dtype=m.dtype, remat=m.remat, attention=m.attention)


def rollout_network(config: Config, spec: ModelSpec) -> Network:
    """Return the policy's network for sampling."""
    m = config.model
    how = dict(scan=config.rollout.scan_layers, attention=m.attention)
    return Network(spec, dtype=m.rollout_dtype, remat="none", **how)


def load_params(prepared: Prepared) -> Params:
    """Load the initial policy, float32, in the training layout."""
    return hf.load(prepared.policy.path, network=prepared.actor, layout=prepared.train_layout)[1]


def _check_length(config: Config, spec: ModelSpec, sets: dict[str, PromptSet]) -> None:
    slots, setting = max(
        (config.rollout.max_new_tokens, "rollout.max_new_tokens"), (config.eval.max_new_tokens, "eval.max_new_tokens")
    )
    for name, prompts in sets.items():
        longest = prompts.longest
        if longest + slots > spec.max_positions:
            room = spec.max_positions - slots
            shorter = "leave the row out"
            if name != "heldout" and room > 0:  # evaluation never drops prompts
                shorter = f"set data.max_prompt_tokens={room} with data.on_long=drop"
            raise ValueError(
                f"{name}: the longest prompt has {longest} tokens; with {slots} new ones ({setting}) that is more than "
                f"the model's max_position_embeddings={spec.max_positions}; lower {setting}, or {shorter}; it is "
                f"{prompts.longest_row.named}"
            )


def _check_slices(config: Config, prompts: PromptSet, layout: Layout) -> None:
    """Raise ValueError unless gradient slices divide over the mesh and hold the longest batch."""
    r, a = config.rollout, config.algorithm
    slots = prompts.slots() + r.group * r.max_new_tokens
    objectives.micro_batch(a, r.prompts // a.minibatches, slots, layout.size("batch"))


def critic_network(config: Config, policy: ModelSpec, kept: pathlib.Path | None = None) -> Network:
    """Return the critic's network.

    Its body is that of ``critic.path`` or else the policy's, cut to ``critic.num_layers``.
    ``kept``: the ``kept_model`` of a resumed run.
    """
    own = config.critic.path and kept and (kept / hf.CRITIC_CONFIG).is_file()
    spec = policy
    if own:
        spec = hf.spec_of(hf.read_json(kept / hf.CRITIC_CONFIG))
    elif config.critic.path:
        spec = hf.load_spec(hf.resolve(config.critic.path))
    layers = config.critic.num_layers or spec.num_layers
    if not 0 < layers <= spec.num_layers:
        raise ValueError(f"critic.num_layers={config.critic.num_layers}: its body has {spec.num_layers} layers")
    if spec.vocab_size != policy.vocab_size:
        raise ValueError(
            f"critic.path={config.critic.path}: vocabulary of {spec.vocab_size}, the policy's has {policy.vocab_size}"
        )
    spec = dataclasses.replace(spec, num_layers=layers, num_labels=None)
    network = actor_network(config, spec, head="value")
    if config.critic.path and not own:
        hf.check(config.critic.path, network)
    return network


def critic_params(prepared: Prepared, policy_params: Params) -> Params | None:
    """Return the critic's initial weights, None without a critic.

    The body is loaded from ``critic.path`` or copied from the policy; the value head is zeros.
    """
    network, layout = prepared.critic, prepared.train_layout
    if network is None:
        return None
    if prepared.config.critic.path:
        return hf.load(hf.resolve(prepared.config.critic.path), network=network, layout=layout)[1]

    def cut(params):
        body = {name: value for name, value in params.items() if name != "head"}
        body["layers"] = jax.tree.map(lambda x: x[: network.spec.num_layers], body["layers"])
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), network.shapes()["head"])
        return jax.tree.map(jnp.copy, {**body, "head": zeros})

    return jax.jit(cut, out_shardings=layout.tree_shardings(network.axes))(policy_params)
