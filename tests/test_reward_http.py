"""The HTTP reward model against a server whose first replies are scripted faults."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from alphaalign_jax.rewards.reward_model import RewardModelError, build
from alphaalign_jax.rewards.reward_model.http import HttpRewardModel, retry_after_seconds


class _Server:
    """A reward server whose first replies are scripted faults; after them, score = length of the answer."""

    def __init__(self, *faults, delay=0.0):
        self.faults, self.delay, self.requests, self.headers, self.times = list(faults), delay, [], [], []
        self.running = self.most = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.times.append(time.monotonic())
                    outer.running += 1
                    outer.most = max(outer.most, outer.running)
                    fault = outer.faults.pop(0) if outer.faults else None
                time.sleep(outer.delay)
                with lock:
                    outer.running -= 1  # before the reply: who has it may ask again at once
                (fault or ok)(self, body)

            def log_message(self, *args):
                pass

        def ok(handler, body):
            reply(200, json.dumps({"scores": [float(len(a)) for a in body["answers"]]}).encode())(handler, body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/score"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._server.shutdown()
        self._server.server_close()


def reply(status, body=b"", **headers):
    def send(handler, _request):
        with contextlib.suppress(OSError):  # the client may have hung up: some tests are about that
            handler.send_response(status)
            for name, value in {"Content_Length": str(len(body)), **headers}.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.end_headers()
            handler.wfile.write(body)

    return send


def scores(*values):
    return reply(200, json.dumps({"scores": values}).encode())


def stall(seconds):
    return lambda handler, body: (time.sleep(seconds), reply(200, b"{}")(handler, body))


def drip(handler, _body):
    with contextlib.suppress(OSError):
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.02)


def hang_up(handler, _body):
    handler.connection.shutdown(socket.SHUT_RDWR)


def echo(handler, _body):
    """As broken proxies do: the request's headers where the status line belongs."""
    with contextlib.suppress(OSError):
        handler.wfile.write(f"Authorization: {handler.headers['Authorization']}\r\n\r\n".encode())


def echo_cut(handler, _body):
    """Often enough that the last one is cut where the message is."""
    said = f"Authorization: {handler.headers['Authorization']}; " * 40
    reply(400, said[: 1000 - len(said) % 7].encode())(handler, _body)


def trickle(first):
    """A head, or what stands between its parts, a byte at a time: no single read ever takes long."""

    def send(handler, _body):
        with contextlib.suppress(OSError):
            handler.wfile.write(first)
            for _ in range(200):
                handler.wfile.write(b"X: y\r\n" if first.endswith(b"\n") else b"x")
                handler.wfile.flush()
                time.sleep(0.02)

    return send


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("token", ["s3cret-token", "s3cret\\token's"])  # quoted, the second is written otherwise
@pytest.mark.parametrize("fault", [echo, echo_cut, lambda h, b: scores(h.headers["Authorization"])(h, b)])
def test_a_token_that_is_echoed_is_in_no_message(monkeypatch, caplog, fault, token):
    """In the log of every run behind that proxy, in clear."""
    monkeypatch.setenv("SECRET", token)
    with _Server(*[fault] * 9) as server:
        with pytest.raises(RewardModelError) as raised:
            quick(server.url, token_env="SECRET").score(["q"], ["a"])
    said = caplog.text + str(raised.value)
    assert "s3cret" not in said and ("***" in said or "scores[0] is str" in said)
    assert raised.value.__cause__ is None or "s3cret" not in str(raised.value.__cause__)


def quick(url, **options):
    return build("http", **{"url": url, "backoff": 0.001, "read_timeout": 5.0, "max_retries": 2, **options})


def test_http_scores_in_order_with_batch_limit():
    """A split whose parts come back in another order pairs scores with other rows; a limit ignored breaks servers."""
    with _Server() as server:
        model = quick(server.url, batch_limit=3, max_concurrency=2)
        answers = ["x" * i for i in range(8)]
        np.testing.assert_array_equal(model.score([f"q{i}" for i in range(8)], answers), np.arange(8, dtype=np.float32))
        assert sorted(len(r["answers"]) for r in server.requests) == [2, 3, 3]
        for request in server.requests:
            assert [int(q[1:]) for q in request["questions"]] == [len(a) for a in request["answers"]]
        assert model.score([], []).shape == (0,) and len(server.requests) == 3
        model.close()
        model.close()
        with pytest.raises(RewardModelError, match="is closed"):
            model.score(["q"], ["a"])


def test_http_requests_overlap_up_to_the_limit():
    """Requests in series leave the server idle; without a bound a large batch floods it."""
    with _Server(delay=0.05) as server:
        model = quick(server.url, batch_limit=1, max_concurrency=3)
        model.score(["q"] * 9, ["a"] * 9)
        assert server.most == 3 and len(server.requests) == 9
        model.close()


