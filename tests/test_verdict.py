"""The verdict that a reasoning states."""

import pytest

from alphaalign_jax.data.row import PromptRow
from alphaalign_jax.data.warmup import response_text
from alphaalign_jax.data.wording import REFUSAL
from alphaalign_jax.evaluation import outcome
from alphaalign_jax.evaluation.respond import Response
from alphaalign_jax.evaluation.verdict import states_unsafe
from alphaalign_jax.types import BENIGN, HARMFUL


@pytest.mark.parametrize(
    ("text", "unsafe"),
    [
        ("So it is unsafe.", True),
        ("That is not safe.", True),
        ("This is not harmful at all.", False),
        ("It sounds harmful. In this sense it is harmless.", False),
        ("It is never really safe.", True),
        ("A safety question about safes.", None),
        ("", None),
    ],
)
def test_the_last_verdict_counts_and_negations_turn_it(text, unsafe):
    """The words "not safe" read as safe, and "safety" as a verdict."""
    assert states_unsafe(text) is unsafe


def test_decisions_that_follow_the_reasoning_are_counted():
    """A refusal after "it is safe" follows nothing; a response out of format, or without a verdict, is not counted."""

    def response(reason: str, answer: str, form: bool = True) -> Response:
        return Response(response_text(reason, answer), [1], [0.0], "stop", form, answer == REFUSAL)

    responses = [
        response("It is unsafe.", REFUSAL),
        response("It is safe.", REFUSAL),
        response("It is safe.", "Like this."),
        response("It is unsafe.", "Like this.", form=False),
        response("I cannot tell.", "Like this."),
    ]
    rows = [PromptRow(f"q{i}", HARMFUL if i < 2 else BENIGN, "s") for i in range(5)]
    found = outcome.count(rows, responses)
    assert (found.verdict_count, found.verdict_followed_count) == (3, 2)
    assert outcome.with_intervals(found.to_json())["verdict_followed"] == pytest.approx(2 / 3)
