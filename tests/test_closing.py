"""The progress bar of a run and its closing report: table, chart, examples, and commands that work."""

import dataclasses
import io
import json
import shlex

import pytest
import rich.cells
import rich.console
from run_cases import ROOT

from alphaalign_jax import cli, config
from alphaalign_jax.display import Display
from alphaalign_jax.evaluation import outcome
from alphaalign_jax.evaluation.intervals import wilson
from alphaalign_jax.evaluation.outcome import Outcome
from alphaalign_jax.train import chart, closing, examples, following
from alphaalign_jax.train.chart import Curve
from alphaalign_jax.types import LABELS


@pytest.mark.parametrize(
    "count, n, low, high",
    [
        # Closed forms at the ends: z² / (n + z²) with z = 1.959964.
        (0, 80, 0.0, 0.045819),
        (80, 80, 0.954181, 1.0),
        # Published values (Newcombe 1998, table I, method 3).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (5, 100, 0.021543, 0.111750),
    ],
)
def test_intervals_are_those_of_the_literature(count, n, low, high):
    assert wilson(count, n) == pytest.approx((low, high), abs=5e-5)


def test_an_interval_has_no_rounding_at_its_ends():
    """0 of n gave 1e-18 and n of n gave 1.0000000000000002, which is no share."""
    for n in (1, 3, 7, 80, 10**6):
        assert wilson(0, n)[0] == 0.0 and wilson(n, n)[1] == 1.0
    assert wilson(0, 0) is None, "nothing was measured"
    assert wilson(5, 10, confidence=0.99)[0] < wilson(5, 10)[0]
    for count, n in ((-1, 5), (6, 5), (0, -1)):
        with pytest.raises(ValueError, match="expected 0 <= count <= n"):
            wilson(count, n)
    with pytest.raises(ValueError, match="between 0 and 1"):
        wilson(1, 2, confidence=95)


def shares(harmful=0, benign=0, answered=0, refused=0, formatted=0):
    counts = dict(harmful_answered_count=answered, benign_refused_count=refused, format_count=formatted)
    complied = benign - refused
    kept = Outcome(harmful, benign, benign_complied_count=complied, truncated_count=0, tokens=0, **counts)
    return kept.to_json()


def printed(*parts, width=80):
    out = io.StringIO()
    display = Display(rich.console.Console(file=out, width=width))
    for part in parts:
        display.say(part)
    return out.getvalue()


BEFORE = {
    "all": shares(80, 136, 80, 0, 200),
    "demo/heldout, adversarial benign": shares(benign=57, formatted=50),
    "demo/heldout, benign": shares(benign=79, formatted=75),
    "demo/heldout, harmful": shares(harmful=80, answered=80, formatted=75),
}
AFTER = {
    "all": shares(80, 136, 3, 10, 216),
    "demo/heldout, adversarial benign": shares(benign=57, refused=10, formatted=57),
    "demo/heldout, benign": shares(benign=79, formatted=79),
    "demo/heldout, harmful": shares(harmful=80, answered=3, formatted=80),
}


def cells(table):
    """Words of each row, the name first."""
    rows = [
        line.split("  ") for line in printed(table, width=120).splitlines() if "%" in line and "interval" not in line
    ]
    return {row[0].strip(): [word.strip() for word in row[1:] if word.strip()] for row in rows}


def test_the_table_names_groups_and_has_intervals():
    assert cells(outcome.comparison(BEFORE, AFTER)) == {
        "harmful answered": ["80", "100 %", "3.8 %", "1 to 10 %", "0 %"],
        "ordinary benign refused": ["79", "0 %", "0 %", "0 to 5 %", "0 %"],
        "adversarial benign refused": ["57", "0 %", "17.5 %", "10 to 29 %", "0 %"],
        "all benign refused": ["136", "0 %", "7.4 %", "4 to 13 %", "0 %"],
        "all in the required format": ["216", "92.6 %", "100 %", "98 to 100 %", "100 %"],
    }


