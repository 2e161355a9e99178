"""The tokenizer that a GGUF file's metadata describes, as a transformers fast tokenizer.

transformers has a conversion of its own, which needs torch, and which splits SmolLM's text by GPT-2's rule alone; the
model's own tokenizer isolates digits first, which matters after runs of spaces ("a  12").
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from alphaalign_jax.hf import gguf
from alphaalign_jax.models.spec import Kind

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # tokenizer.ggml.token_type
_MERGES: Kind = (
    "a list of texts, two tokens with a space between",
    lambda value: gguf.TEXTS[1](value) and all(" " in merge for merge in value),
)

# How each vocabulary's text was split when its merges were learned, from the models' published tokenizer.json files.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _kinds(tokens: int) -> Kind:
    fits = lambda value: isinstance(value, list) and len(value) == tokens and all(type(x) is int for x in value)
    return f"a list of {tokens} whole numbers, one a token", fits


def _split(pattern: str) -> list[Any]:
    return [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def _gpt2() -> list[Any]:
    return [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]


_PRE = {
    "gpt-2": _gpt2,
    "smollm": lambda: [pre_tokenizers.Digits(individual_digits=True), *_gpt2()],
    "llama-bpe": lambda: _split(_LLAMA3),
    "qwen2": lambda: _split(_QWEN2),
}


@dataclasses.dataclass(frozen=True)
class _Vocabulary:
    """What the metadata says of a tokenizer, checked."""

    tokens: list[str]
    kinds: list[int]  # of each token
    merges: list[tuple[str, ...]]
    pre: str
    special: dict[str, str]  # bos_token, eos_token, ...
    bos: int | None  # what every text begins with
    template: str | None
    max_length: int


def read_tokenizer(path: Path) -> Any:
    """A ``PreTrainedTokenizerFast`` with special tokens and chat template.

    Raises ValueError for a vocabulary that is not byte-level BPE.
    """
    from transformers import PreTrainedTokenizerFast

    vocabulary = _read(gguf.metadata(path))
    try:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=_backend(vocabulary),
            clean_up_tokenization_spaces=False,
            model_max_length=vocabulary.max_length,
            **vocabulary.special,
        )
    except Exception as error:  # the library raises bare ones, for merges of tokens that are not there
        raise ValueError(f"{path}: its tokenizer cannot be built: {error!r:.200}; convert the model again") from error
    tokenizer.chat_template = vocabulary.template
    return tokenizer


def _read(meta: gguf.Metadata) -> _Vocabulary:
    pre = _pre(meta)
    tokens = meta.need("tokenizer.ggml.tokens", gguf.TEXTS)
    seen = {token: i for i, token in enumerate(tokens)}
    if len(seen) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if seen[token] != i)
        raise ValueError(f"{meta.path}: token {twice!r} is in tokenizer.ggml.tokens twice")
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {name: meta.get(f"tokenizer.ggml.{key}_token_id", gguf.token_id(len(tokens))) for name, key in names.items()}
    # Absent, the flag means what llama.cpp takes it to mean for the vocabulary.
    begun = meta.get("tokenizer.ggml.add_bos_token", gguf.FLAG, pre == "llama-bpe")
    return _Vocabulary(
        tokens,
        meta.need("tokenizer.ggml.token_type", _kinds(len(tokens))),
        [tuple(merge.split(" ", 1)) for merge in meta.need("tokenizer.ggml.merges", _MERGES)],
        pre,
        {f"{name}_token": tokens[i] for name, i in ids.items() if i is not None},
        ids["bos"] if begun else None,
        meta.get("tokenizer.chat_template", gguf.TEXT),
        gguf.context_length(meta, meta.need("general.architecture", gguf.TEXT)),
    )


def _pre(meta: gguf.Metadata) -> str:
    model = meta.need("tokenizer.ggml.model", gguf.TEXT)
    if model != "gpt2":
        raise ValueError(
            f"{meta.path}: tokenizer.ggml.model={model!r} is not implemented, only byte-level BPE ('gpt2'); "
            f"use a Hugging Face directory"
        )
    pre = meta.need("tokenizer.ggml.pre", gguf.TEXT)
    if pre not in _PRE:
        raise ValueError(f"{meta.path}: tokenizer.ggml.pre={pre!r} is not implemented; implemented: {', '.join(_PRE)}")
    return pre


def _backend(vocabulary: _Vocabulary) -> Tokenizer:
    tokens, pre, bos = vocabulary.tokens, vocabulary.pre, vocabulary.bos
    # Converters fill up the rows of the embedding that no token owns: "[PAD151669]" and the like, which are not text.
    vocab = {token: i for i, token in enumerate(tokens) if vocabulary.kinds[i] != _UNUSED}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=vocabulary.merges, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(_PRE[pre]())
    backend.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, vocabulary.kinds, strict=True):
        if kind == _CONTROL:
            backend.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == _USER_DEFINED:
            backend.add_tokens([AddedToken(token, normalized=False, special=False)])
    if bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=[tokens[bos], "$A"], pair=[tokens[bos], "$A", tokens[bos], "$B"], special_tokens=[(tokens[bos], bos)]
        )
    return backend
