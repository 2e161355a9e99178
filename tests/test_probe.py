"""A reward model is tried before a run does anything else."""

import os
import signal
import socket
import sys
import time
import types

import numpy as np
import pytest
from run_cases import ROOT, run
from test_reward_http import _Server, reply

from alphaalign_jax.cli import main
from alphaalign_jax.parallel import notice
from alphaalign_jax.rewards.reward_model import AsyncScorer, RewardModelError, together
from alphaalign_jax.train import assembly


@pytest.fixture
def functions(monkeypatch):
    """Reward functions by name, as ``tried_rewards:NAME``."""
    module = types.ModuleType("tried_rewards")
    monkeypatch.setitem(sys.modules, "tried_rewards", module)
    return module


def target(name):
    return f"--config.reward_model.target=tried_rewards:{name}"


@pytest.mark.parametrize("command", ["train", "serve"])
def test_a_function_that_always_raises_ends_the_command_at_once(tmp_path, capsys, functions, command):
    """Heard of after the first evaluation, or, if no response is ever in format, never: with exit status 0."""

    def broken(questions, answers):
        raise RuntimeError("no weights\nat this path")

    functions.broken = broken
    if command == "serve":
        status = main(["serve", f"--config={ROOT}/configs/tiny.py", "--port=0", target("broken")])
    else:  # before data is read, which is not there
        status = run(tmp_path, "never", 2, target("broken"), f"--config.data.train={tmp_path / 'none.jsonl'}")
    said = capsys.readouterr().err
    assert status == 2 and len(said.splitlines()) == 1, said
    assert r"reward function tried_rewards:broken failed on 1 rows: RuntimeError: no weights\nat this path" in said
    assert together.QUESTION in said and not (tmp_path / "never").exists()


def test_a_server_that_cannot_be_reached_is_found_first_and_one_that_starts_is_waited_for(tmp_path, capsys):
    """An evaluation and a warm-up of an hour, and then the address was misspelt."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/score"
        http = ["--config.reward_model.kind=http", f"--config.reward_model.target={url}"]
        http += ["--config.reward_model.retries=0", f"--config.data.train={tmp_path / 'none.jsonl'}"]
        assert run(tmp_path, "never", 2, *http) == 2
    assert "gave up after 1 attempts; last: ConnectionRefused" in capsys.readouterr().err
    with _Server(reply(503), reply(503)) as server:
        http[1:3] = [f"--config.reward_model.target={server.url}", "--config.reward_model.retries=3"]
        assert run(tmp_path, "never", 2, *http) == 2
        assert "none.jsonl" in capsys.readouterr().err and len(server.requests) == 3


class Model:
    def __init__(self, *values, seconds=0.0):
        self.values, self.seconds, self.closed = values, seconds, False

    def score(self, questions, answers):
        time.sleep(self.seconds)
        return list(self.values)

    def close(self):
        self.closed = True


def test_a_row_that_cannot_be_scored_is_no_fault(caplog):
    """A model that knows the questions of its own data only would be refused."""
    with AsyncScorer(Model(None)) as scorer:
        together.probe(scorer)
    assert "could not score the question" in caplog.text


def test_a_reward_model_that_fails_on_another_host_stops_this_one(monkeypatch):
    """The others would wait for it at their next collective until they are ended without a reason."""
    answers = iter([np.array([True, True]), np.array([False, True])])
    monkeypatch.setattr(together.processes, "gather_rows", lambda own: next(answers))
    with AsyncScorer(Model(1.0)) as scorer:
        with pytest.raises(RewardModelError, match="failed on process 1, whose log has the reason"):
            together.probe(scorer)


def test_a_request_to_end_is_heard_while_the_first_answer_is_awaited(monkeypatch, caplog):
    """A server that takes minutes to start holds up the end of a run that was asked to end."""
    model = Model(1.0, seconds=0.5)
    monkeypatch.setattr(together, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(together, "_SLOW_SECONDS", 2)
    monkeypatch.setattr(assembly, "build_scorer", lambda config: AsyncScorer(model))
    outside = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with notice.Notice() as asked:

            def look(what):
                if "has not answered a first question" in caplog.text:
                    os.kill(os.getpid(), signal.SIGTERM)
                asked.check(what)

            with pytest.raises(notice.Ended, match="SIGTERM: waiting for the reward model's first answer"):
                assembly.open_scorer(None, look)
    finally:
        signal.signal(signal.SIGTERM, outside)
    assert model.closed
