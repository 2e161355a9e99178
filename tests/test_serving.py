"""A reward model behind our own HTTP endpoint: what it answers, and what strangers and accidents can do to it."""

import asyncio
import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from aiohttp import web
from run_cases import ROOT, answering, lines, run, saved

from alphaalign_jax.cli import main
from alphaalign_jax.rewards.reward_model import wire
from alphaalign_jax.rewards.reward_model.http import HttpRewardModel
from alphaalign_jax.rewards.reward_model.protocol import RewardModelError, checked_scores
from alphaalign_jax.serving.command import _tls
from alphaalign_jax.serving.endpoint import Endpoint, Limits
from alphaalign_jax.serving.pooling import Pool

TOKEN = "s3cret-Token"
GENEROUS = dict(max_rows=64, max_request_bytes=1 << 16, max_waiting=256, receive_timeout=5.0, timeout=5.0)


class Model:
    """Scores by length; an empty answer is NaN, 'fail' raises. Waits for ``go`` before each call."""

    def __init__(self):
        self.calls, self.go = [], threading.Event()
        self.go.set()

    def __call__(self, questions, answers):
        self.calls.append(len(questions))
        assert self.go.wait(20)
        if "fail" in answers:
            raise ValueError("the model fell over\x1b[2J")
        return checked_scores([float(len(a)) if a else float("nan") for a in answers], len(questions))


@contextlib.contextmanager
def served(token=TOKEN, tls=None, dtype="float32", **limits):
    """(model, port) of an endpoint in a thread of its own."""
    model, ready, end = Model(), threading.Event(), None
    found = {}

    async def serve():
        nonlocal end
        end, loop = asyncio.Event(), asyncio.get_running_loop()
        found["stop"] = lambda: loop.call_soon_threadsafe(end.set)
        settings = Limits(**GENEROUS | limits)
        pool = Pool(model, rows=settings.max_rows, waiting=settings.max_waiting)
        endpoint = found["endpoint"] = Endpoint(pool, token, settings, dtype)
        runner = endpoint.runner(endpoint.application())
        await runner.setup()
        working = asyncio.create_task(pool.work())
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        found["port"] = runner.addresses[0][1]
        ready.set()
        await end.wait()
        await runner.cleanup()
        working.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    model.port, model.endpoint = found["port"], found["endpoint"]
    try:
        yield model
    finally:
        model.go.set()
        found["stop"]()
        thread.join(10)


def ask(port, body, *, path="/score", method="POST", token=TOKEN, **headers):
    """(status, JSON) of one request; the body as it is, or as JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
    if token:
        sent["Authorization"] = f"Bearer {token}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, raw, sent)
    response = connection.getresponse()
    found = response.status, json.loads(response.read())
    connection.close()
    return found


def rows(*answers):
    return {"questions": ["How?"] * len(answers), "answers": list(answers)}


def test_our_client_gets_what_the_model_says(monkeypatch):
    """Scores of a served model that differ from those of the model train another run."""
    monkeypatch.setenv("REWARD_TOKEN", TOKEN)
    with served() as model:
        client = HttpRewardModel(f"http://127.0.0.1:{model.port}/score", token_env="REWARD_TOKEN", batch_limit=3)
        answers = ["x" * n for n in range(10)]
        found = client.score(["How?"] * 10, answers)
        np.testing.assert_array_equal(found, [np.nan, *range(1, 10)])
        with pytest.raises(RewardModelError, match="status 500"):
            HttpRewardModel(
                f"http://127.0.0.1:{model.port}/score", token_env="REWARD_TOKEN", max_retries=1, backoff=0
            ).score(["How?"], ["fail"])
        assert model.endpoint.rows == 10


def test_a_served_model_says_how_exact_it_is():
    """Served in bfloat16 and taken for float32, a run pays for the rounding that it knows of in its own model."""
    with served(token=None, dtype="bfloat16") as model:
        url = f"http://127.0.0.1:{model.port}/score"
        with pytest.raises(RewardModelError, match="set --config.reward_model.dtype=bfloat16"):
            HttpRewardModel(url, max_retries=0).score(["How?"], ["So."])
        assert HttpRewardModel(url, max_retries=0, dtype="bfloat16").score(["How?"], ["So."]) == [3.0]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate")
def test_a_certificate_makes_it_https(tmp_path, monkeypatch):
    """A handshake without the server's name, or a client that takes any certificate."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    make += ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run(make, check=True, capture_output=True)
    with served(token=None, tls=_tls(str(certificate), str(key))) as model:
        url = f"https://localhost:{model.port}/score"
        with pytest.raises(RewardModelError, match="certificate refused: self.signed certificate"):
            HttpRewardModel(url, max_retries=0).score(["How?"], ["So."])
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        np.testing.assert_array_equal(HttpRewardModel(url, max_retries=0).score(["How?"], ["So."]), [3.0])
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and shakes no hand
        late = HttpRewardModel(f"https://localhost:{silent.getsockname()[1]}/", max_retries=0, read_timeout=0.2)
        with pytest.raises(RewardModelError, match="timed out .no whole response in 0.2 s"):
            late.score(["How?"], ["So."])