def test_http_null_is_nan():
    """A null read as 0 is an invented score."""
    with _Server(scores(0.5, None, 2)) as server:
        got = quick(server.url).score(["q"] * 3, ["a"] * 3)
        np.testing.assert_array_equal(got, np.float32([0.5, np.nan, 2]))


TRANSIENT = [reply(status) for status in (408, 425, 429, 500, 502, 503, 504)]


@pytest.mark.parametrize("fault", [*TRANSIENT, hang_up, reply(200, b"{", Content_Length="50")])
def test_http_retries_transient_faults(fault):
    """One overloaded moment of the server, or a body cut short, must not end a run of days."""
    with _Server(fault, fault) as server:
        np.testing.assert_array_equal(quick(server.url, read_timeout=0.3).score(["q"], ["abc"]), np.float32([3]))
        assert len(server.requests) == 3


def test_http_refuses_a_server_that_scores_less_exactly_than_the_config_says():
    """The rounding of a bfloat16 server, taken for float32's, is paid as a preference."""
    stated = lambda dtype: reply(200, json.dumps({"scores": [1.5], "dtype": dtype}).encode())
    replies = [stated(dtype) for dtype in ("bfloat16", "bfloat16", "float32", "fp8", ["bfloat16"])]
    with _Server(*replies) as server:
        with pytest.raises(RewardModelError, match="scores in bfloat16.*--config.reward_model.dtype=bfloat16"):
            quick(server.url).score(["q"], ["a"])
        assert len(server.requests) == 1, "it would say so again"
        assert quick(server.url, dtype="bfloat16").score(["q"], ["a"]) == [1.5]
        assert [quick(server.url).score(["q"], ["a"]) for _ in range(3)] == [[1.5]] * 3


def test_http_honours_retry_after():
    """Coming back before Retry-After keeps an overloaded server overloaded; an endless one must not hang the run."""
    with _Server(reply(429, Retry_After="1")) as server:
        quick(server.url).score(["q"], ["a"])
        assert server.times[1] - server.times[0] >= 0.99
    with _Server(reply(429, Retry_After="3600")) as server:
        with pytest.raises(RewardModelError, match="wait 3600 s, above retry_after_limit=300"):
            quick(server.url).score(["q"], ["a"])
        assert len(server.requests) == 1
    assert retry_after_seconds(None) == retry_after_seconds("soon") == retry_after_seconds("-5") == 0
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    in_a_minute = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    assert 55 < retry_after_seconds(in_a_minute) <= 60


def test_http_backs_off_between_attempts():
    """Retries without a growing pause finish in milliseconds, before any server has recovered."""
    with _Server(reply(500), reply(500), reply(500)) as server:
        quick(server.url, backoff=0.05, max_retries=3).score(["q"], ["a"])
        gaps = np.diff(server.times)
        assert (gaps >= [0.025, 0.05, 0.1]).all(), gaps


@pytest.mark.parametrize(
    "fault",
    [
        stall(0.6),
        drip,
        trickle(b"HT"),
        trickle(b"HTTP/1.1 200 OK\r\n"),
        trickle(HEAD + b"5;"),
        trickle(HEAD + b"0\r\n"),
        trickle(b"HTTP/1.1 400 Bad\r\nContent-Length: 900\r\n\r\nno"),
    ],
)
def test_http_times_out_and_gives_up(fault):
    """A socket time-out restarts with every byte, so a dripping server could hold the run for ever."""
    with _Server(fault, fault) as server:
        start = time.monotonic()
        with pytest.raises(RewardModelError, match="gave up after 2 attempts; last: timed out"):
            quick(server.url, read_timeout=0.1, max_retries=1).score(["q"], ["a"])
        assert 0.2 <= time.monotonic() - start < 1.0 and len(server.requests) == 2


