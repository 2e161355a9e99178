"""Finding a model: a local directory or GGUF file, one inside an installed package, or a hub repository."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alphaalign_jax import buckets
from alphaalign_jax.config.chat import ChatSettings
from alphaalign_jax.hf import gguf
from alphaalign_jax.models import ModelSpec
from alphaalign_jax.models.spec import checked
from alphaalign_jax.text import json_of

MARKER = buckets.MARKER  # written beside every model we save; says what it is and which files are ours
_HUB_FILES = ["model*.safetensors", "*.json", "*.jinja", "merges.txt", "*.model"]
_STEP = re.compile(r"checkpoints/([0-9]+)/commit_success\.txt")  # in a bucket, what Orbax writes last
RUN_STEPS = "../checkpoints"  # of a run, from the folder of its configs and tokenizer
_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_DTYPES = ("float32", "bfloat16", "float16")  # of weights that we write


def resolve(path: str | Path) -> Path:
    """The local directory or ``.gguf`` file that ``path`` names.

    ``path`` is a local directory or GGUF file, a training run's folder (its newest checkpoint) or one of its
    checkpoints (``RUN/checkpoints/20``), ``package:NAME`` (the one model inside an installed Python package), a folder,
    run or GGUF file in a bucket (``gs://...``), or a hub id ``owner/name``, with ``@revision`` where wanted, of which
    configs, tokenizer and safetensors are fetched.
    Raises ValueError that says what was looked for and how to get it.
    """
    text = str(path)
    if text.startswith("package:"):
        return _in_package(text.removeprefix("package:"))
    local = buckets.fetch(text, _of_a_model) if buckets.remote(text) else None
    try:
        return _local(local or Path(path).expanduser(), text) or _from_hub(text)
    except (OSError, RuntimeError) as error:  # a name that is too long, a folder that is closed to us, no such user
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"model {text[:200]!r} cannot be looked up ({reason}); give a directory, a .gguf file, package:NAME or a "
            f"hub id owner/name"
        ) from error


def kind(path: Path) -> str:
    """``gguf``, ``orbax`` or ``hf``, for a resolved path."""
    if path.suffix == ".gguf" and path.is_file():
        return "gguf"
    return "orbax" if marker(path).get("kind") == "orbax_model" else "hf"


def configs_dir(path: Path) -> Path:
    """Where the configs and the tokenizer of a resolved directory lie: a run keeps one copy for all its checkpoints."""
    return path.parent.parent / "model" if is_step(path) else path


def is_step(path: Path) -> bool:
    """Whether this is one checkpoint of a training run."""
    run = path.parent.parent
    return path.name.isdecimal() and path.parent.name == "checkpoints" and (run / "model" / MARKER).is_file()


def marker(path: Path) -> dict[str, Any]:
    """What our own marker file says; empty without one."""
    file = configs_dir(path) / MARKER
    return _checked_marker(file, read_json(file)) if file.is_file() else {}


def chat_settings(path: str | Path, date: str = "", args: Sequence[str] | None = None) -> ChatSettings:
    """Return what a model's chat template is rendered with: what is given here, else as the model was saved with.

    Only models of ours say what they were saved with; for others it is the defaults.
    """
    local = resolve(path)
    recorded = marker(local).get("chat") if kind(local) != "gguf" else None
    saved = ChatSettings() if recorded is None else ChatSettings.of(recorded)
    return ChatSettings(date or saved.date, saved.args if args is None else tuple(args))


def _checked_marker(file: Path, said: dict[str, Any]) -> dict[str, Any]:
    """A marker comes with a model, from anywhere: what it says must not lead out of its folder."""
    files, written, ours = said.get("files", []), said.get("digests", {}), said.get("kind") == "orbax_model"
    fits = {
        "digests": isinstance(written, dict) and all(isinstance(text, str) for text in written.values()),
        "kind": isinstance(said.get("kind"), str),
        "head": isinstance(said.get("head", None if ours else ""), str),
        "dtype": said.get("dtype", None if ours else _DTYPES[0]) in _DTYPES,
        "files": isinstance(files, list) and all(is_plain_name(name) for name in files),
        "steps": said.get("steps", RUN_STEPS) == RUN_STEPS,
        "chat": "chat" not in said or _are_chat_settings(said["chat"]),
        "item": said.get("item", "actor") in ("actor", "average") and ("steps" not in said or "item" in said),
    }
    for key, fit in fits.items():
        if not fit:
            raise ValueError(f"{file}: {key!r} is {said.get(key)!r:.80}, which is not what alphaalign writes there")
    return said


def _are_chat_settings(recorded: Any) -> bool:
    try:
        return bool(ChatSettings.of(recorded))
    except ValueError:
        return False


def is_plain_name(name: Any) -> bool:
    """Whether a name is one of a file in its folder, and cannot lead elsewhere."""
    return isinstance(name, str) and name not in ("", ".", "..") and not {*name} & {"/", "\\", "\0"}


def load_config(path: str | Path) -> dict[str, Any]:
    """``config.json`` as a dict; for a GGUF file, what its metadata says in those terms."""
    path = resolve(path)
    return gguf.read_config(path) if kind(path) == "gguf" else _read_config(configs_dir(path) / "config.json")


def load_generation_config(path: str | Path) -> dict[str, Any]:
    """``generation_config.json`` as a dict; empty where there is none."""
    path = resolve(path)
    file = configs_dir(path) / "generation_config.json"
    return _read_config(file) if kind(path) != "gguf" and file.is_file() else {}


def _read_config(file: Path) -> dict[str, Any]:
    """Either config, with ids of stops that are ids, or a list of them: the rest is checked by who reads it."""
    found = read_json(file)
    eos = found.get("eos_token_id")
    if not all(type(i) is int for i in (eos if isinstance(eos, list) else [] if eos is None else [eos])):
        raise ValueError(f"{file}: eos_token_id is {eos!r:.80}; expected a whole number, a list of them, or null")
    return found


def load_spec(path: str | Path) -> ModelSpec:
    """The architecture of the model at ``path``; ``num_labels`` is set where its config says it is a classifier."""
    return spec_of(load_config(path))


def spec_of(config: dict[str, Any]) -> ModelSpec:
    """Likewise, of what ``config.json`` says."""
    return ModelSpec.from_hf(config, num_labels=num_labels(config) if is_classifier(config) else None)


def is_classifier(config: dict[str, Any]) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in checked(config, "architectures") or ())


def num_labels(config: dict[str, Any]) -> int:
    """Labels of a classifier. Files of two-label models say nothing: transformers leaves its default of 2 unwritten."""
    named, stated = len(checked(config, "id2label") or ()), checked(config, "num_labels")
    if named and stated and named != stated:
        raise ValueError(
            f"config.json: num_labels={stated}, but id2label has {named} labels; correct the one that is wrong"
        )
    return named or stated or 2


def read_json(file: Path) -> dict[str, Any]:
    try:
        found = json_of(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file} does not exist; a model directory needs it") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}; expected a JSON object")
    return found


def _local(path: Path, text: str) -> Path | None:
    """What ``resolve`` gives for a path of this machine; None where nothing is there."""
    if path.is_dir():
        return _in_directory(path, text)
    if path.is_file() and path.suffix != ".gguf":
        raise ValueError(f"model {text!r} is a file; give a .gguf file or the directory with config.json")
    return path if path.is_file() else None


def _in_directory(directory: Path, text: str) -> Path:
    directory = directory.absolute()
    _refuse_adapter(directory, text)
    if (directory / "config.json").is_file() or is_step(directory):
        return directory
    if (directory / "model" / MARKER).is_file():  # a training run's folder
        return directory / "model"
    if (directory / "export" / "config.json").is_file():  # a supervised run's
        return directory / "export"
    found = sorted(directory.glob("*.gguf"))
    if len(found) == 1:
        return found[0]
    if found and all(map(gguf.is_part, found)):
        gguf.refuse_part(found[0], len(found))
    names = [file.name for file in found] or "no .gguf file"
    raise ValueError(
        f"model {text!r}: the directory has no config.json and {names}; it needs a config.json or one GGUF file"
    )


def _refuse_adapter(directory: Path, text: str) -> None:
    """transformers would load the base model that an adapter's folder names, with or without weights beside it."""
    file = directory / "adapter_config.json"
    if file.is_file():
        base = read_json(file).get("base_model_name_or_path")
        raise ValueError(
            f"model {text!r} holds a LoRA adapter (adapter_config.json; its base model: {base!r:.200}), not a whole "
            "model; merge it into the base with peft (merge_and_unload, then save_pretrained) and give that folder"
        )


def _of_a_model(names: set[str]) -> set[str]:
    """Of a bucket's folder what is read of it: of a training run, the policy of its newest finished checkpoint."""
    if f"model/{MARKER}" not in names:
        return names
    steps = [int(found[1]) for found in map(_STEP.fullmatch, names) if found]
    apart = [f"checkpoints/{max(steps)}/{item}/" for item in ("actor", "average", "meta")] if steps else []
    return {name for name in names if name.startswith(("model/", *apart))}


def _in_package(name: str) -> Path:
    module = name.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"model 'package:{name}': no such Python package is installed; run: pip install {name.replace('_', '-')}"
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    found = sorted(root.rglob("*.gguf")) or sorted(file.parent for file in root.rglob("config.json"))
    if len(found) != 1:
        names = ", ".join(str(file.relative_to(root)) for file in found) or "none"
        raise ValueError(f"model 'package:{name}': expected one model in {root}, found {names}; give the path of one")
    return found[0]


def _from_hub(text: str) -> Path:
    name, _, revision = text.partition("@")
    if not _HUB_ID.fullmatch(name) or name.endswith(".gguf") or set(name) <= {"."}:
        raise ValueError(
            f"model {text!r} does not exist; give a directory, a .gguf file, package:NAME or a hub id owner/name"
        )
    import huggingface_hub

    try:
        fetched = huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=_HUB_FILES)
    except (OSError, ValueError, RuntimeError) as error:  # every error of the hub client is one of these
        raise ValueError(
            f"model {text!r} is no local path, and the hub did not give it ({type(error).__name__}: {error}); check "
            f"the name, log in if it is gated, or give a local directory"
        ) from error
    return _in_directory(Path(fetched), text)
