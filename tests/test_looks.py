"""The looks of a run at itself: the prompts that are set aside for them, going back after a collapse, and what is
exported."""

import json
import os
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import run_cases
import safetensors.numpy
from run_cases import ROOT, lines, run, saved
from test_faults import heard, largest

from alphaalign_jax import config as config_lib
from alphaalign_jax.data.audit import normalise
from alphaalign_jax.data.row import PromptRow
from alphaalign_jax.data.validation import set_aside
from alphaalign_jax.parallel import notice
from alphaalign_jax.train import assembly
from alphaalign_jax.train.checkpoint import Progress
from alphaalign_jax.train.iteration import Iteration
from alphaalign_jax.train.looks import Looks, draw

# A policy that is best after one step, and has collapsed after three; one that goes back there then fares no better.
SCORES = {0: 0.2, 1: 0.9, 2: 0.85, 3: 0.1, 4: 0.1, 5: 0.3}
STEPS = 5
WATCHED = ["--config.warmup.epochs=0", "--config.data.validation=0.05", "--config.guards.rollbacks=1"]
# Rates that fall to the end of the run; responses that wait between two steps; and the largest state there is.
WATCHED += ["--config.optimizer.decay=1.0", "--config.critic.optimizer.decay=1.0", "--config.rollout.ahead=true"]
WATCHED += ["--config.algorithm.advantage=gae", "--config.optimizer.warmup_steps=0"]
TABLE = "['embed']['table']"


@pytest.fixture(scope="module", autouse=True)
def shared():
    with run_cases.shared_programs():
        yield


@pytest.fixture(scope="module", autouse=True)
def scores():
    """Looks are made, and their scores replaced. The weights of each evaluation's embedding, by phase and step."""
    score, evaluate, seen = Looks.score, Looks.evaluate, {}

    def scored(self, params, step):
        score(self, params, step)
        return SCORES[step]

    def evaluated(self, params, name, *args, step, **named):
        seen[name, step] = np.array(params["embed"]["table"])
        return evaluate(self, params, name, *args, step=step, **named)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Looks, "score", scored)
        patched.setattr(Looks, "evaluate", evaluated)
        yield seen


@pytest.fixture(scope="module")
def collapsed(work, scores):
    """A run that goes back once, with what it showed and the weights that it evaluated."""
    assert run(work, "collapsed", STEPS, *WATCHED) == 0
    return work / "collapsed", dict(scores)


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def rows_of(validation):
    options = [("data.validation", str(validation)), ("eval.every", "1")]
    return assembly.read_rows(config_lib.load(f"{ROOT}/configs/tiny.py", options))


def test_prompts_set_aside_are_trained_on_by_nobody():
    """A best state that is chosen by prompts it has learnt, or by a kind of prompts alone."""
    whole, rows = rows_of(0), rows_of(0.1)
    assert not whole.validation and rows.audit == whole.audit, "what is in the data does not depend on the split"
    asked = lambda rows: {normalise(row.question) for row in rows}
    assert not asked(rows.train) & asked(rows.validation)
    assert asked(rows.train) | asked(rows.validation) == asked(whole.train)
    strata = {(row.label, row.kind) for row in whole.train}
    assert len(strata) == 3
    for stratum in strata:
        counts = [sum((row.label, row.kind) == stratum for row in part) for part in (rows.validation, whole.train)]
        assert counts[0] == round(0.1 * counts[1])
    assert rows.train == [row for row in whole.train if row not in rows.validation], "in their order"
    assert rows_of(0.1) == rows
    assert set_aside(whole.train, 0.1, seed=1)[1] != rows.validation


def test_rows_that_ask_the_same_are_set_aside_together():
    """Set aside row by row, a question that stands twice is both learnt and looked at."""
    rows = [
        PromptRow(f"{question}{end}", label) for label in (0, 1) for question in "abcd" for end in ("?", " ?", "?!")
    ]
    rows = [PromptRow(f"{row.label} {row.prompt}", row.label) for row in rows]
    train, validation = set_aside(rows, 0.25, seed=0)
    assert len(validation) == 2 and {row.label for row in validation} == {0, 1} and len(train) == 18
    assert not {row.prompt[:3] for row in train} & {row.prompt[:3] for row in validation}
    with pytest.raises(ValueError, match="data.validation=0.25 sets 0 harmful and 1 benign prompts aside, of 4"):
        set_aside(rows[:12], 0.25, seed=0)


def test_a_look_at_few_prompts_has_both_labels():
    """Of 34 prompts two were drawn, both harmful: every look's score was None, and no state the best."""
    label = np.array([1] * 14 + [0] * 20)
    drawn = [draw(label, limit, seed) for seed in range(20) for limit in (2, 8, 17, 40)]
    assert [len(indices) for indices in drawn[:4]] == [2, 8, 17, 34]
    for indices in drawn:
        assert abs(label[indices].sum() - len(indices) * 14 / 34) <= 1 and len({*indices}) == len(indices)
    assert len({tuple(indices) for indices in drawn}) > 40, "the seed draws"


