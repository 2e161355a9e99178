"""Runs, models and data in buckets: fsspec's file system in memory, and an emulator of Google Cloud Storage."""

import contextlib
import json
import os
import shutil
import socket

import fsspec
import jax
import numpy as np
import pytest
import safetensors.numpy
import test_train
from fsspec.implementations.memory import MemoryFileSystem

from alphaalign_jax import buckets, hf, output
from alphaalign_jax.cli import main
from alphaalign_jax.data.prompts import Source, read
from alphaalign_jax.errors import ExpectedError

URL = "memory://bucket/run"


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """``machine(NAME)``: from here on this is another one, which shares nothing but the buckets."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]

    def choose(name):
        monkeypatch.setattr(buckets, "_HERE", str(tmp_path / name))

    choose("first")
    return choose


def put(name, text):
    fsspec.filesystem("memory").pipe_file(f"/bucket/{name}", text.encode())


def listed():
    return {name.removeprefix("/bucket/") for name in fsspec.filesystem("memory").find("/bucket")}


def test_a_run_goes_on_elsewhere(machine):
    """What one machine wrote is there on the next, what an export no longer has is not; checkpoints stay there, and
    half-written files here."""
    put("run/checkpoints/1/actor/data", "weights")
    with buckets.mirrored(URL) as mirror:
        (mirror.folder / "export").mkdir()
        for name in ("metrics.jsonl", "export/model", "export/config", f"export/{buckets.MARKER}", ".export.partial"):
            (mirror.folder / name).write_text(name)
        mirror.settle()
        (mirror.folder / "export/config").unlink()
        (mirror.folder / "metrics.jsonl").write_text("two\nlines")
    ours = {"run/metrics.jsonl", "run/export/model", f"run/export/{buckets.MARKER}"}
    assert listed() == ours | {"run/checkpoints/1/actor/data", "run/.alphaalign"}
    machine("second")
    with buckets.mirrored(URL) as mirror:
        assert (mirror.folder / "metrics.jsonl").read_text() == "two\nlines"
        assert not (mirror.folder / "checkpoints").exists() and (mirror.folder / "export/model").is_file()
        (mirror.folder / "metrics.jsonl").write_text("new\nlines")  # of the same size
    machine("first")
    fsspec.filesystem("memory").rm("/bucket/run/export", recursive=True)
    with buckets.mirrored(URL) as mirror:
        assert (mirror.folder / "metrics.jsonl").read_text() == "new\nlines"
        assert not (mirror.folder / "export").exists(), "a folder that is gone from the bucket is still here"


def test_an_export_that_was_cut_off_is_none(machine, monkeypatch):
    """The marker comes last, and is taken away first: what a preemption leaves is not taken for an export."""
    with buckets.mirrored(URL) as mirror:
        (mirror.folder / "export").mkdir()
        for name in ("model", buckets.MARKER):
            (mirror.folder / "export" / name).write_text("first")
        mirror.settle()
        for name in (buckets.MARKER, "model"):
            (mirror.folder / "export" / name).write_text("second, longer")

        def cut_off(system, files, names):
            """What is sent along with others gets through, where it is a marker."""
            for name in names:
                if name.endswith(buckets.MARKER):
                    put(name.removeprefix("/bucket/"), "second, longer")
            raise OSError("cut off")

        monkeypatch.setattr(MemoryFileSystem, "put", cut_off)
        with pytest.raises(OSError, match="cannot be written .*cut off"):
            mirror.settle()
        monkeypatch.undo()
        machine("second")
        other = buckets.Mirror(URL)
        other.pull()
        assert not (other.folder / "export").exists()
        machine("first")
    machine("third")
    with buckets.mirrored(URL) as mirror:
        assert (mirror.folder / "export/model").read_text() == "second, longer"


def test_files_lost_here_stay_in_the_bucket(machine):
    with buckets.mirrored(URL) as mirror:
        (mirror.folder / "metrics.jsonl").write_text("lines")
        mirror.settle()
        shutil.rmtree(mirror.folder)
    assert "run/metrics.jsonl" in listed()


def test_what_ended_a_run_is_told(monkeypatch):
    """And not that the bucket was gone at its end."""
    with pytest.raises(RuntimeError, match="loss is not finite"), buckets.mirrored(URL) as mirror:
        (mirror.folder / "metrics.jsonl").write_text("lines")
        monkeypatch.setattr(mirror, "_put", lambda *_: exec("raise OSError('no network')"))
        raise RuntimeError("loss is not finite")


def test_records_are_copied_while_the_run_goes_on(machine, monkeypatch):
    with buckets.mirrored(URL) as mirror:
        (mirror.folder / "metrics.jsonl").write_text("a line")
        mirror.push()
        assert listed() == {"run/.alphaalign"}, "copied with every step"
        monkeypatch.setattr(buckets, "_EVERY_SECONDS", 0.0)
        mirror.push()
        mirror._pushing.result(timeout=10)
        assert listed() == {"run/.alphaalign", "run/metrics.jsonl"}


def test_a_copy_that_fails_is_said_once_and_tried_again(machine, monkeypatch):
    """A minute without a network ends a run of days; and a run that never reaches its bucket looks as if it did."""
    said = []
    with pytest.raises(ExpectedError, match="no network.*the run is done, and its records and export are in"):
        with buckets.mirrored(URL, said.append) as mirror:
            put_there = mirror._put

            def copy(working):
                monkeypatch.setattr(
                    mirror, "_put", put_there if working else lambda *_: exec("raise OSError('no network')")
                )
                (mirror.folder / "metrics.jsonl").write_text(f"{len(said)} lines")
                mirror.push(now=True)
                mirror._pushing.result(timeout=10)

            copy(False)
            copy(False)
            assert len(said) == 1 and "could not be copied, which is tried again" in said[0]
            copy(True)
            assert "run/metrics.jsonl" in listed()
            copy(False)
            assert len(said) == 2


def test_a_local_run_is_left_alone(tmp_path):
    with buckets.mirrored(str(tmp_path / "run")) as mirror:
        assert mirror.folder == tmp_path / "run" and not mirror.folder.exists()
        assert mirror.share("init") == tmp_path / "run/init"


def test_data_and_reports(machine, tmp_path):
    put("data.jsonl", '{"prompt": "How do I bake bread?", "label": "benign"}\n')
    assert [row.prompt for row in read(Source(path="memory://bucket/data.jsonl"))] == ["How do I bake bread?"]
    output.check("memory://bucket/reports/one.json")
    output.write("memory://bucket/reports/one.json", "{}")
    assert fsspec.filesystem("memory").cat_file("/bucket/reports/one.json") == b"{}"


def test_a_file_that_has_changed_is_copied_again(machine):
    put("model.gguf", "one")
    assert buckets.fetch("memory://bucket/model.gguf").read_text() == "one"
    put("model.gguf", "two")
    assert buckets.fetch("memory://bucket/model.gguf").read_text() == "two"


@pytest.mark.parametrize(
    "use, said",
    [
        (lambda: buckets.local("gs://bucket"), "expected a bucket and a name in it"),
        (lambda: buckets.local("gs://bucket/../../etc"), "expected a bucket and a name in it"),
        (lambda: buckets.fetch("memory://bucket/nowhere"), "memory://bucket/nowhere: cannot be read"),
        (lambda: buckets.fetch("nosuch://bucket/run"), "nosuch"),
        (lambda: read(Source(path="memory://bucket/nowhere.jsonl")), "nowhere.jsonl: cannot be opened"),
        (lambda: hf.resolve("memory://bucket/nowhere"), "memory://bucket/nowhere: cannot be read"),
    ],
)
def test_what_cannot_be_used_is_named(use, said):
    with pytest.raises(ValueError, match=said):
        use()


def test_a_bucket_that_cannot_be_written_is_refused_at_once(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("storage.objects.create denied")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "pipe_file", refuse)
    for use in (lambda: buckets.Mirror(URL).pull(), lambda: output.check("memory://bucket/report.json")):
        with pytest.raises(ValueError, match="cannot be written .*denied.*gcloud auth"):
            use()


# Google Cloud Storage -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gcs():
    """An emulator with the bucket ``runs``, which gcsfs and tensorstore take for Google's."""
    from gcp_storage_emulator import server as emulator
    from gcp_storage_emulator.handlers import objects

    plain = objects.download

    def download(request, response, storage, *rest, **options):
        """With the header that tells tensorstore which version of an object it has; the emulator lacks it."""
        with contextlib.suppress(Exception):  # there is none: the handler says so
            found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
            response["x-goog-generation"] = found["generation"]
        return plain(request, response, storage, *rest, **options)

    objects.download = download
    for _, handlers in emulator.HANDLERS:
        handlers.update({method: download for method, handler in handlers.items() if handler is plain})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="runs")
    server.start()
    names = dict(STORAGE_EMULATOR_HOST=f"http://127.0.0.1:{port}", TENSORSTORE_GCS_HTTP_URL=f"http://127.0.0.1:{port}")
    os.environ.update(names, GOOGLE_AUTH_TOKEN_FOR_TESTING="none", NO_GCE_CHECK="true")
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # kinds of buckets that the emulator does not have
    fsspec.config.conf["gs"] = {"token": "anon"}
    yield fsspec.filesystem("gs")
    server.stop()


