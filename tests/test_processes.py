"""Two processes of four devices give the numbers of one process with eight."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import test_mesh

from alphaalign_jax.parallel import processes

TESTS = pathlib.Path(__file__).parent
MESH = "fsdp 4 x tensor 2"
WORKER = """
import sys
from alphaalign_jax.parallel import processes
processes.start()
import numpy as np, jax, test_mesh
assert jax.process_count() == 2 and jax.device_count() == 8
host, metrics, _ = test_mesh.one_step(sys.argv[1])
if processes.first():
    metrics = {name.replace("/", "|"): value for name, value in metrics.items()}
    np.savez(sys.argv[2], tokens=host["tokens"], embed=host["weights"]["embed"]["table"], **metrics)
"""


def test_two_processes_equal_one(tmp_path):
    """A host that sums only its own rows, or draws its own noise, gives other losses and other weights."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = tmp_path / "result.npz"
    common = {
        **os.environ,
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4"),
        "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
    }
    common |= {processes.COORDINATOR: f"127.0.0.1:{port}", processes.COUNT: "2"}
    command = [sys.executable, "-c", WORKER, MESH, str(out)]
    workers = [
        subprocess.Popen(command, env={**common, processes.INDEX: str(i)}, stderr=subprocess.PIPE) for i in range(2)
    ]
    try:
        for worker in workers:
            _, error = worker.communicate(timeout=900)
            assert worker.returncode == 0, error.decode()[-3000:]
    finally:
        for worker in workers:
            worker.kill()
    host, metrics, _ = test_mesh.one_step(MESH)
    with np.load(out) as found:
        assert np.array_equal(found["tokens"], host["tokens"])
        np.testing.assert_allclose(found["embed"], host["weights"]["embed"]["table"], rtol=1e-4, atol=1e-6)
        for key, value in metrics.items():
            np.testing.assert_allclose(found[key.replace("/", "|")], value, rtol=2e-4, atol=2e-5, err_msg=key)


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
