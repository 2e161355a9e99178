"""Our side of ``generation.py``: the engine that ``train`` samples with."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time

import jax
import numpy as np
from peers.worker import serve

from alphaalign_jax import config, hf
from alphaalign_jax.data.prompts import read
from alphaalign_jax.data.source import as_source
from alphaalign_jax.data.tokenized import PromptSet
from alphaalign_jax.models import Network
from alphaalign_jax.models.distribution import Sampling
from alphaalign_jax.parallel import Layout, build_mesh, first_devices, processes, rule_table
from alphaalign_jax.rewards.template import render
from alphaalign_jax.rollout.engine import Engine, InFlight
from alphaalign_jax.rollout.policy import Policy


def longest(policy: Policy, count: int) -> PromptSet:
    """The ``count`` longest training prompts of the demo set, in the template."""
    rows = [row for source in config.defaults().data.train for row in read(as_source(source))]
    rows = sorted(rows, key=lambda row: -len(row.prompt))[:count]
    return PromptSet.build(rows, policy.tokenizer, render)


class Ours:
    def __init__(self, work: argparse.Namespace):
        policy = Policy.open(work.model)
        layout = Layout(build_mesh(fsdp=1, devices=first_devices(1)), rule_table("tensor"))
        network = Network(policy.spec, dtype=work.dtype, remat="none", scan=work.scan_layers)
        in_flight = InFlight.of(config.Rollout(cache=work.cache))
        self.engine = Engine(network, layout, policy.verifiers, (), in_flight=in_flight)
        stacked = dataclasses.replace(network, scan=True)
        _, params = hf.load(policy.path, network=stacked, layout=layout, param_dtype=work.dtype)
        self.params, self.sizes = self.engine.prepare(params), dict(group=work.samples, slots=work.tokens)
        self.batch, self.turn = longest(policy, work.prompts).batch(np.arange(work.prompts)), 0

    def __call__(self) -> dict[str, float]:
        began, self.turn = time.perf_counter(), self.turn + 1
        state = self.engine.prefill(self.params, self.batch, jax.random.key(self.turn), **self.sizes)
        jax.block_until_ready(state)
        prefill = time.perf_counter() - began
        jax.block_until_ready(self.engine.complete(self.params, state, Sampling.create(1.0)))
        return {"prefill": prefill}


if __name__ == "__main__":
    processes.keep_freed_memory()
    serve(Ours(argparse.Namespace(**json.loads(sys.argv[1]))))
