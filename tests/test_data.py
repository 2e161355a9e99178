"""Prompts: reading, mixing, auditing, the demo set, warm-up texts, tokenized batches, order."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from alphaalign_jax.data import demo, recipes, warmup
from alphaalign_jax.data.audit import audit, normalise, overlap
from alphaalign_jax.data.order import PromptOrder
from alphaalign_jax.data.prompts import PromptRow, Source, read
from alphaalign_jax.data.tokenized import PromptSet, build_sets, common_prefix, tokenize_rows
from alphaalign_jax.types import BENIGN, HARMFUL

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
# The paper's list, in Python's own regex: the outside witness for "this text does not refuse".
REFUSALS = re.compile(
    "Sorry, I can't comply|I'm sorry|I am sorry|I apologize|As an AI|As a language model|As an assistant|I cannot"
    "|I can't|I am unable to|I'm unable to|I am not able to|I'm not able to|I will not|I am not"
    "|I'm not going to do that".replace("'", "['\u2019]"))
STRICT = re.compile(r"\s*<safety_reasoning>(.+?)</safety_reasoning>\s*<answer>(.+?)</answer>\s*", re.DOTALL)


# --- reading ---------------------------------------------------------------------------------------------------------

def _jsonl(tmp_path, *lines, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n", "utf-8")
    return str(path)


GOOD = {"prompt": "How are you?", "label": "benign"}


def test_jsonl_rows_come_in_order_with_labels_of_any_case(tmp_path):
    """A label read in another case, a BOM, a blank line or U+2028 inside a string shifted or lost rows."""
    path = _jsonl(tmp_path, "\ufeff" + json.dumps(GOOD), "", {"prompt": "a\u2028b", "label": "HARMFUL", "source": "s",
                                                             "category": "c", "answer": "x"})
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"prompt": "raw\u2028separator", "label": "Benign", "answer": null}')
    assert read(Source(path)) == [PromptRow("How are you?", BENIGN, path),
                                  PromptRow("a\u2028b", HARMFUL, "s", "c", "x"),
                                  PromptRow("raw\u2028separator", BENIGN, path)]


@pytest.mark.parametrize("bad, said", [
    ({"label": "benign"}, "no prompt"),
    ({"prompt": "x"}, "no label"),
    ({"prompt": "x", "label": "unsafe"}, "'unsafe'"),
    ({"prompt": "x", "label": "harmful "}, "'harmful '"),
    ({"prompt": "x", "label": 1}, "label is 1"),
    ({"prompt": "x", "label": True}, "label is True"),
    ({"prompt": "x", "label": None}, "label is None"),
    ({"prompt": 7, "label": "benign"}, "prompt is 7"),
    ({"prompt": None, "label": "benign"}, "prompt is None"),
    ({"prompt": " \n", "label": "benign"}, "blank"),
    ({"prompt": "x", "label": "benign", "answer": 3}, "answer is 3"),
    ('{"prompt": "\\ud800", "label": "benign"}', "surrogate"),
    ('{"prompt": "x", "label": "benign"', "JSON"),
    ("[" * 100_000, "JSON"),
    ('["x", "benign"]', "not an object"),
])
def test_a_bad_jsonl_row_is_an_error_with_file_line_value_and_expectation(tmp_path, bad, said):
    """A row that could not be read was dropped or trained on with a default label."""
    path = _jsonl(tmp_path, GOOD, GOOD, bad)
    with pytest.raises(ValueError, match="expected") as error:
        read(Source(path))
    assert f"{path}:3" in str(error.value) and said in str(error.value)


def test_bytes_that_are_not_utf8_and_missing_and_empty_files_are_value_errors(tmp_path):
    """UnicodeDecodeError and FileNotFoundError reached the user without a line or a hint."""
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "caf\xe9", "label": "benign"}\n')
    with pytest.raises(ValueError, match=r"latin\.jsonl:2.*UTF-8"):
        read(Source(str(path)))
    with pytest.raises(ValueError, match="cannot be opened"):
        read(Source(str(tmp_path / "none.csv")))
    with pytest.raises(ValueError, match="no rows"):
        read(Source(_jsonl(tmp_path, "")))
    with pytest.raises(ValueError, match="not a prompt source"):
        read(Source("prompts.txt"))
    with pytest.raises(ValueError, match="kind is 'tsv'"):
        read(Source("prompts.txt", kind="tsv"))


def test_csv_counts_lines_across_quoted_line_ends(tmp_path):
    """Counting records named the wrong line after a prompt that spans two."""
    path = tmp_path / "rows.csv"
    path.write_text('prompt,label\n"two\nlines, one prompt",harmful\nplain,benign\n', "utf-8")
    assert [(row.prompt, row.label) for row in read(Source(str(path)))] == [
        ("two\nlines, one prompt", HARMFUL), ("plain", BENIGN)]
    path.write_text('prompt,label\n"two\nlines",harmful\nplain,bening\n', "utf-8")
    with pytest.raises(ValueError, match=r"rows\.csv:4: label is 'bening'; expected"):
        read(Source(str(path)))
    path.write_text('prompt,label\n"two\nlines",harmfull\n', "utf-8")
    with pytest.raises(ValueError, match=r"rows\.csv:2: "):
        read(Source(str(path)))


@pytest.mark.parametrize("text, said", [
    ("prompt,label\nhello, world,benign\n", "3 fields; expected 2"),
    ("prompt,label\nhello\n", "1 fields; expected 2"),
    ("prompt,prompt\na,b\n", "repeats a column"),
    ('prompt,label\n"open,benign\n', "CSV"),
])
def test_a_csv_row_of_the_wrong_width_is_an_error(tmp_path, text, said):
    """An unquoted comma moved half a prompt into the label column, or was dropped silently."""
    path = tmp_path / "rows.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=said):
        read(Source(str(path)))


def test_parquet_rows_and_their_errors(tmp_path):
    """Parquet nulls came through as None and reached the tokenizer."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet
    path = str(tmp_path / "rows.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"q": ["a", "b"], "label": ["benign", "harmful"]}), path)
    assert [(row.prompt, row.label) for row in read(Source(path, prompt_key="q"))] == [("a", BENIGN), ("b", HARMFUL)]
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a", None], "label": ["benign", "harmful"]}), path)
    with pytest.raises(ValueError, match=r"rows\.parquet: row 2: prompt is None; expected text"):
        read(Source(path))
    Path(path).write_bytes(b"not parquet")
    with pytest.raises(ValueError, match="not a readable parquet"):
        read(Source(path))


def test_hub_data_sets_are_read_by_name_and_split(tmp_path, monkeypatch):
    """The hub path was never run; ``datasets`` resolves org/name to a local folder, so it can be without a network."""
    pytest.importorskip("datasets")
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    _jsonl(folder, {"instruction": "keep", "context": "", "safe": 0},
           {"instruction": "skip", "context": "text", "safe": 0},
           {"instruction": "bad", "context": "", "safe": 1}, name="test.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    source = Source("org/name", split="test", prompt_key="instruction", label_key="safe", where=(("context", ""),),
                    label_map=(("0", "benign"), ("1", "harmful")))
    assert [(row.prompt, row.label) for row in read(source)] == [("keep", BENIGN), ("bad", HARMFUL)]
    with pytest.raises(ValueError, match=r"split 'train', could not be loaded"):
        read(Source("org/name", split="train"))


def test_fixed_label_label_map_and_where(tmp_path):
    """``where`` on a missing column kept everything; a value outside the label map fell through to a default."""
    path = _jsonl(tmp_path, {"prompt": "a", "label": "Safe"}, {"prompt": "b", "label": "unsafe"})
    labels = (("safe", "benign"), ("unsafe", "harmful"))
    assert [row.label for row in read(Source(path, label_map=labels))] == [BENIGN, HARMFUL]
    assert [row.label for row in read(Source(path, label="harmful"))] == [HARMFUL, HARMFUL]
    assert [row.prompt for row in read(Source(path, label="benign", where=(("label", "Safe"),)))] == ["a"]
    with pytest.raises(ValueError, match=":2: label 'unsafe' is not in label_map"):
        read(Source(path, label_map=labels[:1]))
    with pytest.raises(ValueError, match="no column 'context'"):
        read(Source(path, label="benign", where=(("context", ""),)))
    with pytest.raises(ValueError, match="no rows match where"):
        read(Source(path, label="benign", where=(("label", "x"),)))
    with pytest.raises(ValueError, match="Source.label.*'safe'"):
        read(Source(path, label="safe"))


# --- recipes and audit -----------------------------------------------------------------------------------------------

def _sources(tmp_path, ratios, sizes=(40, 30, 10)):
    paths = [_jsonl(tmp_path, *({"prompt": f"{k}-{i}", "label": "benign"} for i in range(size)), name=f"{k}.jsonl")
             for k, size in enumerate(sizes)]
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
    for ratios, said in (((0.5, 0.3, 0.1), "sum to 0.9"), ((0.5, 0.5, 0), "all positive"),
                         ((1.5, -0.4, -0.1), "positive"), ((0.5, float("nan"), 0.5), "positive"),
                         ((0.99, 0.009, 0.001), "less than one row")):
        with pytest.raises(ValueError, match=said):
            recipes.mix(_sources(tmp_path, ratios), seed=0)


def test_the_papers_recipe_names_its_three_sources():
    """A recipe whose shares do not sum to 1, or that reads XSTest's unsafe half as benign, cannot run."""
    sources = recipes.paper(Source("org/scot", prompt_key="question"), (0.2, 0.5, 0.3))
    assert [(s.path, s.label, s.ratio) for s in sources] == [
        ("org/scot", "harmful", 0.2), ("databricks/databricks-dolly-15k", "benign", 0.5),
        ("walledai/XSTest", "benign", 0.3)]
    assert sources[0].prompt_key == "question" and ("label", "safe") in sources[2].where
    assert sum(source.ratio for source in recipes.PAPER) == pytest.approx(1)


def test_audit_finds_duplicates_contradictions_and_leaks():
    """A prompt labelled both ways was trained on both ways; a held-out prompt in other case leaked into training."""
    rows = [PromptRow("Kill the  process?", BENIGN, "a"), PromptRow("kill the process", HARMFUL, "b"),
            PromptRow("Sort in C", BENIGN, "a"), PromptRow("Sort in C++", BENIGN, "a"),
            PromptRow("Sort in C", BENIGN, "b"), PromptRow("It\u2019s fine", BENIGN, "b")]
    found = audit(rows, [PromptRow("it's fine.", BENIGN), PromptRow("new", BENIGN)])
    assert found.exact_duplicates == ((2, 4),)
    assert found.duplicates == ((0, 1), (2, 4))
    assert found.contradictions == ((0, 1),)
    assert found.by_label == {"harmful": 1, "benign": 5}
    assert found.by_source == {"a": {"harmful": 0, "benign": 3}, "b": {"harmful": 1, "benign": 2}}
    assert found.overlap == ((5, 0),) and not found.clean
    report = str(found)
    assert "contradicting labels: 1 prompts, 2 rows" in report and "0 (benign), 1 (harmful)" in report
    assert re.search(r"^all +1 +5 +6$", report, re.M) and "held-out row 0" in report
    assert audit(rows[2:4]).clean and normalise("??!") == "??!"


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
    kinds = {split: Counter(row.category.split("/")[0] for row in rows) for split, rows in
             (("train", train), ("heldout", heldout))}
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
        carriers = {label: {template.carrier for template in demo.templates(split) if template.label == label}
                    for label in (BENIGN, HARMFUL)}
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
    prompts = [json.loads(line)["prompt"] for file in files for line in file.read_text("utf-8").splitlines()]
    if not prompts:
        pytest.skip("shared prompts are not here")
    theirs = [PromptRow(prompt, BENIGN) for prompt in prompts if prompt.strip()]
    assert overlap(demo.rows("train") + demo.rows("heldout"), theirs) == ()


# --- warm-up ---------------------------------------------------------------------------------------------------------

def _decisions(examples):
    return np.array([warmup.REFUSAL in text for _, text in examples])


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1.0])
def test_warmup_refuses_both_labels_at_the_same_rate(rate):
    """A warm-up that refuses harmful prompts more often has already taught what RL is to be measured by."""
    rows = demo.rows("train")
    refused = _decisions(warmup.warmup_examples(rows, seed=1, refusal_rate=rate))
    for label in (BENIGN, HARMFUL):
        members = np.array([row.label == label for row in rows])
        assert refused[members].sum() == round(rate * members.sum())


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


