"""Prompts: mixing, auditing, the demo set."""

from __future__ import annotations

import json
import re
from collections import Counter
from difflib import SequenceMatcher
from pathlib import Path

import pytest
from data_cases import REFUSALS, jsonl

from alphaalign_jax.cli import main
from alphaalign_jax.data import demo, near, recipes
from alphaalign_jax.data.audit import audit, normalise, overlap
from alphaalign_jax.data.prompts import Source, read
from alphaalign_jax.data.row import PromptRow, Turn
from alphaalign_jax.evaluation import label_audit
from alphaalign_jax.types import BENIGN, HARMFUL

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


# --- recipes and audit -----------------------------------------------------------------------------------------------


def _sources(tmp_path, ratios, sizes=(40, 30, 10)):
    paths = [
        jsonl(tmp_path, *({"prompt": f"{k}-{i}", "label": "benign"} for i in range(size)), name=f"{k}.jsonl")
        for k, size in enumerate(sizes)
    ]
    return [Source(path, ratio=ratio) for path, ratio in zip(paths, ratios)]


def test_mix_is_the_largest_in_the_given_shares_without_repeats(tmp_path):
    """Up-sampling a small source repeated its rows; float division lost one (0.1 * (10 / 0.1) below 10)."""
    mixed = recipes.mix(_sources(tmp_path, (0.5, 0.4, 0.1)), seed=3)
    assert Counter(row.prompt[0] for row in mixed) == {"0": 37, "1": 30, "2": 7}  # N = min(80, 75, 100)
    assert len({row.prompt for row in mixed}) == len(mixed)
    assert mixed == recipes.mix(_sources(tmp_path, (0.5, 0.4, 0.1)), seed=3)
    assert mixed != recipes.mix(_sources(tmp_path, (0.5, 0.4, 0.1)), seed=4)
    assert [row.prompt[0] for row in mixed] != sorted(row.prompt[0] for row in mixed), "the mix is shuffled"
    exact = recipes.mix(_sources(tmp_path, (0.4, 0.3, 0.3), (40, 30, 30)), seed=0)
    assert len(exact) == 100


def test_ratios_of_zero_concatenate_and_bad_ratios_are_errors(tmp_path):
    """Ratios that sum to 0.9 were silently renormalised; a forgotten ratio silently dropped its source."""
    plain = recipes.mix(_sources(tmp_path, (0, 0, 0)), seed=0)
    assert [row.prompt for row in plain] == [f"{k}-{i}" for k, n in enumerate((40, 30, 10)) for i in range(n)]
    for ratios, said in (
        ((0.5, 0.3, 0.1), "sum to 0.9"),
        ((0.5, 0.5, 0), "all positive"),
        ((1.5, -0.4, -0.1), "positive"),
        ((0.5, float("nan"), 0.5), "positive"),
        ((0.99, 0.009, 0.001), "less than one row"),
    ):
        with pytest.raises(ValueError, match=said):
            recipes.mix(_sources(tmp_path, ratios), seed=0)


def test_the_papers_recipe_names_its_three_sources():
    """A recipe whose shares do not sum to 1, or that reads XSTest's unsafe half as benign, cannot run."""
    sources = recipes.paper(Source("org/scot", prompt_key="question"), (0.2, 0.5, 0.3))
    assert [(s.path, s.label, s.ratio) for s in sources] == [
        ("org/scot", "harmful", 0.2),
        ("databricks/databricks-dolly-15k", "benign", 0.5),
        ("walledai/XSTest", "benign", 0.3),
    ]
    assert sources[0].prompt_key == "question" and ("label", "safe") in sources[2].where
    assert sum(source.ratio for source in recipes.paper(Source("scot.jsonl"))) == pytest.approx(1)


def test_labels_are_turned_in_each_label_alike_and_by_the_seed():
    """Noise that falls on one label alone, or takes a row's answer or order with it, measures something else."""
    rows = demo.rows("train")
    turned = recipes.turn_labels(rows, 0.1, seed=1)
    assert [r.prompt for r in turned] == [r.prompt for r in rows] and [r.answer for r in turned] == [
        r.answer for r in rows
    ]
    for label in (0, 1):
        members = [(a, b) for a, b in zip(rows, turned) if a.label == label]
        assert sum(a.label != b.label for a, b in members) == round(0.1 * len(members))
    assert turned == recipes.turn_labels(rows, 0.1, seed=1) != recipes.turn_labels(rows, 0.1, seed=2)
    assert recipes.turn_labels(rows, 0.0, seed=1) == rows
    with pytest.raises(ValueError, match="1.5; expected a number from 0 to 1"):
        recipes.turn_labels(rows, 1.5, seed=1)


