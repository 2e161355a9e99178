"""The bytes that each vocabulary row stands for, read from a fast tokenizer's own definition.

Ids are never decoded to text and encoded back: a sequence's bytes are the concatenation of its tokens' bytes, so a
verifier can work on ids and still be exact for tags split over tokens, merged with neighbours, or cut mid-character.

Two families of decoders are understood: GPT-2's byte alphabet (``ByteLevel``: Qwen, Llama 3, SmolLM2) and the
sentencepiece style (``Metaspace`` or ``Replace`` with '▁', ``ByteFallback``: Mistral). Any other is refused by name.
"""

from __future__ import annotations

import json
import re
from typing import Any

_METASPACE = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: Any, vocab_size: int | None = None) -> list[bytes]:
    """Bytes of every vocabulary row, in id order.

    Args:
        tokenizer: a transformers ``PreTrainedTokenizerFast`` (anything with its ``backend_tokenizer``).
        vocab_size: rows of the model's embedding, when it is padded beyond the tokenizer. Padding rows, and ids the
            tokenizer leaves unused, give ``b""``. Default: up to the tokenizer's highest id.

    Added and special tokens go through the decoder too, as in the library: a '▁' in their text is a space where the
    decoder makes it one, and text outside of GPT-2's alphabet, such as a space, stands for itself. The space that a
    sentencepiece decoder strips from the start of a whole text is kept: a row's bytes do not depend on its place.

    Raises ValueError for a slow tokenizer, a decoder that is not understood, or a ``vocab_size`` below the highest id.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"{type(tokenizer).__name__} has no backend_tokenizer; load a fast tokenizer (tokenizer.json)")
    spec = json.loads(backend.to_str())
    vocab = spec["model"]["vocab"]
    ids = dict(vocab) if isinstance(vocab, dict) else {row[0]: i for i, row in enumerate(vocab)}
    to_bytes = _row_decoder(spec.get("decoder"))

    rows = {i: to_bytes(text) for text, i in ids.items()}
    # Last: an added token may also have a row in the model's vocabulary. The library decodes its text like any other's.
    rows.update({token["id"]: to_bytes(token["content"]) for token in spec["added_tokens"]})
    needed = max(rows) + 1
    if vocab_size is not None and vocab_size < needed:
        raise ValueError(
            f"vocab_size={vocab_size} but the tokenizer's highest id is {needed - 1}; pass the model's padded "
            f"vocabulary (at least {needed}), or use the tokenizer that belongs to this model"
        )
    return [rows.get(i, b"") for i in range(vocab_size or needed)]


def _row_decoder(decoder: dict | None):
    """The function text -> bytes for one vocabulary row, or a ValueError that names the decoder."""
    steps = _flatten(decoder)
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        alphabet = byte_alphabet()

        def byte_level(text: str) -> bytes:
            # A row with a character outside the alphabet stands for its own text, whole, as in the tokenizers library.
            mapped = [alphabet.get(char) for char in text]
            return text.encode("utf-8") if None in mapped else bytes(mapped)

        return byte_level

    for step in steps:
        if not _is_sentencepiece_step(step):
            raise ValueError(
                f"tokenizer decoder {json.dumps(step, ensure_ascii=False)} is not supported; supported: ByteLevel "
                f"alone, or a sequence of Replace('{_METASPACE}', ' '), Metaspace, ByteFallback, Fuse, Strip"
            )
    if "Strip" in kinds and "Fuse" not in kinds[: kinds.index("Strip")]:
        raise ValueError("tokenizer decoder Strip before Fuse is not supported: it strips every token, not the text")
    if not {"Replace", "Metaspace"} & set(kinds):
        raise ValueError(f"tokenizer decoder {kinds or None} is not supported; add ByteLevel, Metaspace or Replace")
    fallback = "ByteFallback" in kinds

    def sentencepiece(text: str) -> bytes:
        byte = _BYTE_TOKEN.fullmatch(text) if fallback else None
        return bytes([int(byte[1], 16)]) if byte else text.replace(_METASPACE, " ").encode("utf-8")

    return sentencepiece


def _flatten(decoder: dict | None) -> list[dict]:
    if decoder is None:
        return []
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for inner in decoder["decoders"] for step in _flatten(inner)]


def _is_sentencepiece_step(step: dict) -> bool:
    kind = step["type"]
    if kind == "Replace":
        return step["pattern"] == {"String": _METASPACE} and step["content"] == " "
    if kind == "Metaspace":
        return step["replacement"] == _METASPACE
    if kind == "Strip":
        return step["content"] == " "
    return kind in ("ByteFallback", "Fuse")


def byte_alphabet() -> dict[str, int]:
    """GPT-2's one-character spelling of each byte, as character -> byte (256 entries).

    Printable Latin-1 bytes spell themselves; the other 68, in order, take the characters from U+0100 on.
    Source: Radford et al. 2019, the byte-level BPE of GPT-2.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
