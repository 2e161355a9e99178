"""Steps of tunix's ``PPOLearner`` with its own sampler, of one epoch and one mini-batch.

Critic and reference are of the policy's size.
"""

from __future__ import annotations

import argparse
from typing import Any

from asked import arguments
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.rl import utils
from tunix.rl.ppo.ppo_learner import PPOConfig, PPOLearner
from tunix_common import batches, cluster, config, mesh, policy, reward


class Body(llama.Llama3):
    """tunix 0.1.7 hands a critic segment ids beside the mask, which this model of its does not take."""

    def __call__(self, *args: Any, segment_ids: Any = None, **options: Any) -> Any:
        return super().__call__(*args, **options)


def main() -> None:
    work = arguments()
    rows = [text for text in work.texts[: work.prompts] for _ in range(work.samples)]
    work = argparse.Namespace(**{**vars(work), "texts": rows, "prompts": len(rows), "samples": 1})
    with mesh():
        # A head of its own, in place of which comes that of the values: what the weights are does not change the work.
        body = Body(config(work, weight_tying=False), rngs=nnx.Rngs(0))
    models = dict(reference=policy(work), critic=utils.create_critic_model(body))
    learner = PPOLearner(cluster(work, **models), PPOConfig(), [reward])
    learner.train(batches(work, learner))


if __name__ == "__main__":
    main()