def test_a_run_that_collapses_goes_back_once_and_goes_on_with_smaller_steps(collapsed):
    """Weights without their moments, a schedule that starts over, or prompts that are met again."""
    folder, _ = collapsed
    best, before, after = (saved(folder, step) for step in (1, 2, 3))
    differing = {path for path in after if not np.array_equal(after[path], best[path])}
    waiting = {path for path in differing if "['ahead']" in path}
    assert waiting, "responses of a step before"
    places = {path: float(after[path]) for path in differing - waiting}
    networks = [f"['rest']['{name}_opt'][3]" for name in ("actor", "critic")]
    expected = {f"{place}['{name}']": value for place in networks for name, value in (("count", 3), ("scale", 0.5))}
    assert places == expected | {"['rest']['step']": 3}, "of the optimizers, their places on the schedule"
    assert not np.array_equal(before[f"['actor']{TABLE}"], best[f"['actor']{TABLE}"])
    steps = [record for record in lines(folder / "metrics.jsonl") if record["phase"] == "train"]
    for network in ("actor", "critic"):
        rates = [step[f"{network}/lr"] for step in steps]
        expected = [scale * (STEPS - n) / STEPS for n, scale in enumerate([1, 1, 1, 0.5, 0.5])]
        np.testing.assert_allclose(np.array(rates) / rates[0], expected, rtol=1e-5)
    trained = [s["prompt"] for s in lines(folder / "samples.jsonl") if s["phase"] == "train"]
    assert len({*trained}) == len(trained) == 8 * STEPS, "prompts of the steps that were taken back come again"


def test_going_back_is_written_down_and_bounded(collapsed, work, capsys):
    """A run that goes back for ever; or of which nobody learns that it has."""
    folder, _ = collapsed
    found = summary(folder)
    reason = "the score of a look fell from 0.90, the best, to 0.10"
    assert found["rollbacks"] == [{"step": 3, "to": 1, "reason": reason, "lr_scale": 0.5}]
    assert found["alarms"]["collapse"] == 2, "the second, after the last rollback, is an alarm like others"
    assert found["looks"] == [{"step": step, "score": score} for step, score in SCORES.items()]
    (line,) = [record for record in lines(folder / "metrics.jsonl") if record["phase"] == "rollback"]
    assert line == {"phase": "rollback", "step": 3, "rollback/to": 1, "rollback/lr_scale": 0.5}
    alarms = [(a["phase"], a["step"], a["alarm"]) for a in lines(folder / "alarms.jsonl")]
    assert [alarm for alarm in alarms if alarm[0] != "train"] == [
        ("eval", 3, "collapse"), ("rollback", 3, "rollback"), ("eval", 4, "collapse")
    ]  # fmt: skip


def test_the_held_out_prompts_choose_nothing(collapsed):
    """The best of many looks at the test set is better there than anywhere else."""
    folder, _ = collapsed
    rows = rows_of(0.05)
    samples = lines(folder / "samples.jsonl")
    asked = lambda *phases: {sample["prompt"] for sample in samples if sample["phase"] in phases}
    assert asked("eval") <= {row.prompt for row in rows.validation} and len(asked("eval")) == 2
    assert asked("before", "after") == {row["prompt"] for row in run_cases.PROMPTS}
    assert not asked("train") & {row.prompt for row in rows.validation}
    assert f"{len(rows.validation)} prompts" in summary(folder)["inputs"]["data.validation"]


@pytest.mark.parametrize(("within", "best"), [(0.0, [0, 1, 1, 1, 1]), (0.06, [0, 1, 1, 3, 3])])
def test_of_looks_that_differ_by_noise_the_latest_is_the_best(collapsed, within, best):
    """One prompt of 39 chose a state that had trained half as long. Small steps down must not add up either."""
    config = config_lib.load(f"{ROOT}/configs/tiny.py", [("checkpoint.best_within", str(within))])
    looks = Looks(SimpleNamespace(config=config, validation=None), None, None, None, None)
    progress = Progress({}, {}, {}, "")
    found = []
    for step, score in enumerate([0.4, 1.0, None, 0.95, 0.9]):
        looks.note(progress, step, score)
        found.append(progress.best["step"])
    assert found == best
    said = looks.conclusion(progress, best[-1])
    assert ("highest 1.00, which checkpoint.best_within counts as equal" in said) == bool(within)


def test_the_best_state_is_exported_not_the_last(collapsed):
    """A run that ends in a collapse hands it over as its result."""
    folder, seen = collapsed
    best, last = (saved(folder, step)[f"['average']{TABLE}"] for step in (1, STEPS))
    assert not np.array_equal(best, last)
    exported = safetensors.numpy.load_file(folder / "export/model.safetensors")["model.embed_tokens.weight"]
    assert np.array_equal(exported, best)
    assert np.array_equal(seen["after", STEPS], best), "and the table is of other weights"
    found = summary(folder)
    assert found["best"] == {"step": 1, "score": 0.9} and found["exported_step"] == 1


