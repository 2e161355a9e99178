"""Waiting for a reward model with all processes of a run: they go on, or stop, together."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from alphaalign_jax.parallel import processes
from alphaalign_jax.rewards.reward_model.protocol import AsyncScorer, RewardModelError, ScoreFuture

log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0  # between looks at a request to end
_SLOW_SECONDS = 10  # of the first answer, after which the wait is logged
QUESTION = "How long does it take to boil an egg?"
ANSWER = "About eight minutes in boiling water; take it out earlier if the yolk should stay soft."


def await_scores(future: ScoreFuture, look: Callable[[], None] = lambda: None) -> np.ndarray:
    """Return this process's scores, float32 [n], once all processes have theirs.

    ``look`` is called about once a second, on all processes alike, and may raise.
    Raises RewardModelError on all processes if one failed: the others would wait for its rows for ever.
    """
    error, scores = None, None
    while not processes.gather_rows(np.asarray(future.wait(_LOOK_SECONDS))).all():
        look()
    try:
        scores = future.result()
    except RewardModelError as failed:
        error = failed
    failures = np.flatnonzero(processes.gather_rows(np.asarray(error is not None)))
    if len(failures):
        raise error or RewardModelError(f"the reward model failed on process {failures[0]}, whose log has the reason")
    return scores


def probe(scorer: AsyncScorer, look: Callable[[], None] = lambda: None) -> None:
    """Have an innocuous question and answer scored, on each process.

    Finds a reward model that is broken or cannot be reached before a run does anything else; otherwise that shows in
    the first step that has an answer to score, which may be after hours or never. A server that is starting is waited
    for as in a step. A row that cannot be scored is only logged: the model may know other questions.

    Raises RewardModelError, on all processes, if the model fails.
    """
    waited = 0

    def waiting() -> None:
        nonlocal waited
        waited += 1
        if waited == _SLOW_SECONDS:
            log.warning("the reward model has not answered a first question in %d s; waiting", waited)
        look()

    try:
        scores = await_scores(scorer.submit([QUESTION], [ANSWER]), waiting)
    except RewardModelError as error:
        raise RewardModelError(
            f"{error} (asked before anything else, with the question {QUESTION!r}; the score of a row that cannot be "
            "scored is NaN, None or null)"
        ) from error
    if not np.isfinite(scores).all():
        log.warning("the reward model could not score the question %r, which it is tried with", QUESTION)
