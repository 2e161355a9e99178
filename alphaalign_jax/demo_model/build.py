"""Build the demo model from the texts of ``corpus``: tokenizer, pretraining, Hugging Face directory.

    python -m alphaalign_jax.demo_model.build DIRECTORY

A Qwen2-architecture decoder of 2 million parameters, trained from random weights on the three kinds of text at once,
in float32, and saved in bfloat16. Deterministic on one machine with one version of JAX; elsewhere equal up to rounding.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from alphaalign_jax import config, hf
from alphaalign_jax.algorithms.losses import Denominator
from alphaalign_jax.demo_model.corpus import Corpus
from alphaalign_jax.display import Display
from alphaalign_jax.models import ModelSpec, Network, Params
from alphaalign_jax.models.distribution import Sampling
from alphaalign_jax.ops import masked_mean
from alphaalign_jax.rewards.template import INSTRUCTION
from alphaalign_jax.terminal import quiet_libraries
from alphaalign_jax.train import objectives, optimizer
from alphaalign_jax.types import Array, Examples, Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCAB = 2048
SEED = 0
CHUNK = 40  # response slots whose logits are held at a time
STEPS = 2600
# Rows and slots of a step's three batches: (rows, prompt slots, response slots).
STATEMENTS = (16, 1, 96)
TEMPLATE = (20, 40, 80)
BARE = (6, 40, 40)
LONGEST = 72  # tokens of a response that is read: at 80 slots, few of the model's own are cut off
OPTIMIZER = config.Optimizer(learning_rate=2e-3, warmup_steps=50, decay=0.6, b2=0.98, weight_decay=0.1)

_END = "<|endoftext|>"
_TURN = "<|im_start|>"
_END_TURN = "<|im_end|>"
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def spec(vocab_size: int) -> ModelSpec:
    """About 2 million parameters. Every sharded dimension divides by 4, kv heads by 2."""
    return ModelSpec(
        family="qwen2",
        vocab_size=vocab_size,
        hidden_size=192,
        intermediate_size=512,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=48,
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
    """Return a byte-level BPE with a chat template, trained on ``texts``.

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


class Batches:
    """The batches of each step: equal seeds give equal batches."""

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerFast):
        self._corpus = corpus
        self._encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
        self._end = tokenizer.convert_tokens_to_ids(_END)
        self._end_turn = tokenizer.convert_tokens_to_ids(_END_TURN)
        self._template = np.array(self._encode(f"{_TURN}user\n{INSTRUCTION}"), np.int32)
        self._bare = np.array(self._encode(f"{_TURN}user\n"), np.int32)

    def step(self, rng: np.random.Generator) -> tuple[Examples, ...]:
        """Statements, exchanges under the template, bare exchanges."""
        return (
            self._statements(rng),
            self._exchanges(self._template, lambda: self._corpus.exchange(rng), TEMPLATE),
            self._exchanges(self._bare, lambda: self._corpus.bare(rng), BARE),
        )

    def _statements(self, rng: np.random.Generator) -> Examples:
        """Rows packed full of statements, each of them ended by the end-of-text token, which also begins a row."""
        rows, _, slots = STATEMENTS
        tokens = np.zeros((rows, 1, slots), np.int32)
        for row in range(rows):
            ids: list[int] = []
            while len(ids) < slots:
                ids += [*self._encode(self._corpus.statement(rng)), self._end]
            tokens[row, 0] = ids[:slots]
        begin = np.full((rows, 1), self._end, np.int32)
        prompts = Prompts(np.zeros(0, np.int32), begin, np.ones(rows, np.int32), *np.zeros((2, rows), np.int32))
        return Examples(prompts, tokens, np.ones(tokens.shape, bool))

    def _exchanges(
        self, prefix: np.ndarray, draw: Callable[[], tuple[str, str]], sizes: tuple[int, int, int]
    ) -> Examples:
        """Questions and responses; one in twenty does not fit and is drawn again."""
        rows, slots, response_slots = sizes
        asked = np.zeros((rows, slots), np.int32)
        length = np.zeros(rows, np.int32)
        tokens = np.zeros((rows, 1, response_slots), np.int32)
        sampled = np.zeros(tokens.shape, bool)
        row = 0
        while row < rows:
            question, response = draw()
            prompt = self._encode(f"{question}{_END_TURN}\n{_TURN}assistant\n")
            ids = [*self._encode(response), self._end_turn]
            if len(prompt) > slots or len(ids) > min(response_slots, LONGEST):
                continue
            asked[row, : len(prompt)] = prompt
            length[row] = len(prompt)
            tokens[row, 0, : len(ids)] = ids
            sampled[row, 0, : len(ids)] = True
            row += 1
        prompts = Prompts(prefix, asked, length, *np.zeros((2, rows), np.int32))
        return Examples(prompts, tokens, sampled)


def pretrain(network: Network, params: Params, batches: Batches, *, steps: int, seed: int, display: Display) -> Params:
    """Return the trained weights. The loss is the mean over all tokens of a step's three batches."""
    tx = optimizer.build(OPTIMIZER, steps)
    sampling = Sampling.create()

    def loss(params: Params, parts: Sequence[Examples]) -> tuple[Array, Array]:
        total = Denominator.of(jnp.concatenate([part.sampled.reshape(-1) for part in parts])).tokens
        losses = []
        for part in parts:
            logp, _ = objectives.policy_logprobs(network, params, part.prompts, part.tokens, sampling, chunk=CHUNK)
            losses.append((masked_mean(-logp, part.sampled, denominator=total), masked_mean(-logp, part.sampled)))
        return sum(share for share, _ in losses), jnp.stack([mean for _, mean in losses])

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params: Params, opt_state, parts: Sequence[Examples]):
        (_, means), gradient = jax.value_and_grad(loss, has_aux=True)(params, parts)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return jax.tree.map(jnp.add, params, updates), opt_state, means

    opt_state = jax.jit(tx.init)(params)
    rng = np.random.default_rng(seed)
    with display.bar("pretraining", steps) as advance:
        for _ in range(steps):
            params, opt_state, means = update(params, opt_state, batches.step(rng))
            names = ("statements", "template", "bare")
            advance(1, **{name: f"{value:.3f}" for name, value in zip(names, np.asarray(means))})
    return params


def build(directory: pathlib.Path, *, steps: int = STEPS, seed: int = SEED, display: Display | None = None) -> None:
    """Write the model as a Hugging Face directory."""
    display = display or Display()
    began = time.perf_counter()
    corpus = Corpus()
    rng = np.random.default_rng(seed)
    texts = [INSTRUCTION, "user\n", "assistant\n"] * 100
    for _ in range(6000):
        texts += [corpus.statement(rng), *corpus.exchange(rng)]
    tokenizer = train_tokenizer(texts)
    # Vocabulary rows to a multiple of 64, so that they divide over any small mesh; the spare ones have no token.
    rows = -(-(max(hf.token_ids(tokenizer)) + 1) // 64) * 64
    network = Network(spec(rows))
    params = jax.jit(network.init)(jax.random.key(seed))
    display.say(f"{sum(x.size for x in jax.tree.leaves(params)) / 1e6:.2f} M parameters, {rows} vocabulary rows")
    params = pretrain(network, params, Batches(corpus, tokenizer), steps=steps, seed=seed, display=display)
    hf.export(params, network, directory, tokenizer, dtype="bfloat16")
    display.say(f"{time.perf_counter() - began:.0f} s; written to {directory}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    build(arguments.directory, steps=arguments.steps, seed=arguments.seed)
