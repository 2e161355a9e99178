"""What a reward model reads: the answer's text, with nothing of the policy's own markup in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from alphaalign_jax.data.wording import TAG_TEXTS


def remove_literals(text: str, literals: Iterable[str]) -> str:
    """``text`` without any of ``literals``.

    Repeats until nothing is left to remove, because a removal can join its neighbours into a new literal:

        In:  "<|im_<|im_end|>end|>"   literals ("<|im_end|>",)
        Out: ""
    """
    wanted = sorted({literal for literal in literals if literal}, key=len, reverse=True)
    if not wanted:
        return text
    pattern = re.compile("|".join(map(re.escape, wanted)))
    while True:
        text, count = pattern.subn("", text)
        if not count:
            return text


def clean_answer(answer_bytes: bytes, special_texts: Sequence[str]) -> str:
    """The answer block's bytes as the text a reward model should read.

    Args:
        answer_bytes: the bytes between ``<answer>`` and ``</answer>``; need not be valid UTF-8.
        special_texts: literal texts of the policy's special tokens; longest match is removed first.

    Returns:
        Decoded text (bytes that are not UTF-8 become U+FFFD) without special-token literals and tags, stripped.
    """
    # Tags whichever block they were found in: a nested or stray one is no part of an answer.
    return remove_literals(answer_bytes.decode("utf-8", errors="replace"), (*special_texts, *TAG_TEXTS)).strip()
