"""Sources of prompts: files of every format, labels as they are spelt, chat-format rows."""

from __future__ import annotations

import ast
import contextlib
import csv
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from data_cases import jsonl
from run_cases import ROOT

from alphaalign_jax import config
from alphaalign_jax.cli import main
from alphaalign_jax.data.prompts import Source, read
from alphaalign_jax.data.row import PromptRow
from alphaalign_jax.data.source import as_source
from alphaalign_jax.train import assembly, resumption
from alphaalign_jax.types import BENIGN, HARMFUL

GOOD = {"prompt": "How are you?", "label": "benign"}


def test_jsonl_rows_come_in_order_with_labels_of_any_case(tmp_path):
    """A label read in another case, a BOM, a blank line or U+2028 inside a string shifted or lost rows."""
    path = jsonl(
        tmp_path,
        "\ufeff" + json.dumps(GOOD),
        "",
        {"prompt": "a\u2028b", "label": "HARMFUL", "source": "s", "category": "c", "answer": "x"},
    )
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"prompt": "raw\u2028separator", "label": "Benign", "answer": null}')
    assert read(Source(path)) == [
        PromptRow("How are you?", BENIGN, path),
        PromptRow("a\u2028b", HARMFUL, "s", "c", "x"),
        PromptRow("raw\u2028separator", BENIGN, path),
    ]


@pytest.mark.parametrize(
    "bad, said",
    [
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
        ('{"prompt": "x", "label": "harmful", "label": "benign"}', "'label' is there twice"),
        ("[" * 100_000, "JSON"),
        ('["x", "benign"]', "not an object"),
    ],
)
def test_a_bad_jsonl_row_is_an_error_with_file_line_value_and_expectation(tmp_path, bad, said):
    """A row that could not be read was dropped or trained on with a default label."""
    path = jsonl(tmp_path, GOOD, GOOD, bad)
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
        read(Source(jsonl(tmp_path, "")))
    with pytest.raises(ValueError, match="not a prompt source"):
        read(Source("prompts.txt"))
    with pytest.raises(ValueError, match="kind is 'tsv'"):
        read(Source("prompts.txt", kind="tsv"))


def test_csv_counts_lines_across_quoted_line_ends(tmp_path):
    """Counting records named the wrong line after a prompt that spans two."""
    path = tmp_path / "rows.csv"
    path.write_text('prompt,label\n"two\nlines, one prompt",harmful\nplain,benign\n', "utf-8")
    assert [(row.prompt, row.label) for row in read(Source(str(path)))] == [
        ("two\nlines, one prompt", HARMFUL),
        ("plain", BENIGN),
    ]
    path.write_text('prompt,label\n"two\nlines",harmful\nplain,bening\n', "utf-8")
    with pytest.raises(ValueError, match=r"rows\.csv:4: label is 'bening'; expected"):
        read(Source(str(path)))
    path.write_text('prompt,label\n"two\nlines",harmfull\n', "utf-8")
    with pytest.raises(ValueError, match=r"rows\.csv:2: "):
        read(Source(str(path)))


@pytest.mark.parametrize(
    "text, said",
    [
        ("prompt,label\nhello, world,benign\n", "3 fields; expected 2"),
        ("prompt,label\nhello\n", "1 fields; expected 2"),
        ("prompt,prompt\na,b\n", "repeats a column"),
        ('prompt,label\n"open,benign\n', "CSV"),
    ],
)
def test_a_csv_row_of_the_wrong_width_is_an_error(tmp_path, text, said):
    """An unquoted comma moved half a prompt into the label column, or was dropped silently."""
    path = tmp_path / "rows.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=said):
        read(Source(str(path)))


