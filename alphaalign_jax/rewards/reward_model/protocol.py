"""The reward-model protocol, the check every backend's scores go through, and the wrapper that keeps scoring off the
training loop's critical path.

A reward model is a host call: texts in, one float32 a row out. NaN says "this row could not be scored": it is counted,
and a row whose reward needs its score is masked. A call that fails as a whole raises ``RewardModelError``. The two are
never mixed: a failed call summed as 0 looks exactly like a policy that is not helpful, and trains as one.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from alphaalign_jax.config.checks import CHOICES
from alphaalign_jax.errors import ExpectedError
from alphaalign_jax.ops import precision_of

# What a reward model may compute its scores in (reward_model.dtype): how exact they are.
DTYPES = CHOICES["reward_model.dtype"]


class RewardModelError(ExpectedError):
    """A scoring call failed as a whole. The training loop saves and stops; it never trains on invented scores."""


@runtime_checkable
class RewardModel(Protocol):
    """What every backend offers.

    A backend that runs on the same devices as training may also have
    ``dispatch(questions, answers) -> Callable[[], scores]``: it launches its device work at once and returns the
    function that waits for it. ``AsyncScorer`` then launches on the caller's thread, so that all device programs are
    enqueued by one thread, in one order (two threads that enqueue collectives in different orders can deadlock).

    One whose scores depend on files may have ``identity: str``, which tells them from others at the same place: a run
    does not go on with another reward model than it had.
    """

    def score(self, questions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Bare questions and clean answers, n of each, to float32 [n]; NaN where a row could not be scored.

        Raises:
            RewardModelError: the call as a whole failed.
        """
        ...

    def close(self) -> None:
        """Free threads and connections. Calling it twice is fine."""
        ...


def checked_texts(questions: Sequence[str], answers: Sequence[str]) -> tuple[list[str], list[str]]:
    """Copies of both lists; ValueError unless they are equally long sequences of ``str``."""
    for name, texts in (("questions", questions), ("answers", answers)):
        if isinstance(texts, (str, bytes)):
            raise ValueError(f"{name} must be a sequence of str, got one {type(texts).__name__}; wrap it in a list")
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"{name}[{i}] must be str, got {type(text).__name__}: {text!r:.80}")
    if len(questions) != len(answers):
        raise ValueError(f"got {len(questions)} questions and {len(answers)} answers; a row is one of each")
    return list(questions), list(answers)


def check_precision(found: str, dtype: str, source: str) -> None:
    """Raise RewardModelError if scores of type ``found`` are less exact than ``dtype``, which the config has."""
    if precision_of(found) > precision_of(dtype):
        raise RewardModelError(
            f"{source} scores in {found}, and reward_model.dtype={dtype}: its rounding would pass for preferences; set "
            f"--config.reward_model.dtype={found}"
        )


def checked_scores(values: Any, n: int, source: str = "the reward model", dtype: str | None = None) -> np.ndarray:
    """Return what a backend returned as float32 [n].

    None is NaN: could not score. So are infinite values, and those that overflow float32: they cannot be normalised
    within a group. Integers and every floating dtype (bfloat16 too) are taken; booleans, strings and other objects are
    not.

    Raises:
        RewardModelError: a wrong count, a wrong rank, values that are not numbers, or an array of a type that is less
            exact than ``dtype`` (None: any will do).
    """
    try:
        array = _with_nan(np.asarray(values))
    except (ValueError, TypeError, RuntimeError) as error:
        kind = type(values).__name__
        raise RewardModelError(f"{source} returned a {kind} that is no array of numbers: {error}") from error
    wanted = f"expected {n} floats, one a row, as a list or an array of shape ({n},)"
    if array.ndim != 1:
        raise RewardModelError(f"{source} returned shape {array.shape} (from {type(values).__name__}); {wanted}")
    if array.shape[0] != n:
        raise RewardModelError(f"{source} returned {array.shape[0]} scores for {n} rows; {wanted}")
    # jax.dtypes knows bfloat16 as a float, NumPy's own table does not. An empty list is float64 and passes.
    if not (jax.dtypes.issubdtype(array.dtype, np.floating) or jax.dtypes.issubdtype(array.dtype, np.integer)):
        shown = array[:3].tolist()
        raise RewardModelError(f"{source} returned dtype {array.dtype} (first values {shown!r:.120}); {wanted}")
    if dtype is not None and jax.dtypes.issubdtype(array.dtype, np.floating):
        check_precision(array.dtype, dtype, source)
    with np.errstate(over="ignore"):
        scores = array.astype(np.float32)
    scores[~np.isfinite(scores)] = np.nan
    return scores


