"""Several processes, one program: start-up, and bringing a global array to every host."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils

from alphaalign_jax.terminal import Stream, write_error
from alphaalign_jax.text import printable

# Set by whoever starts processes by hand; on TPU pods and under Slurm JAX finds the cluster itself.
COORDINATOR, COUNT, INDEX = "ALPHAALIGN_COORDINATOR", "ALPHAALIGN_PROCESSES", "ALPHAALIGN_PROCESS"
# After so long without a sign of life from a process, JAX ends all others with a message.
_DEAD_AFTER_SECONDS = 60

# Where a control group says what its processes may hold together: versions 2 and 1.
_CONTROL_GROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def start() -> None:
    """Joins the cluster that the environment describes, before any other JAX call; nothing where it describes none.

    By hand: ALPHAALIGN_COORDINATOR=host:port, ALPHAALIGN_PROCESSES=N, ALPHAALIGN_PROCESS=0..N-1 in each process. On a
    TPU pod, under Slurm or Open MPI: ALPHAALIGN_PROCESSES=auto. Raises ValueError where only some are set.
    """
    given = {name: os.environ.get(name, "") for name in (COORDINATOR, COUNT, INDEX)}
    if not any(given.values()):
        return
    cluster: dict[str, Any] = {}  # JAX finds it
    if given[COUNT] != "auto":
        _check(given)
        cluster = dict(
            coordinator_address=given[COORDINATOR], num_processes=int(given[COUNT]), process_id=int(given[INDEX])
        )
    # On CPU, programs that are under way at once may meet their collectives in another order on each process, and so do
    # those that one process took from the cache and another compiled: they would wait for each other for ever.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.distributed.initialize(**cluster, heartbeat_timeout_seconds=_DEAD_AFTER_SECONDS)
    if jax.default_backend() == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)


def _check(given: dict[str, str]) -> None:
    count, index = given[COUNT], given[INDEX]
    if not all(given.values()) or not count.isdigit() or not index.isdigit() or int(index) >= int(count):
        raise ValueError(
            f"{given}: set {COORDINATOR}=host:port, {COUNT}=N and {INDEX}=0..N-1 in every process, or only {COUNT}=auto"
        )


def abandon(status: int, error: BaseException | str = "") -> None:
    """After an error ends this process at once if it is one of a cluster, and shows it: its traceback, or a line.

    A regular end would wait for the others to end too, while they wait for this one at their next collective; so they
    are ended within ``_DEAD_AFTER_SECONDS``. Nothing where it runs alone.
    """
    if jax.distributed.is_initialized():
        if error:
            shown = error if isinstance(error, str) else "".join(traceback.format_exception(error))
            write_error(printable(shown))
            write_error(f"process {jax.process_index()} ends here; if a connection was lost, see the others' logs")
        for stream in (sys.stdout, sys.stderr):
            Stream(stream).flush()
        os._exit(status)


def keep_freed_memory() -> None:
    """Under glibc: pages that a step frees on the host stay with the process for the next one.

    On CPU, XLA mallocs a step's temporaries anew at each call. By default glibc maps such blocks one by one and unmaps
    them when they are freed, and clearing fresh pages took a third of a training step. To be called before any JAX
    computation: threads that already have a heap of their own keep it.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # M_* of malloc.h
    for setting, value in ((mmap_max, 0), (trim_threshold, -1), (arena_max, 1)):
        mallopt(setting, value)


def memory_used() -> int:
    """Bytes of this host's memory that the process holds; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def release_freed_memory(above: float = 0.8) -> None:
    """Under glibc: gives pages that lie free in the process back where it holds more than this share of the memory.

    The counterpart of ``keep_freed_memory``, to be called between steps: blocks of many sizes leave holes that no later
    block fits, and a run of steps of two shapes once filled 24 GB where 14 were in use. Where what is in use is more
    than that share, every step pays for fresh pages, as it would without either.
    """
    if memory_used() > above * memory_limit():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def memory_limit(control_group: Sequence[str] = _CONTROL_GROUP) -> int:
    """Bytes this process may hold: the host's memory, or its control group's limit where that is less."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in control_group:
        with contextlib.suppress(OSError, ValueError), open(file) as limit:
            limits.append(int(limit.read()))
    return min(limits)


def first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def to_host(tree: Any) -> Any:
    """NumPy arrays of a pytree, whole on every process, wherever its shards lie."""
    here = lambda x: not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
    leaves, structure = jax.tree.flatten(tree)
    elsewhere = iter(multihost_utils.process_allgather([x for x in leaves if not here(x)], tiled=True))
    local = iter(jax.device_get([x for x in leaves if here(x)]))
    return jax.tree.unflatten(structure, [next(local if here(x) else elsewhere) for x in leaves])


def gather_rows(values: Any) -> Any:
    """Each process's NumPy array of one shape, stacked on a new leading axis, on every process."""
    return multihost_utils.process_allgather(values) if jax.process_count() > 1 else values[None]