@pytest.mark.parametrize("killed_after", [2, 3])
def test_resumed_across_a_rollback_equals_never_stopped(collapsed, work, capsys, killed_after):
    """Killed between a rollback and the next save, or after it: a rate that is whole again, responses of the policy
    that collapsed, a second rollback, or its records twice."""
    whole, _ = collapsed
    folder = work / f"killed-{killed_after}"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("summary.json", "export"))
    for step in range(killed_after + 1, STEPS + 1):
        shutil.rmtree(folder / f"checkpoints/{step}")
    assert run(work, folder.name, STEPS, *WATCHED, "--resume") == 0
    said, _ = heard(capsys)
    assert "exported: step 1, the best of 6 looks (validation score 0.90; last 0.30)" in said
    back = "step 3: back to the best state, of step 1, with learning rates times 0.5 from here on (rollback 1 of at "
    assert (f"{back}most 1)" in said) == (killed_after == 2)
    ours, theirs = saved(folder, STEPS), saved(whole, STEPS)
    assert ours.keys() == theirs.keys()
    for path in ours:
        assert np.array_equal(ours[path], theirs[path]), path
    for name in ("metrics", "alarms"):
        seen = [[(r["phase"], r["step"]) for r in lines(place / f"{name}.jsonl")] for place in (folder, whole)]
        assert seen[0] == seen[1], name
    for key in ("looks", "best", "rollbacks", "alarms", "exported_step", "after"):
        assert summary(folder)[key] == summary(whole)[key], key


def test_a_best_checkpoint_that_is_damaged_is_no_reason_to_lose_the_run(collapsed, work, capsys):
    """Its last step is made, and then there is nothing to export."""
    whole, _ = collapsed
    folder = work / "damaged"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("summary.json", "export"))
    shutil.rmtree(folder / f"checkpoints/{STEPS}")
    file = largest(folder / "checkpoints/1/average")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert run(work, "damaged", STEPS, *WATCHED, "--resume") == 0
    said, _ = heard(capsys)
    assert "the result is the last state, not the best, of step 1: checkpoint 1 in" in said
    assert "exported: step 5, not the best of 6 looks (validation score 0.90; last 0.30)" in said
    exported = safetensors.numpy.load_file(folder / "export/model.safetensors")["model.embed_tokens.weight"]
    assert np.array_equal(exported, saved(folder, STEPS)[f"['average']{TABLE}"])
    assert summary(folder)["exported_step"] == STEPS
    # Where it is needed to go on, the message says how to do without.
    for step in (3, 4, 5):
        shutil.rmtree(folder / f"checkpoints/{step}")
    for name in ("summary.json", "export"):
        shutil.move(folder / name, work / f"damaged-{name}")
    assert run(work, "damaged", STEPS, *WATCHED, "--resume") == 2
    error = heard(capsys)[1]
    assert "step 3: the score of a look fell" in error and "checkpoint 1 in" in error
    assert "to go on without going back: --resume --config.guards.rollbacks=0" in error
    assert run(work, "damaged", STEPS, *WATCHED, "--resume", "--config.guards.rollbacks=0") == 0


def test_an_alarm_brings_a_look_forward_and_a_spent_budget_ends_the_run(work, monkeypatch, capsys):
    """A collapse is seen at the next look, a hundred steps later; a look that is due is lost in a stop."""
    monkeypatch.setitem(SCORES, 0, 0.8)
    monkeypatch.setitem(SCORES, 1, 0.1)
    monkeypatch.setitem(SCORES, 2, 0.1)
    rare = ["--config.eval.every=100", "--config.guards.window=1", "--config.guards.look_on=truncated"]
    rare += ["--config.guards.truncated=0.3"]
    assert run(work, "early", STEPS, *WATCHED, *rare, "--config.guards.stop=collapse") == 2
    said, error = heard(capsys)
    assert "alarm at train step 0: truncated" in said and "back to the best state, of step 0" in said
    assert "step 2: collapse: the score of a look fell from 0.80, the best, to 0.10 (guards.collapse=0.2)" in error
    looks = [record["step"] for record in lines(work / "early/metrics.jsonl") if record["phase"] == "eval"]
    assert looks == [0, 1, 2]
    # Stopped before the look that the alarm has asked for, it is made at the next start.
    step = Iteration.__call__

    def asked(self, state, number):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, state, number)

    outside = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with monkeypatch.context() as patched:
        patched.setattr(Iteration, "__call__", asked)
        assert run(work, "again", STEPS, *WATCHED, *rare, "--config.guards.stop=collapse") == notice.PREEMPTED
    signal.signal(signal.SIGTERM, outside)
    assert "saved after step 1 of 5" in heard(capsys)[1]
    assert run(work, "again", STEPS, *WATCHED, *rare, "--config.guards.stop=collapse", "--resume") == 2
    ours, theirs = saved(work / "again", 2), saved(work / "early", 2)
    assert all(np.array_equal(ours[path], theirs[path]) for path in theirs)
    for name in ("metrics", "alarms"):
        seen = [[(r["phase"], r["step"]) for r in lines(work / f"{each}/{name}.jsonl")] for each in ("again", "early")]
        assert seen[0] == seen[1], name
