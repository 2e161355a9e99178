"""The host reward model: protocol, cleaning, callable, HTTP under faults, classifier against transformers."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import sys
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import numpy as np
import pytest

from alphaalign_jax.rewards.reward_model import (
    AsyncScorer,
    RewardModel,
    RewardModelError,
    build,
    checked_scores,
    clean_answer,
    lexical,
)
from alphaalign_jax.rewards.reward_model.http import HttpRewardModel, retry_after_seconds

# ------------------------------------------------------------------------------------------------ protocol and checks


def test_scores_are_float32_and_infinite_becomes_nan():
    """An inf in one row makes the whole group's mean and std inf; an overflow to float32 does it silently."""
    scores = checked_scores([1, 0.7, float("inf"), -float("inf"), float("nan"), 1e300], 6)
    assert scores.dtype == np.float32 and scores.shape == (6,)
    np.testing.assert_array_equal(scores, np.float32([1, 0.7, np.nan, np.nan, np.nan, np.nan]))


def test_scores_take_bfloat16_and_integers():
    """A model scoring in bfloat16 was refused as non-numeric: NumPy alone does not know that dtype."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    np.testing.assert_array_equal(checked_scores(np.array([0.5, 2], ml_dtypes.bfloat16), 2), [0.5, 2])
    assert checked_scores(np.array([3, 4], np.int64), 2).dtype == np.float32
    assert checked_scores([], 0).shape == (0,)


@pytest.mark.parametrize(
    "values, said",
    [
        ([1.0, 2.0], "2 scores for 3 rows"),
        (np.zeros((3, 1)), r"shape \(3, 1\)"),
        (0.5, r"shape \(\)"),
        (["0.1", "0.2", "0.3"], "dtype <U3"),
        ([None, 1.0, 2.0], "dtype object"),
        ([True, False, True], "dtype bool"),
        ([1j, 2j, 3j], "dtype complex128"),
        ([[1.0], [1.0, 2.0], [3.0]], "no array of numbers"),
        ((x for x in (1.0, 2.0, 3.0)), "generator"),
    ],
)
def test_malformed_scores_are_refused(values, said):
    """A wrong count or a broadcastable [n, 1] would pair scores with other rows' answers without any error."""
    with pytest.raises(RewardModelError, match=said):
        checked_scores(values, 3)


# ------------------------------------------------------------------------------------------------------------ cleaning


def test_clean_answer_removes_specials_tags_and_broken_bytes():
    """A reward model that reads the policy's end-of-turn or tags scores the markup, not the answer."""
    specials = ["<|im_end|>", "<|im_start|>", "<|im"]
    assert clean_answer(b"\n <answer>Boil it.<|im_end|>\n", specials) == "Boil it."
    assert clean_answer("caf\u00e9 \xff".encode("latin-1"), specials) == "caf\ufffd \ufffd"
    assert clean_answer(b"a<|im_<|im_end|>end|>b", ["<|im_end|>"]) == "ab"  # a removal may join a new literal
    assert clean_answer(b"a<ans<|im_end|>wer>b", ["<|im_end|>"]) == "ab"
    assert clean_answer(b"2 < 3 and [x](y)", specials) == "2 < 3 and [x](y)"
    assert clean_answer(b"", specials) == "" and clean_answer(b"x", [""]) == "x"


# ------------------------------------------------------------------------------------------------------------- lexical


def test_lexical_orders_answers_and_leaves_empty_unscored():
    """A stand-in that paid for length or for echoing would teach the policy to loop or to repeat the question."""
    question = "How do I boil an egg so that the yolk stays soft?"
    good = (
        "Bring water to a boil, lower the egg in with a spoon, and wait six minutes. Then cool it under cold water: "
        "the yolk will stay soft while the white sets. Peel from the wide end and add some salt."
    )
    off_topic = "Paris is the capital of France, on the river Seine."
    answers = [good, "Yes.", "egg " * 150, question * 4, off_topic, "", " ...! "]
    scores = lexical.score([question] * len(answers), answers)
    assert scores.dtype == np.float32 and np.isnan(scores[-2:]).all()
    assert (scores[0] > scores[1:5]).all() and scores[0] > 1.5
    assert ((scores[:5] >= 0) & (scores[:5] <= 3)).all()
    np.testing.assert_array_equal(scores, lexical.score([question] * len(answers), answers))


