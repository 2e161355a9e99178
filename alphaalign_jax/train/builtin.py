"""The built-in tiny model: a Qwen2-architecture decoder with a byte-level BPE of its own, made where the run is.

It exists so that the whole stack, tokenizer to export, can be tried with nothing downloaded. It starts from random
weights and knows only the words of the demo set; the format warm-up is all the language it ever learns.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from alphaalign_jax import hf
from alphaalign_jax.models import ModelSpec, Network
from alphaalign_jax.terminal import quiet_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCAB = 2048
_END, _TURN, _END_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_spec(vocab_size: int) -> ModelSpec:
    """About 1.1 million parameters. Every sharded dimension divides by 8, kv heads by 2."""
    return ModelSpec(
        family="qwen2",
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        norm_eps=1e-6,
        rope_theta=10000.0,
        rope_scaling=None,
        max_positions=1024,
        qkv_bias=True,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        tie_embeddings=True,
    )


def train_tokenizer(texts: Sequence[str], vocab_size: int = VOCAB) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a chat template, trained on ``texts``.

    Rare words stay bytes: nothing is out of vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END, _TURN, _END_TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    quiet_libraries()
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_END,
        eos_token=_END_TURN,
        chat_template=_CHAT,
        clean_up_tokenization_spaces=False,
    )


def build_tiny(directory: pathlib.Path, texts: Sequence[str], seed: int) -> pathlib.Path:
    """Writes the model, untrained, as a Hugging Face directory; returns it.

    ``texts`` are what the tokenizer is trained on.
    """
    tokenizer = train_tokenizer(texts)
    # Vocabulary rows to a multiple of 64, so that they divide over any small mesh; the spare ones have no token.
    rows = -(-(max(hf.token_ids(tokenizer)) + 1) // 64) * 64
    network = Network(tiny_spec(rows))
    params = jax.jit(network.init)(jax.random.key(seed))
    hf.export(params, network, directory, tokenizer)
    return directory