def test_http_gives_up_without_a_server():
    """A server that is not there is an error the loop can save and stop on, never scores."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(RewardModelError, match="gave up after 3 attempts; last: ConnectionRefused"):
            quick(f"http://127.0.0.1:{unused.getsockname()[1]}/").score(["q"], ["a"])


@pytest.mark.parametrize(
    "fault, said",
    [
        (scores(1.0), "1 scores for 2 rows"),
        (scores(1.0, 2.0, 3.0), "3 scores for 2 rows"),
        (scores(1.0, "2.0"), r"scores\[1\] is str"),
        (scores(True, 1.0), r"scores\[0\] is True"),
        (scores([1.0], [2.0]), r"scores\[0\] is \[1.0\]"),
        (reply(200, b"<html>busy</html>"), "not JSON"),
        (reply(200, b"\xff\xfe\xff"), "not JSON"),
        (reply(200, b'{"scores": [1, 2], "scores": [2, 1]}'), "'scores' is there twice"),
        (reply(200, b"[1.0, 2.0]"), "expected .*got list"),
        (reply(200, b'{"score": [1.0, 2.0]}'), "expected .*keys"),
    ],
)
def test_http_garbage_is_asked_for_again_and_never_read_as_scores(fault, said):
    """A proxy answers for a server that starts again; one that goes on so is an error, not scores made up of it."""
    with _Server(fault, fault) as server:
        np.testing.assert_array_equal(quick(server.url).score(["q", "q"], ["a", "ab"]), np.float32([1, 2]))
        assert len(server.requests) == 3
    with _Server(*[fault] * 3) as server:
        with pytest.raises(RewardModelError, match=f"gave up after 3 attempts; last: .*{said}"):
            quick(server.url).score(["q", "q"], ["a", "b"])


@pytest.mark.parametrize(
    "fault, said",
    [
        (reply(404, b"no such path"), "status 404.*no such path"),
        *[(reply(status), f"status {status}") for status in (400, 401, 403, 405, 413, 415, 422)],
        (reply(302, Location="http://127.0.0.1:1/"), "status 302.*not followed"),
        (reply(200, b" " * 5000), "above max_response_bytes=4000"),
    ],
)
def test_http_refusals_are_errors_at_once(fault, said):
    """The same request would be refused again, and minutes of retries hide why."""
    with _Server(fault) as server:
        with pytest.raises(RewardModelError, match=said):
            quick(server.url, max_response_bytes=4000).score(["q", "q"], ["a", "b"])
        assert len(server.requests) == 1


def test_http_failure_ends_the_other_requests():
    """One dead batch must stop its siblings' retries: the loop is waiting to save."""
    with _Server(*[reply(500)] * 3, reply(404)) as server:
        model = quick(server.url, batch_limit=1, max_concurrency=4, backoff=20.0, max_backoff=20.0)
        start = time.monotonic()
        with pytest.raises(RewardModelError, match="status 404"):
            model.score(["q"] * 4, ["a"] * 4)
        model.close()
        for thread in model._pool._threads:
            thread.join(5)
            assert not thread.is_alive()  # else leaving Python waits for it too
        assert time.monotonic() - start < 5


def test_http_token_is_sent_and_never_shown(monkeypatch, caplog):
    """A bearer token in a log or a traceback is a leaked token."""
    monkeypatch.setenv("REWARD_TOKEN", "s3cret-value")
    with _Server(reply(500), reply(401, b"bad token s3cret-value")) as server:
        model = quick(server.url, token_env="REWARD_TOKEN")
        with pytest.raises(RewardModelError, match=r"status 401: 'bad token \*\*\*'") as caught:
            model.score(["q"], ["a"])
        assert [h["Authorization"] for h in server.headers] == ["Bearer s3cret-value"] * 2
        shown = f"{caught.value} {model!r} {caplog.text}"
        assert "retry 1 of 2" in shown and "s3cret" not in shown
    monkeypatch.setenv("REWARD_TOKEN", "two\nlines")
    with pytest.raises(ValueError, match="blanks or control") as caught:
        quick("http://127.0.0.1:9/", token_env="REWARD_TOKEN")
    assert "lines" not in str(caught.value)
    with pytest.raises(ValueError, match="'NO_SUCH_TOKEN', but that variable is unset"):
        quick("http://127.0.0.1:9/", token_env="NO_SUCH_TOKEN")


@pytest.mark.parametrize(
    "options, said",
    [
        ({"url": "ftp://host/x"}, "must look like"),
        ({"url": "127.0.0.1:8000"}, "must look like"),
        ({"url": "http://host:99999/"}, "must look like"),
        ({"url": "http://host/a b"}, "must look like"),
        ({"url": "http://me:pw@host/"}, "token_env"),
        ({"batch_limit": 0}, "batch_limit must be an integer >= 1, got 0"),
        ({"max_concurrency": 1.5}, "max_concurrency"),
        ({"read_timeout": 0}, "read_timeout must be above 0"),
        ({"backoff": -1.0}, "backoff must be seconds >= 0, got -1.0"),
        ({"connect_timeout": math.inf}, "connect_timeout"),
    ],
)
def test_http_bad_options_are_found_at_build(options, said):
    """A limit of 0 rows would loop for ever and a bad url fail only after the first rollout."""
    with pytest.raises(ValueError, match=said):
        HttpRewardModel(**{"url": "http://127.0.0.1:9/", **options})
