"""Estimate a run's device memory from shapes alone, before anything is compiled.

An estimate adds the permanent state and, for each phase, the temporaries alive at its peak: the
gradient and the optimizer's temporaries, the activations kept for the backward pass, one layer's
computation, and the logits of a chunk. The factors were fitted to XLA's reports for compiled steps
on CPU (2026-11-30), and ``tests/test_memory.py`` checks them. ``alphaalign plan`` compiles the
steps and is exact.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from alphaalign_jax.config import Config
from alphaalign_jax.data.tokenized import PromptSet
from alphaalign_jax.evaluation.respond import batch_size, by_width
from alphaalign_jax.models import ModelSpec, Network
from alphaalign_jax.parallel import Layout, processes
from alphaalign_jax.train import objectives

GIB = 2**30
MARGIN = 1.25  # an estimate above this multiple of the limit does not fit: an error
ROOM = 0.9  # an estimate above this share of the limit is a warning
_FLOAT = 4
# Live copies of float32 logits [rows, chunk, V]: in a forward pass, with its gradient, in a draw.
_LOGITS_FORWARD, _LOGITS_BACKWARD, _LOGITS_DRAW = 2.0, 4.2, 3.0
# Float32 copies of the weights in an update: the gradient, and the changes of moments and weights.
_UPDATE = 3
_SCORES = 3  # copies of attention scores in a layer


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Token slots of a run: P, S and T in the notation of ``types``."""

    prefix: int
    prompt: int
    response: int
    warmup_response: int = 0
    evaluated_response: int = 0
    evaluated: tuple[tuple[int, int], ...] = ()  # (S, prompts) for each width of each evaluated set

    @classmethod
    def of(
        cls, config: Config, train: PromptSet, evaluated: Sequence[PromptSet] = (), warmup_response: int = 0
    ) -> Sizes:
        longest = config.rollout.max_new_tokens
        response = config.eval.max_new_tokens or longest
        widths = [by_width(prompts, range(len(prompts))) for prompts in evaluated]
        counts = tuple((width, len(members)) for groups in widths for width, members in groups.items())
        return cls(len(train.prefix), train.slots(), longest, warmup_response, response, counts)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Estimated memory of one device, in bytes."""

    held: dict[str, float]  # permanent, by part of the state
    phases: dict[str, float]  # peak of each phase, including the part of ``held`` that exists then
    limit: float  # available on the device; 0: unknown

    @property
    def peak(self) -> float:
        return max(self.phases.values())

    @property
    def phase(self) -> str:
        """Return the phase with the highest peak."""
        return max(self.phases, key=self.phases.__getitem__)

    @property
    def fits(self) -> bool:
        return not self.limit or self.peak <= self.limit * MARGIN

    @property
    def tight(self) -> bool:
        return bool(self.limit) and self.peak > ROOM * self.limit

    def __str__(self) -> str:
        phases = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.phases.items())
        limit = f" of {self.limit / GIB:.1f}" if self.limit else ""
        return f"memory of a device, estimated: {self.peak / GIB:.1f}{limit} GiB ({phases})"


def estimate(
    config: Config,
    actor: Network,
    critic: Network | None,
    layouts: tuple[Layout, Layout],
    sizes: Sizes,
    reward_model: ModelSpec | None = None,
) -> Estimate:
    """Estimate a run of ``config`` on the training and the rollout layout.

    ``reward_model``: a classifier whose weights each process keeps on its own devices.
    """
    layout, rollout_layout = layouts
    rollout_layout.check("eval.batch", (config.eval.batch,), ("batch",))
    weigh = functools.partial(_trained_bytes, layout=layout)
    a, r = config.algorithm, config.rollout
    weights = weigh(actor)
    held = {"actor": weights, "moments": 2 * weights}
    if a.ema_decay:
        held["average"] = weights
    if a.reference and not a.reference_on_host:
        held["reference"] = weights
    if critic is not None:
        held["critic"] = 3 * weigh(critic)
    if reward_model is not None:
        size = jax.numpy.dtype(config.reward_model.dtype).itemsize
        held["reward model"] = reward_model.num_parameters * size / len(layout.mesh.local_devices)
    whole = sum(held.values())
    step = functools.partial(_Step, config=config, layout=layout, sizes=sizes)
    sample = functools.partial(_Rollout, config, actor.spec, layouts, sizes.prefix)
    phases = {"rollout": whole + sample(r.prompts, r.group, sizes.prompt, sizes.response).peak()}
    # Log-probs are computed for one mini-batch at a time, like the gradients.
    minibatch = dict(prompts=r.prompts // a.minibatches, group=r.group, response=sizes.response)
    phases["score"] = whole + step(actor, **minibatch).forward()
    phases["update"] = whole + step(actor, **minibatch).backward()
    if critic is not None:
        phases["critic update"] = whole + step(critic, **minibatch).backward()
    shards = rollout_layout.size("batch")
    evaluated = [
        sample(batch_size(config.eval.batch, width, count, shards), 1, width, sizes.evaluated_response).peak()
        for width, count in sizes.evaluated or ((sizes.prompt, config.eval.batch),)
    ]
    phases["evaluation"] = whole + max(evaluated)
    if config.warmup.epochs:
        phases |= supervised(config, actor, layout, sizes).phases
    return Estimate(held, phases, device_limit(config))


def supervised(config: Config, network: Network, layout: Layout, sizes: Sizes) -> Estimate:
    """Estimate supervised training alone. Its state is the weights and their moments."""
    held = 3 * _trained_bytes(network, layout)
    step = _Step(network, config.warmup.batch, 1, sizes.warmup_response, config, layout, sizes, warmup=True)
    return Estimate({"actor": held}, {"warm-up": held + step.backward()}, device_limit(config))


@dataclasses.dataclass(frozen=True)
class _Step:
    """A pass in slices over prompts with their responses.

    Each of ``prompts`` prompts has ``group`` responses of ``response`` slots.
    """

    network: Network
    prompts: int
    group: int
    response: int
    config: Config
    layout: Layout
    sizes: Sizes
    warmup: bool = False

    @property
    def slice(self) -> int:
        """Return the number of prompts of a slice on one shard of the batch."""
        shards = self.layout.size("batch")
        if self.warmup:
            w = self.config.warmup
            part = objectives.even_slice(w.batch, w.micro_batch, shards, "warmup.micro_batch") // shards
        else:
            slots = self.sizes.prompt + self.group * self.response
            part = objectives.micro_batch(self.config.algorithm, self.prompts, slots, shards) // shards
        return part or math.ceil(self.prompts / shards)

    @property
    def rows(self) -> float:
        return self.slice * self.group / self.layout.size("rollout")

    @property
    def tokens(self) -> float:
        return self.sizes.prefix + self.slice * self.sizes.prompt + self.rows * self.response

    @property
    def logits(self) -> float:
        """Return the bytes of one chunk's logits in float32."""
        if self.network.head != "lm":
            return 0.0
        chunk = min(self.config.algorithm.logprob_chunk, self.response)
        return self.rows * chunk * self.network.spec.vocab_size / self.layout.size("vocab") * _FLOAT

    def layer(self) -> float:
        """Return the bytes of all intermediate values of one layer."""
        keys = self.sizes.prefix + self.sizes.prompt + self.response
        return _layer_bytes(self.network, self.layout, self.tokens, keys)

    def kept(self) -> float:
        """Return the bytes of activations that all layers keep for the backward pass."""
        s, size = self.network.spec, _itemsize(self.network.dtype, self.layout)
        if self.network.remat == "none":
            return s.num_layers * self.layer()
        width = s.hidden_size / self.layout.size("act_length")
        if self.network.remat == "dots":
            heads = (s.num_heads + 2 * s.num_kv_heads) * s.head_dim / self.layout.size("heads")
            width += 2 * s.hidden_size + heads + 2 * s.intermediate_size / self.layout.size("mlp")
        return s.num_layers * self.tokens * width * size

    def gathered(self, *, gradient: bool) -> float:
        """Return the bytes of weights gathered from all their shards, and of their gradient."""
        if self.layout.size("embed") == 1:
            return 0.0
        s, size = self.network.spec, _itemsize(self.network.dtype, self.layout)
        beside = Layout(self.layout.mesh, {**self.layout.rules, "embed": ()})
        layer = _part(self.network.axes["layers"], self.network.shapes()["layers"], beside) / s.num_layers
        table = s.vocab_size * s.hidden_size / self.layout.size("vocab")
        used = (table + layer) * (size + _FLOAT * gradient)  # the embedding and the active layer
        # The head is gathered in float32, as stored. Its gradient: a chunk's plus the sum over all.
        if self.network.head == "lm":
            used += table * (size + _FLOAT + 2 * _FLOAT * gradient)
        return used

    def forward(self) -> float:
        return self.gathered(gradient=False) + max(_LOGITS_FORWARD * self.logits, self.layer() / 2)

    def backward(self) -> float:
        weights = _trained_bytes(self.network, self.layout)
        sliced = self.slice * self.layout.size("batch") < self.prompts
        state = weights * (_UPDATE + sliced) + self.gathered(gradient=True)
        return state + self.kept() + max(_LOGITS_BACKWARD * self.logits, self.layer())


