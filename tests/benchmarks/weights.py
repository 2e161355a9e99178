"""Memory of reading a published model's weights and writing them again, in bfloat16, a shard at a time.

    python tests/benchmarks/weights.py --model=Qwen/Qwen2.5-7B --folder=/tmp/weights

Makes random weights of the model's shapes in the folder (15 GB of a 7B), then reads them and writes them beside, in a
process of its own, and compares the files. Nothing is fetched. Its parts on several devices: XLA_FLAGS.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import pathlib
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from alphaalign_jax import hf
from alphaalign_jax.hf.export import MAX_SHARD_BYTES, merged_config, plan_files, stored_shapes, write_index
from alphaalign_jax.hf.safetensors_dir import write_file
from alphaalign_jax.models import ModelSpec, Network, published
from alphaalign_jax.parallel import Layout, build_mesh, rule_table

GB = 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="Qwen/Qwen2.5-7B")
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--again", action="store_true", help=argparse.SUPPRESS)  # the process that is measured
    args = parser.parse_args()
    if args.again:
        read_and_write(args.folder)
        return
    network = Network(ModelSpec.from_hf(published.CONFIGS[args.model]), dtype="bfloat16", remat="none")
    make(network, args.folder / "made")
    subprocess.run([sys.executable, *sys.argv, "--again"], check=True)
    names = sorted(file.name for file in (args.folder / "made").glob("*.safetensors"))
    equal, *_ = filecmp.cmpfiles(args.folder / "made", args.folder / "written", names, shallow=False)
    print(f"{len(equal)} of {len(names)} files equal")


def make(network: Network, folder: pathlib.Path) -> None:
    """A model directory with random bits of finite numbers."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(merged_config(network, None, None, "bfloat16")))
    random, files = np.random.default_rng(0), plan_files(network, 2, MAX_SHARD_BYTES)
    draw = lambda shape: random.integers(0, 2**14, shape, np.uint16).view(jnp.bfloat16)
    for file, tensors in files.items():
        shapes = stored_shapes(network, tensors)
        write_file(folder / file, shapes, "bfloat16", map(draw, shapes.values()))
    write_index(folder, network, files, 2)


def read_and_write(folder: pathlib.Path) -> None:
    jax.devices()
    before, began = peak(), time.perf_counter()
    layout = Layout(build_mesh(), rule_table("fsdp_tensor"))
    network, params = hf.load(folder / "made", layout=layout, param_dtype="bfloat16")
    weights = sum(x.nbytes for x in jax.tree.leaves(params))
    largest = max(x.nbytes for x in jax.tree.leaves(params))
    loaded, read = peak(), time.perf_counter() - began
    began = time.perf_counter()
    hf.export(params, network, folder / "written")
    print(
        f"weights {weights / GB:.2f} GB on {jax.device_count()} devices, largest parameter {largest / GB:.2f}; "
        f"the process had {before / GB:.2f}; peak of reading {loaded / GB:.2f} ({read:.0f} s), of writing "
        f"{peak() / GB:.2f} ({time.perf_counter() - began:.0f} s)"
    )


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
