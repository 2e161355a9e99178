"""Steps of tunix's ``GRPOLearner`` with its own sampler, without a reference model."""

from __future__ import annotations

from asked import arguments
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix_common import batches, cluster, reward


def main() -> None:
    work = arguments()
    learner = GRPOLearner(cluster(work), GRPOConfig(num_generations=work.samples, beta=0.0), [reward])
    learner.train(batches(work, learner))


if __name__ == "__main__":
    main()
