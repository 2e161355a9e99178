"""Pool of the rows of many requests, scored together: one call at a time, in order of arrival."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence

import numpy as np

from alphaalign_jax.rewards.reward_model.protocol import RewardModelError

log = logging.getLogger(__name__)
Score = Callable[[Sequence[str], Sequence[str]], np.ndarray]  # questions and answers, n each -> float32 [n]


class Full(Exception):
    """The queue has no room for the rows of a request."""


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity: requests may have equal texts
class _Asked:
    questions: list[str]
    answers: list[str]
    scores: asyncio.Future[np.ndarray]


class Pool:
    """Score concurrent requests in one call: a device is fast for many rows and no faster for one.

    A pool belongs to one event loop and does not block it: ``score`` runs in a thread of its own.
    """

    def __init__(self, score: Score, *, rows: int, waiting: int):
        """Create a pool.

        ``rows``: rows per call; a larger request is not split. ``waiting``: maximum queued rows.
        """
        self._score, self._rows, self._limit = score, rows, waiting
        self._asked: collections.deque[_Asked] = collections.deque()
        self._more = asyncio.Event()
        self.waiting = 0

    async def score(self, questions: list[str], answers: list[str]) -> np.ndarray:
        """Return scores, float32 [n]. Raise Full, or RewardModelError if the model fails on them.

        A request that is cancelled leaves the queue. If its rows are being scored already, that
        call runs to its end.
        """
        if self.waiting and self.waiting + len(questions) > self._limit:
            raise Full(f"{self.waiting} rows wait already, {self._limit} may")
        asked = _Asked(questions, answers, asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        self.waiting += len(questions)
        self._more.set()
        try:
            return await asked.scores
        finally:
            if asked in self._asked:  # cancelled while it was queued
                self._asked.remove(asked)
                self.waiting -= len(questions)

    async def work(self) -> None:
        """Score queued requests until cancelled."""
        while True:
            await self._more.wait()
            together = self._next()
            if not together:
                self._more.clear()
                continue
            if not await self._answered(together):
                for asked in together:  # one request's rows must not fail another's
                    if not asked.scores.done():
                        await self._answered([asked])

    def _next(self) -> list[_Asked]:
        """Take the requests of the next call from the queue."""
        together: list[_Asked] = []
        rows = 0
        while self._asked and (not together or rows + len(self._asked[0].questions) <= self._rows):
            asked = self._asked.popleft()
            self.waiting -= len(asked.questions)
            together.append(asked)
            rows += len(asked.questions)
        return together

    async def _answered(self, together: Sequence[_Asked]) -> bool:
        """Score the requests in one call. Return whether each has its result or error.

        On failure a lone request gets the error. For several, return False: the caller retries each
        alone.
        """
        questions = [text for asked in together for text in asked.questions]
        answers = [text for asked in together for text in asked.answers]
        try:
            scores = await _in_thread(self._score, questions, answers)
        except Exception as error:  # the server must survive any error of the model
            if len(together) == 1:
                known = isinstance(error, RewardModelError)
                failed = error if known else RewardModelError(f"{type(error).__name__}: {error}")
                # The error may quote the rows: only its type is logged, the client gets its text.
                log.warning("%d rows could not be scored: %s", len(questions), type(error.__cause__ or error).__name__)
                if not together[0].scores.done():
                    together[0].scores.set_exception(failed)
            return len(together) == 1
        ends = np.cumsum([len(asked.questions) for asked in together])
        for asked, part in zip(together, np.split(scores, ends[:-1]), strict=True):
            if not asked.scores.done():
                asked.scores.set_result(part)
        return True


async def _in_thread(score: Score, questions: list[str], answers: list[str]) -> np.ndarray:
    """Call ``score`` in a daemon thread.

    An executor's thread would keep a server from exiting until a call that hangs has returned.
    """
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def tell(result: np.ndarray | None, error: BaseException | None) -> None:
        if not done.cancelled():
            done.set_result(result) if error is None else done.set_exception(error)

    def call() -> None:
        found = None, None
        try:
            found = score(questions, answers), None
        except BaseException as error:
            found = None, error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is waiting
            loop.call_soon_threadsafe(tell, *found)

    threading.Thread(target=call, name="scoring", daemon=True).start()
    return await done
