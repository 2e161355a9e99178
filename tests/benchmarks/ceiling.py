"""How well a model can tell harmful from benign prompts at all, after the labels of a run's training prompts.

    python tests/benchmarks/ceiling.py --config=configs/smollm2_135m.py --seeds=3 [--config.data.train=...]

This bounds what reinforcement learning can reach: with the same model, prompts and labels it can hardly decide better
than a supervised classifier. Prompts are bare questions in the chat template. Two kinds of classifier are trained on
the training prompts and evaluated on the held-out ones:

    head     the whole network with a value head on the prompt's last token, fine-tuned; as many seeds as asked for
    probe    a logistic regression on the last token's state after --layer of the layers (0: all), which do not change

Both weight harmful and benign prompts equally and decide at probability 0.5.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alphaalign_jax import cli, config, hf, output
from alphaalign_jax.data.order import PromptOrder
from alphaalign_jax.data.tokenized import PromptSet, build_sets
from alphaalign_jax.display import Display, figures_table
from alphaalign_jax.evaluation.intervals import wilson
from alphaalign_jax.evaluation.outcome import group_of
from alphaalign_jax.models import Network, Params
from alphaalign_jax.models.context import prefill
from alphaalign_jax.parallel.programs import keep_programs
from alphaalign_jax.train import assembly, optimizer
from alphaalign_jax.types import HARMFUL, LABELS, Array, Prompts

BATCH = 16
EPOCHS = 3
RIDGE = 1e-2  # L2 penalty of the probe, for a mean loss and features of unit variance


def logits(network: Network, params: Params, prompts: Prompts) -> Array:
    """The value head's output on each prompt's last token: float32 [B]."""
    model = network.bind(params)
    return model.logits(prefill(model, prompts).last_hidden)[:, 0, 0]


def fine_tune(network: Network, params: Params, train: PromptSet, learning_rate: float, seed: int, display: Display):
    """Return the classifier's weights. ``params``: the model's, donated."""
    order = PromptOrder(len(train), BATCH, seed, labels=train.label, harmful_fraction=0.5)
    steps = EPOCHS * len(train) // BATCH
    settings = config.Optimizer(learning_rate=learning_rate, warmup_steps=steps // 20, decay=0.9)
    tx = optimizer.build(settings, steps)

    def loss(params: Params, prompts: Prompts) -> Array:
        sign = jnp.where(prompts.label == HARMFUL, 1.0, -1.0)
        return jnp.mean(jax.nn.softplus(-sign * logits(network, params, prompts)))

    @jax.jit
    def update(params, opt_state, prompts):
        value, gradient = jax.value_and_grad(loss)(params, prompts)
        change, opt_state = tx.update(gradient, opt_state, params)
        return jax.tree.map(jnp.add, params, change), opt_state, value

    opt_state = jax.jit(tx.init)(params)
    with display.bar(f"fine-tuning, seed {seed}", steps) as advance:
        for step in range(steps):
            params, opt_state, value = update(params, opt_state, train.batch(order.indices(step), train.slots()))
            advance(1, loss=f"{float(value):.3f}")
    return params


def batches(prompts: PromptSet):
    """Batches of all prompts, the last filled up: (prompts, how many of them count)."""
    for start in range(0, len(prompts), BATCH):
        index = list(range(start, min(start + BATCH, len(prompts))))
        yield prompts.batch(index + [index[-1]] * (BATCH - len(index)), prompts.slots()), len(index)


def decide(network: Network, params: Params, prompts: PromptSet) -> np.ndarray:
    """Whether each prompt is taken to be harmful: bool [prompts]."""
    found = jax.jit(lambda params, prompts: logits(network, params, prompts))
    return np.concatenate([np.asarray(found(params, batch))[:n] > 0 for batch, n in batches(prompts)])


def states(network: Network, params: Params, prompts: PromptSet) -> np.ndarray:
    """The last token's state: float64 [prompts, D]."""
    found = jax.jit(lambda params, prompts: prefill(network.bind(params), prompts).last_hidden[:, 0])
    return np.concatenate([np.asarray(found(params, batch), np.float64)[:n] for batch, n in batches(prompts)])