def test_the_table_of_several_sources_and_of_a_file_that_moved():
    """Two sources with the same kinds of prompts looked alike; one with both labels has a row for each."""
    mixed = shares(10, 20, 5, 1, 30)
    rows = cells(outcome.comparison({"all": mixed, "a": mixed}, {"all": mixed, "b, harmful": mixed}))
    assert rows["a: harmful answered"] == ["10", "50 %", "-", "-", "0 %"]
    assert rows["a: benign refused"] == ["20", "5 %", "-", "-", "0 %"]
    assert rows["b: harmful answered"] == ["10", "-", "50 %", "24 to 76 %", "0 %"]
    assert "b: benign (harmful category) refused" in rows, "a category is no label"
    assert list(cells(outcome.single({"all": mixed, "a": mixed}))) == [
        "harmful answered",
        "benign refused",
        "all in the required format",
    ]


def test_a_group_s_name_is_split_where_it_was_joined():
    assert outcome.source_and_kind("a, b.jsonl, adversarial benign") == ("a, b.jsonl", "adversarial benign")
    assert outcome.source_and_kind("set, of prompts") == ("set, of prompts", "")


def test_the_summary_has_an_interval_after_each_rate():
    """Also for figures of a checkpoint from before there were any; the figures themselves stay as they are."""
    found = outcome.with_intervals(AFTER["all"])
    assert found["harmful_answered_interval"] == pytest.approx([0.0128, 0.1045], abs=1e-4)
    assert {key: found[key] for key in AFTER["all"]} == AFTER["all"]
    keys = list(found)
    for rate in ("harmful_answered", "benign_refused", "benign_complied", "format_rate"):
        assert keys[keys.index(rate) + 1] == f"{rate}_interval"
    assert outcome.with_intervals(shares(benign=3))["harmful_answered_interval"] is None
    assert json.loads(json.dumps(found)) == found


# The chart ------------------------------------------------------------------------------------------------------------


def plot(*values, width=80):
    """Lines of the plot without their margin, and the other lines."""
    curves = [Curve(f"curve {glyph}", glyph, "red", v) for glyph, v in zip("Hb", values)]
    lines = [line.plain for line in chart.draw(curves, width=width)]
    return [line.partition("|")[2] for line in lines[: chart.ROWS]], lines[chart.ROWS :]


