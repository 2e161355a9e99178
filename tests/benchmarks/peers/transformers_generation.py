"""Responses of transformers' ``generate``."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import torch
import transformers
from worker import serve


class Generate:
    def __init__(self, folder: str, work: SimpleNamespace):
        with open(f"{folder}/prompts.json") as file:
            prompts = json.load(file)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/hf", dtype=getattr(torch, work.dtype))
        width, self.turn = max(map(len, prompts)), 0
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        self.inputs = dict(input_ids=ids, attention_mask=mask)
        self.options = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=work.samples)
        self.options |= dict(min_new_tokens=work.tokens, max_new_tokens=work.tokens, pad_token_id=0)

    @torch.inference_mode()
    def __call__(self) -> dict[str, float]:
        self.turn += 1
        torch.manual_seed(self.turn)
        self.model.generate(**self.inputs, **self.options)
        return {}


if __name__ == "__main__":
    serve(Generate(sys.argv[1], SimpleNamespace(**json.loads(sys.argv[2]))))
