"""What both of TRL's trainers are given."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

import torch
import transformers
from worker import Turns


def arguments() -> argparse.Namespace:
    """What ``rl_step.py`` asks of a peer. ``folder`` holds the model (``hf``) and ``prompts.json``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("work", help="JSON: prompts, samples, tokens, dtype, rounds, peer_rows")
    args = parser.parse_args()
    work = argparse.Namespace(**json.loads(args.work), folder=args.folder)
    with open(f"{args.folder}/prompts.json") as file:
        work.texts = json.load(file)
    return work


def load(kind: Any, work: argparse.Namespace, **options: Any) -> transformers.PreTrainedModel:
    return kind.from_pretrained(f"{work.folder}/hf", dtype=getattr(torch, work.dtype), **options)


def tokenizer(work: argparse.Namespace) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(f"{work.folder}/hf", padding_side="left")


class StepInTurn(transformers.TrainerCallback):
    """A turn from the end of a step to the end of the next one."""

    def __init__(self):
        self.turns = Turns()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.turns.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.turns.end()
        if not self.turns.begin():
            os._exit(0)  # no checkpoint, no report