def test_lexical_components_equal_a_hand_count():
    """The documented formula is the one computed: coverage, length, freshness; a loop and an echo are not fresh."""
    pairs = [("Boiling kettles?", "the kettle is hot"), ("word", "a b c " * 400), ("Fill a kettle", "fill a kettle")]
    got = lexical.score(*zip(*pairs, strict=True))
    np.testing.assert_allclose(got, [1 / 2 + 4 / 30 + 1, 0 + 0 + 3 / 1198, 1 + 3 / 30 + 0], rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------ callable


@pytest.fixture
def my_rewards(monkeypatch):
    module = types.ModuleType("my_rewards")
    module.score = lambda questions, answers: [float(len(a)) for a in answers]
    module.explode = lambda questions, answers: {}["missing key"]
    module.short = lambda questions, answers: [1.0]
    module.one_argument = lambda answers: [1.0]
    module.not_callable = 3

    async def later(questions, answers):
        return []

    module.later = later
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    return module


def test_callable_scores(my_rewards):
    """The named function must see the rows in order, and its floats come back as float32."""
    model = build("callable", target="my_rewards:score")
    assert isinstance(model, RewardModel)
    np.testing.assert_array_equal(model.score(["q", "q"], ["abc", ""]), np.float32([3, 0]))
    stand_in = build("callable", target="alphaalign_jax.rewards.reward_model.lexical:score")
    assert stand_in.score(["boil an egg"], ["egg"]).dtype == np.float32


@pytest.mark.parametrize(
    "target, said",
    [
        ("my_rewards.score", "module:function"),
        ("my_rewards:", "module:function"),
        (None, "needs target"),
        (7, "module:function"),
        ("no_such_module_xyz:score", "cannot import 'no_such_module_xyz'"),
        ("my_rewards:scores", "did you mean score"),
        ("my_rewards:not_callable", "is a int, not a function"),
        ("my_rewards:one_argument", r"must take \(questions, answers\)"),
        ("my_rewards:later", "is async"),
    ],
)
def test_callable_mistakes_are_found_at_build(my_rewards, target, said):
    """A typo in the name must not surface after the first rollout has been compiled and sampled."""
    with pytest.raises(ValueError, match=said):
        build("callable", target=target)


def test_callable_exceptions_stop_the_run_with_context(my_rewards):
    """A reward function that raises was once summed as 0, which trains as 'nothing is helpful'."""
    with pytest.raises(RewardModelError, match=r"my_rewards:explode failed on 2 rows: KeyError") as caught:
        build("callable", target="my_rewards:explode").score(["a", "b"], ["c", "d"])
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(RewardModelError, match="1 scores for 2 rows"):
        build("callable", target="my_rewards:short").score(["a", "b"], ["c", "d"])
    model = build("callable", target="my_rewards:score")
    for bad in ((["a"], ["b", "c"]), ("a", "b"), (["a"], [None])):
        with pytest.raises(ValueError):
            model.score(*bad)


def test_build_refuses_unknown_kinds_and_options():
    """A misspelt option that is ignored is a setting nobody reads."""
    assert build() is None and build("none", target="whatever:is_here") is None
    with pytest.raises(ValueError, match="did you mean 'callable'"):
        build("calable")
    with pytest.raises(ValueError, match="did you mean 'batch_limit'"):
        build("http", url="http://127.0.0.1:9/", batch_limits=3)
    with pytest.raises(ValueError, match="needs url"):
        build("http")


# --------------------------------------------------------------------------------------------------------------- async


class _Gated:
    """Scores only once ``gate`` opens, and counts how many calls run at the same time."""

    def __init__(self):
        self.gate, self.running, self.most, self.order, self.closed = threading.Event(), 0, 0, [], False

    def score(self, questions, answers):
        self.running += 1
        self.most = max(self.most, self.running)
        assert self.gate.wait(10)
        self.order.append(questions[0])
        self.running -= 1
        return [float(a) for a in answers]

    def close(self):
        self.closed = True


def test_async_scorer_overlaps_and_keeps_order():
    """A submit that waits for the scores stalls the device for the whole scoring time."""
    model = _Gated()
    with AsyncScorer(model) as scorer:
        answers = ["1", "2"]
        first = scorer.submit(["a", "a"], answers)
        answers[:] = ["8", "9"]  # the caller may reuse its lists
        second = scorer.submit(["b"], ["3"])
        assert not first.done()  # we are here while the model still waits: that is the overlap
        with pytest.raises(TimeoutError):
            first.result(timeout=0.01)
        model.gate.set()
        np.testing.assert_array_equal(second.result(), np.float32([3]))
        np.testing.assert_array_equal(first.result(), np.float32([1, 2]))
        assert first.seconds > 0.005 and model.order == ["a", "b"] and model.most == 1
    assert model.closed


def test_async_scorer_checks_scores_and_raises_at_result():
    """An exception in the worker thread must reach the loop, and any backend's scores are checked, ours or not."""

    class Bad:
        def __init__(self, function):
            self.score = function

    def explode(questions, answers):
        raise RewardModelError("the server is gone")

    with AsyncScorer(Bad(explode)) as scorer, pytest.raises(RewardModelError, match="the server is gone"):
        scorer.submit(["q"], ["a"]).result()
    two = Bad(lambda q, a: [1.0, 2.0])
    with AsyncScorer(two) as scorer, pytest.raises(RewardModelError, match="2 scores for 1 rows"):
        scorer.score(["q"], ["a"])
    with AsyncScorer(Bad(explode)) as scorer, pytest.raises(ValueError, match="2 questions and 1 answers"):
        scorer.submit(["q", "q"], ["a"])
    with pytest.raises(ValueError, match="needs score"):
        AsyncScorer(object())


def test_async_scorer_launches_dispatch_on_the_callers_thread():
    """Two threads that launch device programs in different orders can deadlock on their collectives."""
    seen = []

    class Dispatching:
        def dispatch(self, questions, answers):
            seen.append(threading.current_thread())

            def finish():
                seen.append(threading.current_thread())
                return np.ones(len(answers))

            return finish

        def score(self, questions, answers):
            raise AssertionError("dispatch was there to be used")

        def close(self):
            pass

    with AsyncScorer(Dispatching()) as scorer:
        np.testing.assert_array_equal(scorer.score(["q"], ["a"]), np.float32([1]))
    assert seen[0] is threading.current_thread() and seen[1] is not threading.current_thread()


# ---------------------------------------------------------------------------------------------------------------- HTTP


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
                try:
                    time.sleep(outer.delay)
                    (fault or ok)(self, body)
                finally:
                    with lock:
                        outer.running -= 1

            def log_message(self, *args):
                pass

        def ok(handler, body):
            reply(200, json.dumps({"scores": [float(len(a)) for a in body["answers"]]}).encode())(handler, body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/score?key=k3y"
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


@pytest.mark.parametrize("fault", [reply(500), reply(503), reply(429), hang_up, reply(200, b"{", Content_Length="50")])
def test_http_retries_transient_faults(fault):
    """One overloaded moment of the server, or a body cut short, must not end a run of days."""
    with _Server(fault, fault) as server:
        np.testing.assert_array_equal(quick(server.url, read_timeout=0.3).score(["q"], ["abc"]), np.float32([3]))
        assert len(server.requests) == 3


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


@pytest.mark.parametrize("fault", [stall(0.6), drip])
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
        (scores(1.0, "2.0"), r"scores\[1\] is '2.0'"),
        (scores(True, 1.0), r"scores\[0\] is True"),
        (scores([1.0], [2.0]), r"scores\[0\] is \[1.0\]"),
        (reply(200, b"<html>busy</html>"), "not JSON"),
        (reply(200, b"\xff\xfe\xff"), "not JSON"),
        (reply(200, b"[1.0, 2.0]"), "expected .*got list"),
        (reply(200, b'{"score": [1.0, 2.0]}'), "expected .*keys"),
        (reply(404, b"no such path"), "status 404.*no such path"),
        (reply(302, Location="http://127.0.0.1:1/"), "status 302.*not followed"),
        (reply(200, b" " * 5000), "above max_response_bytes=4000"),
    ],
)
def test_http_bad_replies_are_errors_at_once(fault, said):
    """A reply that is wrong, not late, would be wrong again: no retries, no scores made up from what did arrive."""
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
        assert "retry 1 of 2" in shown and "s3cret" not in shown and "k3y" not in shown
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