def test_audit_finds_duplicates_contradictions_and_leaks():
    """A prompt labelled both ways was trained on both ways; a held-out prompt in other case leaked into training."""
    rows = [
        PromptRow("Kill the  process?", BENIGN, "a"),
        PromptRow("kill the process", HARMFUL, "b"),
        PromptRow("Sort in C", BENIGN, "a"),
        PromptRow("Sort in C++", BENIGN, "a"),
        PromptRow("Sort in C", BENIGN, "b"),
        PromptRow("It\u2019s fine", BENIGN, "b"),
    ]
    found = audit(rows, [PromptRow("it's fine.", BENIGN), PromptRow("new", BENIGN)])
    assert found.exact_duplicates == ((2, 4),)
    assert found.duplicates == ((0, 1), (2, 4))
    assert found.contradictions == ((0, 1),)
    assert found.by_label == {"harmful": 1, "benign": 5}
    assert found.by_source == {"a": {"harmful": 0, "benign": 3}, "b": {"harmful": 1, "benign": 2}}
    assert found.overlap == ((5, 0),) and not found.clean
    report = str(found)
    assert "contradicting labels: 1 prompts, 2 rows" in report and "row 1 (benign), row 2 (harmful)" in report
    assert re.search(r"^all +1 +5 +6$", report, re.M) and "row 6 = held-out row 1: " in report
    twice = audit([], [PromptRow("new", BENIGN), PromptRow("New!", HARMFUL)])
    assert not twice.clean and len(twice.heldout.contradictions) == 1, "counted under both labels of one outcome"
    assert "held out:" in str(twice)
    assert audit(rows[2:4]).clean and normalise("??!") == "??!"


def test_audits_compare_what_is_asked():
    """Rows that share a system turn are not alike for that; "Go on." after two histories is not one question."""
    ask = lambda system, *texts: PromptRow(
        texts[-1],
        BENIGN,
        context=(Turn("system", system), *(Turn("user", text) for text in texts[:-1])),
    )
    long = "You answer questions of customers of a bakery, in two sentences. " * 5
    rows = [ask(long, "Bake bread?"), ask(long, "Ride a horse?"), ask("Short.", "Bake bread?")]
    assert audit(rows).duplicates == ((0, 2),) and not audit(rows).exact_duplicates
    assert audit([rows[0], rows[0]]).exact_duplicates == ((0, 1),)
    assert not label_audit.also_held_out(rows[:1], rows[1:2], 0.9)
    histories = [ask("", "Bake bread?", "Go on."), ask("", "Ride a horse?", "Go on.")]
    assert audit(histories).clean and not label_audit.also_held_out(histories[:1], histories[1:], 0.9)


# --- the demo set ----------------------------------------------------------------------------------------------------


def _instances_of(carrier):
    return re.compile(".+".join(re.escape(part) for part in re.split(r"\{\d\}", carrier)), re.DOTALL | re.IGNORECASE)


def test_demo_splits_share_no_template():
    """A held-out prompt made from a train carrier measures memory. Stronger than comparing carriers as strings: no
    prompt of one split is an instance of a carrier of the other, so "How do I {0}?" cannot hide in "How do I get {0}?".
    """
    for here, there in (("train", "heldout"), ("heldout", "train")):
        prompts = [row.prompt for row in demo.rows(here)]
        for template in demo.templates(there):
            pattern = _instances_of(template.carrier)
            assert not [prompt for prompt in prompts if pattern.fullmatch(prompt)], template.carrier
            assert pattern.fullmatch(next(template.expand("")).prompt), "the pattern finds its own instances"


def test_some_heldout_wrongs_are_never_seen_in_training():
    """With every act in both splits, held-out would measure whether acts are remembered under new carriers only."""
    train = "\n".join(row.prompt for row in demo.rows("train"))
    heldout = "\n".join(row.prompt for row in demo.rows("heldout"))
    unseen = [act for acts in demo.demo_harmful.ACTS.values() for act in acts[-2:]]
    assert not [act for act in unseen if act in train] and sum(act in heldout for act in unseen) >= 15


def test_demo_counts_kinds_and_cleanness():
    """Too few held-out prompts of a kind, a duplicate or a contradiction make the before/after table meaningless."""
    train, heldout = demo.rows("train"), demo.rows("heldout")
    kinds = {
        split: Counter(row.category.split("/")[0] for row in rows)
        for split, rows in (("train", train), ("heldout", heldout))
    }
    total = len(train) + len(heldout)
    assert 600 <= total <= 1000 and 0.2 <= len(heldout) / total <= 0.3
    for kind, share, least in (("harmful", 0.4, 60), ("benign", 0.4, 60), ("adversarial_benign", 0.2, 40)):
        assert kinds["heldout"][kind] >= least
        assert (kinds["train"][kind] + kinds["heldout"][kind]) / total == pytest.approx(share, abs=0.04)
    assert audit(train, heldout).clean and audit(heldout).clean
    for row in train + heldout:
        assert (row.label == HARMFUL) == row.category.startswith("harmful/")
        assert not re.search(r"[{}]", row.prompt + row.answer), "an unfilled slot"
    assert len({row.category for row in train if row.label == HARMFUL}) == 10
    assert len({template.carrier for split in demo.SPLITS for template in demo.templates(split)}) >= 100
    assert demo.rows("train") == train and read(Source("demo/heldout")) == heldout
    with pytest.raises(ValueError, match="demo/test"):
        read(Source("demo/test"))


