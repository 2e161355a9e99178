"""What ``rl_step.py`` asks of a peer."""

from __future__ import annotations

import argparse
import json

import transformers


def arguments() -> argparse.Namespace:
    """The work. ``folder`` holds the model (``hf``) and ``prompts.json``, which are its ``texts``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("work", help="JSON: prompts, samples, tokens, dtype, rounds, peer_rows")
    args = parser.parse_args()
    work = argparse.Namespace(**json.loads(args.work), folder=args.folder)
    with open(f"{args.folder}/prompts.json") as file:
        work.texts = json.load(file)
    return work


def tokenizer(work: argparse.Namespace) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(f"{work.folder}/hf", padding_side="left")
