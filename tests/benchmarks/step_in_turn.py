"""Our side of ``rl_step.py``: whole training steps as ``train`` makes them, on the host's device.

A run keeps its freed memory for the next step; here it was given back for the other side's turn. So each turn makes two
steps, of which the first brings the memory back and is not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import jax
from peers.worker import serve

from alphaalign_jax import config
from alphaalign_jax.bench.phases import Bench
from alphaalign_jax.parallel import processes
from alphaalign_jax.train import assembly


def settings(work: argparse.Namespace) -> config.Config:
    """One step of one mini-batch: GRPO without a reference, or PPO with critic and reference."""
    c = config.defaults()
    c.model.path, c.model.dtype, c.model.rollout_dtype, c.model.remat = work.model, work.dtype, work.dtype, work.remat
    c.mesh.devices, c.mesh.fsdp = 1, 1
    c.data.bucket = c.rollout.bucket = 32
    c.rollout.prompts, c.rollout.group, c.rollout.max_new_tokens = work.prompts, work.samples, work.tokens
    c.rollout.cache, c.rollout.fewest_rows, c.rollout.scan_layers = work.cache, 0, work.scan_layers
    c.reward.helpfulness = "off"
    c.algorithm.advantage = {"grpo": "grpo", "ppo": "gae"}[work.method]
    c.algorithm.reference = work.method == "ppo"
    # What is recorded in sampling is the old policy's log-prob where both run in float32, as peers take it.
    c.algorithm.old_logprob = "sampler"
    c.algorithm.minibatches, c.algorithm.micro_batch = 1, work.micro_batch
    return config.resolve(c)


def main() -> None:
    work = argparse.Namespace(**json.loads(sys.argv[1]))
    processes.keep_freed_memory()
    bench, step = Bench(assembly.prepare(settings(work)), 1), iter(range(10**9))

    def one() -> dict[str, float]:
        for _ in range(2):
            began = time.perf_counter()
            bench.state, metrics, _ = bench.iteration(bench.state, next(step))
            jax.block_until_ready(bench.state.actor)
        found = {name: metrics[f"timing_s/{name}"] for name in ("gen", "update_actor")}
        return found | {"seconds": time.perf_counter() - began}

    serve(one)


if __name__ == "__main__":
    main()
