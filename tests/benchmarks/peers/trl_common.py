"""What both of TRL's trainers are given."""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
import transformers
from worker import Turns


def load(kind: Any, work: argparse.Namespace, **options: Any) -> transformers.PreTrainedModel:
    return kind.from_pretrained(f"{work.folder}/hf", dtype=getattr(torch, work.dtype), **options)


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
