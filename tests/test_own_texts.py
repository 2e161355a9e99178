"""The format warm-up on the model's own texts: which are used, which are dropped, and that no decision is taught."""

import collections
import dataclasses
import json
import pathlib
import re

import pytest

from alphaalign_jax import config as config_lib
from alphaalign_jax.cli import main
from alphaalign_jax.data.warmup import GENERAL_ANSWERS
from alphaalign_jax.data.wording import REFUSAL
from alphaalign_jax.display import Display
from alphaalign_jax.evaluation.diversity import Diversity
from alphaalign_jax.rewards.oracle import format_oracle, refusal_oracle
from alphaalign_jax.rewards.template import INSTRUCTION
from alphaalign_jax.train import assembly, own_texts, warmup
from alphaalign_jax.types import BENIGN, HARMFUL

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = {
    "mesh.devices": "1",
    "warmup.epochs": "0.5",
    "warmup.source": "self",
    "warmup.max_examples": "48",
    "warmup.batch": "8",
    "warmup.thought_tokens": "24",
    "warmup.answer_tokens": "24",
    "eval.batch": "16",
    "reward.helpfulness": "off",
}


@pytest.mark.parametrize(
    ("text", "most", "found"),
    [
        ("The user asks how to bake. It is easy", None, "The user asks how to bake."),
        ("One. Two! Three? Four", 2, "One. Two!"),
        ("It costs 3.50 pounds", None, ""),
        ('He said "stop." And', 1, 'He said "stop."'),
        ("First\nline goes on.\n\nSecond paragraph.", None, "First line goes on."),
    ],
)
def test_whole_sentences(text, most, found):
    """A text that breaks off teaches to break off."""
    assert own_texts.whole_sentences(text, most) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("The user wants to bake bread at home.", ""),
        ("", "without an end"),
        ("The user asks.", "too short"),
        ("The user wants <answer>bread</answer> at home.", "tags"),
        ("The user wants bread.<|im_end|> More of it.", "tags"),
        (INSTRUCTION.partition(" Your safety")[0], "repeats its instruction"),
        ("The writer of this should be named in one sentence.", "repeats its instruction"),
        ("I'm sorry, I cannot help with this.", "refuses"),
    ],
)
def test_texts_that_would_teach_a_wrong_format_are_dropped(text, why):
    fault = own_texts._fault("thought", text, ("<|im_end|>",))
    assert why in fault and bool(fault) == bool(why)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The demo model's own texts to 48 prompts: (config, prepared, arguments of ``material``, material, folder)."""
    home = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("own")
    home.setattr(own_texts, "_CACHE", str(folder / "cache"))
    config = config_lib.load(str(ROOT / "configs/tiny.py"), list(SETTINGS.items()))
    prepared = assembly.prepare(config)
    chosen = warmup.prompts(prepared.train, config)
    arguments = (prepared.policy, prepared.engine, assembly.load_params(prepared), chosen, "weights", folder, Display())
    yield config, prepared, arguments, own_texts.material(config, *arguments), folder
    home.undo()


def test_the_format_is_taught_and_no_decision(made):
    """A refusal rate, a verdict or an answer that follows the label would be RL's work done before it begins."""
    config, prepared, _, material, _ = made
    rows = material.prompts.rows
    assert len(rows) >= 24 and {row.label for row in rows} == {BENIGN, HARMFUL}
    assert not any(row.answer for row in rows if row.label == HARMFUL)
    assert all(row.answer for row in rows if row.label == BENIGN)
    assert len({*material.thoughts}) > len(rows) / 2
    refused = collections.Counter()
    source = material.responses(config)
    for step in range(40):
        for row, thought, text in zip(rows, material.thoughts, source(range(len(rows)), step), strict=True):
            refuses = refusal_oracle(text.encode())
            assert format_oracle(text.encode(), stopped=True) and f"<safety_reasoning>{thought} This" in text
            assert refuses == (REFUSAL in text) == ("unsafe" in text.partition("<answer>")[0].removeprefix(thought))
            if not refuses and row.label == HARMFUL:
                assert any(answer in text for answer in GENERAL_ANSWERS)
            refused[row.label] += refuses
    for label in (BENIGN, HARMFUL):
        share = refused[label] / 40 / sum(row.label == label for row in rows)
        assert abs(share - config.warmup.refusal_rate) < 0.02
    assert material.longest <= warmup.longest(prepared.train, config, prepared.policy) == prepared.warmup_slots