# ---------------------------------------------------------------------------------------------------------- classifier

_TRIMMING = (  # Llama-3 manner: the template itself writes BOS, trims, and ends every turn
    "{{ bos_token }}{% for m in messages %}<|h|>{{ m['role'] }}<|/h|>\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
)
_BARE = "{% for m in messages %}<|h|>{{ m['role'] }}<|/h|>\n{{ m['content'] }}<|eot|>{% endfor %}"  # writes no BOS


def _tokenizer(template, pad="<|pad|>"):
    """A byte-level BPE that, like Llama's, puts BOS in front of whatever it tokenizes."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    specials = ["<|bos|>", "<|h|>", "<|/h|>", "<|eot|>", "<|pad|>"]
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    corpus = ["how do you boil an egg in water", "the answer is to boil water, then the egg"] * 4
    core.train_from_iterator(corpus, trainer)
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", core.token_to_id("<|bos|>"))]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|bos|>",
        eos_token="<|eot|>",
        pad_token=pad,
        additional_special_tokens=["<|h|>", "<|/h|>"],
    )
    tokenizer.chat_template = template
    return tokenizer


_QUESTION, _ANSWER = "how do you boil an egg", "boil water, then the egg. "


@pytest.mark.parametrize("template", [_TRIMMING, _BARE])
def test_chat_text_has_one_bos_and_its_own_end_of_turn(template):
    """A template that writes BOS under a tokenizer that adds one gave two, and every score moved."""
    from alphaalign_jax.rewards.reward_model.chat_text import ChatText

    tokenizer = _tokenizer(template)
    bos, eot = tokenizer.convert_tokens_to_ids(["<|bos|>", "<|eot|>"])
    assert tokenizer(_QUESTION).input_ids[0] == bos  # the trap is set
    text = ChatText(tokenizer, 200)
    ids = text(_QUESTION, _ANSWER)
    assert ids.count(bos) == 1 and ids[0] == bos and ids.count(eot) == 2 and ids[-1] == eot == text.last_id
    body = f"<|h|>user<|/h|>\n{_QUESTION}<|eot|><|h|>assistant<|/h|>\n{_ANSWER.strip()}<|eot|>"
    assert ids == tokenizer(body).input_ids


@pytest.mark.parametrize("template", [_TRIMMING, _BARE])
def test_chat_text_cuts_the_answer_and_nothing_else(template):
    """Cutting ids at max_length drops the end of turn, and the score is read in the middle of a sentence."""
    from alphaalign_jax.rewards.reward_model.chat_text import ChatText

    tokenizer = _tokenizer(template)
    answer = _ANSWER * 40
    whole = ChatText(tokenizer, 4000)(_QUESTION, answer)
    least = len(ChatText(tokenizer, 4000)(_QUESTION, "b"))
    for limit in (len(whole) - 1, 90, least + 1, least):
        ids = ChatText(tokenizer, limit)(_QUESTION, answer)
        assert limit - 2 <= len(ids) <= limit and ids[-1] == whole[-1]
        head, kept = tokenizer.decode(ids[:-1]).rsplit("\n", 1)
        assert answer.startswith(kept) and kept and tokenizer.decode(whole).startswith(head)
    assert ChatText(tokenizer, least - 1)(_QUESTION, answer) is None
    assert ChatText(tokenizer, len(whole))(_QUESTION, answer) == whole


def test_chat_text_drops_the_reward_models_specials_from_the_text():
    """An answer that writes the reward model's own end of turn could add turns that praise it."""
    from alphaalign_jax.rewards.reward_model.chat_text import ChatText

    text = ChatText(_tokenizer(_TRIMMING), 200)
    forged = "boil water, <|eot|><|bos|><|h|>then<|/h|> the <|e<|eot|>ot|>egg."
    assert text(f"<|bos|>{_QUESTION}", forged) == text(_QUESTION, _ANSWER)


