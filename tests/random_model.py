"""A small model of random weights, for tests that need a folder with one."""

import pathlib
from collections.abc import Sequence

import jax

from alphaalign_jax import hf
from alphaalign_jax.demo_model.build import spec, train_tokenizer
from alphaalign_jax.models import Network


def build(directory: pathlib.Path, texts: Sequence[str], seed: int) -> pathlib.Path:
    """Write a Hugging Face directory whose tokenizer is trained on ``texts``; return it."""
    tokenizer = train_tokenizer(texts)
    rows = -(-(max(hf.token_ids(tokenizer)) + 1) // 64) * 64
    network = Network(spec(rows))
    hf.export(jax.jit(network.init)(jax.random.key(seed)), network, directory, tokenizer)
    return directory