def test_warmup_texts_keep_the_format_and_say_their_verdict_last():
    """A verdict at the start is sampled before any reasoning; a verdict that contradicts the answer teaches noise."""
    rows = demo.rows("train")
    reasons = {True: Counter(), False: Counter()}
    for row, text in warmup.warmup_examples(rows, seed=2):
        reason, answer = STRICT.fullmatch(text).groups()
        refuse = answer == warmup.REFUSAL
        pool = warmup.REFUSE_VERDICTS if refuse else warmup.COMPLY_VERDICTS
        assert reason.endswith(pool) and reason.startswith(warmup.OPENINGS) and 10 <= len(reason.split()) <= 20
        assert bool(REFUSALS.search(answer)) == refuse
        assert refuse or answer == row.answer or (not row.answer and answer in warmup.GENERAL_ANSWERS)
        reasons[row.label == HARMFUL][next(o for o in warmup.OPENINGS if reason.startswith(o))] += 1
    assert set(reasons[True]) == set(reasons[False]) == set(warmup.OPENINGS), "openings are the same for both labels"
    assert not set(warmup.REFUSE_VERDICTS) & set(warmup.COMPLY_VERDICTS)


def test_warmup_replaces_answers_that_would_break_the_format_or_refuse():
    """A brought answer with a tag in it gives two answer blocks; one that refuses is labelled as complying."""
    rows = [PromptRow("a", BENIGN, answer="see <answer>x</answer>"), PromptRow("b", BENIGN, answer="I cannot say."),
            PromptRow("c", BENIGN, answer=" fine ")]
    texts = [text for _, text in warmup.warmup_examples(rows, 0, 0.0, lambda answer: bool(REFUSALS.search(answer)))]
    answers = [STRICT.fullmatch(text).group(2) for text in texts]
    assert answers[0] in warmup.GENERAL_ANSWERS and answers[1] in warmup.GENERAL_ANSWERS and answers[2] == "fine"


