"""Steps of TRL's ``PPOTrainer`` (up to TRL 1.12), of one epoch and one mini-batch.

Critic and reference are of the policy's size, and the reward model costs nothing.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import transformers
from asked import arguments, tokenizer
from datasets import Dataset
from trl.experimental.ppo import PPOConfig, PPOTrainer
from trl_common import StepInTurn, load


class Free(torch.nn.Module):
    """Scores every response 0, by no computation."""

    base_model_prefix = "body"

    def __init__(self):
        super().__init__()
        self.score = torch.nn.Identity()

    def body(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(hidden_states=[torch.zeros(*input_ids.shape, 1)])


def main() -> None:
    work = arguments()
    rows, turns = work.peer_rows or work.prompts * work.samples, tokenizer(work)
    ids = [
        turns.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False)
        for text in work.texts
    ]
    options = PPOConfig(
        output_dir=f"{work.folder}/trl",
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=work.prompts * work.samples // rows,
        local_rollout_forward_batch_size=work.prompts * work.samples,
        num_ppo_epochs=1,
        num_mini_batches=1,
        total_episodes=(work.rounds + 2) * work.prompts * work.samples,
        response_length=work.tokens,
        temperature=1.0,
        num_sample_generations=0,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    trainer = PPOTrainer(
        options,
        turns,
        model=load(transformers.AutoModelForCausalLM, work),
        ref_model=load(transformers.AutoModelForCausalLM, work),
        reward_model=Free(),
        value_model=load(transformers.AutoModelForSequenceClassification, work, num_labels=1),
        train_dataset=Dataset.from_dict({"input_ids": [row for row in ids for _ in range(work.samples)]}),
        eval_dataset=Dataset.from_dict({"input_ids": ids[:1]}),
        callbacks=[StepInTurn()],
    )
    trainer.train()


if __name__ == "__main__":
    main()