def test_parquet_rows_and_their_errors(tmp_path):
    """Parquet nulls came through as None and reached the tokenizer."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = str(tmp_path / "rows.parquet")
    parquet.write_table(pyarrow.table({"q": ["a", "b"], "label": ["benign", "harmful"]}), path)
    assert [(row.prompt, row.label) for row in read(Source(path, prompt_key="q"))] == [("a", BENIGN), ("b", HARMFUL)]
    parquet.write_table(pyarrow.table({"prompt": ["a", None], "label": ["benign", "harmful"]}), path)
    with pytest.raises(ValueError, match=r"rows\.parquet: row 2: prompt is None; expected text"):
        read(Source(path))
    Path(path).write_bytes(b"not parquet")
    with pytest.raises(ValueError, match="not a readable parquet"):
        read(Source(path))


def _bad_text(pyarrow):
    """A string column of two rows, the second of which is not UTF-8."""
    return pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(np.int32([0, 1, 3]).tobytes()), pyarrow.py_buffer(b"a\xff\xfe")]
    )


def test_parquet_columns_that_are_not_used_do_not_matter(tmp_path):
    """A date out of range or an unknown time zone in another column ended in a traceback, or refused the whole file."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = str(tmp_path / "rows.parquet")
    late, nowhere = pyarrow.timestamp("us"), pyarrow.timestamp("us", tz="Mars/Olympus")
    columns = {
        "prompt": ["a", "b"],
        "label": ["benign", "harmful"],
        "late": pyarrow.array([1, 2**60], late),
        "nowhere": pyarrow.array([1, 2], nowhere),
        "raw": _bad_text(pyarrow),
        "raw ": [1, 2],
        "raw  ": [1, 2],
        "source": pyarrow.array([1, 2**60], late),  # read only if it is text
        "answer": pyarrow.array([1, 2**60], late),  # read only if answers are
        "messages": pyarrow.array([1, 2**60], late),  # read only without a prompt
        "prompt.raw": pyarrow.array([1, 2**60], late),
    }
    table = pyarrow.Table.from_arrays(
        [pyarrow.array(values) for values in columns.values()], names=[name.rstrip() for name in columns]
    )
    parquet.write_table(table, path)
    assert [(row.prompt, row.label) for row in read(Source(path), answers=False)] == [("a", BENIGN), ("b", HARMFUL)]
    with pytest.raises(ValueError, match=r"rows\.parquet: row 2: the column 'answer' cannot be read \(OverflowError"):
        read(Source(path))
    with pytest.raises(ValueError, match=r"rows\.parquet: row 2: the column 'late' cannot be read"):
        read(Source(path, where=(("late", "x"),)), answers=False)