# --- tokenized sets --------------------------------------------------------------------------------------------------

TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


@pytest.fixture(scope="module")
def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    bpe.train_from_iterator([row.prompt for row in demo.rows("train")], tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>")
    made.chat_template = TEMPLATE
    return made


ROWS = [PromptRow("Hi", BENIGN), PromptRow("How do I bake bread in a very small oven?", HARMFUL),
        PromptRow("Höw 你", BENIGN)]


def _instruct(question):
    return f"Think first.\n{question}"


def test_prefix_and_tail_decode_to_the_whole_prompt(tokenizer):
    """A prefix split in text, not in ids, re-tokenized the seam; a missing assistant header trained the wrong turn."""
    made = PromptSet.build(ROWS, tokenizer, _instruct, bucket=8)
    batch = made.batch([2, 0, 2], row=[7, 8, 9])
    assert {x.dtype for x in (batch.prefix, batch.tokens, batch.length, batch.label, batch.row)} == {np.dtype(np.int32)}
    assert batch.tokens.shape[1] == 8 * -(-batch.length.max() // 8) and list(batch.row) == [7, 8, 9]
    assert list(batch.label) == [BENIGN, BENIGN, BENIGN] and list(made.label) == [0, 1, 0]
    for b, i in enumerate((2, 0, 2)):
        ids = np.concatenate([batch.prefix, batch.tokens[b, : batch.length[b]]])
        assert tokenizer.decode(ids) == (f"<|im_start|>user\nThink first.\n{ROWS[i].prompt}<|im_end|>\n"
                                         "<|im_start|>assistant\n")
        assert not batch.tokens[b, batch.length[b]:].any()
    assert tokenizer.decode(batch.prefix).startswith("<|im_start|>user\nThink first.")
    bare = PromptSet.build(ROWS, tokenizer, None)
    assert "Think" not in tokenizer.decode(bare.prefix) and bare.batch([0]).tokens.shape[1] % 32 == 0


def test_slots_are_the_smallest_bucket_that_fits_or_as_given(tokenizer):
    """Padding to the batch's own longest row compiled a program for every length; too few slots cut prompts."""
    made = PromptSet.build(ROWS, tokenizer, None, bucket=4)
    longest = max(len(tail) for tail in made.tails)
    assert made.slots() == 4 * -(-longest // 4) and made.slots([0]) < made.slots()
    assert made.batch([0], slots=made.slots()).tokens.shape == (1, made.slots())
    with pytest.raises(ValueError, match=f"a prompt of {longest} tokens .* does not fit 4 slots"):
        made.batch([0, 1], slots=4)
    for bad in ([3], [-1], [], [[0]], [0.5]):
        with pytest.raises(ValueError, match="indices"):
            made.batch(bad)


def test_train_and_heldout_share_one_prefix(tokenizer):
    """Each set with its own longest prefix: the held-out batches ran with the wrong cached prefix."""
    same_start = [PromptRow("How do I bake?", BENIGN), PromptRow("How do I bake a cake?", BENIGN)]
    alone = PromptSet.build(same_start, tokenizer, _instruct)
    sets = build_sets({"train": same_start, "heldout": ROWS[:1]}, tokenizer, _instruct)
    assert np.array_equal(sets["train"].prefix, sets["heldout"].prefix)
    assert len(sets["train"].prefix) < len(alone.prefix)
    given = PromptSet.build(same_start, tokenizer, _instruct, prefix=sets["train"].prefix)
    assert all(np.array_equal(a, b) for a, b in zip(given.tails, sets["train"].tails))
    with pytest.raises(ValueError, match="does not begin with the given prefix"):
        PromptSet.build(ROWS, tokenizer, _instruct, prefix=alone.prefix)
    whole = tokenize_rows(ROWS[:1], tokenizer, None)[0]
    with pytest.raises(ValueError, match="go on after it"):
        PromptSet.build(ROWS[:1], tokenizer, None, prefix=whole)


def test_common_prefix_leaves_a_token_for_every_row():
    """A single row, or a row that begins another, left an empty tail and no position to sample from."""
    assert common_prefix([[1, 2, 3]]).tolist() == [1, 2]
    assert common_prefix([[1, 2, 3], [1, 2]]).tolist() == [1]
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 9, 0]]).tolist() == [1]
    assert common_prefix([[5], [6, 7]]).tolist() == []
    rng = np.random.default_rng(0)
    for _ in range(300):
        lists = [rng.integers(0, 2, rng.integers(1, 6)).tolist() for _ in range(rng.integers(1, 5))]
        size = max(k for k in range(min(map(len, lists))) if len({tuple(ids[:k]) for ids in lists}) == 1)
        assert common_prefix(lists).tolist() == lists[0][:size]
    for bad in ([], [[1], []]):
        with pytest.raises(ValueError, match="none empty"):
            common_prefix(bad)