def test_texts_are_made_once(made, monkeypatch):
    """Cached by what made them: other weights or another length make others, another refusal rate does not."""
    config, _, arguments, material, folder = made
    monkeypatch.setattr(own_texts, "respond", lambda *_, **__: pytest.fail("sampled again"))
    rate = dataclasses.replace(config.warmup, refusal_rate=0.1)
    again = own_texts.material(dataclasses.replace(config, warmup=rate), *arguments)
    assert again.thoughts == material.thoughts and again.prompts.rows == material.prompts.rows
    with pytest.raises(pytest.fail.Exception, match="sampled again"):
        own_texts.material(config, *arguments[:4], "other weights", *arguments[5:])
    longer = dataclasses.replace(config, warmup=dataclasses.replace(config.warmup, answer_tokens=25))
    with pytest.raises(pytest.fail.Exception, match="sampled again"):
        own_texts.material(longer, *arguments)
    lines = [json.loads(line) for line in (folder / "warmup.jsonl").read_text().splitlines()]
    assert len(lines) == 48 and sum(not line["dropped"] for line in lines) == len(material.prompts)


def test_too_few_texts_of_use(made, monkeypatch):
    config, _, arguments, *_ = made
    silent = lambda *_: [own_texts.Texts("The user", None if row.label == HARMFUL else "") for row in arguments[3].rows]
    monkeypatch.setattr(own_texts, "_read", silent)
    with pytest.raises(ValueError, match=r"0 of 48 prompts have usable texts \(\{'thought without an end': 48\}\)"):
        own_texts.material(config, *arguments)


def test_the_command(made, tmp_path, monkeypatch, capsys):
    """``sft --self`` trains on them and exports; with --data there would be two sources of texts."""
    settings = [f"--config.{key}={value}" for key, value in SETTINGS.items() if key != "warmup.source"]
    command = ["sft", f"--config={ROOT}/configs/tiny.py", *settings, f"--config.out={tmp_path / 'run'}"]
    assert main([*command, "--self"]) == 0
    assert (tmp_path / "run/warmup.jsonl").is_file() and (tmp_path / "run/export/model.safetensors").is_file()
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(r"\d+ prompts with the model's own texts, see .*warmup.jsonl; dropped: ", shown)
    assert main([*command, "--self", "--data=x.jsonl"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_a_response_that_leaves_no_room_is_refused_before_anything_compiles():
    settings = [*SETTINGS.items(), ("warmup.answer_tokens", "1000")]
    with pytest.raises(ValueError, match=r"answer_tokens=1000 make responses of up to .* max_position_embeddings=1024"):
        assembly.prepare(config_lib.load(str(ROOT / "configs/tiny.py"), settings))


def test_diversity_counts_what_differs():
    form = "<safety_reasoning>{}</safety_reasoning>\n<answer>{}</answer>".format
    quote = "If the question is deemed unsafe, respond like"  # 8 words: 5 stretches of 4
    texts = [(form("One thing.", "Bake it well."), False), (form("one  thing.", "Stir."), False)]
    found = Diversity.of([*texts, (form(quote, REFUSAL), True)]).to_json()
    assert found["distinct_reasonings_count"] == 2 and found["n_reasonings"] == 3
    assert found["distinct_answers"] == 1.0 and found["n_answers"] == 2 and found["answer_words"] == 2.0
    assert found["template_overlap"] == 1.0 and found["reasoning_words"] == pytest.approx(4.0)
    assert Diversity.of([]).to_json()["distinct_answers"] is None
