"""A model as a directory with Orbax weights: any head, any sharding, no gathering.

<dir>/params/          nested dict of arrays, as ``Network`` has it
<dir>/config.json, generation_config.json, tokenizer files     as in a Hugging Face directory
<dir>/alphaalign.json  that it is one, its head, and a digest of each array: Orbax sees no bit that was flipped

The weights of a training run are those of its checkpoint, which has the digests.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from alphaalign_jax.hf.chat import DEFAULT, ChatSettings
from alphaalign_jax.hf.export import check_params, merged_config, write_configs
from alphaalign_jax.hf.paths import MARKER, RUN_STEPS, is_step, kind, load_spec, marker, read_json
from alphaalign_jax.hf.staging import staged
from alphaalign_jax.models import Network, Params
from alphaalign_jax.parallel.digest import digests
from alphaalign_jax.terminal import quiet_libraries

CRITIC_CONFIG = "critic.json"  # of a run


def save_model(
    params: Params,
    network: Network,
    out_dir: str | Path,
    tokenizer: Any = None,
    base_config: Mapping[str, Any] | None = None,
    *,
    generation_config: Mapping[str, Any] | None = None,
    chat: ChatSettings = DEFAULT,
) -> Path:
    """Writes ``out_dir`` in this format, arguments as for ``export``; ``load`` reads it back bit for bit."""
    quiet_libraries()
    check_params(params, network.shapes())
    dtype = str(params["embed"]["table"].dtype)
    config = merged_config(network, base_config, tokenizer, dtype)
    marks = dict(kind="orbax_model", head=network.head, dtype=dtype, chat=chat.to_json(), digests=digests(params))
    with staged(out_dir, **marks) as out:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(out / "params", params)
        if jax.process_index() == 0:
            write_configs(out, config, generation_config, tokenizer, chat)
    return Path(out_dir)


def describe_run(
    run_dir: str | Path,
    network: Network,
    tokenizer: Any,
    base_config: Mapping[str, Any] | None,
    generation_config: Mapping[str, Any] | None,
    *,
    item: str,
    chat: ChatSettings,
    critic_config: Mapping[str, Any] | None = None,
) -> None:
    """Makes a training run's folder a model; ``resolve(run_dir)`` finds it.

    ``<run>/model`` holds configs and tokenizer, and says that the weights are ``item`` of the newest step in
    ``<run>/checkpoints``. ``critic_config``: the config of a critic with a body of its own, kept beside them.
    """
    config = merged_config(network, base_config, tokenizer, "float32")
    marks = {
        "kind": "orbax_model",
        "head": network.head,
        "dtype": "float32",
        "steps": RUN_STEPS,
        "item": item,
        "chat": chat.to_json(),
    }
    with staged(Path(run_dir) / "model", **marks) as out:
        if jax.process_index() == 0:
            write_configs(out, config, generation_config, tokenizer, chat)
            if critic_config is not None:
                (out / CRITIC_CONFIG).write_text(json.dumps(dict(critic_config), indent=2) + "\n", encoding="utf-8")


def _weights(path: Path) -> Path:
    """Where the arrays of a resolved directory of this format lie."""
    said = marker(path)
    if is_step(path):
        if "item" not in said:
            raise ValueError(f"{path}: {MARKER} of its run names no 'item' of a checkpoint; give the run's folder")
        return path / said["item"]
    if "steps" not in said:
        return path / "params"
    steps = (path / said["steps"]).resolve()
    # Orbax names a step's directory by its number only once it is complete.
    done = [entry.name for entry in steps.iterdir() if entry.name.isdecimal()] if steps.is_dir() else []
    if not done:
        raise ValueError(f"{path.parent}: the run has no finished checkpoint yet in {steps}")
    return steps / max(done, key=int) / said["item"]


def stored_head(path: Path) -> str | None:
    """The head saved at a resolved path; None where it is no directory of this format."""
    return marker(path)["head"] if kind(path) == "orbax" else None


def restore(path: Path, network: Network, shardings: Params, param_dtype: str, full_layers: int) -> Params:
    """Weights for ``network`` from a directory of this format, whose model has ``full_layers``.

    A value network may be asked of any model: it takes the first layers of the body, and a fresh head of zeros unless
    the model has a value head itself.
    """
    head = stored_head(path)
    if network.head not in (head, "value"):
        raise ValueError(f"{path} has head {head!r}; a network with head {network.head!r} cannot be read from it")
    spec, fresh = dataclasses.replace(network.spec, num_layers=full_layers), network.head != head
    shapes = Network(spec, network.head).shapes(param_dtype)
    if fresh:
        del shapes["head"]
    target = {
        key: jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), subtree, shardings[key])
        for key, subtree in shapes.items()
    }
    known = Network(dataclasses.replace(spec, num_labels=load_spec(path).num_labels), head).shapes()
    directory = _weights(path)
    params = _restore(directory, target, known, _written(path, directory))
    if full_layers != network.spec.num_layers:
        params["layers"] = jax.tree.map(lambda x: x[: network.spec.num_layers], params["layers"])
        params["layers"] = jax.device_put(params["layers"], shardings["layers"])
    if fresh:
        like = network.shapes(param_dtype)["head"]["kernel"]
        make = jax.jit(lambda: jnp.zeros(like.shape, like.dtype), out_shardings=shardings["head"]["kernel"])
        params["head"] = {"kernel": make()}
    return params


def _written(path: Path, directory: Path) -> dict[str, str]:
    """Digests of the arrays that were written to ``directory``, by their paths; empty where none were noted."""
    if directory.name == "params":
        return marker(path).get("digests", {})
    prefix = f"['{directory.name}']"
    try:
        arrays = read_json(directory.parent / "meta/metadata")["arrays"]
        return {name.removeprefix(prefix): text for name, text in arrays.items() if name.startswith(prefix)}
    except (ValueError, LookupError, AttributeError, OSError) as error:
        raise ValueError(
            f"{directory.parent}: the checkpoint is damaged ({error!r:.200}); give an earlier one"
        ) from error


def _restore(directory: Path, target: Params, known: Params, written: dict[str, str]) -> Params:
    """Restores the subtree ``target`` of what is stored, which must be the tree ``known``.

    Orbax passes over what is missing and what is too much, so both are checked here, and each array against the digest
    that was ``written``. One by one: they are read as they are stored, and may be wanted in half of that.
    """
    quiet_libraries()
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(directory).item_metadata if directory.is_dir() else None
    if metadata is None:
        raise ValueError(f"{directory} holds no Orbax weights; save the model again")
    check_params(metadata.tree, known, directory)
    stored, found = flatten_dict(metadata.tree), {}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        for key, like in flatten_dict(target).items():
            like_stored = jax.ShapeDtypeStruct(like.shape, stored[key].dtype, sharding=like.sharding)
            item = unflatten_dict({key: like_stored})
            restore_args = ocp.checkpoint_utils.construct_restore_args(item)
            args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
            one = checkpointer.restore(directory, args=args)
            for name, digest in digests(one).items():
                if written and written.get(name) != digest:
                    raise ValueError(f"{directory}: {name} is corrupt (its digest differs); use an earlier checkpoint")
            found[key] = flatten_dict(one)[key].astype(like.dtype)
    return unflatten_dict(found)