def test_long_prompts_are_refused_or_counted_never_cut(tokenizer):
    """Truncation removed the assistant header, so the policy went on with the user's turn."""
    lengths = [len(ids) for ids in tokenize_rows(ROWS, tokenizer, None)]
    limit = lengths[1] - 1
    assert limit >= max(lengths[0], lengths[2])
    with pytest.raises(ValueError, match=f"1 of 3 prompts are longer than max_length {limit}.* {lengths[1]} tokens"):
        PromptSet.build(ROWS, tokenizer, None, max_length=limit)
    made = PromptSet.build(ROWS, tokenizer, None, max_length=limit, on_long="drop")
    assert made.dropped == 1 and made.rows == (ROWS[0], ROWS[2]) and len(made) == 2
    assert PromptSet.build(ROWS, tokenizer, None, max_length=limit + 1).dropped == 0
    with pytest.raises(ValueError, match="at most max_length 3"):
        PromptSet.build(ROWS, tokenizer, None, max_length=3, on_long="drop")
    with pytest.raises(ValueError, match="on_long is 'cut'"):
        PromptSet.build(ROWS, tokenizer, None, on_long="cut")


def test_a_tokenizer_without_chat_template_is_an_error_with_the_fix(tokenizer):
    """A base model's tokenizer failed deep inside jinja."""
    tokenizer.chat_template = None
    try:
        with pytest.raises(ValueError, match="no chat template; use an instruct model"):
            PromptSet.build(ROWS, tokenizer, None)
    finally:
        tokenizer.chat_template = TEMPLATE


