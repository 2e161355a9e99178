"""Warm-up texts: they teach the format, at one rate of refusals for both labels."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from data_cases import REFUSALS, jsonl
from run_cases import ROOT

from alphaalign_jax import config as config_lib
from alphaalign_jax.data import demo, warmup
from alphaalign_jax.data.row import PromptRow
from alphaalign_jax.train import assembly
from alphaalign_jax.types import BENIGN, HARMFUL

STRICT = re.compile(r"\s*<safety_reasoning>(.+?)</safety_reasoning>\s*<answer>(.+?)</answer>\s*", re.DOTALL)


def _decisions(examples):
    return np.array([warmup.REFUSAL in text for _, text in examples])


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1.0])
def test_warmup_refuses_both_labels_at_the_same_rate(rate):
    """A warm-up that refuses harmful prompts more often has already taught what RL is to be measured by."""
    rows = demo.rows("train")
    refused = _decisions(warmup.warmup_examples(rows, seed=1, refusal_rate=rate))
    for label in (BENIGN, HARMFUL):
        members = np.array([row.label == label for row in rows])
        assert abs(refused[members].sum() - rate * members.sum()) < 1


def test_every_batch_has_its_share_of_refusals():
    """Sixteen coins a batch leave a warm-up of twenty batches anywhere between never and always refusing."""
    rows = [PromptRow(f"p{i}", (BENIGN, HARMFUL)[i % 16 < 7]) for i in range(16)]
    refused = np.array([_decisions(warmup.warmup_examples(rows, seed=(3, i), refusal_rate=0.4)) for i in range(2000)])
    harmful = np.array([row.label == HARMFUL for row in rows])
    assert set(refused.sum(1)) == {6, 7} and set(refused[:, harmful].sum(1)) == {2, 3}
    assert np.abs(refused.mean(0) - 0.4).max() < 5 * np.sqrt(0.24 / 2000), "every row is as likely as any other"


def test_warmup_decision_does_not_depend_on_content():
    """Decisions drawn from the text (a hash of it, its category, whether it has an answer) leak the label back in."""
    rows = demo.rows("train")
    scrambled = [PromptRow(f"p{i}", row.label) for i, row in enumerate(rows)]
    examples = warmup.warmup_examples(rows, seed=5)
    assert np.array_equal(_decisions(examples), _decisions(warmup.warmup_examples(scrambled, seed=5)))
    assert [row for row, _ in examples] == list(rows) and examples == warmup.warmup_examples(rows, seed=5)
    assert not np.array_equal(_decisions(examples), _decisions(warmup.warmup_examples(rows, seed=6)))
    with pytest.raises(ValueError, match="refusal_rate is 30"):
        warmup.warmup_examples(rows, seed=0, refusal_rate=30)


def test_warmup_texts_keep_the_format_and_do_as_they_say():
    """A verdict that contradicts its answer, or an answer that the refusal verifier reads the other way."""
    for row, text in warmup.warmup_examples(demo.rows("train"), seed=2):
        reason, answer = STRICT.fullmatch(text).groups()
        refuse = answer == warmup.REFUSAL
        assert reason == (warmup.REFUSE_VERDICT if refuse else warmup.COMPLY_VERDICT)
        assert bool(REFUSALS.search(answer)) == refuse
        assert refuse or answer == row.answer or (not row.answer and answer in warmup.GENERAL_ANSWERS)


def test_warmup_replaces_answers_that_would_break_the_format_or_refuse():
    """A brought answer with a tag in it gives two answer blocks; one that refuses is labelled as complying."""
    rows = [
        PromptRow("a", BENIGN, answer="see <answer>x</answer>"),
        PromptRow("b", BENIGN, answer="I cannot say."),
        PromptRow("c", BENIGN, answer=" fine "),
    ]
    texts = [text for _, text in warmup.warmup_examples(rows, 0, 0.0, lambda answer: bool(REFUSALS.search(answer)))]
    answers = [STRICT.fullmatch(text).group(2) for text in texts]
    assert answers[0] in warmup.GENERAL_ANSWERS and answers[1] in warmup.GENERAL_ANSWERS and answers[2] == "fine"


def test_an_answer_that_spells_a_control_token_is_refused(tmp_path):
    """The warm-up would have taught to end the turn and write the user's next one; of a prompt it was refused.

    Where nothing is learned from answers, what one holds does not matter.
    """
    rows = [{"prompt": "How do I bake?", "label": label} for label in ("benign", "harmful")]
    good = jsonl(tmp_path, *rows, name="good.jsonl")
    bad = jsonl(tmp_path, rows[0], rows[1] | {"answer": "Mix flour.<|im_end|>"}, name="bad.jsonl")
    settings = [("data.train", bad), ("data.heldout", good), ("mesh.devices", "1"), ("out", str(tmp_path / "run"))]
    settings += [("warmup.epochs", "1"), ("data.validation", "0"), ("guards.rollbacks", "0")]
    config = config_lib.load(str(ROOT / "configs/tiny.py"), settings)
    with pytest.raises(ValueError, match=r"bad.jsonl:2: .*its response holds '<\|im_end\|>', a control token"):
        assembly.prepare(config)
    assembly.prepare(dataclasses.replace(config, warmup=dataclasses.replace(config.warmup, epochs=0.0)))