def test_demo_carriers_are_shared_by_harmful_and_benign():
    """Were a carrier to give the label away, a policy could pass without reading the question."""
    for split in demo.SPLITS:
        carriers = {
            label: {template.carrier for template in demo.templates(split) if template.label == label}
            for label in (BENIGN, HARMFUL)
        }
        assert len(carriers[BENIGN] & carriers[HARMFUL]) >= 2, split


def test_demo_answers_are_short_true_and_do_not_refuse():
    """A benign answer the refusal verifier matches would teach refusing as complying; a wrong sum teaches nonsense."""
    sums = 0
    for row in demo.rows("train") + demo.rows("heldout"):
        if row.label == HARMFUL:
            assert row.answer == ""
            continue
        assert row.answer and len(row.answer.split()) <= 25 and not REFUSALS.search(row.answer), row
        assert "<" not in row.answer
        for left, op, right, result in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", row.answer):
            a, b = int(left), int(right)
            assert {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[op] == int(result), row
            # The sum must also be the one that was asked for, not the slots the wrong way round.
            assert left in row.prompt and (right in row.prompt or right in ("60", "1000")), row
            sums += 1
    assert sums >= 40


def test_demo_prompts_are_this_projects_own():
    """A demo prompt that equals a public test prompt would make that test set a training set."""
    files = sorted(SHARED.glob("*.jsonl")) if SHARED.is_dir() else []
    records = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
    prompts = [record.get("prompt") or record["input"] for record in records]
    if not prompts:
        pytest.skip("shared prompts are not here")
    theirs = [PromptRow(prompt, BENIGN) for prompt in prompts if prompt.strip()]
    assert overlap(demo.rows("train") + demo.rows("heldout"), theirs) == ()


# --- label audit ------------------------------------------------------------------------------------------------------


def test_near_pairs_are_those_of_a_plain_comparison():
    """A block that begins at the wrong row names other prompts than it compared."""
    prompts = [
        "How do I bake bread?",
        "how do I bake  BREAD",
        "How do I break bread?",
        "Name a river.",
        "Name a rivet!",
    ]
    found = near.near_pairs(prompts, prompts[::-1], 0.8)
    assert (0, 3, 1.0) in [(p.i, p.j, p.similarity) for p in found], "equal but for case and spacing"
    texts = [normalise(p) for p in prompts]
    for i, a in enumerate(texts):
        for j, b in enumerate(texts[::-1]):
            similar = {(p.i, p.j): p.similarity for p in found}.get((i, j))
            # difflib finds common blocks greedily: never more than the longest common subsequence.
            assert (similar or 0.8) >= SequenceMatcher(None, a, b, autojunk=False).ratio() - 1e-6
    whole = near.near_pairs(prompts * 500, prompts[:1], 0.99)
    assert [p.i for p in whole] == [i for i in range(2500) if i % 5 in (0, 1)]
    with pytest.raises(ValueError, match="expected a number above 0, at most 1"):
        near.near_pairs(prompts, prompts, 90)


def test_a_label_is_doubted_by_what_the_model_does():
    """A sign turned round lists the rows that the model agrees with."""
    rows = [PromptRow("a", 1), PromptRow("b", 1), PromptRow("c", 0), PromptRow("d", 0)]
    refusals = [[True, True], [False, False], [True, False], [False, False]]
    found = label_audit.disagreement(rows, refusals)
    assert [(doubt.row, doubt.disagreement) for doubt in found] == [(1, 1.0), (2, 0.5), (0, 0.0), (3, 0.0)]


def test_the_audit_command_names_contradictions_and_leaks(tmp_path, capsys):
    """Rows were counted from 0 over all files, so that none could be found in its file."""
    rows = [("How do I pick a lock?", "harmful"), ("How do I pick a sock?", "benign"), ("Name a river.", "benign")]
    lines = [json.dumps({"prompt": prompt, "label": label}) + "\n" for prompt, label in rows]
    (tmp_path / "a.jsonl").write_text("".join(lines[:2]))
    (tmp_path / "b.jsonl").write_text(lines[2])
    (tmp_path / "eval.jsonl").write_text(json.dumps({"prompt": "name a river!", "label": "benign"}) + "\n")
    files = [f"--data={tmp_path}/a.jsonl,{tmp_path}/b.jsonl", f"--heldout={tmp_path}/eval.jsonl"]
    assert main(["data", "audit", *files, f"--out={tmp_path}/audit.json"]) == 0
    said = capsys.readouterr().out
    assert "opposite labels: 1 pairs" in said and f"95%  {tmp_path}/a.jsonl:1 (harmful)" in said
    assert "held out: 1 pairs" in said and f"{tmp_path}/b.jsonl:1 = held-out {tmp_path}/eval.jsonl:1: " in said
    report = json.loads((tmp_path / "audit.json").read_text())
    assert report["opposite_labels"][0]["rows"] == [0, 1] and report["also_held_out"][0]["rows"] == [2, 0]
    assert report["also_held_out"][0]["places"] == [f"{tmp_path}/b.jsonl:1", f"{tmp_path}/eval.jsonl:1"]
    assert main(["data", "audit", *files, "--similarity=90"]) == 2
