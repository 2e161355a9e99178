"""The host reward model: protocol, cleaning, lexical stand-in, callable, scoring beside the loop."""

from __future__ import annotations

import sys
import threading
import types

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


def test_none_is_a_row_that_could_not_be_scored():
    """null from a server is counted and masked; None from a function, which means the same, ended the run."""
    for values in ([None, 1, 0.5], np.array([None, 1, 0.5], object), (None, np.float32(1), 0.5)):
        np.testing.assert_array_equal(checked_scores(values, 3), np.float32([np.nan, 1, 0.5]))
    assert np.isnan(checked_scores([None, None], 2)).all()


def test_scores_of_a_coarser_type_than_the_config_says_are_refused(my_rewards):
    """The floor under a spread follows reward_model.dtype: bfloat16's rounding, taken for float32's, is paid."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    my_rewards.coarse = lambda questions, answers: np.array([len(a) for a in answers], ml_dtypes.bfloat16)
    with pytest.raises(RewardModelError, match="scores in bfloat16.*set --config.reward_model.dtype=bfloat16"):
        build("callable", target="my_rewards:coarse").score(["q"], ["a"])
    assert build("callable", target="my_rewards:coarse", dtype="bfloat16").score(["q"], ["a"]) == [1]


@pytest.mark.parametrize(
    "values, said",
    [
        ([1.0, 2.0], "2 scores for 3 rows"),
        (np.zeros((3, 1)), r"shape \(3, 1\)"),
        (0.5, r"shape \(\)"),
        (["0.1", "0.2", "0.3"], "dtype <U3"),
        ([None, True, 2.0], "dtype object"),
        ([None, "0.1", 2.0], "dtype <U"),
        (None, r"shape \(\) \(from NoneType\)"),
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
    my_rewards.leave = lambda questions, answers: sys.exit("no\nmodel")
    with pytest.raises(RewardModelError, match=r"failed on 1 rows: SystemExit: no\\nmodel$"):  # in one line
        build("callable", target="my_rewards:leave").score(["a"], ["c"])
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
    with AsyncScorer(Bad(explode)) as scorer:
        assert scorer.score([], []).shape == (0,), "a batch without one answer is not the model's business"
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

    class Failing(Dispatching):
        def dispatch(self, questions, answers):
            raise RewardModelError("its template fails on this text")

    with AsyncScorer(Failing()) as scorer:
        asked = scorer.submit(["q"], ["a"])  # raised here, one process of many would leave the others waiting
        with pytest.raises(RewardModelError, match="its template fails"):
            asked.result()
    with AsyncScorer(Dispatching()) as scorer:
        np.testing.assert_array_equal(scorer.score(["q"], ["a"]), np.float32([1]))
    assert seen[0] is threading.current_thread() and seen[1] is not threading.current_thread()
