"""Tokenizers, and the set of ids that end a response."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alphaalign_jax.hf.chat import DEFAULT, ChatSettings, end_of_turn
from alphaalign_jax.hf.gguf_tokenizer import read_tokenizer
from alphaalign_jax.hf.paths import configs_dir, kind, resolve
from alphaalign_jax.terminal import quiet_libraries


def load_tokenizer(path: str | Path) -> Any:
    """The fast tokenizer of a model: directory, GGUF file, ``package:NAME`` or hub id.

    A ``tokenizer.json`` is taken as it is: the classes that transformers 5 picks by name build some tokenizers anew
    from the vocabulary, and picking one imports torch wherever it is installed. Raises ValueError for a slow one.
    """
    local = resolve(path)
    if kind(local) == "gguf":
        return read_tokenizer(local)
    quiet_libraries()
    import transformers

    local = configs_dir(local)
    fast = transformers.PreTrainedTokenizerFast if (local / "tokenizer.json").is_file() else transformers.AutoTokenizer
    try:
        tokenizer = fast.from_pretrained(local, trust_remote_code=False)
    except Exception as error:  # the libraries raise many kinds for a file that is not theirs
        raise ValueError(f"model {path}: its tokenizer cannot be read from {local}: {error}") from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ValueError(
            f"model {path}: {type(tokenizer).__name__} is a slow tokenizer; the directory needs a tokenizer.json"
        )
    return tokenizer


def token_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids that a token owns. They may leave gaps, so their number is no bound on them."""
    return frozenset(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True).values())


def stop_ids(tokenizer: Any, *configs: Mapping[str, Any] | None, settings: ChatSettings = DEFAULT) -> tuple[int, ...]:
    """Return every id that ends a response, ascending.

    They are the ``eos_token_id`` of each config (``config.json`` and ``generation_config.json``, one id or a list), the
    tokenizer's eos, and the token with which the chat template ends an assistant turn. A model that ends turns with one
    and texts with another must stop at both. Raises ValueError if no token owns an id, or if there is none.
    """
    found: set[int] = set()
    for config in configs:
        eos = (config or {}).get("eos_token_id")
        found.update(eos if isinstance(eos, (list, tuple)) else [] if eos is None else [eos])
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    turn = end_of_turn(tokenizer, settings)
    if turn is not None:
        found.add(turn)
    owned = token_ids(tokenizer)
    for i in found:
        if type(i) is not int or i not in owned:
            raise ValueError(
                f"eos_token_id {i!r} is not an id of the tokenizer, whose {len(owned)} ids go up to {max(owned)}; "
                f"they belong to two models"
            )
    if not found:
        raise ValueError(
            "no token ends a response: set eos_token_id in generation_config.json, or the tokenizer's eos_token"
        )
    return tuple(sorted(found))