@dataclasses.dataclass(frozen=True)
class _Rollout:
    """A rollout of ``group`` responses, of ``response`` slots each, to each prompt.

    There are ``prompts`` prompts of ``width`` slots.
    """

    config: Config
    spec: ModelSpec
    layouts: tuple[Layout, Layout]  # of training, where weights are copied from, and of the rollout
    prefix: int
    prompts: int
    group: int
    width: int
    response: int

    def peak(self) -> float:
        """Return the bytes of the weights' copy, plus the most of copying, prefill and decoding."""
        m, spec, (trained, layout) = self.config.model, self.spec, self.layouts
        network = Network(spec, dtype=m.rollout_dtype, attention=m.attention)
        size = _itemsize(network.dtype, layout)
        weights = _weight_bytes(network, layout, "rollout layout, policy", size)
        # Weights that training shards more finely are gathered before they are resharded.
        copying = weights if trained.size("embed") > layout.size("embed") else 0.0
        slot = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim / layout.size("kv_heads") * size
        prompts = self.prefix + self.prompts / layout.size("batch") * self.width
        prefill = slot * prompts + _layer_bytes(network, layout, prompts, self.prefix + self.width) / 2
        rows = self.prompts * self.group / layout.size("batch") / layout.size("rollout")
        # While the cache grows, the old and the new keys are alive at once.
        grows = 1.5 if 0 < self.config.rollout.cache < self.response else 1.0
        logits = _LOGITS_DRAW * rows * spec.vocab_size / layout.size("vocab") * _FLOAT
        return weights + max(copying, prefill, slot * (rows * self.response * grows + prompts) + logits)