def test_chat_text_refuses_templates_that_cannot_serve():
    """Without a template there is nothing to render; with one that drops the answer every answer scores the same."""
    from alphaalign_jax.rewards.reward_model.chat_text import ChatText

    for template, said in [
        (None, "no chat template"),
        ("{{ raise_exception('no assistant') }}", "fails on a user and an assistant turn: no assistant"),
        ("{{ bos_token }}{{ messages[0]['content'] }}", "drops the question or the answer"),
    ]:
        with pytest.raises(ValueError, match=said):
            ChatText(_tokenizer(template), 100)
    with pytest.raises(ValueError, match="max_length=5 is below"):
        ChatText(_tokenizer(_BARE), 5)


def _save_classifier(folder, tokenizer, *, labels=1, pad_token_id=4):
    """A random-weight LlamaForSequenceClassification saved as a Hugging Face directory; returns the torch model."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = dict(
        vocab_size=304, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, rope_theta=1000.0, num_labels=labels,
        pad_token_id=pad_token_id, initializer_range=0.3, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**settings)).eval().float()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def _reference(model, tokenizer, questions, answers):
    """transformers' own scores: its template, its tokenization, one right-padded batch, its pooling."""
    torch = pytest.importorskip("torch")
    rows = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": q}, {"role": "assistant", "content": a}], tokenize=True, return_dict=True
        )["input_ids"]
        for q, a in zip(questions, answers, strict=True)
    ]
    width = max(map(len, rows))
    pad = model.config.pad_token_id
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits.numpy()


