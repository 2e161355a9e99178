"""Few sizes of arrays, so that a run compiles in its first step and not in every one after it."""

import json

import jax
import jax.numpy as jnp
import pytest
from run_cases import run

from alphaalign_jax.parallel import Layout, build_mesh, compiled, reporting, rule_table
from alphaalign_jax.shapes import fitting_slots


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


def test_a_program_is_reported_as_it_is_compiled():
    """Minutes without a word look like a run that hangs; a report of every call would be a line a step."""
    layout, said = Layout(build_mesh(devices=jax.devices()[:1]), rule_table("fsdp_tensor")), []
    double = compiled(lambda x: 2 * x, layout, name="double")
    with reporting(said.append):
        for size in (2, 2, 3, 3):
            double(jnp.ones(size))
        assert said == ["double", "double"]
    double(jnp.ones(4))
    assert len(said) == 2, "nobody listens any more"


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
    assert summary["compiled"]["programs"] >= compiles[0] and "programs compiled" in shown
