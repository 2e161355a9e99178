"""Steps of TRL's ``GRPOTrainer``, without a reference model."""

from __future__ import annotations

import re
from typing import Any

import transformers
import trl
from asked import arguments, tokenizer
from datasets import Dataset
from trl_common import StepInTurn, load

FORM = re.compile(r"<safety_reasoning>.*</safety_reasoning>\s*<answer>.*</answer>", re.DOTALL)


def reward(completions: list[Any], **_: Any) -> list[float]:
    """Never the same for a whole group, which would be left out."""
    texts = [turn[0]["content"] for turn in completions]
    return [bool(FORM.fullmatch(text)) + len(text) % 7 for text in texts]


def main() -> None:
    work = arguments()
    options = trl.GRPOConfig(
        output_dir=f"{work.folder}/trl",
        per_device_train_batch_size=work.peer_rows or work.prompts * work.samples,
        gradient_accumulation_steps=work.prompts * work.samples // work.peer_rows if work.peer_rows else 1,
        num_generations=work.samples,
        max_completion_length=work.tokens,
        generation_kwargs={"min_new_tokens": work.tokens},
        temperature=1.0,
        max_steps=work.rounds + 2,
        beta=0.0,
        bf16=False,  # the weights' own dtype decides
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    rows = Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in work.texts]})
    model = load(transformers.AutoModelForCausalLM, work)
    trl.GRPOTrainer(model, reward, options, rows, processing_class=tokenizer(work), callbacks=[StepInTurn()]).train()


if __name__ == "__main__":
    main()
