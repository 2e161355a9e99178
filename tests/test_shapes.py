"""Few sizes of arrays, so that a run compiles in its first step and not in every one after it."""

import io
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from run_cases import ROOT, run

from alphaalign_jax.cli import main
from alphaalign_jax.display import Display
from alphaalign_jax.parallel import Layout, build_mesh, compiled, reporting, rule_table
from alphaalign_jax.shapes import fitting_slots, paired_slots
from alphaalign_jax.train import sft


@pytest.mark.parametrize(
    ("length", "unit", "longest", "slots"),
    [(1, 32, 500, 32), (32, 32, 500, 32), (33, 32, 500, 64), (129, 32, 500, 256), (257, 32, 500, 512),
     (490, 32, 500, 512), (260, 32, 300, 320), (0, 8, 0, 8), (48, 16, 48, 48), (33, 16, 48, 48)],
)  # fmt: skip
def test_sizes_double_up_to_what_is_needed(length, unit, longest, slots):
    """With a size for every multiple of 32, responses of up to 2,048 tokens compiled each program 64 times."""
    assert fitting_slots(length, unit, longest) == slots
    sizes = {fitting_slots(n, unit, longest) for n in range(longest + 1)}
    assert len(sizes) <= 2 + max(0, (max(longest, 1) // unit).bit_length())


def test_two_axes_take_few_pairs_of_sizes():
    """Bug: prompts and responses in sizes of their own compiled a program for each pair of them."""
    units, longest = (8, 24), (500, 700)
    pairs = set()
    for lengths in itertools.product(range(1, 501, 7), range(1, 701, 9)):
        slots = paired_slots(lengths, units, longest)
        assert all(size >= length for size, length in zip(slots, lengths, strict=True))
        assert slots[0] <= 2 * max(lengths[0], 8, 8 / 24 * lengths[1]), "an axis is padded to the other's step at most"
        pairs.add(slots)
    assert len(pairs) <= 2 + (500 // 8).bit_length()


def test_supervised_batches_have_few_shapes(tmp_path, monkeypatch):
    """Bug: examples one at a time, long questions with short answers and so on, compiled in nearly every step."""
    lengths = (1, 6, 14, 30)
    pairs = [{"prompt": "how " * p, "response": "so " * r} for p in lengths for r in lengths]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    shapes = set()

    def update(weights, batch, total, sampling):
        shapes.add((batch.prompts.tokens.shape[-1], batch.tokens.shape[-1]))
        return weights, {"sft/loss": np.float32(1), "sft/skipped": np.int32(0)}

    monkeypatch.setattr(sft, "compiled", lambda *_, **__: update)
    options = {"warmup.batch": 1, "warmup.epochs": 1, "mesh.devices": 1, "data.bucket": 4, "rollout.bucket": 4}
    options |= {"data.train": f"{tmp_path}/pairs.jsonl", "out": f"{tmp_path}/run"}
    settings = [f"--config.{name}={value}" for name, value in options.items()]
    assert main(["sft", f"--config={ROOT}/configs/tiny.py", f"--data={tmp_path}/pairs.jsonl", *settings]) == 0
    assert 1 < len(shapes) <= 5


def test_a_program_is_reported_as_it_is_compiled():
    """Minutes without a word look like a run that hangs; a report of every call would be a line a step."""
    layout, said = Layout(build_mesh(devices=jax.devices()[:1]), rule_table("fsdp_tensor")), []
    double = compiled(lambda x: 2 * x + jnp.arange(3).sum(), layout, name="double")
    with reporting(said.append, lambda: said.append("compiled")):
        for size in (2, 2, 3, 3):
            double(jnp.ones(size))
        assert said == ["double", "compiled"] * 2
    double(jnp.ones(4))
    assert len(said) == 4, "nobody listens any more"


def test_a_bar_forgets_what_was_compiled():
    """Bug: "compiling double ..." stood in a live bar until its next step, minutes after the program was there."""
    layout, out = Layout(build_mesh(devices=jax.devices()[:1]), rule_table("fsdp_tensor")), io.StringIO()
    shown = Display(rich.console.Console(file=out, force_terminal=True, width=120))
    double = compiled(lambda x: 2 * x, layout, name="double")
    with shown.bar("steps", 2) as advance:
        advance(1, loss="0.5")
        double(jnp.ones(5))
        out.seek(0)
        out.truncate()
    assert "loss 0.5" in out.getvalue() and "compiling" not in out.getvalue()


def test_prompts_of_varied_length_compile_nothing_after_the_first_step(work, capsys):
    """Bug: a batch with a longer prompt than the one before compiled six programs again, 107 of a step's 118 s."""
    varied = ("rollout.group=8", "data.bucket=8", "warmup.epochs=0", "eval.every=0", "algorithm.old_logprob=trainer")
    assert run(work, "varied", 3, *(f"--config.{setting}" for setting in varied)) == 0
    shown = capsys.readouterr().out
    records = [json.loads(line) for line in (work / "varied/metrics.jsonl").read_text().splitlines()]
    compiles = [record["perf/compiles"] for record in records if record["phase"] == "train"]
    assert compiles[0] > 0 and compiles[1:] == [0, 0]
    assert shown.count("compiling update actor ...") == 1, "said, where there is no terminal too"
    summary = json.loads((work / "varied/summary.json").read_text())
    assert summary["compiled"]["programs"] >= compiles[0]
