"""The command line: how arguments may be written, and what a command does without its work."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
import run_cases
from run_cases import ROOT, run

import alphaalign_jax
from alphaalign_jax import config
from alphaalign_jax.cli import joined, main
from alphaalign_jax.parallel import programs
from alphaalign_jax.train import finetune, loop

TINY = f"--config={ROOT}/configs/tiny.py"


def test_version_is_said(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"alphaalign {alphaalign_jax.__version__}\n"


def test_settings_may_follow_a_space(capsys):
    """``--config.steps 2`` was an unknown argument, the way most command lines take it."""
    assert joined(["--config.seed", "-1", "--resume", "auto"]) == ["--config.seed=-1", "--resume", "auto"]
    assert joined(["--sweep.mesh.tensor", "1,2", "--check"]) == ["--sweep.mesh.tensor=1,2", "--check"]
    assert main(["train", TINY, "--config.steps", "7", "--config.data.harmful_fraction", "-1", "--print-config"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["steps"] == 7 and shown["data"]["harmful_fraction"] == -1
    assert main(["train", TINY, "--config.steps", "--print-config"]) == 2
    assert "argument '--config.steps' is not known" in capsys.readouterr().err


def test_settings_are_printed_checked(capsys):
    """As summary.json has them, so that a run and a command can be compared; and none that could not run."""
    for command in ("train", "sft", "serve", "bench"):
        assert main([command, TINY, "--print-config"]) == 0
        assert json.loads(capsys.readouterr().out)["reward_model"]["kind"] == "callable"
    assert main(["train", TINY, "--print-config", "--config.steps=0"]) == 2
    assert "expected a positive number" in capsys.readouterr().err


def test_a_dry_run_compiles_and_leaves_nothing(work, monkeypatch, capsys):
    """Up to the first compile, a resumption too: with one mistake that is found last."""
    quick = ["--config.eval.every=0", "--config.export=false"]
    with run_cases.shared_programs():
        assert run(work, "begun", 1, *quick, "--config.warmup.epochs=0") == 0
    before = sorted((work / "begun").rglob("*"))
    monkeypatch.setattr(loop, "Run", None)
    capsys.readouterr()
    assert run(work, "dry", 3, *quick, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "warm up for 3 steps of 32 of 664 examples" in shown and "dry run: nothing was trained" in shown
    assert "train to step 3, each of 8 prompts with 2 responses of up to 24 tokens" in shown
    assert not (work / "dry").exists()
    assert run(work, "begun", 2, *quick, "--config.warmup.epochs=0", "--resume", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "resume at step 1" in shown and "warm up" not in shown and sorted((work / "begun").rglob("*")) == before
    assert run(work, "dry", 3, *quick, "--dry-run", "--config.rollout.max_new_tokens=2000") == 2
    assert "max_position_embeddings" in capsys.readouterr().err


def test_programs_are_kept_for_library_use_too(monkeypatch):
    """A second start of a script that calls ``loop.train`` compiled everything again; and a cache of the user's choice
    was moved."""
    before = jax.config.jax_compilation_cache_dir
    programs.keep_programs()
    assert jax.config.jax_compilation_cache_dir == before
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        programs.keep_programs()
        kept = pathlib.Path("~/.cache/alphaalign_jax/xla").expanduser()
        assert jax.config.jax_compilation_cache_dir == str(kept)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)

    class Kept(Exception):
        pass

    def keep():
        raise Kept

    for module, start in ((loop, loop.train), (finetune, finetune.run)):
        monkeypatch.setattr(module, "keep_programs", keep)
        with pytest.raises(Kept):
            start(config.load(f"{ROOT}/configs/tiny.py", [("warmup.epochs", "1")]))


def test_a_reward_function_in_the_current_folder_or_a_file(tmp_path):
    """The console script's path leaves out the current folder, and a file could not be named at all."""
    (tmp_path / "here_rewards.py").write_text(
        "from beside import one\n\n\ndef score(questions, answers):\n    return [one] * len(answers)\n"
    )
    (tmp_path / "beside.py").write_text("one = 1.0\n")
    code = "import sys; sys.path.remove('')\n"
    code += "from alphaalign_jax.rewards.reward_model.callable import CallableRewardModel\n"
    code += "model = CallableRewardModel(sys.argv[1])\nprint(model.score(['a'], ['b'])[0], model.identity)"
    known, shown = dict(os.environ, PYTHONPATH=str(ROOT)), []
    for target, folder in (
        ("here_rewards:score", tmp_path),
        (f"{tmp_path}/here_rewards.py:score", ROOT),
        ("./here_rewards.py:score", tmp_path),
    ):
        command = [sys.executable, "-c", code, target]
        shown.append(subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True, check=True).stdout)
    assert shown[0].startswith("1.0 sha256 ") and len({*shown}) == 1, "the same file is the same reward model"