_QUESTIONS = ["how do you boil an egg", "why", "what is water", "why is the egg in the water", "how", "the egg"]
_ANSWERS = ["boil water", "the answer is water " * 9, "it", "then the egg is in " * 5, "x y z " * 3, "to boil"]


@pytest.mark.parametrize("pad_token_id", [4, 3])
def test_classifier_scores_equal_transformers(tmp_path, pad_token_id):
    """Pooling at the bucket's last slot, a second BOS or a dropped rope_theta each moves every score.

    With pad_token_id=3 pad is the end of turn itself, and the reference pools one token earlier.
    """
    tokenizer = _tokenizer(_TRIMMING)
    torch_model = _save_classifier(tmp_path, tokenizer, pad_token_id=pad_token_id)
    reference = _reference(torch_model, tokenizer, _QUESTIONS * 3, _ANSWERS * 3)
    model = build("classifier", path=str(tmp_path), max_length=256, buckets=(48, 256), dtype="float32")
    scores = model.score(_QUESTIONS * 3, _ANSWERS * 3)  # batches of 8: several a bucket, the last partial
    assert scores.dtype == np.float32 and scores.shape == (18,)
    assert reference.std() > 0.1  # rows differ by far more than the tolerance
    np.testing.assert_allclose(scores, reference[:, 0], atol=1e-4)
    # A row's score depends on its text alone: not on its neighbours, its place in the batch or the padding rows.
    np.testing.assert_allclose(model.score(_QUESTIONS[3:4], _ANSWERS[3:4]), scores[3:4], atol=1e-5)
    with AsyncScorer(model) as scorer:
        np.testing.assert_array_equal(scorer.score(_QUESTIONS * 3, _ANSWERS * 3), scores)
    with pytest.raises(ValueError, match="is closed"):
        model.score(["q"], ["a"])


def test_classifier_is_the_same_on_every_mesh_and_near_in_bfloat16(tmp_path):
    """Sharded weights change the order of sums, never the score; a head in bfloat16 would tie rows of one group."""
    tokenizer = _tokenizer(_TRIMMING)
    torch_model = _save_classifier(tmp_path, tokenizer)
    reference = _reference(torch_model, tokenizer, _QUESTIONS, _ANSWERS)[:, 0]
    options = dict(path=str(tmp_path), max_length=256, buckets=(48, 256))
    model = build("classifier", dtype="bfloat16", **options)
    np.testing.assert_allclose(model.score(_QUESTIONS, _ANSWERS), reference, atol=0.05 * np.abs(reference).max() + 0.1)
    # The program, not its result: XLA may skip a rounding when it compiles, so the scores alone would not always tell.
    program = str(jax.make_jaxpr(model._program)(model._weights, np.zeros((8, 48), np.int32), np.zeros((8,), np.int32)))
    assert "bf16[8,1,48,32]" in program and "f32[8,1]" in program and "bf16[8,1]" not in program
    if jax.local_device_count() % 2:
        pytest.skip("tensor parallelism needs an even number of devices")
    for mesh in ({"tensor": 2, "fsdp": -1}, {"data": -1, "fsdp": 1}):
        scores = build("classifier", dtype="float32", mesh=mesh, **options).score(_QUESTIONS, _ANSWERS)
        np.testing.assert_allclose(scores, reference, atol=1e-4)


