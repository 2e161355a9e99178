"""What others wrote reaches a terminal as text, whatever it is."""

import io

import rich.console

from alphaalign_jax import cli
from alphaalign_jax.cli import main
from alphaalign_jax.data.audit import audit
from alphaalign_jax.data.row import PromptRow
from alphaalign_jax.display import Display
from alphaalign_jax.evaluation import outcome
from alphaalign_jax.evaluation.respond import Response

HOSTILE = "\x1b[2J\x1b]0;owned\x07 [bold red]<script>\u202e\x9b31m"


def shown(*texts):
    out = io.StringIO()
    display = Display(rich.console.Console(file=out, force_terminal=True, width=200, color_system=None))
    for text in texts:
        display.say(text)
    return out.getvalue()


def test_text_and_tables_command_no_terminal():
    """A response that clears the screen, renames the window, or turns what follows it around."""
    response = Response("", [], [], "stop", False, False)
    rows = [PromptRow("q", 0, source=source) for source in (HOSTILE, "mine.jsonl")]
    counted = {"all": outcome.count(rows, [response] * 2), **outcome.by_group(rows, [response] * 2)}
    table = outcome.single({name: found.to_json() for name, found in counted.items()})
    said = shown(HOSTILE, table)
    assert not {*said} & {*"\x07\u202e\x9b"} and "\x1b[2J" not in said and "\x1b]0" not in said
    assert shown("\x1b[2J") == "\\x1b[2J\n", "of ASCII alone"
    assert said.count("\\x1b]0;owned\\x07 [bold red]<script>\\u202e") == 2, "nothing is lost either"


def test_errors_command_no_terminal(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "How?", "label": "\\u001b[2J"}\n')
    assert main(["data", "audit", f"--data={path}"]) == 2
    assert main(["generate", "--model=x\x1b[2J", f"--prompts={path}", f"--out={tmp_path / 'o'}"]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said and said.count("\\x1b[2J") >= 2


def test_a_source_cannot_write_lines_of_its_own(capsys):
    """A column of a data file that reads as the report's own verdict, in colour, a megabyte wide."""
    forged = "x\nall            999     999    1998\nduplicates: none [red]so[/red] :bomb:" + "y" * 10_000
    Display().say(str(audit([PromptRow("How?", 0, source=forged)])))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 120 and not any(line.startswith("all            999") for line in lines)
    assert "x\\nall" in lines[1]
    Display().say("a :bomb: is quoted")
    assert ":bomb:" in capsys.readouterr().out


def test_an_error_that_nobody_expected_commands_no_terminal(capsys):
    """Python prints the messages of exceptions as they are, and some quote a file."""
    try:
        raise KeyError("\x1b]0;owned\x07")
    except KeyError as error:
        cli._show_error(type(error), error, error.__traceback__)
    said = capsys.readouterr().err
    assert "Traceback" in said and "\\x1b]0;owned" in said and "\x1b" not in said
