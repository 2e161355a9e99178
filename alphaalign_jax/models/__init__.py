"""Decoder models: architecture spec, layers, one forward path, heads."""

from alphaalign_jax.models.attention import Segment
from alphaalign_jax.models.network import Network, Params
from alphaalign_jax.models.spec import ModelSpec
from alphaalign_jax.models.transformer import Transformer

__all__ = ["ModelSpec", "Network", "Params", "Segment", "Transformer"]