def logistic_regression(x: np.ndarray, harmful: np.ndarray) -> np.ndarray:
    """Weights [D + 1], the last one the intercept's, by Newton's method, for labels of equal total weight.

    ``x``: float64 [N, D], features of unit variance. Source: Hastie, Tibshirani, Friedman, "The Elements of
    Statistical Learning", section 4.4.1.
    """
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    weight = np.where(harmful, 0.5 / harmful.sum(), 0.5 / (~harmful).sum())
    ridge = np.full(x.shape[1], RIDGE)
    ridge[-1] = 0.0
    w = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        gradient = x.T @ (weight * (p - harmful)) + ridge * w
        hessian = (x * (weight * p * (1 - p))[:, None]).T @ x + np.diag(ridge + 1e-9)
        w -= np.linalg.solve(hessian, gradient)
    return w


def probe(network: Network, params: Params, train: PromptSet, heldout: PromptSet) -> np.ndarray:
    """Whether each held-out prompt is taken to be harmful, by the state of its last token: bool [prompts]."""
    x, y = states(network, params, train), states(network, params, heldout)
    mean, std = x.mean(0), x.std(0) + 1e-6
    w = logistic_regression((x - mean) / std, train.label == HARMFUL)
    return (y - mean) / std @ w[:-1] + w[-1] > 0


def rates(heldout: PromptSet, decided: np.ndarray) -> dict[str, tuple[int, int]]:
    """Prompts decided rightly and their number, by group and label."""
    found = collections.defaultdict(lambda: [0, 0])
    for row, harmful in zip(heldout.rows, decided, strict=True):
        place = found[f"{group_of(row)}: {LABELS[row.label]}"]
        place[0] += bool(harmful) == (row.label == HARMFUL)
        place[1] += 1
    return {name: tuple(counts) for name, counts in sorted(found.items())}


def show(results: dict[str, dict[str, tuple[int, int]]], display: Display) -> None:
    """One column a classifier: share decided rightly with its 95 % interval."""
    about = dict(left=["held-out prompts"], caption="shares decided rightly, 95 % intervals")
    shown = figures_table("what the labels can be told by", ["held-out prompts", "n", *results], **about)
    for group in next(iter(results.values())):
        cells = []
        for found in results.values():
            count, n = found[group]
            low, high = wilson(count, n)
            cells.append(f"{100 * count / n:.1f} % ({100 * low:.0f}-{100 * high:.0f})")
        shown.add_row(group, str(n), *cells)
    display.say(shown)


def value_params(network: Network, params: Params) -> Params:
    """A language model's weights with a value head of zeros, cut to the network's layers."""
    body = {name: value for name, value in params.items() if name != "head"}
    body["layers"] = jax.tree.map(lambda x: x[: network.spec.num_layers], body["layers"])
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), network.shapes()["head"])
    return jax.tree.map(jnp.copy, {**body, "head": zeros})


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning_rate", type=float, default=3e-5)
    parser.add_argument("--layer", type=int, default=0, help="of the probe: after so many layers; 0: all")
    parser.add_argument("--out", default="runs/ceiling.json")
    args, extra = parser.parse_known_args(cli.joined(sys.argv[1:] if argv is None else argv))
    keep_programs()
    settings = config.load(args.config, cli.overrides(extra))
    display = Display()
    policy = assembly.open_policy(settings, assembly.model_path(settings))
    rows = assembly.read_rows(settings)
    sets = build_sets(
        {"train": [*rows.train, *rows.validation], "heldout": rows.heldout},
        policy.tokenizer,
        None,
        bucket=16,
        max_prompt_tokens={"train": 128},
        on_long="drop",
        settings=policy.chat,
    )
    train, heldout = sets["train"], sets["heldout"]
    counts = collections.Counter(LABELS[label] for label in train.label.tolist())
    display.say(f"{len(train)} training prompts ({dict(counts)}; {train.dropped} long ones left out)")
    lm, layout = Network(policy.spec, remat="none"), assembly.layouts(settings)[0]
    _, params = hf.load(policy.path, network=lm, layout=layout)
    results: dict[str, Any] = {}
    depth = args.layer or policy.spec.num_layers
    cut = Network(dataclasses.replace(policy.spec, num_layers=depth), "value", remat="none")
    results[f"probe, layer {depth}"] = rates(heldout, probe(cut, value_params(cut, params), train, heldout))
    network = Network(policy.spec, "value", remat="none")
    for seed in range(args.seeds):
        trained = fine_tune(network, value_params(network, params), train, args.learning_rate, seed, display)
        results[f"head, seed {seed}"] = rates(heldout, decide(network, trained, heldout))
        show(results, display)
    output.write(args.out, json.dumps({"arguments": vars(args), "settings": extra, "rates": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
