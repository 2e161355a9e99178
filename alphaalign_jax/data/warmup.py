"""Texts for the supervised warm-up, which teaches small models the output format and nothing else.

The warm-up must not teach the decision. RL is measured by whether harmful prompts become refused
and benign ones answered. If the warm-up texts already refused the harmful prompts, the curve would
credit RL with the warm-up's work. So each text refuses or complies independently of the label, at
one rate for both labels. After such a warm-up a policy refuses every prompt at about
``refusal_rate``. It samples both decisions for every prompt, as a policy gradient needs in order to
choose between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from alphaalign_jax.data.row import PromptRow
from alphaalign_jax.data.wording import REFUSAL, TAG_TEXTS
from alphaalign_jax.types import BENIGN, HARMFUL

# The verdict follows the question directly, in the template's words ("deemed unsafe", "is safe").
# Measured on SmolLM2-135M-Instruct before any training, the odds of " unsafe" against " safe" at
# this point separate harmful from benign prompts (AUC 0.82 on 96 prompts). After an opening of a
# few neutral words they do not (0.59). A policy warmed up on such an opening decides without
# looking at the prompt, and RL takes long to undo that. There is only one wording, because all
# tokens of a response share one advantage, so that every choice that decides nothing adds noise to
# the policy gradient.
REFUSE_VERDICT = "This question is unsafe, so I decline."
COMPLY_VERDICT = "This question is safe, so I answer."

# Used if a row has no answer of its own. They commit to nothing, so that a response to a harmful
# prompt never gets content from them.
GENERAL_ANSWERS = (
    "That depends on the situation.",
    "People see this in different ways.",
    "There is a lot to say here.",
    "Opinions on this vary a lot.",
    "This topic has several sides.",
    "It helps to begin with the basics.",
    "This is a wide subject.",
    "Many people have asked about this.",
)


def warmup_examples(
    rows: Sequence[PromptRow],
    seed: int | Sequence[int],
    refusal_rate: float = 0.3,
    is_refusal: Callable[[str], bool] | None = None,
    thoughts: Sequence[str] = (),
) -> list[tuple[PromptRow, str]]:
    """Return one response for every row, in row order:

        <safety_reasoning>THOUGHT VERDICT</safety_reasoning>
        <answer>ANSWER</answer>

    Within each label, n * refusal_rate of its n rows, drawn by the seed, are refusals. This number
    is rounded up or down at random, so that its expectation is exact. The two labels round in
    opposite directions, so that a batch's refusals are within one of their expectation.

    ANSWER is ``REFUSAL`` in a refusal. Otherwise it is the row's own answer, or a sentence from
    ``GENERAL_ANSWERS`` if the row has no answer, or one that contains the format's tags or that
    ``is_refusal`` calls a refusal. (A "complying" text that matches the refusal verifier would
    teach the wrong word for the verdict.)

    Args:
      rows: any prompts.
      seed: >= 0, or several such numbers; the result is a pure function of the arguments.
      refusal_rate: in [0, 1].
      is_refusal: the refusal verifier for host text, for answers that this project did not write.
      thoughts: text of each row's reasoning before its verdict; empty: the reasoning is the
        verdict.
    """
    if not 0 <= refusal_rate <= 1:
        raise ValueError(f"refusal_rate is {refusal_rate}; expected a number from 0 to 1")
    rng = np.random.default_rng(seed)
    refuse = np.zeros(len(rows), bool)
    chance = rng.random()
    for label, up in ((BENIGN, chance), (HARMFUL, 1.0 - chance)):
        members = np.array([i for i, row in enumerate(rows) if row.label == label], np.int64)
        refuse[rng.permutation(members)[: math.floor(refusal_rate * len(members) + up)]] = True
    # Drawn for every row, used or not, so that no draw depends on a decision or on a row's answer.
    general = rng.integers(len(GENERAL_ANSWERS), size=len(rows))
    examples = []
    for i, row in enumerate(rows):
        if refuse[i]:
            verdict, answer = REFUSE_VERDICT, REFUSAL
        else:
            verdict, answer = COMPLY_VERDICT, row.answer.strip()
            if not answer or any(tag in answer for tag in TAG_TEXTS) or (is_refusal is not None and is_refusal(answer)):
                answer = GENERAL_ANSWERS[general[i]]
        reasoning = f"{thoughts[i]} {verdict}" if thoughts else verdict
        examples.append((row, response_text(reasoning, answer)))
    return examples


def response_text(reasoning: str, answer: str) -> str:
    """Return a response in the format that the strict verifier accepts."""
    return f"<safety_reasoning>{reasoning}</safety_reasoning>\n<answer>{answer}</answer>"
