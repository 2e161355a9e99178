"""A model directory opened for sampling: what training, generation and evaluation share."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from alphaalign_jax import hf
from alphaalign_jax.models import ModelSpec, Network, Params
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
    verifiers: Verifiers

    @classmethod
    def open(cls, path: str | pathlib.Path, format_mode: str = "strict") -> Policy:
        """Reads everything but the weights."""
        path = hf.resolve(str(path))
        config = hf.load_config(path)
        if hf.is_classifier(config):
            raise ValueError(
                f"model {path}: {config['architectures'][0]} is a classifier; a policy needs a causal language model"
            )
        spec, tokenizer = hf.load_spec(path), hf.load_tokenizer(path)
        stops = hf.stop_ids(tokenizer, hf.load_generation_config(path), config)
        table = token_bytes(tokenizer, spec.vocab_size)
        return cls(path, spec, tokenizer, stops, table, Verifiers.build(table, stops, format_mode))

    @property
    def end_id(self) -> int:
        """The id that ends an assistant turn: what supervised responses are taught to end with."""
        turn = hf.end_of_turn(self.tokenizer)
        return self.tokenizer.eos_token_id if turn is None else turn

    def export(self, params: Params, network: Network, target: pathlib.Path) -> None:
        """A Hugging Face directory with these weights and everything else of the model it came from."""
        hf.export(
            params,
            network,
            target,
            self.tokenizer,
            hf.load_config(self.path),
            generation_config=hf.load_generation_config(self.path),
        )

    def engine(self, layout: Layout, dtype: str, in_flight: InFlight) -> Engine:
        return Engine(
            Network(self.spec, dtype=dtype, remat="none"), layout, self.verifiers, self.stop_ids, in_flight=in_flight
        )
