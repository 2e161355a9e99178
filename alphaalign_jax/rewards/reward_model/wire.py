"""The protocol of a reward model behind HTTP, for both of its ends: the client (``http``) and ``serving.endpoint``.

    POST url   {"questions": ["...", ...], "answers": ["...", ...]}
    200        {"scores": [0.7, null, ...], "dtype": "bfloat16"}

One score a row, null = could not score. ``dtype``, which a server may leave out, is what the scores were computed in:
bfloat16, float16 or float32. Any other status is an error; ``worth_another_try`` says which of them may pass.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from alphaalign_jax.rewards.reward_model.protocol import DTYPES, RewardModelError, checked_scores
from alphaalign_jax.text import json_of

# Request Timeout, Too Early, Too Many Requests: the same request, sent again, may well be answered.
_TRANSIENT = frozenset({408, 425, 429})


def worth_another_try(status: int) -> bool:
    """Return whether a request that was answered with ``status`` should be sent again as it is."""
    return status in _TRANSIENT or 500 <= status < 600


def request_body(questions: Sequence[str], answers: Sequence[str]) -> bytes:
    return json.dumps({"questions": list(questions), "answers": list(answers)}).encode()


def reply(scores: Iterable[float], dtype: str) -> dict[str, Any]:
    """Return the body of a 200, ready for JSON, which has no NaN. float32 goes without saying."""
    stated = {} if dtype == "float32" else {"dtype": dtype}
    return {"scores": [float(x) if math.isfinite(x) else None for x in scores], **stated}


def parse_reply(body: bytes, n: int, source: str) -> tuple[np.ndarray, str]:
    """Return the scores, float32 [n] with NaN for null, and their dtype, "" if it is not stated or not known here.

    Raises:
        RewardModelError: anything but the body of a 200 with one score a row.
    """
    try:
        found = json_of(body)
    except (ValueError, RecursionError) as error:
        raise RewardModelError(f"{source}: the response is not JSON: {error}") from error
    values = found.get("scores") if isinstance(found, dict) else None
    if not isinstance(values, list):
        shape = f"keys {sorted(found)[:5]}" if isinstance(found, dict) else type(found).__name__
        raise RewardModelError(f'{source}: expected {{"scores": [...]}}, got {shape}')
    for i, value in enumerate(values):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            # What a server says in place of a number may be the token that it was sent.
            shown = type(value).__name__ if isinstance(value, str) else f"{value!r:.80}"
            raise RewardModelError(f"{source}: scores[{i}] is {shown}, expected a number or null")
    dtype = found.get("dtype")
    scores = checked_scores([_fitting(value) for value in values], n, source)
    return scores, dtype if isinstance(dtype, str) and dtype in DTYPES else ""


def _fitting(value: int | float | None) -> float | None:
    """A JSON integer may not fit any NumPy integer, nor a float."""
    try:
        return None if value is None else float(value)
    except OverflowError:
        return None
