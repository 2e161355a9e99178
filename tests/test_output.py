"""Files that commands leave, and what may stand where they are to go."""

import io
import json
import os
import subprocess
import sys
import threading

import pytest
import run_cases

from alphaalign_jax import buckets, display, hf, output
from alphaalign_jax.cli import main


def test_a_file_is_whole_and_links_stay(tmp_path):
    """A link that is replaced leaves the file that it led to as it was; a foreign link is not written through."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real/report")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "real/.report.partial").symlink_to(victim)
    output.write(tmp_path / "link", "one")
    output.write(tmp_path / "link", "two")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real/report").read_text() == "two"
    assert victim.read_text() == "mine" and len(list((tmp_path / "real").iterdir())) == 2


def test_what_is_no_file_is_written_to_and_not_put_away(tmp_path):
    """As root, --out=/dev/null would be the end of it."""
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    output.check(str(pipe))
    output.write(pipe, "said")
    reader.join(10)
    assert found == ["said"] and pipe.is_fifo()


@pytest.mark.parametrize("name", ["", "/", "file/x", "folder", "closed/x", "x" * 300])
def test_what_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    make = os.mkdir

    def refusing(path, *mode):
        if "closed/" in str(path):
            raise PermissionError(13, "Permission denied", path)
        make(path, *mode)

    monkeypatch.setattr(os, "mkdir", refusing)
    make(tmp_path / "closed")
    with pytest.raises(ValueError, match="cannot be written"):
        output.check(name if name == "/" else str(tmp_path / name))


def test_what_is_read_is_not_written_over(tmp_path, capsys, monkeypatch):
    """The prompts, or somebody's labels, gone with the command that was to look at them."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "How?", "label": "benign"}\n')
    (tmp_path / "same.jsonl").symlink_to(rows)
    monkeypatch.chdir(tmp_path)
    for out in ("rows.jsonl", str(tmp_path / "same.jsonl")):
        for command in (
            ["data", "audit", "--data=rows.jsonl"],
            ["evaluate", "--model=none", "--data=rows.jsonl"],
            ["generate", "--model=none", "--prompts=rows.jsonl"],
        ):
            assert main([*command, f"--out={out}"]) == 2
            assert "(rows.jsonl is an input of this command); give another file" in capsys.readouterr().err
    assert "How?" in rows.read_text()


def test_home_is_one_place(tmp_path, monkeypatch):
    """A run whose records lie in ./~ and whose export in /home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert buckets.local("~/run") == tmp_path / "run"
    output.write("~/report.json", "{}")
    assert (tmp_path / "report.json").read_text() == "{}"


@pytest.mark.parametrize("place", ["file", "file/run", "x" * 300, "/proc/x", "/proc/x/y"])
def test_a_folder_that_cannot_be_is_refused_at_once(tmp_path, place):
    """Of /proc, permissions say that it may be written to: a run ended after its banner, a conversion after reading the
    model, in a bare errno."""
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="give another --config.out"):
        buckets.Mirror(str(tmp_path / place)).pull()
    with pytest.raises(ValueError, match="cannot write to"):
        hf.check_target(tmp_path / place)
    with pytest.raises(ValueError, match="cannot be written"):
        output.check(str(tmp_path / place / "found.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def closed_pipe():
    """The write end of a pipe that nobody reads, as of ``train | head -1``."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "wb", buffering=0)


@pytest.mark.parametrize("kind", ["latin-1", "pipe"])
def test_the_terminal_does_not_end_a_run(work, tmp_path, monkeypatch, kind):
    """The arrow in the last table ended a run with exit status 2 and without summary.json; the end of ``head`` did so
    at once."""
    raw = closed_pipe() if kind == "pipe" else (tmp_path / "shown").open("wb", buffering=0)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1", write_through=True))
    options = ["--config.warmup.epochs=0", "--config.eval.every=0", "--config.export=false"]
    assert run_cases.run(work, kind, 1, *options) == 0
    summary = json.loads((work / kind / "summary.json").read_text())
    assert summary["steps"] == 1 and summary["command"].startswith("alphaalign train")
    if kind == "latin-1":
        shown = (tmp_path / "shown").read_bytes()
        assert b"before ? after" in shown and b"summary.json" in shown


@pytest.mark.parametrize(
    "redirection, encoding",
    [("| true", ""), (">&-", ""), (">&- 2>&-", ""), ("> /dev/full 2>&1", ""), ("| cat", "ascii")],
)
def test_a_command_does_not_need_its_output(tmp_path, redirection, encoding):
    """The exit status of a command whose output nobody can read was 1, or 120 from Python's last flush."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Wie geht das \u2192 so?", "label": "benign"}\n' * 2)
    command = f"{sys.executable} -m alphaalign_jax.cli data audit --data=rows.jsonl --out=found.json {redirection}"
    known = dict(os.environ, PYTHONIOENCODING=encoding, PYTHONPATH=str(run_cases.ROOT))
    run = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], cwd=tmp_path, env=known, capture_output=True, timeout=60
    )
    assert run.returncode == 0 and not run.stderr, run.stderr
    assert json.loads((tmp_path / "found.json").read_text())["data"] == "rows.jsonl"
    assert (b"Wie geht das ? so" in run.stdout) == bool(encoding)


def test_a_closed_descriptor_is_no_file_s(tmp_path):
    """The next file that is opened gets the number 1, and whatever a library prints is written into it."""
    code = "from alphaalign_jax import terminal\nwith terminal.tolerant():\n    file = open('x', 'w')\n"
    code += "    file.write(str(file.fileno()))"
    command = f'{sys.executable} -c "{code}" >&- 2>&- <&-'
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=dict(os.environ, PYTHONPATH=str(run_cases.ROOT)))
    assert int((tmp_path / "x").read_text()) > 2


def test_figures_are_readable_in_their_unit():
    """The plan of a small model was 0.0 GiB, 0 TFLOP and 0.000 s in every cell."""
    assert display.unit_for([1.2 * 2**30, 4 * 2**20], display.BYTES)[0] == "MiB"
    assert display.unit_for([12.8 * 2**30, 4 * 2**20], display.BYTES)[0] == "GiB"
    assert display.unit_for([3e-9], display.SECONDS)[0] == "µs" and display.unit_for([], display.FLOPS)[0] == "MFLOP"
    numbers = [display.number(value) for value in (0, 1e-9, 0.018, 9.994, 9.996, 99.96, 1234.5)]
    assert numbers == ["0", "<.01", "0.02", "9.99", "10.0", "100", "1234"]
    assert display.quantity(16 * 2**30, display.BYTES) == "16.0 GiB"
    assert display.quantity(0.00342, display.SECONDS) == "3.42 ms"
