"""A model directory opened for sampling: what training, generation and evaluation share."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from alphaalign_jax import hf
from alphaalign_jax.hf import ChatSettings
from alphaalign_jax.models import ModelSpec, Network, Params
from alphaalign_jax.models.distribution import Sampling
from alphaalign_jax.parallel import Layout
from alphaalign_jax.rewards.token_bytes import token_bytes
from alphaalign_jax.rewards.verifiers import Verifiers
from alphaalign_jax.rollout.engine import Engine, InFlight


@dataclasses.dataclass(frozen=True)
class Policy:
    """A model directory opened for sampling: what `train`, `generate` and `evaluate` share."""

    path: pathlib.Path
    spec: ModelSpec
    tokenizer: Any
    stop_ids: tuple[int, ...]
    token_bytes: Sequence[bytes]
    owned: np.ndarray  # bool [V]: vocabulary rows that a token owns
    chat: ChatSettings
    verifiers: Verifiers

    @classmethod
    def open(
        cls,
        path: str | pathlib.Path,
        format_mode: str = "strict",
        chat_date: str = "",
        chat_args: Sequence[str] | None = None,
    ) -> Policy:
        """Read everything but the weights. ``chat_date`` and ``chat_args``: as for ``hf.chat_settings``."""
        path = hf.resolve(str(path))
        config = hf.load_config(path)
        if hf.is_classifier(config):
            raise ValueError(
                f"model {path}: {config['architectures'][0]} is a classifier; a policy needs a causal language model"
            )
        spec, tokenizer = hf.load_spec(path), hf.load_tokenizer(path)
        chat = hf.chat_settings(path, chat_date, chat_args)
        stops = hf.stop_ids(tokenizer, hf.load_generation_config(path), config, settings=chat)
        table = token_bytes(tokenizer, spec.vocab_size)
        owned = np.zeros(spec.vocab_size, bool)
        owned[list(hf.token_ids(tokenizer))] = True
        verifiers = Verifiers.build(table, stops, format_mode)
        return cls(path, spec, tokenizer, stops, table, owned, chat, verifiers)

    @property
    def end_id(self) -> int:
        """The id that ends an assistant turn: what supervised responses are taught to end with."""
        turn = hf.end_of_turn(self.tokenizer, self.chat)
        return self.tokenizer.eos_token_id if turn is None else turn

    def sampling(self, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Sampling:
        """Return the distribution that responses are drawn from, over the tokenizer's own tokens."""
        return Sampling.create(temperature, top_k, top_p, self.owned)

    def export(self, params: Params, network: Network, target: pathlib.Path) -> None:
        """A Hugging Face directory with these weights and everything else of the model it came from."""
        hf.export(
            params,
            network,
            target,
            self.tokenizer,
            hf.load_config(self.path),
            generation_config=hf.load_generation_config(self.path),
            chat=self.chat,
        )

    def engine(self, layout: Layout, dtype: str, in_flight: InFlight) -> Engine:
        return Engine(
            Network(self.spec, dtype=dtype, remat="none"), layout, self.verifiers, self.stop_ids, in_flight=in_flight
        )
