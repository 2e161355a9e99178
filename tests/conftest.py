"""Tests run on eight forced CPU devices and share a compile cache.

With eight, sharding is real wherever a test builds a mesh.
"""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax  # noqa: E402

jax.config.update("jax_compilation_cache_dir", os.path.join(tempfile.gettempdir(), "alphaalign_jax_test_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