def test_a_run_in_a_bucket(gcs, machine, tmp_path):
    """Trains, goes on on another machine, is evaluated and exported from there; equal to a run in a local folder."""
    data = "gs://runs/data/heldout.jsonl"
    gcs.pipe_file("gs://runs/tiny/export/", b"")  # as the console marks a folder
    gcs.pipe_file(data, "".join(json.dumps(row) + "\n" for row in test_train.PROMPTS).encode())
    extra = [f"--config.data.heldout={data}"]
    run = lambda out, steps, *more: test_train.run(tmp_path, "", steps, *extra, f"--config.out={out}", *more)
    assert run("gs://runs/tiny", 1, "--config.export=false") == 0
    machine("second")
    assert run("gs://runs/tiny", 2) == 2, "a run was written over"
    assert run("gs://runs/tiny", 2, "--resume=auto") == 0
    assert run("gs://runs/tiny", 2, "--resume=auto") == 0, "a run that has ended is left as it is"
    assert run(tmp_path / "whole", 2) == 0
    exported = safetensors.numpy.load_file(hf.resolve("gs://runs/tiny/export") / "model.safetensors")
    local = safetensors.numpy.load_file(tmp_path / "whole/export/model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, exported, local)
    steps = [json.loads(line) for line in gcs.cat_file("runs/tiny/metrics.jsonl").splitlines()]
    assert [record["step"] for record in steps if record["phase"] == "train"] == [0, 1]
    assert gcs.find("runs/tiny/tensorboard")

    machine("third")  # the run's folder is a model: of its checkpoints the newest, and of that the policy alone
    command = ["evaluate", "--model=gs://runs/tiny", f"--data={data}", "--out=gs://runs/reports/tiny.json"]
    assert main([*command, "--max_new_tokens=24", "--devices=1"]) == 0
    assert json.loads(gcs.cat_file("runs/reports/tiny.json"))["n_harmful"] == 2
    fetched = buckets.local("gs://runs/tiny", "fetched")
    assert [path.name for path in (fetched / "checkpoints").iterdir()] == ["2"]
    assert {path.name for path in (fetched / "checkpoints/2").iterdir()} <= {"actor", "average", "meta"}
