"""Steps of tunix's ``PPOLearner`` with its own sampler, of one epoch and one mini-batch.

Critic and reference are of the policy's size.
"""

from __future__ import annotations

from asked import arguments
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.rl import utils
from tunix.rl.ppo.ppo_learner import PPOConfig, PPOLearner
from tunix_common import batches, cluster, config, mesh, policy, reward


def main() -> None:
    work = arguments()
    with mesh():
        # A head of its own, in place of which comes that of the values: what the weights are does not change the work.
        body = llama.Llama3(config(work, weight_tying=False), rngs=nnx.Rngs(0))
    models = dict(reference=policy(work), critic=utils.create_critic_model(body))
    work.prompts, repeats = work.prompts * work.samples, work.samples
    learner = PPOLearner(cluster(work, **models), PPOConfig(), [reward])
    work.prompts //= repeats
    learner.train(batches(work, learner, repeats))


if __name__ == "__main__":
    main()