@pytest.mark.parametrize("token", ["", "other", TOKEN + "x", TOKEN.lower(), "\xe9"])
def test_who_has_no_token_gets_nothing(token):
    with served() as model:
        status, said = ask(model.port, rows("So."), token=token)
        assert status == 401 and TOKEN not in json.dumps(said) and not model.calls
        assert ask(model.port, b"", path="/health", method="GET", token="")[0] == 200


DEEP = b'{"questions": ' + b"[" * 20_000


@pytest.mark.parametrize(
    ("body", "headers", "status", "says"),
    [
        (b"{", {}, 400, "not UTF-8 JSON"),
        (b"\xff", {}, 400, "not UTF-8 JSON"),
        (DEEP, {}, 400, "not UTF-8 JSON"),
        (b'{"questions": [], "questions": ["a"], "answers": ["b"]}', {}, 400, "each key once"),
        ([], {}, 400, "nothing else"),
        ({"questions": ["a"]}, {}, 400, "nothing else"),
        ({**rows("a"), "model": "b"}, {}, 400, "nothing else"),
        ({"questions": "a", "answers": "b"}, {}, 400, "expected lists"),
        ({"questions": ["a"], "answers": ["b", "c"]}, {}, 400, "1 questions and 2 answers"),
        ({"questions": ["a"], "answers": [1]}, {}, 400, "answers[0] must be str, got int"),
        (b'{"questions": ["a"], "answers": ["\\ud800"]}', {}, 400, "lone surrogate"),
        (rows(), {}, 413, "0 rows; expected 1 to max_rows=64"),
        (rows(*["a"] * 65), {}, 413, "65 rows; expected 1 to max_rows=64"),
        (rows("a" * (1 << 16)), {}, 413, "max_request_bytes is 65536"),
        (rows("a"), {"Content_Type": "text/plain"}, 415, "expected Content-Type: application/json"),
        (rows("a"), {"Content_Encoding": "gzip"}, 415, "compressed bodies are not taken"),
    ],
)
def test_what_cannot_be_scored_is_refused(body, headers, status, says):
    """Half-read requests that are scored as something else; messages that help nobody; a server that falls over."""
    with served() as model:
        found = ask(model.port, body, **headers)
        assert found[0] == status and says in found[1]["error"], found
        assert not wire.worth_another_try(status), "our client would send it again for minutes"
        assert not model.calls and ask(model.port, rows("So."))[1] == {"scores": [3.0]}


def test_paths_and_methods_that_there_are_not():
    with served() as model:
        assert ask(model.port, rows("a"), path="/scores")[0] == 404
        status, said = ask(model.port, b"", method="GET")
        assert status == 405 and "POST /score" in said["error"]


def test_a_request_that_never_arrives_and_one_without_end():
    """Connections that stay open, and bodies that say no length, take a server's memory one by one."""
    head = b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nAuthorization: Bearer "
    head += TOKEN.encode() + b"\r\n"

    def raw(port, sent, more=b""):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as stream:
            stream.sendall(sent)
            found = []

            def read():
                with contextlib.suppress(OSError):
                    found.append(stream.recv(4096))

            reader = threading.Thread(target=read)
            reader.start()
            with contextlib.suppress(OSError):
                while more and reader.is_alive():
                    stream.sendall(more)
            reader.join(20)
        return found[0] if found else b""

    with served(receive_timeout=0.3) as model:
        slow = raw(model.port, head + b'Content-Length: 100\r\n\r\n{"quest')
        assert b" 408 " in slow and b"Retry-After: 1" in slow and wire.worth_another_try(408)
        assert raw(model.port, b"POST /score HT") == b"", "closed without a word"
        endless = b"ffff\r\n" + b" " * 0xFFFF + b"\r\n"
        raw(model.port, head + b"Transfer-Encoding: chunked\r\n\r\n", endless)
        assert model.endpoint.answered[413] == 1
        assert ask(model.port, rows("So."))[0] == 200 and model.calls == [1]