@pytest.mark.parametrize(
    "name, says",
    [("prompt", "row 2: the column 'prompt' cannot be read .UnicodeDecode"), ("label", "repeats a column, 'label'")],
)
def test_parquet_columns_that_are_used_are_named_when_they_cannot_be(tmp_path, name, says):
    """Of two columns of one name the last was taken without a word; bad UTF-8 was a message without file and row."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = str(tmp_path / "rows.parquet")
    prompts = _bad_text(pyarrow) if name == "prompt" else pyarrow.array(["a", "b"])
    labels = [pyarrow.array(["benign"] * 2)] * (2 if name == "label" else 1)
    names = ["prompt", *["label"] * len(labels)]
    parquet.write_table(pyarrow.Table.from_arrays([prompts, *labels], names=names), path)
    with pytest.raises(ValueError, match=rf"rows\.parquet: .*{says}"):
        read(Source(path))


def test_csv_names_the_line_that_is_not_utf8_and_takes_blank_lines(tmp_path):
    """Text is decoded in blocks, so the line of a bad byte was "or below"; a blank line shifted all places after it."""
    path = tmp_path / "rows.csv"
    path.write_bytes(b"prompt,label,,\n" + b"a,benign,,\n" * 3 + b"caf\xe9,benign,,\n")
    with pytest.raises(ValueError, match=r"rows\.csv:5: is not UTF-8 CSV"):
        read(Source(str(path)))
    path.write_bytes(b"prompt,label,,\r\n\r\na,benign,,\r\n\r\nb,bening,,\r\n")
    with pytest.raises(ValueError, match=r"rows\.csv:5: label is 'bening'"):
        read(Source(str(path)))


def test_an_answer_that_is_no_text_matters_only_where_answers_do(tmp_path, capsys):
    """A column of numbers named ``answer`` refused a file in commands that read no answers."""
    path = jsonl(tmp_path, GOOD | {"answer": 42})
    assert [row.answer for row in read(Source(path), answers=False)] == [""]
    with pytest.raises(ValueError, match="rows.jsonl:1: answer is 42; expected text"):
        read(Source(path))
    assert main(["data", "audit", f"--data={path}", f"--heldout={path}", f"--out={tmp_path}/audit.json"]) == 0
    for command in (["evaluate", f"--data={path}"], ["generate", f"--prompts={path}"]):
        # They read the prompts first, and then want the model.
        assert main([*command, "--model=no/such/model/here", f"--out={tmp_path}/out.json"]) == 2
        assert "no/such/model/here" in capsys.readouterr().err
    for epochs, refused in ((0.0, False), (1.0, True)):
        tiny = config.load(str(ROOT / "configs/tiny.py"), [("data.train", path), ("data.heldout", path)])
        tiny = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, validation=0.0))
        tiny = dataclasses.replace(tiny, warmup=dataclasses.replace(tiny.warmup, epochs=epochs))
        tiny = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, path="a/model"))
        with pytest.raises(ValueError, match="answer is 42") if refused else contextlib.nullcontext():
            assembly.read_rows(tiny)


def test_hub_data_sets_are_read_by_name_and_split(tmp_path, monkeypatch):
    """The hub path was never run; ``datasets`` resolves org/name to a local folder, so it can be without a network."""
    pytest.importorskip("datasets")
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    jsonl(
        folder,
        {"instruction": "keep", "context": "", "safe": 0},
        {"instruction": "skip", "context": "text", "safe": 0},
        {"instruction": "bad", "context": "", "safe": 1},
        name="test.jsonl",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    source = Source(
        "org/name",
        split="test",
        prompt_key="instruction",
        label_key="safe",
        where=(("context", ""),),
        label_map=(("0", "benign"), ("1", "harmful")),
    )
    assert [(row.prompt, row.label) for row in read(source)] == [("keep", BENIGN), ("bad", HARMFUL)]
    with pytest.raises(ValueError, match=r"split 'train', could not be loaded"):
        read(Source("org/name", split="train"))


def test_fixed_label_label_map_and_where(tmp_path):
    """``where`` on a missing column kept everything; a value outside the label map fell through to a default."""
    path = jsonl(tmp_path, {"prompt": "a", "label": "Safe"}, {"prompt": "b", "label": "unsafe"})
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
    assert [row.label for row in read(Source(path, label_map=dict(labels)))] == [BENIGN, HARMFUL]
    assert [row.prompt for row in read(Source(path, label="benign", where={"label": "Safe"}))] == ["a"]


@pytest.mark.parametrize(
    "preset, harmful, benign",
    [
        ("safe_unsafe", ["unsafe", "Unsafe", "toxic", "harmful"], ["safe", "SAFE", "unharmful", "benign"]),
        ("true_is_harmful", [1, True, 1.0, "1", "true", "1.0", "Yes"], [0, False, 0.0, "0", "False", "0.0", "no"]),
        ("true_is_safe", [0, False, 0.0, "0", "false", "0.0", "No"], [1, True, 1.0, "1", "True", "1.0", "yes"]),
    ],
)
def test_presets_know_the_usual_labels(tmp_path, preset, harmful, benign):
    """1/0, true/false, yes/no and safe/unsafe had to be mapped by hand, by a setting that no message named.

    Two presets for 1 and true: ``toxicity`` and ``is_safe`` mean opposite things by them.
    """
    path = jsonl(tmp_path, *({"prompt": "p", "label": label} for label in [*harmful, *benign]))
    found = [row.label for row in read(Source(path, label_map=preset))]
    assert found == [HARMFUL] * len(harmful) + [BENIGN] * len(benign)


@pytest.mark.parametrize("label", ["unsafe", 1, True, "0", "yes", 1.0, "jailbreak!"])
def test_the_message_for_an_unknown_label_has_an_example_that_works(tmp_path, label):
    """The error named two labels and no way out; an example of another field, or of other labels, is none either."""
    path = jsonl(tmp_path, {"prompt": "p", "label": label})
    with pytest.raises(ValueError, match="label_map") as error:
        read(Source(path))
    entry = ast.literal_eval(re.search(r"label_map: (\{.*\}) in a config", str(error.value))[1])
    assert [row.label for row in read(as_source(entry))] in ([HARMFUL], [BENIGN])
    option = re.search(r"--label_map=(\w+)", str(error.value))[1]
    option = option if option != "with" else json.dumps(entry["label_map"])
    command = ["data", "audit", f"--data={path}", f"--out={tmp_path}/audit.json"]
    assert main([*command, f"--label_map={option}"]) == 0 and main(command) == 2


def test_every_field_of_a_source_has_an_example_of_its_own():
    """All fields but one were refused with an example of ``where``."""
    examples = {
        field.name: re.search("expected (.*)", str(_refusal(**{field.name: [object()]})))[1]
        for field in dataclasses.fields(Source)
    }
    alike = {name for name, text in examples.items() if list(examples.values()).count(text) > 1}
    assert not alike and "is_safe" in examples["label_key"] and "'unsafe': 'harmful'" in examples["label_map"]


def test_a_resumed_run_knows_its_label_map_again():
    """JSON has no keys but texts: the checkpoint's map would differ from that of the same config."""
    entry = {"path": "a.csv", "label_map": {1: "harmful", 0.0: "benign"}, "where": (("split", "train"),)}
    assert resumption.plain(entry) == json.loads(json.dumps(resumption.plain(entry)))


