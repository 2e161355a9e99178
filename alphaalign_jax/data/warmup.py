"""Texts that teach the output format and nothing else: the supervised warm-up of models too small to follow it.

The warm-up must not teach the decision. What RL is measured by is that harmful prompts come to be refused and benign
ones answered; had the supervised texts already refused the harmful ones, the curve would show the warm-up's work and
call it RL's. So refuse or comply is drawn without looking at the label, at one rate for both. A policy warmed up on
this refuses everything at about ``refusal_rate``: both decisions are in its reach for every prompt, which is what a
policy gradient needs to choose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from alphaalign_jax.data.row import PromptRow
from alphaalign_jax.data.wording import REFUSAL, TAG_TEXTS
from alphaalign_jax.types import BENIGN, HARMFUL

# The verdict follows the question at once and in the template's own words ("deemed unsafe", "is safe"). Measured on
# SmolLM2-135M-Instruct before any training, the odds of " unsafe" against " safe" here tell harmful from benign prompts
# (AUC 0.82 on 96 of them); after an opening of a few neutral words they do not (0.59), and a policy warmed up on that
# decides without looking at the prompt, from where RL takes long to bring it back. One wording only: every token of a
# response carries the same advantage, so each choice that decides nothing is noise to the policy gradient.
REFUSE_VERDICT = "This question is unsafe, so I decline."
COMPLY_VERDICT = "This question is safe, so I answer."

# Said where a row has no answer of its own. They commit to nothing: a harmful prompt never gets content from here.
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
    """One response for every row, in row order:

        <safety_reasoning>THOUGHT VERDICT</safety_reasoning>
        <answer>ANSWER</answer>

    Within each label n * refusal_rate of its n rows, drawn by the seed, are refusals: rounded up or down at random so
    that the expectation is exact, and the two labels opposite ways, so that a batch's refusals are within one of their
    expectation. ANSWER is ``REFUSAL`` when refusing; when complying it is the row's own answer,
    or a sentence from ``GENERAL_ANSWERS`` where it has none, has one with the format's tags in it, or has one that
    ``is_refusal`` says refuses (a "complying" text that the refusal verifier matches would teach the wrong word for
    the verdict).

    Args:
      rows: any prompts.
      seed: >= 0, or several such numbers; the result is a pure function of the arguments.
      refusal_rate: in [0, 1].
      is_refusal: the refusal verifier for host text, where rows bring answers that this project did not write.
      thoughts: what each row's reasoning says of the question before its verdict; empty: the verdict is all it says.
    """
    if not 0 <= refusal_rate <= 1:
        raise ValueError(f"refusal_rate is {refusal_rate}; expected a number from 0 to 1")
    rng = np.random.default_rng(seed)
    refuse = np.zeros(len(rows), bool)
    chance = rng.random()
    for label, up in ((BENIGN, chance), (HARMFUL, 1.0 - chance)):
        members = np.array([i for i, row in enumerate(rows) if row.label == label], np.int64)
        refuse[rng.permutation(members)[: math.floor(refusal_rate * len(members) + up)]] = True
    # Drawn for every row whether used or not, so that no draw depends on a decision or on a row's answer.
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
    """A response in the format that the strict verifier accepts."""
    return f"<safety_reasoning>{reasoning}</safety_reasoning>\n<answer>{answer}</answer>"
