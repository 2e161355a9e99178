"""What a program takes on a chip: memory from its compiled form, time from what must be computed, read and sent.

A time is a floor: the longest of computing at the chip's peak, reading memory at its full rate and sending at the full
rate of its links, all three at once. What is measured on a TPU will be more.
"""

from __future__ import annotations

import dataclasses

from alphaalign_jax.models import cost
from alphaalign_jax.models.cost import Workload
from alphaalign_jax.planning.chips import Chip
from alphaalign_jax.planning.compiled import Compiled
from alphaalign_jax.planning.hlo import Collective, collectives
from alphaalign_jax.planning.programs import Job, Program, chip_bytes
from alphaalign_jax.train import objectives


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a chip's memory while a program runs."""

    arguments: float
    outputs: float  # beyond those that take an argument's place
    temporaries: float
    resident: float  # what lies there and the program does not touch

    @property
    def total(self) -> float:
        return self.arguments + self.outputs + self.temporaries + self.resident


@dataclasses.dataclass(frozen=True)
class Cost:
    """A program on one chip. ``flops``: what the model asks for; ``run_flops``: with what is computed again."""

    name: str
    memory: Memory
    flops: float
    run_flops: float
    bytes: float  # read and written in HBM
    collectives: tuple[Collective, ...]
    compute_seconds: float
    hbm_seconds: float
    ici_seconds: float
    compile_seconds: float

    @property
    def seconds(self) -> float:
        return max(self.compute_seconds, self.hbm_seconds, self.ici_seconds)

    @property
    def bound(self) -> str:
        times = {"compute": self.compute_seconds, "memory": self.hbm_seconds, "links": self.ici_seconds}
        return max(times, key=times.__getitem__)


def estimate(job: Job, chip: Chip, program: Program, made: Compiled) -> Cost:
    """Of a program, and what compiling it found."""
    memory = Memory(made.arguments, made.outputs, made.temporaries, program.resident)
    moved = tuple(collectives(made.text, turns=program.turns))
    flops, run_flops = (total / job.chips for total in _flops(job, program.name))
    read = _bytes(job, program.name)
    dtype = job.config.model.rollout_dtype if program.name in ("prefill", "decode") else job.config.model.dtype
    return Cost(
        name=program.name,
        memory=memory,
        flops=flops,
        run_flops=run_flops,
        bytes=read,
        collectives=moved,
        compute_seconds=run_flops / chip.flops(dtype),
        hbm_seconds=read / chip.hbm_rate,
        ici_seconds=sum(c.bytes for c in moved) / chip.ici_rate,
        compile_seconds=made.seconds,
    )


def _work(job: Job) -> Workload:
    """Every slot of a step's rollouts: programs compute padding too."""
    r, tokens = job.config.rollout, job.tokens
    return Workload(r.prompts, r.group, tokens.prefix, tokens.prompt, r.max_new_tokens)


def _flops(job: Job, name: str) -> tuple[float, float]:
    """On all chips: the model's, and those that are run.

    All chips that share out the prompts run the template prefix, each for its own, and so does every slice of a
    gradient.
    """
    work, a = _work(job), job.config.algorithm
    again = job.layout.size("batch") * job.slices(name)
    prefix = lambda network: cost.prefill_flops(network.spec, dataclasses.replace(work, prompts=0))
    once = lambda network: cost.forward_flops(network.spec, work, head=network.head == "lm")
    run = lambda network: once(network) + (again - 1) * prefix(network)
    if name == "prefill":
        flops = cost.prefill_flops(job.spec, work)
        return flops, flops + (job.rollout_layout.size("batch") - 1) * prefix(job.actor)
    if name == "decode":
        return (cost.response_flops(job.spec, work),) * 2
    if name == "score":
        return sum(map(once, job.scored)), sum(map(run, job.scored))
    if name in ("update_actor", "update_critic"):
        part = name.removeprefix("update_")
        network = job.actor if part == "actor" else job.critic
        passes = objectives.passes(a, part)
        recomputed = int(job.config.model.remat == "full")
        return passes * a.epochs * once(network), (passes + recomputed) * a.epochs * run(network)
    return 0.0, 0.0


def _bytes(job: Job, name: str) -> float:
    """A chip's least traffic with its memory: weights as often as a pass needs them, keys and values, the optimizer's
    state, and the layers' inputs that a backward pass keeps. Other activations are left out."""
    work, a, r = _work(job), job.config.algorithm, job.config.rollout
    weights = chip_bytes(job.sampled_params)
    if name == "reshard":
        return chip_bytes(job.state.actor) + weights
    if name in ("prefill", "decode"):
        itemsize = 4 if job.config.model.rollout_dtype == "float32" else 2
        shards = job.rollout_layout.size("batch") * job.rollout_layout.size("kv_heads")
        entry = 2 * itemsize * job.spec.num_layers * job.spec.num_kv_heads * job.spec.head_dim
        if name == "prefill":
            return weights + entry * work.prompt_tokens / shards
        # As the cache doubles, so do the slots that every token reads.
        slots = sum(job.engine.in_flight.capacity(t, r.max_new_tokens) for t in range(r.max_new_tokens))
        return r.max_new_tokens * (weights + entry * work.prompt_tokens / shards) + entry * work.rows * slots / shards
    itemsize = 4 if job.config.model.dtype == "float32" else 2
    # Over fsdp, a pass gathers weights into memory and reads them there.
    gathered = lambda network: itemsize * network.spec.num_parameters / job.layout.size("heads")
    inputs = lambda network: (
        itemsize
        * network.spec.num_layers
        * network.spec.hidden_size
        * (work.prompt_tokens + work.response_tokens)
        / job.layout.size("batch")
    )
    if name == "score":
        return sum(map(gathered, job.scored))
    network, params, moments = (
        (job.actor, job.state.actor, job.state.actor_opt)
        if name == "update_actor"
        else (job.critic, job.state.critic, job.state.critic_opt)
    )
    passes = 4 if job.config.model.remat == "full" else 3
    optimizer = 2 * chip_bytes(moments) + 3 * chip_bytes(params)  # read and written; and the gradient
    return a.epochs * (job.slices(name) * passes * gathered(network) + a.minibatches * optimizer + 2 * inputs(network))