def test_classifier_cuts_long_answers_and_leaves_unfitting_questions_unscored(tmp_path):
    """A question that fills the context leaves nothing of the answer to score: any number would be invented."""
    tokenizer = _tokenizer(_TRIMMING)
    torch_model = _save_classifier(tmp_path, tokenizer)
    model = build("classifier", path=str(tmp_path), max_length=64, dtype="float32")
    answer = "the egg in water " * 40
    scores = model.score(["how", "how do you boil " * 40, "why"], [answer, "boil", "egg"])
    assert np.isfinite(scores[[0, 2]]).all() and np.isnan(scores[1])
    cut = tokenizer.decode(model._text("how", answer)[1:-1]).rsplit("\n", 1)[1]
    reference = _reference(torch_model, tokenizer, ["how", "why"], [cut, "egg"])[:, 0]
    np.testing.assert_allclose(scores[[0, 2]], reference, atol=1e-4)
    assert model.score([], []).shape == (0,)


def test_classifier_compiles_one_program_a_bucket(tmp_path):
    """Shapes that follow the data compile in the middle of a run, a minute at a time."""
    tokenizer = _tokenizer(_TRIMMING)
    _save_classifier(tmp_path, tokenizer)
    model = build("classifier", path=str(tmp_path), max_length=256, buckets=(48, 256), dtype="float32")
    for n in (1, 2, 3, 6, 18):
        model.score((_QUESTIONS * 3)[:n], (_ANSWERS * 3)[:n])
    assert model._program._cache_size() == 2


def test_classifier_picks_the_named_label(tmp_path):
    """A classifier with two labels has no one score; guessing column 0 may train on its negative."""
    tokenizer = _tokenizer(_TRIMMING)
    reference = _reference(_save_classifier(tmp_path, tokenizer, labels=2), tokenizer, _QUESTIONS[:2], _ANSWERS[:2])
    options = dict(path=str(tmp_path), max_length=256, dtype="float32")
    with pytest.raises(ValueError, match="it has 2 labels; set label"):
        build("classifier", **options)
    scores = build("classifier", label=1, **options).score(_QUESTIONS[:2], _ANSWERS[:2])
    np.testing.assert_allclose(scores, reference[:, 1], atol=1e-4)


def test_classifier_mistakes_are_found_at_build(tmp_path):
    """Each of these would otherwise surface as a wrong score or a compile error hours later."""
    tokenizer = _tokenizer(_TRIMMING)
    _save_classifier(tmp_path, tokenizer)
    for options, said in [
        (dict(max_length=257), "max_position_embeddings=256"),
        (dict(max_length=128, buckets=(64,)), "end in max_length=128"),
        (dict(max_length=128, buckets=(128, 64, 128)), "must ascend"),
        (dict(max_length=128, label=1), "it has 1 labels"),
        (dict(max_length=128, mesh={"data": 1000}), "mesh .* takes 1000 devices|do not divide"),
        (dict(max_length=128, batch_size=0), "batch_size=0"),
        (dict(max_length=128, dtype="float8"), "dtype='float8'"),
    ]:
        with pytest.raises(ValueError, match=said):
            build("classifier", **{"path": str(tmp_path), "dtype": "float32", **options})
    tokenizer.add_tokens([f"extra{i}" for i in range(20)])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokenizer has .* vocab_size=304"):
        build("classifier", path=str(tmp_path), max_length=128)
    with pytest.raises(ValueError, match="does not exist"):
        build("classifier", path=str(tmp_path / "nowhere"))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ValueError, match="ForSequenceClassification"):
        build("classifier", path=str(tmp_path))