def _layer_bytes(network: Network, layout: Layout, tokens: float, keys: int) -> float:
    """Return the bytes of one layer's intermediate values for ``tokens`` attending to ``keys``."""
    s, size = network.spec, _itemsize(network.dtype, layout)
    heads = (s.num_heads + 2 * s.num_kv_heads) * s.head_dim / layout.size("heads")
    width = 8 * s.hidden_size + 4 * s.intermediate_size / layout.size("mlp") + 3 * heads
    scores = _SCORES * s.num_heads / layout.size("heads") * keys * _FLOAT
    return tokens * (width * size + (scores if _writes_scores(network, layout) else 0.0))


def _writes_scores(network: Network, layout: Layout) -> bool:
    """Return whether attention materialises its scores; the fused kernels do not."""
    kernels = {"gpu": "triton", "cuda": "triton", "tpu": "splash"}
    kind, platform = network.attention, layout.mesh.devices.flat[0].platform
    return kind == "plain" or (kind == "auto" and platform not in kernels)


def _trained_bytes(network: Network, layout: Layout) -> float:
    """Return the bytes of a device's share of the trained weights, in float32."""
    name = "critic" if network.head == "value" else "actor"
    return _weight_bytes(network, layout, f"training layout, {name}", _FLOAT)


def _weight_bytes(network: Network, layout: Layout, what: str, itemsize: int) -> float:
    """Return the bytes of a device's share of the weights.

    Raise ValueError, which names ``what``, if the weights do not divide over the mesh.
    """
    return itemsize * _part(network.axes, network.shapes(), layout, what)


def _part(axes: Any, shapes: Any, layout: Layout, what: str = "parameter") -> int:
    """Return the number of elements on one device of arrays with these logical axes."""
    shardings = layout.tree_shardings(axes, shapes, what)
    part = lambda x, sharding: math.prod(sharding.shard_shape(x.shape))
    return sum(jax.tree.leaves(jax.tree.map(part, shapes, shardings)))


def _itemsize(dtype: str, layout: Layout) -> int:
    """Return the bytes of one computed value. On CPU, XLA computes bfloat16 in float32."""
    cpu = layout.mesh.devices.flat[0].platform == "cpu"
    return _FLOAT if cpu else jax.numpy.dtype(dtype).itemsize


