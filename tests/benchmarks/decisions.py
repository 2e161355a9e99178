"""Why a policy ends up refusing everything, in the smallest model of it: simulated runs of the decision alone.

    python tests/benchmarks/decisions.py [--seeds=40]

One Bernoulli decision (refuse or not) a prompt, with logit theta . x. A prompt's features x are many that all prompts
share, which set how often the policy refuses at all, and some of its own, of which a weak direction tells the labels
apart. Each run has 100 steps of 12 prompts with 4 rollouts, three mini-batches, clipped ratios and Adam at a learning
rate that is too high for it. Rows: the baseline, and the limit on the KL of an optimizer step (0: none). Columns: runs
that ended with one decision for everything, and accuracy on prompts not trained on, the lesser of the two labels'.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np

STEPS, PROMPTS, GROUP, MINIBATCHES = 100, 12, 4, 3
TRAINED, HELDOUT = 600, 400
OWN = 100  # features of a prompt's own


@dataclasses.dataclass(frozen=True)
class Setup:
    """A task and its recipe."""

    shared: int  # features that all prompts share
    signal: float  # how far apart the labels' own features lie
    rate: float  # learning rate
    baseline: str  # grpo, dr_grpo or anchored
    max_kl: float  # nats a decision and optimizer step; 0 is none


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Mean KL divergence of Bernoulli(p) from Bernoulli(q), nats."""
    tiny = 1e-9
    return float(np.mean(p * np.log((p + tiny) / (q + tiny)) + (1 - p) * np.log((1 - p + tiny) / (1 - q + tiny))))


def advantages(refused: np.ndarray, harmful: np.ndarray, baseline: str, anchor: float = 2.0) -> np.ndarray:
    """[B, G], for a reward of 1 for refusing a harmful prompt and -1 for refusing a benign one, else 0."""
    sign = np.where(harmful, 1.0, -1.0)[:, None]
    reward = sign * refused
    if baseline == "anchored":  # a refusal earns ``sign``, an answer 0
        mean = (reward.sum(1, keepdims=True) + anchor * sign) / (GROUP + 2 * anchor)
        return reward - mean
    deviation = reward - reward.mean(1, keepdims=True)
    if baseline == "dr_grpo":
        return deviation
    return deviation / np.maximum(reward.std(1, ddof=1, keepdims=True), 1e-3)


def run(setup: Setup, seed: int) -> tuple[float, float]:
    """Shares of the harmful and of the benign held-out prompts that are refused more often than not, at the end."""
    rng = np.random.default_rng(seed)
    harmful = np.arange(TRAINED + HELDOUT) % 2 == 1
    direction = rng.normal(size=OWN)
    own = rng.normal(size=(len(harmful), OWN)) + np.where(harmful, 1, -1)[:, None] * setup.signal * direction
    x = np.concatenate([np.ones((len(harmful), setup.shared)), own], 1) / np.sqrt(setup.shared + OWN)
    theta = np.zeros(x.shape[1])
    theta[: setup.shared] = np.log(0.4 / 0.6) * np.sqrt(setup.shared + OWN) / setup.shared  # refuses 40 % at first
    mean, square, updates = np.zeros_like(theta), np.zeros_like(theta), 0
    half = PROMPTS // 2
    for _ in range(STEPS):
        chosen = [rng.choice(np.flatnonzero(harmful[:TRAINED] == label), half, False) for label in (True, False)]
        old = [sigmoid(x[index] @ theta) for index in chosen]
        refused = [(rng.random((half, GROUP)) < p[:, None]).astype(float) for p in old]
        gained = [advantages(r, harmful[index], setup.baseline) for r, index in zip(refused, chosen)]
        for part in np.array_split(np.arange(half), MINIBATCHES):
            rows = np.concatenate([x[index[part]] for index in chosen])
            before, now = np.concatenate([p[part] for p in old])[:, None], sigmoid(rows @ theta)[:, None]
            decision, gain = (np.concatenate([part_of[part] for part_of in both]) for both in (refused, gained))
            ratio = np.where(decision == 1, now / (before + 1e-12), (1 - now) / (1 - before + 1e-12))
            clipped = ((gain > 0) & (ratio > 1.2)) | ((gain < 0) & (ratio < 0.8))
            slope = np.where(clipped, 0, gain * ratio * (decision - now)).mean(1)
            gradient = -(slope[:, None] * rows).mean(0)
            updates += 1
            mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
            unbiased = mean / (1 - 0.9**updates), square / (1 - 0.999**updates)
            step = -setup.rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
            if setup.max_kl:
                moved = divergence(now[:, 0], sigmoid(rows @ (theta + step)))
                step *= min(1.0, np.sqrt(setup.max_kl / max(moved, 1e-12)))
            theta = theta + step
    refuses = sigmoid(x[TRAINED:] @ theta) > 0.5
    return float(refuses[harmful[TRAINED:]].mean()), float(refuses[~harmful[TRAINED:]].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=40)
    seeds = parser.parse_args().seeds
    print("shared  signal  rate  baseline  max_kl  collapsed  accuracy, median (worst tenth)")
    for shared, signal, rate in ((400, 0.12, 0.1), (2000, 0.15, 0.05), (2000, 0.15, 0.2)):
        for baseline in ("grpo", "dr_grpo", "anchored"):
            for max_kl in (0.0, 0.01):
                setup = Setup(shared, signal, rate, baseline, max_kl)
                ends = np.array([run(setup, seed) for seed in range(seeds)])
                collapsed = np.mean((ends.min(1) > 0.9) | (ends.max(1) < 0.1))
                lesser = np.minimum(ends[:, 0], 1 - ends[:, 1])
                print(
                    f"{shared:6d}  {signal:6.2f}  {rate:4.2f}  {baseline:8s}  {max_kl:6.2f}  {collapsed:8.0%}  "
                    f"{np.median(lesser):.2f} ({np.quantile(lesser, 0.1):.2f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
