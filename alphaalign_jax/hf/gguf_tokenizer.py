"""The tokenizer that a GGUF file's metadata describes, as a transformers fast tokenizer.

transformers has a conversion of its own, which needs torch, and which splits SmolLM's text by GPT-2's rule alone; the
model's own tokenizer isolates digits first, which matters after runs of spaces ("a  12").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from alphaalign_jax.hf import gguf

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type

# How each vocabulary's text was split when its merges were learned, from the models' published tokenizer.json files.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


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


def read_tokenizer(path: Path) -> Any:
    """A ``PreTrainedTokenizerFast`` with special tokens and chat template.

    Raises ValueError for a vocabulary that is not byte-level BPE.
    """
    from transformers import PreTrainedTokenizerFast

    fields = gguf.metadata(path)
    tokens = _need(path, fields, "tokens")
    special = {
        f"{name}_token": tokens[fields[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if fields.get(f"tokenizer.ggml.{key}_token_id") is not None
    }
    arch = fields["general.architecture"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_backend(path, fields, tokens),
        clean_up_tokenization_spaces=False,
        model_max_length=fields.get(f"{arch}.context_length"),
        **special,
    )
    tokenizer.chat_template = fields.get("tokenizer.chat_template")
    return tokenizer


def _backend(path: Path, fields: dict[str, Any], tokens: list[str]) -> Tokenizer:
    model, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if model != "gpt2":
        raise ValueError(
            f"{path}: tokenizer.ggml.model={model!r} is not implemented, only byte-level BPE ('gpt2'); "
            f"use a Hugging Face directory"
        )
    if pre not in _PRE:
        raise ValueError(f"{path}: tokenizer.ggml.pre={pre!r} is not implemented; implemented: {', '.join(_PRE)}")
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocab[token] != i)
        raise ValueError(f"{path}: token {twice!r} is in tokenizer.ggml.tokens twice")
    merges = [tuple(merge.split(" ", 1)) for merge in _need(path, fields, "merges")]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(_PRE[pre]())
    backend.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, _need(path, fields, "token_type"), strict=True):
        if kind == _CONTROL:
            backend.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == _USER_DEFINED:
            backend.add_tokens([AddedToken(token, normalized=False, special=False)])
    # Absent, the flag means what llama.cpp takes it to mean for the vocabulary.
    bos = fields.get("tokenizer.ggml.bos_token_id")
    if bos is not None and fields.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"):
        backend.post_processor = processors.TemplateProcessing(
            single=[tokens[bos], "$A"], pair=[tokens[bos], "$A", tokens[bos], "$B"], special_tokens=[(tokens[bos], bos)]
        )
    return backend


def _need(path: Path, fields: dict[str, Any], key: str) -> Any:
    if f"tokenizer.ggml.{key}" not in fields:
        raise ValueError(f"{path}: metadata tokenizer.ggml.{key} is missing; the tokenizer cannot be built without it")
    return fields[f"tokenizer.ggml.{key}"]