def test_requests_that_come_at_once_are_scored_together():
    """One by one, a device's batch has one host's rows in it, and the others wait."""
    with served() as model:
        model.go.clear()
        found = {}
        ask_for = lambda n: found.update({n: ask(model.port, rows(*["x" * n] * n))})
        threads = [threading.Thread(target=ask_for, args=(n,)) for n in range(1, 9)]
        for thread in threads:
            thread.start()
        wait_until(lambda: model.endpoint._pool.waiting + sum(model.calls) == 36)
        model.go.set()
        for thread in threads:
            thread.join(10)
        assert found == {n: (200, {"scores": [float(n)] * n}) for n in range(1, 9)}
        assert len(model.calls) == 2 and sum(model.calls) == 36


def test_rows_that_fail_do_not_take_others_along():
    with served() as model:
        model.go.clear()
        found = {}
        ask_for = lambda answer: found.update({answer: ask(model.port, rows(answer))})
        threads = [threading.Thread(target=ask_for, args=(answer,)) for answer in ("first", "fail", "fine")]
        for count, thread in enumerate(threads, 1):
            thread.start()
            wait_until(lambda count=count: model.endpoint._pool.waiting + sum(model.calls) == count)
        model.go.set()
        for thread in threads:
            thread.join(10)
        assert found["fine"] == (200, {"scores": [4.0]}) and found["first"] == (200, {"scores": [5.0]})
        status, said = found["fail"]
        assert status == 500 and said["error"] == "ValueError: the model fell over\\x1b[2J"


def test_a_full_queue_says_so_and_a_slow_model_is_not_waited_for():
    with served(max_waiting=2, timeout=1.5) as model:
        model.go.clear()
        slow = threading.Thread(target=ask, args=(model.port, rows("a")))
        slow.start()
        wait_until(lambda: model.calls == [1])
        late = []
        queued = threading.Thread(target=lambda: late.append(ask(model.port, rows("a", "b"))))
        queued.start()
        wait_until(lambda: model.endpoint._pool.waiting == 2)
        status, said = ask(model.port, rows("c"))
        assert wire.worth_another_try(status) and wire.worth_another_try(503)
        assert status == 429 and "2 rows wait already, 2 may; ask again" in said["error"]
        queued.join(10)
        slow.join(10)
        assert late[0][0] == 503 and "not scored within 1.5 s" in late[0][1]["error"]
        model.go.set()
        assert ask(model.port, rows("abc")) == (200, {"scores": [3.0]})
        assert model.calls == [1, 1], "rows that nobody waits for any more were scored"


def wait_until(reached, seconds=10):
    until = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host=0.0.0.0"], "can be reached from other machines: set --token_env"),
        (["--token_env=NO_SUCH_TOKEN"], "--token_env names 'NO_SUCH_TOKEN', but that variable is unset or empty"),
        (["--timeout=nan"], "--timeout=nan: expected a positive number"),
        (["--max_rows=0"], "--max_rows=0: expected a positive number"),
        (["--certificate=none.pem"], "not a PEM certificate and its key"),
        (["--config.reward_model.kind=none", "--config.reward.helpfulness=off"], "serve needs a model that runs here"),
        (["--config.reward.helpfulness=off"], "reward.helpfulness=off"),
        (["--port=70000"], "--port=70000"),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused(capsys, arguments, says):
    assert main(["serve", f"--config={ROOT}/configs/tiny.py", *arguments]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_a_run_asks_a_served_model_and_equals_one_that_has_it(work, monkeypatch):
    """Served, the same scores: and what the server prints is what the run is to be given."""
    answering(monkeypatch)
    quick = ["--config.warmup.epochs=0", "--config.eval.every=0", "--config.export=false"]
    assert run(work, "own", 2, *quick) == 0
    environment = {**os.environ, "SERVED_TOKEN": TOKEN, "PYTHONPATH": str(pathlib.Path(ROOT))}
    command = ["serve", f"--config={ROOT}/configs/tiny.py", "--port=0", "--token_env=SERVED_TOKEN"]
    server = subprocess.Popen(
        [sys.executable, "-um", "alphaalign_jax.cli", *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said = ""
        while not (settings := re.findall(r"--config\.reward_model\.\S+", said)):
            line = server.stdout.readline()
            assert line, said
            said += line
        monkeypatch.setenv("SERVED_TOKEN", TOKEN)
        assert len(settings) == 3 and run(work, "served", 2, *quick, *settings) == 0
        server.send_signal(signal.SIGTERM)
        rest, _ = server.communicate(timeout=30)
        assert server.returncode == 0, rest
        assert "requests answered with 200" in rest and TOKEN not in said + rest
    finally:
        server.kill()
    ours, theirs = saved(work / "served", 2), saved(work / "own", 2)
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[path], theirs[path]) for path in ours)
    steps = [record for record in lines(work / "served/metrics.jsonl") if record["phase"] == "train"]
    assert all(step["reward/scored"] == 8 and step["reward/helpfulness/mean"] > 0 for step in steps)
