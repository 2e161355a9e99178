"""What a run may do without when it is resumed, and what may have moved or changed."""

import os
import shutil
import signal

import pytest
import random_model
import run_cases
from run_cases import lines, run
from test_faults import QUICK, heard

from alphaalign_jax.parallel import notice
from alphaalign_jax.rewards.template import render
from alphaalign_jax.train import resumption
from alphaalign_jax.train.records import Records


@pytest.fixture(scope="module", autouse=True)
def shared():
    with run_cases.shared_programs():
        yield


@pytest.fixture(scope="module")
def begun(work):
    """A run of one step, of a model and a critic in folders of their own."""
    texts = [render(row["prompt"]) for row in run_cases.PROMPTS]
    for name in ("model", "critic"):
        random_model.build(work / name, texts, seed=3)
    models = [f"--config.model.path={work / 'model'}", f"--config.critic.path={work / 'critic'}"]
    assert run(work, "begun", 1, *QUICK, *models, "--config.export=true") == 0
    return models


def again(work, name):
    """A copy of the run after its step, which another may resume."""
    shutil.copytree(work / "begun", work / name, ignore=shutil.ignore_patterns("summary.json", "export"))


def test_a_resumed_run_needs_no_model_folder(work, begun, capsys):
    """The run's folder holds configs, tokenizer and weights; with the model's folder gone the hub was asked for it."""
    again(work, "without")
    for name in ("model", "critic"):
        (work / name).rename(work / f"{name}-gone")
    try:
        assert run(work, "without", 1, *QUICK, *begun, "--resume", "--config.export=true") == 0, heard(capsys)
        assert run(work, "without", 2, *QUICK, *begun, "--resume") == 0, heard(capsys)
    finally:
        for name in ("model", "critic"):
            (work / f"{name}-gone").rename(work / name)
    assert "resumed at step 1" in heard(capsys)[0]
    for file in (work / "begun/export").iterdir():
        assert file.read_bytes() == (work / "without/export" / file.name).read_bytes(), file.name


def test_inputs_that_have_moved_are_the_same_inputs(work, begun, capsys):
    """The same data and model under another path were refused, though their digests agree; and another model under the
    new path would go unnoticed, since its weights are not read."""
    again(work, "moved")
    shutil.copytree(work / "model", work / "model-moved")
    shutil.copy(work / "heldout.jsonl", work / "heldout-moved.jsonl")
    heldout = f"--config.data.heldout={work / 'heldout-moved.jsonl'}"
    model = [f"--config.model.path={work / 'model-moved'}", begun[1]]
    assert run(work, "moved", 1, *QUICK, *model, heldout, "--resume=auto") == 0, heard(capsys)
    said, _ = heard(capsys)
    assert "the same input in another place: data.heldout:" in said and "model-moved' now" in said
    assert "heldout-moved" in said, "prompts of a source of another name are in the last table"
    random_model.build(work / "model-other", [render(row["prompt"]) for row in run_cases.PROMPTS], seed=4)
    assert run(work, "moved", 2, *QUICK, f"--config.model.path={work / 'model-other'}", begun[1], "--resume") == 2
    assert "model-other is not the model that the run began with (weights: sha256 " in heard(capsys)[1]
    # A run that has ended is not taken for one of other inputs.
    model = [f"--config.model.path={work / 'model-other'}", begun[1]]
    assert run(work, "begun", 1, *QUICK, *model, "--config.export=true", "--resume=auto") == 2
    assert "is not the model that the run began with" in heard(capsys)[1]


def test_a_callable_s_file_may_move_and_its_name_may_not():
    """Two functions of one file have the same digest."""
    then = {"kind": "callable", "target": "my_rewards:score"}
    assert resumption._function(then) == resumption._function(then | {"target": "elsewhere/my_rewards.py:score"})
    assert resumption._function(then) != resumption._function(then | {"target": "my_rewards:other"})


def test_a_run_whose_rate_decays_can_be_extended(work, capsys):
    """There was no way to: its decay ties it to its steps, and nothing said what to set."""
    decays = ["--config.optimizer.decay=1.0", "--config.rollout.group=2"]
    assert run(work, "extended", 1, *QUICK, *decays) == 0
    assert run(work, "extended", 2, *QUICK, *decays, "--resume") == 2
    said = heard(capsys)[1]
    assert "steps: 1 then, 2 now" in said and "optimizer.decay=1" in said and "take --resume=extend" in said
    assert run(work, "extended", 2, *QUICK, *decays, "--resume=extend") == 0
    assert "decay is computed anew over 2 steps (1 before)" in heard(capsys)[0]
    rates = [r["actor/lr"] for r in lines(work / "extended/metrics.jsonl") if r["phase"] == "train"]
    assert rates[1] == pytest.approx(rates[0] / 2), "from the full rate to 0: over one step, then over two"
    # What the next start compares with, as launchers make it.
    assert run(work, "extended", 2, *QUICK, *decays, "--resume=auto") == 0


def test_a_warm_up_that_is_ended_is_not_to_be_resumed(work, capsys, monkeypatch):
    """Nothing of it is kept: '--resume=auto' would go on from nothing."""
    outside = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(Records, "metrics", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
            assert run(work, "warming", 1, "--config.export=false") == notice.PREEMPTED
    finally:
        signal.signal(signal.SIGTERM, outside)
    said = heard(capsys)[1]
    assert "ended by SIGTERM: during the warm-up, whose progress is not saved; start it again with" in said
    assert "--resume" not in said and not (work / "warming/checkpoints").exists()