def _refusal(**fields):
    with pytest.raises(ValueError) as error:
        Source(**{"path": "a.csv"} | fields)
    return error.value


# --- chat-format rows ------------------------------------------------------------------------------------------------

SYSTEM, ASKED, SAID = (
    {"role": role, "content": text} for role, text in (("system", "Be brief."), ("user", "Why?"), ("assistant", "So."))
)
MORE = {"role": "user", "content": "How so?"}
TRANSCRIPT = "User: Why?\n\nAssistant: So.\n\nUser: How so?"


@pytest.mark.parametrize(
    "turns, prompt, context, question",
    [
        ([ASKED], "Why?", [], "Why?"),
        ([SYSTEM, ASKED], "Why?", [SYSTEM], "Why?"),
        ([SYSTEM, ASKED, SAID, MORE], "How so?", [SYSTEM, ASKED, SAID], TRANSCRIPT),
        ([{"from": "human", "value": "Why?"}], "Why?", [], "Why?"),
        ([{"role": "user", "content": [{"type": "text", "text": "Why?"}]}], "Why?", [], "Why?"),
    ],
)
def test_chat_format_rows_of_every_kind_of_file(tmp_path, turns, prompt, context, question):
    """``messages``, or a prompt that is a list of turns, was refused: most public sets have nothing else."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    names = ("messages", "prompt")
    paths = [jsonl(tmp_path, {name: turns, "label": "benign"}, name=f"{name}.jsonl") for name in names]
    paths += [str(tmp_path / "rows.parquet"), str(tmp_path / "rows.csv")]
    parquet.write_table(pyarrow.table({"messages": [turns], "label": ["benign"]}), paths[2])
    with open(paths[3], "w", newline="") as file:
        csv.writer(file).writerows([["messages", "label"], [json.dumps(turns), "benign"]])
    for path in paths:
        [row] = read(Source(path))
        assert row.prompt == prompt and row.question == question, path
        assert row.to_json() == {"prompt": prompt} | ({"context": context} if context else {})


def test_the_assistants_last_turn_answers_benign_questions_only(tmp_path):
    """Red-teaming conversations end in harmful content, which the warm-up would have taught as an answer."""
    turns = [ASKED, SAID]
    path = jsonl(tmp_path, *({"messages": turns, "label": label} for label in ("benign", "harmful")))
    assert [row.answer for row in read(Source(path))] == ["So.", ""]
    assert [row.answer for row in read(Source(path), answers=False)] == ["", ""]


@pytest.mark.parametrize(
    "turns, says",
    [
        ([], "turns are \\[\\]; expected a list"),
        ([SYSTEM], "the last turn before the answer is of system"),
        ([SAID], "the last turn before the answer is of the assistant"),
        ([ASKED, SAID, SAID], "the last turn before the answer is of assistant"),
        ([ASKED, SYSTEM, MORE], "turn 2: a system turn after others"),
        ([{"role": "tool", "content": "x"}, ASKED], "turn 1: role is 'tool'; expected one of system, user, assistant"),
        ([ASKED, SAID | {"tool_calls": [{"id": 1}]}, MORE], "turn 2 has tool_calls"),
        ([{"role": "user"}], "turn 1 is .*; expected a role and a content"),
        ([{"role": "user", "content": None}], "turn 1: content is None; expected text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "turn 1: content is .*; expected text"),
        ([{"role": "user", "content": " "}], "turn 1: content is blank"),
        ("Why?", "messages: 'Why\\?' is not JSON"),
        ({"role": "user"}, "messages is {'role': 'user'}; expected text, or a list of turns"),
    ],
)
def test_chat_format_rows_that_are_none_are_refused_with_their_place(tmp_path, turns, says):
    """A turn that is dropped or misread makes another prompt than the file's."""
    path = jsonl(tmp_path, {"messages": [ASKED], "label": "benign"}, {"messages": turns, "label": "benign"})
    with pytest.raises(ValueError, match=f"rows.jsonl:2: {'messages: ' * (says[0] == 't')}{says}"):
        read(Source(path))