@pytest.mark.parametrize(
    "steps, columns", [(1, 6), (2, 12), (10, 60), (11, 55), (33, 33), (64, 64), (65, 64), (250, 64)]
)
def test_the_chart_s_geometry(steps, columns):
    """A column a step got a chart of 200 steps broken over three lines; one step is not drawn as a whole run."""
    rows, rest = plot([1.0] * steps, [0.0] * (steps - 1) + [None])
    assert rows[0] == "H" * columns and {len(row) for row in rows} == {columns}
    assert rows[-1].rstrip() in ("b" * (columns - columns // steps), "b" * columns) or steps == 1
    assert not "".join(rows[1:-1]).strip()
    assert rest[0].strip() == "+" + "-" * columns
    numbers = [int(word) for word in rest[1].split()[1:]]
    assert numbers[0] == 1 and numbers[-1] == steps and numbers == sorted(set(numbers))
    assert len(rest[1].rstrip()) <= 7 + columns, "the last number ends under the last column"


def test_the_chart_s_columns_are_means_of_their_steps():
    rows, _ = plot([0.0, 1.0] * 64)  # two steps a column
    assert rows[chart.ROWS // 2] == "H" * 64
    rows, _ = plot([0.0] * 32 + [1.0] * 32)
    assert rows[0] == " " * 32 + "H" * 32 and rows[-1] == "H" * 32 + " " * 32
    assert chart._means([1.0, None, None, None], 4, 2) == [1.0, None], "a batch without such prompts counts for none"


def test_the_chart_without_colours():
    """Two curves in one place, one curve alone, none; and a narrow terminal."""
    rows, rest = plot([0.5, 0.5], [0.5, 0.5])
    assert rows[chart.ROWS // 2] == "*" * 12 and rest[-1].split() == "H curve H b curve b * both".split()
    _, rest = plot([0.5], [None])
    assert "curve b" not in rest[-1] and "both" not in rest[-1]
    assert chart.draw([Curve("none", "x", "red", [None]), Curve("empty", "y", "red", [])]) == []
    rows, _ = plot([0.5] * 100, width=30)
    assert {len(row) for row in rows} == {23}
    assert all(line.plain.isascii() for line in chart.draw([Curve("a", "H", "red", [0.1, 0.9])]))


def test_the_chart_has_colours_on_a_terminal():
    out = io.StringIO()
    console = rich.console.Console(file=out, force_terminal=True, color_system="standard", width=80)
    console.print(chart.draw([Curve("a", "H", "red", [0.5])])[chart.ROWS // 2])
    assert "\x1b[31mH" in out.getvalue()


# Examples -------------------------------------------------------------------------------------------------------------


def record(prompt, kind="harmful", *, refusal=None, phase="after", step=3, response=None, form=True, **more):
    label = "harmful" if kind == "harmful" else "benign"
    refusal = (label == "harmful") if refusal is None else refusal
    text = "<safety_reasoning>It is so.</safety_reasoning>\n<answer>Good.</answer>" if response is None else response
    known = dict(source=f"demo/heldout, {kind}", label=label, finish="stop", format=form, refusal=refusal)
    return {"phase": phase, "step": step, "prompt": prompt, "response": text, **known, **more}


def chosen(*after, before=None):
    before = [{**r, "phase": "before"} for r in after] if before is None else before
    return [pair[1]["prompt"] for pair in examples.choose(before, after)]


def test_examples_are_one_of_each_kind_and_a_mistake():
    ordinary, adversarial = [record(f"b{i}", "benign") for i in range(3)], [record("a0", "adversarial benign")]
    harmful = [record(f"h{i}") for i in range(3)]
    assert chosen(*ordinary, *adversarial, *harmful) == ["h0", "b0", "a0", "h1"], "no mistake: another harmful one"
    wrong = record("w", "benign", refusal=True)
    assert chosen(*ordinary, wrong, *adversarial, *harmful) == ["h0", "b0", "a0", "w"]
    missed = [record("m0", refusal=False), record("m1", refusal=False)]
    assert chosen(*missed, *ordinary, wrong, *adversarial)[-1] == "w", "a mistake of the other label"
    assert chosen(*missed, *ordinary, *adversarial)[-1] == "m1"


def test_examples_of_what_there_is():
    """No adversarial prompts, one label, fewer than four, no records, a prompt that is there twice."""
    ordinary, harmful = [record(f"b{i}", "benign") for i in range(5)], [record(f"h{i}") for i in range(5)]
    assert chosen(*ordinary, *harmful) == ["h0", "b0", "h1", "h2"]
    assert chosen(*ordinary) == ["b0", "b1", "b2", "b3"]
    assert chosen(*harmful) == ["h0", "h1", "h2", "h3"]
    assert chosen(*ordinary[:2]) == ["b0", "b1"]
    assert chosen() == []
    assert chosen(*harmful[:1] * 3) == ["h0"]
    assert chosen(*harmful, before=[{**harmful[3], "phase": "before"}]) == ["h3"], "its prompts have moved"
    plain = {**record("p", "benign"), "source": "mine.jsonl"}
    assert chosen(plain) == ["p"], "a source without categories"


def test_an_example_says_what_was_decided():
    before = record("How?", "adversarial benign", form=False, finish="length", response="  ")
    after = record("How?", "adversarial benign", refusal=True)
    lines = [line.plain for line in examples.show([(before, after)], width=80)]
    assert lines == [
        "1. adversarial benign: How?",
        "   before: answered (right), not in the format, cut off at the length limit",
        "     (empty)",
        "   after: refused (wrong)",
        "     <safety_reasoning>It is so.</safety_reasoning>",
        "     <answer>Good.</answer>",
    ]


HOSTILE = "\x1b[2J\x1b]0;owned\x07 [bold red]\u202e\x9b31m \ud83d\ude00".encode("utf-16", "surrogatepass").decode(
    "utf-16"
)


@pytest.mark.parametrize("text", ["word " * 600, "x" * 3000, "漢字" * 900, HOSTILE * 50, "\n\r\n\t" * 400 + "end"])
def test_long_and_hostile_responses_stay_in_their_lines(text):
    """A response that clears the screen, of one word, in wide characters, or of empty lines."""
    long = record(text, response=f"<safety_reasoning>{text}</safety_reasoning><answer>{text}</answer>")
    lines = [line.plain for line in examples.show([(long, {**long, "context": [{}, {}]})], width=80)]
    assert len(lines) <= 12 and max(map(rich.cells.cell_len, lines)) <= 80
    assert all(line.isprintable() for line in lines)
    assert sum("<answer>" in line for line in lines) == 2, "the answer is shown, however long the reasoning"
    assert sum(line.endswith("</answer>") for line in lines) == 2
    assert "after 2 earlier turns" in lines[0]


def test_a_bar_on_a_terminal_of_80_columns_shows_its_progress():
    """Bug: the figures pushed the bar, the count of steps and the time off the line."""
    out = io.StringIO()
    shown = Display(rich.console.Console(file=out, force_terminal=True, width=80, color_system=None))
    metrics = {f"safety/refusal_rate_{label}": 1.0 for label in LABELS}
    metrics |= {"safety/format_rate": 1.0, "critic/score/mean": -1.25, "timing_s/step": 5.0}
    with shown.bar("train", 200, 122) as advance:
        advance(1, **following.figures(metrics))
    line = out.getvalue().split("\r")[-1]
    for words in ("train", "123/200", "refuses harmful 100 %  benign 100 %  format", "reward -1.25"):
        assert words in line, words


# The whole report -----------------------------------------------------------------------------------------------------


def finished_run(folder, *, steps=3, kinds=("harmful", "benign", "adversarial benign"), **settings):
    """Records of a run that has ended, and its config and summary."""
    folder.mkdir(exist_ok=True)
    hostile = f"{HOSTILE} <answer>{HOSTILE}</answer>"
    looks = [("before", 0), ("after", steps)]
    samples = [
        record(f"{kind} {i} {HOSTILE}", kind, phase=phase, step=step, refusal=i == 0, response=hostile, form=False)
        for phase, step in looks
        for kind in kinds
        for i in range(3)
    ]
    metrics = [
        {"phase": "train", "step": i, "safety/refusal_rate_harmful": i / steps, "safety/refusal_rate_benign": 0.0}
        for i in range(steps)
    ]
    for name, records in (("samples", samples), ("metrics", [{"phase": "warmup", "step": 0}, *metrics])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + "{half a li")
    known = [("out", str(folder)), ("steps", str(steps)), *settings.items()]
    loaded = config.load(f"{ROOT}/configs/tiny.py", known)
    rest = lambda outcomes: {name: s for name, s in outcomes.items() if name != "all"}
    summary = {
        "command": f"alphaalign train --config {ROOT}/configs/tiny.py --resume auto --config.steps={steps}",
        "before": BEFORE["all"],
        "after": AFTER["all"],
        "before_by_source": rest(BEFORE),
        "after_by_source": rest(AFTER),
        "data": {"by_source": {"demo/train": {"harmful": 5, "benign": 0}}},
        "steps": steps,
        "wall_seconds": 246.4,
    }
    return loaded, summary, folder


@pytest.fixture
def short(tmp_path, monkeypatch):
    """A folder with a short path, as a person's is: a longer one is a wider line."""
    monkeypatch.chdir(tmp_path)
    return tmp_path.joinpath("run").relative_to(tmp_path)


@pytest.mark.parametrize("steps", [1, 2, 250])
@pytest.mark.parametrize("kinds", [("harmful", "benign", "adversarial benign"), ("harmful", "benign"), ("benign",)])
def test_the_report_fits_and_commands_no_terminal(short, steps, kinds):
    loaded, summary, folder = finished_run(short, steps=steps, kinds=kinds)
    summary["command"] = "alphaalign train --config=configs/tiny.py"
    lines = printed(*closing.report(loaded, summary, folder, width=80)).splitlines()
    wide = [line for line in lines if rich.cells.cell_len(line) > 80]
    assert not wide, wide
    assert all(line.isprintable() for line in lines)
    text = "\n".join(lines)
    for words in ("harmful answered", "H harmful prompts", "1. ", "Where to look next", f"{steps} steps in 4 min 6 s"):
        assert words in text
    assert ("4. " in text) == (len(kinds) * 3 >= 4) and "b benign prompts" not in text, "none were trained on"


def test_the_report_has_all_steps_of_a_run_that_was_resumed(short):
    """Only the last evaluation of an extended run counts; a step that was made twice is one step."""
    loaded, summary, folder = finished_run(short, steps=20)
    again = {"phase": "train", "step": 9, "safety/refusal_rate_harmful": 0.0}
    old = record("of an earlier end", step=10)
    for name, added in (("metrics", [again]), ("samples", [{**old, "phase": "before"}, old])):
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in added) + file.read_text())
    shown = printed(*closing.report(loaded, summary, folder, width=80))
    axis = next(line for line in shown.splitlines() if line.startswith(" step"))
    assert axis.split() == ["step", "1", "10", "20"]
    assert "of an earlier end" not in shown


def test_a_report_without_records_is_still_one(short):
    """The run itself has ended well: a file that was moved away must not end it with an error."""
    loaded, summary, folder = finished_run(short)
    shown = printed(*closing.report(loaded, summary, folder / "nowhere", width=80))
    assert "harmful answered" in shown and "Where to look next" in shown and "|" not in shown


def commands(parts):
    """The commands of a report, as a shell splits them."""
    text = printed(*parts).partition("Where to look next")[2].replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("    ")]
    return [shlex.split(line) for line in lines]


def test_what_the_report_says_to_run_can_be_run(tmp_path):
    """Options that no command has, a path with a space that a shell splits, another length than the run's."""
    loaded, summary, folder = finished_run(tmp_path / "my run")
    found = commands(closing.report(loaded, summary, folder, width=80))
    echo, generate, evaluate, board, train = found
    assert json.loads(echo[1])["prompt"] and echo[2] == ">" and echo[3] == f"{folder}/ask.jsonl"
    for words in (generate, evaluate, train):
        assert words[0].endswith("alphaalign")
        args, extra = cli.parser().parse_known_args(words[1:])
        assert all(word.startswith("--config.") for word in extra)
        if args.command != "train":
            assert args.model == f"{folder}/export" and args.max_new_tokens == loaded.eval.max_new_tokens and not extra
    assert generate[4] == f"--prompts={folder}/ask.jsonl"
    assert board[0].endswith("tensorboard") and board[1] == f"--logdir={folder}/tensorboard"
    args, extra = cli.parser().parse_known_args(train[1:])
    assert not args.resume, "a new run is not to be resumed"
    again = config.load(args.config, cli.overrides(extra))
    assert again == dataclasses.replace(loaded, seed=1, out=f"{folder}-seed1")


def test_the_report_names_no_command_that_cannot_work(short):
    loaded, summary, folder = finished_run(short, export="false")
    programs = [words[:2] for words in commands(closing.report(loaded, {**summary, "command": ""}, folder, width=80))]
    assert len(programs) == 1 and programs[0][0].endswith("tensorboard"), "no export, and started from Python"
    settings = {"reward.format_mode": "paper", "eval.temperature": "0.5", "eval.max_new_tokens": "7"}
    loaded, summary, folder = finished_run(short, **settings)
    evaluate = commands(closing.report(loaded, summary, folder, width=80))[2]
    assert {"--format_mode=paper", "--temperature=0.5", "--max_new_tokens=7"} <= {*evaluate}
    source = dataclasses.replace(loaded.data, heldout=({"path": "x.jsonl", "label_map": "safe_unsafe"},))
    mapped = dataclasses.replace(loaded, data=source)
    programs = [words[1] for words in commands(closing.report(mapped, summary, folder, width=80))]
    assert "evaluate" not in programs and "generate" in programs