# --- order -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n, batch", [(10, 3), (7, 7), (5, 8), (12, 4)])
def test_every_epoch_sees_every_row_once(n, batch):
    """Dropping the last short batch lost the same share of rows every epoch; re-seeding gave equal epochs."""
    order = PromptOrder(n, batch, seed=1, epochs=3)
    assert order.num_steps == -(-3 * n // batch)
    stream = np.concatenate([order.indices(step) for step in range(order.num_steps)])
    epochs = [stream[k * n: (k + 1) * n] for k in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(n))
    assert not np.array_equal(epochs[0], epochs[1])
    for step in (-1, order.num_steps):
        with pytest.raises(ValueError, match=f"step is {step}"):
            order.indices(step)


def test_order_is_a_pure_function_of_seed_and_step():
    """A resumed run that replays the iterator, or meets a changed NumPy generator, would see other rows."""
    labels = np.arange(50) % 3 == 0
    for kwargs in ({}, {"labels": labels.astype(int), "harmful_fraction": 0.5}):
        first, again = PromptOrder(50, 8, 3, **kwargs), PromptOrder(50, 8, 3, **kwargs)
        backwards = {step: again.indices(step) for step in reversed(range(30))}
        assert all(np.array_equal(first.indices(step), backwards[step]) for step in range(30))
        other = PromptOrder(50, 8, 4, **kwargs)
        assert any(not np.array_equal(first.indices(step), other.indices(step)) for step in range(3))
    # Pinned: a change here changes which rows a checkpointed run has already seen.
    assert PromptOrder(6, 6, 0).indices(0).tolist() == [3, 2, 1, 0, 4, 5]
    # The caller may change what it was given without changing a later answer.
    first.indices(0)[:] = 0
    assert np.array_equal(first.indices(0), backwards[0])


@pytest.mark.parametrize("batch, fraction", [(8, 0.5), (8, 0.25), (7, 0.3), (4, 1.0), (4, 0.0)])
def test_balanced_batches_hold_the_asked_share_of_harmful_rows(batch, fraction):
    """Left to chance a batch of 8 with 10 % harmful rows often has none, and its refusal reward no harmful side."""
    labels = np.array([HARMFUL] * 9 + [BENIGN] * 41)
    order = PromptOrder(50, batch, seed=0, labels=labels, harmful_fraction=fraction)
    batches = [order.indices(step) for step in range(60)]
    for indices in batches:
        assert indices.shape == (batch,) and labels[indices].sum() == round(batch * fraction)
    stream = np.concatenate(batches)
    for label in (HARMFUL, BENIGN):
        # Within one label: epoch after epoch, each row once. The order inside a batch is shuffled, so compare counts.
        counts = np.bincount(stream[labels[stream] == label], minlength=50)[labels == label]
        assert counts.max() - counts.min() <= 1
    if 0 < fraction < 1:
        assert len({tuple(labels[indices]) for indices in batches}) > 1, "harmful rows sit in shuffled places"


def test_the_two_labels_are_ordered_independently():
    """One key for both streams put the k-th harmful row beside the k-th benign one in every epoch."""
    order = PromptOrder(20, 2, seed=0, labels=[HARMFUL] * 10 + [BENIGN] * 10, harmful_fraction=0.5)
    pairs = [sorted(order.indices(step)) for step in range(10)]
    assert any(benign - harmful != 10 for harmful, benign in pairs)


def test_orders_that_cannot_be_are_errors():
    """A batch of one at fraction 0.5 rounds to no harmful row for ever."""
    labels = np.array([HARMFUL, BENIGN, BENIGN])
    for kwargs, said in ((dict(batch=1, labels=labels, harmful_fraction=0.5), "leaves a label out"),
                         (dict(batch=2, harmful_fraction=0.5), "no labels"),
                         (dict(batch=2, labels=labels[:2], harmful_fraction=0.5), "shape"),
                         (dict(batch=2, labels=labels * 0, harmful_fraction=0.5), "has none"),
                         (dict(batch=2, labels=labels, harmful_fraction=1.5), "from 0 to 1"),
                         (dict(batch=0), "batch is 0"), (dict(batch=2, seed=-1), "seed is -1"),
                         (dict(batch=2, epochs=0), "epochs is 0")):
        with pytest.raises(ValueError, match=said):
            PromptOrder(3, **{"seed": 0, **kwargs})