def _with_nan(array: np.ndarray) -> np.ndarray:
    """Numbers with NaN in the place of None; anything else as it is."""
    if array.dtype != object or array.ndim != 1 or any(isinstance(value, (bool, np.bool_)) for value in array):
        return array
    return np.asarray([float("nan") if value is None else value for value in array])


class ScoreFuture:
    """Scores on their way. ``result()`` waits; ``seconds`` is what the scoring itself took, waiting excluded."""

    def __init__(self, future: Future):
        self._future = future

    def done(self) -> bool:
        return self._future.done()

    def wait(self, seconds: float) -> bool:
        """Whether it is done, after ``seconds`` at most."""
        return bool(wait([self._future], seconds).done)

    def result(self, timeout: float | None = None) -> np.ndarray:
        """float32 [n], checked. Raises what scoring raised, or TimeoutError after ``timeout`` seconds."""
        return self._future.result(timeout)[0]

    @property
    def seconds(self) -> float:
        """Wall seconds between start and end of the scoring call; waits for it."""
        return self._future.result()[1]


def _fail(error: RewardModelError) -> Any:
    raise error


class AsyncScorer:
    """Runs a reward model beside the device: submit, dispatch what does not need the scores, then ask for the result.

    One worker thread: calls are scored in the order they were submitted, and a backend needs no locks. A backend that
    wants several requests in flight (HTTP) splits one call itself. Texts are copied and checked at ``submit``.

    The thread is a daemon, unlike an executor's: a function that takes an hour must not hold up the end of a run that
    was asked to end.
    """

    CLOSE_SECONDS = 5.0  # for a call that runs: a device is soon done

    def __init__(self, model: RewardModel):
        if not callable(getattr(model, "score", None)):
            raise ValueError(f"a reward model needs score(questions, answers); {type(model).__name__} has none")
        self._model = model
        self._calls: queue.SimpleQueue[tuple[Future, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="reward-model", daemon=True)
        self._thread.start()

    @property
    def identity(self) -> str:
        """The model's own; empty where it has none."""
        return getattr(self._model, "identity", "")

    def submit(self, questions: Sequence[str], answers: Sequence[str]) -> ScoreFuture:
        """Starts scoring n rows and returns at once. Raises ValueError for texts that do not pair up."""
        questions, answers = checked_texts(questions, answers)
        source = type(self._model).__name__
        if not questions:  # a batch without an answer: models need not know what to do with no rows
            return self._enqueue(lambda: (np.zeros(0, np.float32), 0.0))
        begun = time.perf_counter()
        launch = getattr(self._model, "dispatch", None)
        try:
            finish = launch(questions, answers) if launch is not None else None
        except RewardModelError as error:  # told where all processes look for it: one alone would wait for the others
            return self._enqueue(functools.partial(_fail, error))

        def call() -> tuple[np.ndarray, float]:
            start = begun if finish is not None else time.perf_counter()
            values = finish() if finish is not None else self._model.score(questions, answers)
            return checked_scores(values, len(questions), source), time.perf_counter() - start

        return self._enqueue(call)

    def score(self, questions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Submit and wait: float32 [n]."""
        return self.submit(questions, answers).result()

    def close(self) -> None:
        """Drops calls that have not begun, closes the model, and waits a little for the one that runs."""
        with contextlib.suppress(queue.Empty):
            while True:
                waiting = self._calls.get_nowait()
                if waiting is not None:
                    waiting[0].cancel()
        self._calls.put(None)
        close = getattr(self._model, "close", None)
        if close is not None:
            close()
        self._thread.join(self.CLOSE_SECONDS)

    def _enqueue(self, call: Callable[[], tuple[np.ndarray, float]]) -> ScoreFuture:
        future: Future = Future()
        self._calls.put((future, call))
        return ScoreFuture(future)

    def _work(self) -> None:
        for future, call in iter(self._calls.get, None):
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)

    def __enter__(self) -> AsyncScorer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
