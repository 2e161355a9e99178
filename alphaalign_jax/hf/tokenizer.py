"""Tokenizers, and the set of ids that end a response."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alphaalign_jax.hf.chat import end_of_turn
from alphaalign_jax.hf.gguf_tokenizer import read_tokenizer
from alphaalign_jax.hf.paths import configs_dir, kind, resolve


def load_tokenizer(path: str | Path) -> Any:
    """The fast tokenizer of a model: directory, GGUF file, ``package:NAME`` or hub id.

    A ``tokenizer.json`` is taken as it is: the classes that transformers 5 picks by name build some tokenizers anew
    from the vocabulary, and picking one imports torch wherever it is installed. Raises ValueError for a slow one.
    """
    local = resolve(path)
    if kind(local) == "gguf":
        return read_tokenizer(local)
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


def stop_ids(tokenizer: Any, *configs: Mapping[str, Any] | None) -> tuple[int, ...]:
    """Every id that ends a response, ascending.

    They are the ``eos_token_id`` of each config (``config.json`` and ``generation_config.json``, one id or a list), the
    tokenizer's eos, and the token with which the chat template ends an assistant turn. A model that ends turns with one
    and texts with another must stop at both. Raises ValueError where an id is outside the tokenizer, or there is none.
    """
    found: set[int] = set()
    for config in configs:
        eos = (config or {}).get("eos_token_id")
        found.update(eos if isinstance(eos, (list, tuple)) else [] if eos is None else [eos])
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    turn = end_of_turn(tokenizer)
    if turn is not None:
        found.add(turn)
    for i in found:
        if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < len(tokenizer):
            raise ValueError(
                f"eos_token_id {i!r} is not an id of the tokenizer, which has {len(tokenizer)}; "
                f"they belong to two models"
            )
    if not found:
        raise ValueError(
            "no token ends a response: set eos_token_id in generation_config.json, or the tokenizer's eos_token"
        )
    return tuple(sorted(found))


def control_texts(tokenizer: Any) -> tuple[str, ...]:
    """The literal of every special token, the unnamed ones too (``<|start_header_id|>``): no text may spell one."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return tuple(sorted({*tokenizer.all_special_tokens, *(str(token) for token in added.values() if token.special)}))
