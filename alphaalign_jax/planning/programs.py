"""The programs of a config's training step, on devices that need not exist: what to lower, and what lies beside it.

These are the functions that ``train`` runs (``Steps``, ``Engine``), given shapes and shardings in place of arrays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from alphaalign_jax.algorithms.advantages import get_estimator
from alphaalign_jax.config import Config
from alphaalign_jax.models import ModelSpec, Network
from alphaalign_jax.models.distribution import Sampling
from alphaalign_jax.parallel import Layout, build_mesh, rule_table
from alphaalign_jax.rollout.engine import Engine, InFlight
from alphaalign_jax.train import assembly, objectives
from alphaalign_jax.train.steps import Steps
from alphaalign_jax.types import Prompts, TrainBatch


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Slots of the prompts, which a plan has no data to measure."""

    prefix: int  # P, the template's head, shared by all
    prompt: int  # S, after it

    @classmethod
    def of(cls, config: Config, prefix: int, prompt: int | None) -> Tokens:
        """``prompt`` None: as many as the longest prompt that the config lets in."""
        room, bucket = config.data.max_prompt_tokens - prefix, config.data.bucket
        prompt = room if prompt is None else prompt
        if prefix < 0 or not 1 <= prompt <= room:
            raise ValueError(
                f"prompts of {prefix} + {prompt} tokens (data.max_prompt_tokens={config.data.max_prompt_tokens}): "
                f"expected 0 or more of the shared prefix and at least 1 after it, together no more than that"
            )
        return cls(prefix, -(-prompt // bucket) * bucket)


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of a step. ``resident``: bytes a chip that lie in its memory meanwhile and are none of the program's
    arguments."""

    name: str
    lowered: jax.stages.Lowered
    resident: float
    turns: float  # of a loop whose number the compiler does not know


class Job:
    """A config on given devices, without weights or data."""

    def __init__(
        self,
        config: Config,
        spec: ModelSpec,
        devices: Sequence[Any],
        tokens: Tokens,
        *,
        reward_model: ModelSpec | None = None,
    ):
        """``reward_model``: a classifier whose weights every host keeps on its own devices."""
        self.config, self.spec, self.tokens = config, spec, tokens
        self._reward_model = reward_model and _reward_model(config, reward_model, devices)
        self.layout, self.rollout_layout = assembly.layouts(config, devices)
        self.actor = assembly.actor_network(config, spec)
        with_critic = get_estimator(config.algorithm.advantage).critic
        self.critic = assembly.critic_network(config, spec) if with_critic else None
        self.steps = Steps(config, self.actor, self.critic, self.layout)
        sampled = assembly.rollout_network(config, spec)
        self.engine = Engine(sampled, self.rollout_layout, None, (), in_flight=InFlight.of(config.rollout))
        sizes = (config.rollout.prompts, config.rollout.group)
        self.rollout_layout.check("rollout.prompts, group", sizes, ("batch", "rollout"))
        self.state = self.steps.abstract_state(0)
        self.sampled_params = placed(
            jax.eval_shape(self.engine.prepare, self.state.actor),
            self.rollout_layout.tree_shardings(sampled.axes),
        )

    @property
    def chips(self) -> int:
        return self.layout.mesh.size

    def slices(self, name: str) -> int:
        """Parts in which a program goes once over a step's prompts."""
        a, r = self.config.algorithm, self.config.rollout
        if name not in ("score", "update_actor", "update_critic"):
            return 1
        minibatch = r.prompts // a.minibatches
        rows = r.prompts if name == "score" else minibatch
        slots = self.tokens.prompt + r.group * r.max_new_tokens
        part = objectives.micro_batch(a, rows, slots, self.layout.size("batch")) or minibatch
        return r.prompts // part

    @property
    def scored(self) -> list[Network]:
        """The networks that pass over the responses before the updates: policy, reference, critic."""
        a = self.config.algorithm
        passes = [self.actor] * ((a.old_logprob == "trainer") + bool(a.reference))
        return passes if self.critic is None else [*passes, self.critic]

    def held(self) -> dict[str, float]:
        """Bytes a chip of each part of the state in its memory between programs."""
        s, waiting = self.state, self.config.algorithm.reference_on_host
        parts = {
            "actor": s.actor,
            "actor_opt": s.actor_opt,
            "average": s.average,
            "critic": s.critic,
            "critic_opt": s.critic_opt,
            "reference": None if waiting else s.reference,
            "reward_model": self._reward_model,
        }
        return {name: chip_bytes(part) for name, part in parts.items() if part is not None}

    def programs(self, compile: Callable[[Program], Any]) -> Iterator[tuple[Program, Any]]:
        """Each program, in the order of a step, with what ``compile`` makes of it: it has ``output_specs``, by leaf.

        Lowered one by one: what one gives is laid out as the next one takes it.
        """
        held, r = self.held(), self.config.rollout
        beside = lambda *arguments: sum(size for name, size in held.items() if name not in arguments)
        key = placed(jax.eval_shape(lambda: jax.random.key(0)), self.rollout_layout.replicated)
        rows = self.spec.vocab_size
        made_sampling = jax.eval_shape(lambda: Sampling.create(owned=jnp.ones(rows, bool)))
        sampling = lambda layout: placed(made_sampling, layout.replicated)

        def made(name: str, lowered: jax.stages.Lowered, resident: float, turns: float = 1.0) -> tuple[Program, Any]:
            program = Program(name, lowered, resident, turns)
            return program, compile(program)

        yield made("reshard", self.engine.prepare.lower(self.state.actor), beside("actor"))
        first = self.engine.in_flight.capacity(0, r.max_new_tokens)
        prompts = self._prompts(self.rollout_layout)
        start = lambda capacity: dict(group=r.group, slots=r.max_new_tokens, capacity=capacity)
        arguments = (self.sampled_params, prompts, key)
        prefill = made("prefill", self.engine.start.lower(*arguments, limit=None, **start(first)), beside())
        yield prefill
        # Decoding is most of its time, and takes the most memory, with the cache at its full length.
        full = jax.eval_shape(lambda *x: self.engine.start(*x, limit=None, **start(r.max_new_tokens)), *arguments)
        lie = [jax.sharding.NamedSharding(self.rollout_layout.mesh, spec) for spec in prefill[1].output_specs]
        state = placed(full, jax.tree.unflatten(jax.tree.structure(full), lie))
        decode = self.engine.decode.lower(self.sampled_params, state, sampling(self.rollout_layout), None, 0)
        yield made("decode", decode, beside(), turns=r.max_new_tokens)
        yield from self._training(made, beside, sampling(self.layout))

    def _training(self, made: Callable, beside: Callable, sampling: Sampling) -> Iterator[tuple[Program, Any]]:
        steps, batch, a, policy = self.steps, self._batch(), self.config.algorithm, self.config.algorithm.old_logprob
        if self.scored:
            rows = (batch.prompts, batch.tokens, batch.sampled)
            yield made(
                "score",
                steps.forward.lower(self.state, *rows, sampling, policy=policy == "trainer"),
                beside("actor", "critic", "reference"),
            )
        rows = self.config.rollout.prompts // a.minibatches
        index = jax.ShapeDtypeStruct((a.epochs * a.minibatches, rows), jnp.int32, sharding=self.layout.replicated)
        if self.critic is not None:
            critic = (self.state.critic, self.state.critic_opt)
            yield made("update_critic", steps.update_critic.lower(critic, batch, index), beside("critic", "critic_opt"))
        actor = (self.state.actor, self.state.actor_opt)
        lowered = steps.update_actor.lower(actor, batch, index, sampling)
        yield made("update_actor", lowered, beside("actor", "actor_opt"))

    def _prompts(self, layout: Layout) -> Prompts:
        b, whole, rows = self.config.rollout.prompts, layout.replicated, layout.sharding("batch")
        ints = lambda shape, sharding: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
        return Prompts(
            prefix=ints((self.tokens.prefix,), whole),
            tokens=ints((b, self.tokens.prompt), layout.sharding("batch", None)),
            length=ints((b,), rows),
            label=ints((b,), rows),
            row=ints((b,), rows),
        )

    def _batch(self) -> TrainBatch:
        r, place = self.config.rollout, self.layout.sharding("batch", "rollout", "length")
        shape = (r.prompts, r.group, r.max_new_tokens)
        of = lambda dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=place)
        names = ("old_logprob", "ref_logprob", "old_value", "weight", "advantage", "target")
        known = {name: of(jnp.float32) for name in names}
        return TrainBatch(prompts=self._prompts(self.layout), tokens=of(jnp.int32), sampled=of(jnp.bool_), **known)


def _reward_model(config: Config, spec: ModelSpec, devices: Sequence[Any]) -> Any:
    """Its weights, laid over one host's devices."""
    own = [device for device in devices if device.process_index == devices[0].process_index]
    lies, dtype = assembly.classifier_layout(config, own), config.reward_model.dtype
    network = Network(spec, "score", dtype=dtype, remat="none")
    layout = Layout(build_mesh(**lies["mesh"], devices=lies["devices"]), rule_table(lies["rules"]))
    return placed(network.shapes(dtype), layout.tree_shardings(network.axes, network.shapes(), "reward model"))


def placed(shapes: Any, shardings: Any) -> Any:
    """``jax.ShapeDtypeStruct``s of a pytree with shardings: a tree of them, or one for all."""
    struct = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda x: struct(x, shardings), shapes)
    return jax.tree.map(struct, shapes, shardings)


def chip_bytes(tree: Any) -> float:
    """Bytes of one chip's part of arrays that are given by shape, dtype and sharding."""
    return float(
        sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree) if x.size)
    )
