"""A whole training step next to another library's: the same weights, prompts and number of tokens, in turns in one run.

    pip install trl accelerate
    python tests/benchmarks/rl_step.py --method=grpo --peer=trl
    python tests/benchmarks/rl_step.py --method=ppo --peer=trl       (TRL up to 1.12)
    python tests/benchmarks/rl_step.py --method=grpo --peer=tunix    (google-tunix; --peer_python where it lies apart)

Both sample every response to its full length, score it without a reward model, and take one optimizer step on all of
them. GRPO is without a reference model; PPO has one, and a critic, of the policy's size. What counts is the ratio,
taken in each round and then the median.
"""

from __future__ import annotations

import json

from turns import compare
from work import options, parse

from alphaalign_jax import config, output
from alphaalign_jax.data.recipes import mix
from alphaalign_jax.data.source import as_source
from alphaalign_jax.display import Display
from alphaalign_jax.rewards.template import render


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--method", choices=("grpo", "ppo"), default="grpo")
    parser.add_argument("--peer", choices=("trl", "tunix"), default="trl")
    parser.add_argument("--peer_rows", type=int, default=0, help="rows of the peer's gradient slices; 0: all at once")
    parser.add_argument("--micro_batch", type=int, default=0, help="algorithm.micro_batch of ours, prompts; 0: all")
    parser.add_argument("--remat", default="none", help="model.remat of ours")
    args = parse(parser)
    rows = mix([as_source(source) for source in config.defaults().data.train], 0)
    texts = json.dumps([render(row.prompt) for row in rows[: args.prompts * (args.rounds + 2)]])
    write, display = lambda folder: output.write(f"{folder}/prompts.json", texts), Display()
    found, ratio = compare(args.method, args.peer, "step_in_turn.py", args, write, display)
    own = found["alphaalign"]
    display.say(
        f"{args.method}, {args.dtype}, {args.prompts} prompts, {args.samples} x {args.tokens} new tokens, a step: "
        + ", ".join(f"{name} {said['seconds']:.1f} s (peak {said['peak_gib']:.1f} GiB)" for name, said in found.items())
        + f"; ours generation {own['gen']:.1f}, update {own['update_actor']:.1f}; {ratio:.2f} times"
    )


if __name__ == "__main__":
    main()
