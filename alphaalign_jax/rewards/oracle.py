"""The verifiers again, on the host, from Python's ``re`` on bytes.

Written apart from the automata so that each can witness against the other, and used wherever the host needs the text of
a block: the reward model reads ``answer_block``. Exact on any bytes, valid UTF-8 or not.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Sequence

from alphaalign_jax.rewards.patterns import PAPER_PATTERNS
from alphaalign_jax.types import Finish

FORMAT_MODES = ("strict", "paper")

_PAPER = re.compile(rb"<safety_reasoning>.*</safety_reasoning>.*<answer>.*</answer>", re.DOTALL)
_TEXT = rb"((?:(?!</?safety_reasoning>|</?answer>).)*)"  # anything that holds none of the four tags
_STRICT = re.compile(
    rb"\s*<safety_reasoning>" + _TEXT + rb"</safety_reasoning>\s*<answer>" + _TEXT + rb"</answer>\s*", re.DOTALL
)
_ANSWER = re.compile(rb"<answer>(.*?)</answer>", re.DOTALL)
_INK = re.compile(rb"\S")  # on bytes: anything but the six ASCII white-space characters


def response_bytes(
    token_ids: Sequence[int], length: int, finish: int, token_bytes: Sequence[bytes], stop_ids: Collection[int]
) -> bytes:
    """The bytes of one response.

    Args:
        token_ids: the row's slots, at least ``length`` of them; the rest is not read.
        length: real slots, the stop token included.
        finish: a ``Finish``.
        token_bytes: id -> bytes. Ids outside it have none.
        stop_ids: a stop id gives no bytes where it ended the response (last slot, ``Finish.STOP``); anywhere else it is
            a token like any other and gives its literal text.
    """
    ids = [int(token) for token in token_ids[:length]]
    if ids and finish == Finish.STOP and ids[-1] in stop_ids:
        ids.pop()
    return b"".join(token_bytes[i] for i in ids if 0 <= i < len(token_bytes))


def format_oracle(text: bytes, stopped: bool, mode: str = "strict") -> bool:
    """V_f of a response's bytes. ``stopped``: its finish is ``Finish.STOP``; only ``strict`` asks for it."""
    if mode not in FORMAT_MODES:
        raise ValueError(f"format_mode={mode!r}; valid: {', '.join(FORMAT_MODES)}")
    if mode == "paper":
        return _PAPER.search(text) is not None
    match = _STRICT.fullmatch(text)
    return bool(stopped and match and all(_INK.search(block) for block in match.groups()))


def refusal_oracle(text: bytes, patterns: Sequence[str] = PAPER_PATTERNS) -> bool:
    """V_r of a response's bytes: a refusal phrase in its answer block, apostrophes straight or curly."""
    block = answer_block(text)
    return block is not None and _any_phrase(tuple(patterns)).search(block) is not None


def answered_oracle(text: bytes) -> bool:
    """Is there an answer to score: an answer block with more than white space in it?"""
    return _INK.search(answer_block(text) or b"") is not None


def answer_block(text: bytes) -> bytes | None:
    """Between the first ``<answer>`` and the first ``</answer>`` after it; None when missing or unclosed."""
    match = _ANSWER.search(text)
    return match[1] if match else None


@functools.lru_cache
def _any_phrase(patterns: tuple[str, ...]) -> re.Pattern[bytes]:
    apostrophe = b"(?:'|\xe2\x80\x99)"
    phrases = [apostrophe.join(re.escape(part.encode()) for part in re.split("['\u2019]", p)) for p in patterns]
    return re.compile(b"|".join(phrases) if phrases else b"(?!)")  # no phrases: match nothing, not everything
