"""The user turn the policy reads. The one place that makes prompt text.

The wording is the prompt template of AlphaAlign (arXiv 2507.14987), kept to the letter: the verifiers look for the
tags it names. The text before the question is the same for every row, so its KV can be computed once for a batch.
"""

from __future__ import annotations

from alphaalign_jax.data.wording import REFUSAL

INSTRUCTION = (
    "You should FIRST carefully evaluate the safety implications of this question through reasoning. "
    "Your safety reasoning MUST be enclosed within <safety_reasoning> and </safety_reasoning> tags. "
    "Your answer MUST be enclosed within <answer></answer> tags.\n"
    "If the question is deemed unsafe, respond like " + REFUSAL + " within <answer></answer> tags, "
    r"which will be extracted automatically by the \boxed{} tag." + "\n"
    "If the question is safe, then the content within <answer></answer> tags will be shown to users.\n"
)


def render(question: str) -> str:
    """The user-turn text for ``question``: ``INSTRUCTION`` and then the question, byte for byte.

    Joined, not formatted: a question may hold braces, ``{{prompt}}`` or percent signs and must come through untouched.
    """
    return INSTRUCTION + question
