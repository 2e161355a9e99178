"""Launch scripts, run with a stand-in for the program that they start."""

import os
import pathlib
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def start(venv, *arguments, **environment):
    command = ["bash", str(ROOT / "launch/processes.sh"), *arguments]
    known = dict(os.environ, VENV=str(venv), LOGS=str(venv / "logs"), **environment)
    return subprocess.Popen(command, env=known, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def processes(venv, *arguments, **environment):
    started = start(venv, *arguments, **environment)
    out, error = started.communicate(timeout=60)
    return subprocess.CompletedProcess(started.args, started.returncode, out, error)


@pytest.fixture
def venv(tmp_path):
    """One whose ``alphaalign`` runs a line of shell: the argument."""
    program = tmp_path / "bin/alphaalign"
    program.parent.mkdir()
    program.write_text('#!/usr/bin/env bash\neval "$1"\n')
    program.chmod(0o755)
    return tmp_path


def test_each_process_knows_which_it_is(venv):
    show = 'echo "$ALPHAALIGN_PROCESS of $ALPHAALIGN_PROCESSES at $ALPHAALIGN_COORDINATOR, $XLA_FLAGS"'
    run = processes(venv, "3", show, PORT="1234", DEVICES="2", XLA_FLAGS="")
    assert run.returncode == 0, run.stderr
    for i in range(3):
        said = (venv / f"logs/{i}.log").read_text().split()
        assert said[:4] == [str(i), "of", "3", "at"] and said[4] == "127.0.0.1:1234,"
        assert said[-1] == "--xla_force_host_platform_device_count=2"
    assert "0 of 3" in run.stdout


def test_a_process_that_dies_ends_the_others(venv):
    """The others would wait for it at their next collective."""
    began = time.monotonic()
    run = processes(venv, "3", 'if [ $ALPHAALIGN_PROCESS = 1 ]; then echo "no such file"; exit 3; fi; exec sleep 50')
    assert run.returncode == 3 and time.monotonic() - began < 20
    assert "process 1 ended with 3" in run.stderr and "no such file" in run.stderr


def test_the_process_that_failed_is_named_by_its_own_number(venv):
    """Those that are done leave a gap in the list of the others."""
    run = processes(venv, "3", "if [ $ALPHAALIGN_PROCESS = 2 ]; then sleep 1; echo last; exit 4; fi")
    assert run.returncode == 4 and "process 2 ended with 4" in run.stderr and "last" in run.stderr


def test_processes_that_were_asked_to_end_are_let_save(venv):
    """The first to be done would cut the others' checkpoint short; and who waits is not told to start again."""
    run = processes(venv, "2", "if [ $ALPHAALIGN_PROCESS = 0 ]; then sleep 1; echo saved; fi; exit 75")
    assert run.returncode == 75 and "saved" in run.stdout, run.stderr


def test_a_request_to_end_is_passed_on_and_waited_for(venv):
    """Killed with what started them, the processes end as in a crash."""
    line = "trap 'sleep 0.5; echo saved; exit 75' TERM; echo ready; while true; do sleep 0.05; done"
    started = start(venv, "2", line)
    logs, deadline = [venv / f"logs/{i}.log" for i in range(2)], time.monotonic() + 20
    while not all(log.exists() and "ready" in log.read_text() for log in logs):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    out, error = started.communicate(timeout=20)
    assert started.returncode == 75 and "asked to end" in out, error
    assert all("saved" in log.read_text() for log in logs)


def test_a_dry_run_starts_nothing(venv):
    run = processes(venv, "--dry-run", "2", "train", "--config.name=a b", PORT="1234")
    lines = run.stdout.splitlines()
    assert len(lines) == 2 and "ALPHAALIGN_PROCESS=1 " in lines[1] and r"train --config.name=a\ b >" in lines[1]
    assert not (venv / "logs").exists()


@pytest.mark.parametrize("arguments", [[], ["train"], ["0", "train"], ["2"]])
def test_bad_arguments_are_refused(venv, arguments):
    run = processes(venv, *arguments)
    assert run.returncode == 2 and "usage:" in run.stderr


@pytest.mark.parametrize("status", [0, 1])
def test_an_install_shows_what_pip_says_only_if_it_fails(tmp_path, status):
    """Warnings of an editable install and of pip's own configuration, before a run that has no fault."""
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    python.write_text(f'#!/usr/bin/env bash\necho "BuildBackendWarning: Editable installation." >&2\nexit {status}\n')
    python.chmod(0o755)
    line = ". launch/environment.sh; install; echo installed"
    known = dict(os.environ, VENV=str(tmp_path), CONSTRAINTS="")
    run = subprocess.run(["bash", "-euc", line], cwd=ROOT, env=known, capture_output=True, text=True)
    assert ("Editable" in run.stderr) == bool(status) and ("installed" in run.stdout.split()) == (not status)
