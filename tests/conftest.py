"""Tests run on eight forced CPU devices and share a compile cache.

With eight, sharding is real wherever a test builds a mesh.
"""

import os
import tempfile

# A described TPU: nobody is asked which one this is, and several processes may compile for it.
os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5litepod-4", TPU_WORKER_HOSTNAMES="localhost")
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    # Compiling is most of what the tests do, and their programs run for milliseconds: half the time without LLVM's
    # optimizations. Those of XLA itself stay.
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax  # noqa: E402
import jax.experimental.topologies  # noqa: E402
import pytest  # noqa: E402
import run_cases  # noqa: E402

# Files that take minutes, begun first: the last of them, alone on one core, would be what the suite waits for.
LONG = ("test_processes", "test_train", "test_faults", "test_planning", "test_mesh", "test_buckets", "test_malformed")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


jax.config.update("jax_compilation_cache_dir", os.path.join(tempfile.gettempdir(), "alphaalign_jax_test_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Where a module's runs are, with their held-out prompts."""
    folder = tmp_path_factory.mktemp("runs")
    run_cases.write_heldout(folder)
    return folder


@pytest.fixture(scope="session")
def tpu_devices():
    """Four chips to compile for; there need be none here."""
    pytest.importorskip("libtpu", reason="libtpu compiles for TPU; it comes with the test extra on Linux")
    return jax.experimental.topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
