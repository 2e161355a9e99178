"""Several processes give the numbers of one with as many devices, and end together."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy
import test_mesh

from alphaalign_jax.cli import main
from alphaalign_jax.parallel import notice, processes

TESTS = pathlib.Path(__file__).parent
MESH = "fsdp 4 x tensor 2"
STEP = """
import sys
from alphaalign_jax.parallel import processes
processes.start()
import numpy as np, jax, test_mesh
assert jax.process_count() == int(sys.argv[3]) and jax.device_count() == 8
host, metrics, _ = test_mesh.one_step(sys.argv[1])
if processes.first():
    metrics = {name.replace("/", "|"): value for name, value in metrics.items()}
    np.savez(sys.argv[2], tokens=host["tokens"], embed=host["weights"]["embed"]["table"], **metrics)
"""


@contextlib.contextmanager
def cluster(count: int, devices: int, *command: str):
    """``python COMMAND`` in ``count`` processes of one cluster, with ``devices`` in all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices // count}"),
        "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
    }
    common |= {processes.COORDINATOR: f"127.0.0.1:{port}", processes.COUNT: str(count)}
    start = lambda i: subprocess.Popen(
        [sys.executable, *command],
        env={**common, processes.INDEX: str(i)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    workers = [start(i) for i in range(count)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()


def finish(workers, timeout=900) -> list[str]:
    """What each said; it must have ended well."""
    said = []
    for worker in workers:
        said.append(worker.communicate(timeout=timeout)[0])
        assert worker.returncode == 0, said[-1][-3000:]
    return said


def test_hosts_that_share_no_folder_are_refused(tmp_path):
    """Found out before anything is compiled; and nothing is left where the run would have been."""
    look = """
import os, sys
from alphaalign_jax import buckets
from alphaalign_jax.parallel import processes
processes.start()
buckets._SEEN_AFTER_SECONDS = 1.0
own = os.path.join(sys.argv[1], os.environ[processes.INDEX])
buckets.Mirror(os.path.join(sys.argv[1], "shared/run")).pull()
try:
    buckets.Mirror(os.path.join(own, "run")).pull()
except ValueError as error:
    print(error)
"""
    with cluster(2, 2, "-c", look, str(tmp_path)) as workers:
        said = finish(workers, timeout=120)
    assert all("processes [1] do not see what process 0 writes" in text for text in said), said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # a whole run below goes over two; this has more of the settings, and the exact samples
@pytest.mark.parametrize("count", [2, 4])
def test_processes_equal_one(tmp_path, count):
    """A host that sums only its own rows, or draws its own noise, gives other losses and other weights."""
    out = tmp_path / "result.npz"
    with cluster(count, 8, "-c", STEP, MESH, str(out), str(count)) as workers:
        finish(workers)
    host, metrics, _ = test_mesh.one_step(MESH)
    with np.load(out) as found:
        assert np.array_equal(found["tokens"], host["tokens"])
        np.testing.assert_allclose(found["embed"], host["weights"]["embed"]["table"], rtol=1e-4, atol=1e-6)
        for key, value in metrics.items():
            np.testing.assert_allclose(found[key.replace("/", "|")], value, rtol=2e-4, atol=2e-5, err_msg=key)


RUN = {
    "mesh.devices": 4,
    "mesh.fsdp": 2,
    "mesh.tensor": 2,
    "steps": 2,
    "warmup.epochs": 0.1,
    "algorithm.advantage": "grpo",
    "rollout.prompts": 8,
    "rollout.group": 2,
    "eval.every": 0,
    "data.validation": 0,
    "guards.rollbacks": 0,
    "rollout.max_new_tokens": 24,
    "eval.max_new_tokens": 0,
    "rollout.bucket": 24,
    "algorithm.minibatches": 1,
    "eval.batch": 8,
    "checkpoint.every": 1,
    "optimizer.decay": 0.0,  # a rate that falls over the run's steps ties a resumption to their number
}


def train(folder, name, *more):
    settings = RUN | {"out": folder / name, "data.heldout": folder / "heldout.jsonl"}
    rows = [{"prompt": "How do I bake bread?", "label": "benign"}, {"prompt": "How to steal?", "label": "harmful"}]
    (folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "train",
        f"--config={TESTS.parent}/configs/tiny.py",
        *(f"--config.{k}={v}" for k, v in settings.items()),
        *more,
    ]


def records(folder, name):
    lines = (folder / name / "metrics.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def test_a_run_over_processes_is_the_run_of_one(tmp_path):
    """From warm-up to export and on from its checkpoint: a host that saves what another holds, writes over its records
    or waits for it for ever. Asked to end, all save one checkpoint, from which one process goes on. When one dies, the
    other ends too, which it would not at its next collective."""
    command = ["-m", "alphaalign_jax.cli", *train(tmp_path, "two")]
    with cluster(2, 4, *command, "--config.steps=1") as workers:
        said = finish(workers)
    assert "held out" in said[0] and "held out" not in said[1], "one process speaks"
    assert main(train(tmp_path, "one")) == 0
    one = records(tmp_path, "one")
    first = safetensors.numpy.load_file(tmp_path / "two/export/model.safetensors")
    second = safetensors.numpy.load_file(tmp_path / "one/export/model.safetensors")
    assert first.keys() == second.keys() and any(np.abs(first[key] - second[key]).max() > 0 for key in first)

    def reached(workers, step):
        while not [r for r in records(tmp_path, "two") if r["phase"] == "train" and r["step"] >= step]:
            assert all(worker.poll() is None for worker in workers), workers[0].communicate()[0][-3000:]
            time.sleep(0.5)

    with cluster(2, 4, *command, "--resume", "--config.steps=1000") as workers:
        reached(workers, 1)
        workers[1].send_signal(signal.SIGTERM)  # one host hears of it, both end
        for worker in workers:
            said, _ = worker.communicate(timeout=120)
            assert worker.returncode == notice.PREEMPTED and "saved after step" in said, said
    last = max(r["step"] for r in records(tmp_path, "two") if r["phase"] == "train")
    assert main(train(tmp_path, "two", "--resume", f"--config.steps={last + 2}")) == 0
    with cluster(2, 4, *command, "--resume", "--config.steps=1000") as workers:
        reached(workers, last + 2)
        workers[1].send_signal(signal.SIGKILL)
        said, _ = workers[0].communicate(timeout=120)
        assert workers[0].returncode != 0 and "process 0 ends here" in said, said
    two = records(tmp_path, "two")[: len(one) - 1]
    for a, b in zip(one[:-1], two, strict=True):
        assert (a["phase"], a["step"]) == (b["phase"], b["step"])
        for key in ("sft/loss", "actor/pg_loss", "actor/grad_norm", "critic/score/mean", "eval/format_rate"):
            assert (key in a) == (key in b)
            np.testing.assert_allclose(b.get(key, 0), a.get(key, 0), rtol=2e-3, atol=2e-5, err_msg=key)


def test_half_a_cluster_is_refused(monkeypatch):
    """A process that starts alone because one variable is missing trains on its own and writes over the others."""
    monkeypatch.setenv(processes.COORDINATOR, "127.0.0.1:1")
    with pytest.raises(ValueError, match="in every process"):
        processes.start()
    monkeypatch.setenv(processes.COUNT, "2")
    monkeypatch.setenv(processes.INDEX, "2")
    with pytest.raises(ValueError, match="in every process"):
        processes.start()


FAULTS = """
import resource, sys
import numpy as np
from alphaalign_jax.parallel import processes
if sys.argv[1] == "keep":
    processes.keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(1 << 28, np.uint8)[:] = 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept():
    """A setting that glibc ignores: every training step would clear its gigabytes of fresh pages again."""
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", FAULTS, mode], check=True, capture_output=True).stdout)
        for mode in ("keep", "default")
    }
    # 256 MiB are 65,536 pages, or 128 of those of 2 MiB.
    assert faults["keep"] < 20 < faults["default"], faults


def test_a_control_group_limits_memory(tmp_path):
    """In a container the host's memory is not ours: a run that counts on it is killed."""
    whole = processes.memory_limit(())
    for text, limit in (("1048576\n", 1 << 20), ("max\n", whole), (f"{1 << 62}\n", whole)):
        (tmp_path / "memory.max").write_text(text)
        assert processes.memory_limit((str(tmp_path / "missing"), str(tmp_path / "memory.max"))) == limit
