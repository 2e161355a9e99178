"""Rows of many requests, scored together: one call at a time, in the order in which they came."""

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
    """More rows wait than may."""


@dataclasses.dataclass(frozen=True, eq=False)  # two may ask the same
class _Asked:
    questions: list[str]
    answers: list[str]
    scores: asyncio.Future[np.ndarray]


class Pool:
    """Scores requests that come at once in one call, as a device is fast for many rows and no faster for one.

    Belongs to one event loop, which it does not hold up: ``score`` runs in a thread of its own.
    """

    def __init__(self, score: Score, *, rows: int, waiting: int):
        """``rows``: about so many in a call; a request is not divided. ``waiting``: rows that may wait, at most."""
        self._score, self._rows, self._limit = score, rows, waiting
        self._asked: collections.deque[_Asked] = collections.deque()
        self._more = asyncio.Event()
        self.waiting = 0

    async def score(self, questions: list[str], answers: list[str]) -> np.ndarray:
        """float32 [n]. Raises Full, or RewardModelError where the model fails on these rows.

        One who is cancelled leaves the queue; what is being scored is scored to its end.
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
            if asked in self._asked:  # nobody waits for it any more
                self._asked.remove(asked)
                self.waiting -= len(questions)

    async def work(self) -> None:
        """Scores what is asked, until it is cancelled."""
        while True:
            await self._more.wait()
            together = self._next()
            if not together:
                self._more.clear()
                continue
            if not await self._answered(together):
                for asked in together:  # the rows of one must not fail another's
                    if not asked.scores.done():
                        await self._answered([asked])

    def _next(self) -> list[_Asked]:
        """Requests of the next call."""
        together: list[_Asked] = []
        rows = 0
        while self._asked and (not together or rows + len(self._asked[0].questions) <= self._rows):
            asked = self._asked.popleft()
            self.waiting -= len(asked.questions)
            together.append(asked)
            rows += len(asked.questions)
        return together

    async def _answered(self, together: Sequence[_Asked]) -> bool:
        """Scores them in one call. Where that fails, a request that is alone is told so, and of several none is."""
        questions = [text for asked in together for text in asked.questions]
        answers = [text for asked in together for text in asked.answers]
        try:
            scores = await _in_thread(self._score, questions, answers)
        except Exception as error:  # whatever the model raises: the server goes on
            if len(together) == 1:
                known = isinstance(error, RewardModelError)
                failed = error if known else RewardModelError(f"{type(error).__name__}: {error}")
                # What it says may quote the rows: it is told to who sent them.
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
    """In a daemon: an executor's thread would keep a server that was asked to end until a call that hangs is over."""
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
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, *found)

    threading.Thread(target=call, name="scoring", daemon=True).start()
    return await done