def device_limit(config: Config) -> float:
    """Return the bytes of one device that a run may use; 0 if unknown.

    CPU devices share the host's memory, less the memory that this process uses already.
    """
    if config.mesh.memory_gb:
        return config.mesh.memory_gb * GIB
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        used = min(config.mesh.devices or jax.local_device_count(), jax.local_device_count())
        return (processes.memory_limit() - processes.memory_used()) / used
    return float((device.memory_stats() or {}).get("bytes_limit", 0))


def check(config: Config, made: Callable[[Config], Estimate], say: Callable[[str], Any]) -> Estimate:
    """Return the estimate of ``config``. Warn with ``say`` if it is tight.

    Raise ValueError if it does not fit.
    """
    found = made(config)
    if not found.tight:
        return found
    advice = " ".join(advise(config, made))
    hint = f"; this would fit: {advice}" if advice else "; take a smaller model, more devices, or fewer prompts a step"
    if not found.fits:
        raise ValueError(f"{found}: the {found.phase} does not fit{hint} (mesh.memory_gb sets another limit)")
    say(f"{found}: the {found.phase} is tight{hint}")
    return found


def advice(config: Config, expected: Estimate) -> str:
    """Return advice for a run that ran out of memory, whatever its estimate was (``expected``)."""
    budget = config.algorithm.micro_tokens
    part = f"micro_tokens={max(1, budget // 2)}" if budget else "micro_batch=1"
    return (
        f"{expected}. These take less: --config.algorithm.logprob_chunk=16, --config.algorithm.{part}, "
        "--config.warmup.micro_batch=1, --config.model.remat=full, or fewer of rollout.prompts and eval.batch"
    )


def advise(config: Config, made: Callable[[Config], Estimate]) -> list[str]:
    """Return the flags that make ``config`` fit, no more than needed; [] if none are known.

    If no settings leave the usual room (``ROOM``), return accepted settings with the lowest peak.
    """
    chosen, best = _lowest(config, made)
    if not best.fits:
        return []
    limit = MARGIN if best.tight else ROOM
    enough = lambda found: found.peak <= limit * found.limit
    if not enough(made(config)):
        for key in reversed(list(chosen)):  # a later saving may make an earlier one unnecessary
            rest = {name: value for name, value in chosen.items() if name != key}
            if enough(made(_changed(config, rest))):
                chosen = rest
    return [f"--config.{key}={value}" for key, value in chosen.items()]


def _lowest(config: Config, made: Callable[[Config], Estimate]) -> tuple[dict[str, Any], Estimate]:
    """Return the savings that lower the peak until it is no longer tight, and their estimate.

    Savings are retried after others were taken. Each lowers some phases only, and then another
    phase may have the highest peak.
    """
    chosen: dict[str, Any] = {}
    best = made(config)
    lowered = True
    while lowered and best.tight:
        lowered = False
        for key, value in _savings(config):
            tried = {**chosen, key: value}
            try:
                found = made(_changed(config, tried))
            except ValueError:  # a slice does not divide
                continue
            if found.peak < 0.95 * best.peak:
                chosen, best, lowered = tried, found, True
            if not best.tight:
                break
    return chosen, best


def _savings(config: Config) -> Sequence[tuple[str, Any]]:
    """Return settings that save memory and change results only by rounding, cheapest first."""
    a, w = config.algorithm, config.warmup
    chunks = [("algorithm.logprob_chunk", chunk) for chunk in (16, 4) if chunk < a.logprob_chunk]
    evaluated = [("eval.batch", n) for n in _halves(config.eval.batch)]
    slices = [("warmup.micro_batch", n) for n in (4, 1) if n < (w.micro_batch or w.batch)]
    if a.micro_tokens:
        slices += [("algorithm.micro_tokens", n) for n in _halves(a.micro_tokens)]
    else:
        per_step = a.micro_batch or config.rollout.prompts // a.minibatches
        slices += [("algorithm.micro_batch", n) for n in (4, 2, 1) if n < per_step]
    remat = [("model.remat", "full")] if config.model.remat != "full" else []
    host = [("algorithm.reference_on_host", True)] if a.reference and not a.reference_on_host else []
    return [*chunks, *evaluated, *slices, *remat, *host]


def _halves(number: int) -> list[int]:
    """Return ``number`` halved repeatedly, down to 1."""
    return [number >> n for n in range(1, number.bit_length())]


def _changed(config: Config, changes: Mapping[str, Any]) -> Config:
    for key, value in changes.items():
        section, name = key.split(".")
        part = dataclasses.replace(getattr(config, section), **{name: value})
        config = dataclasses.replace(config, **{section: part})
    return config
