"""Decoder models: architecture spec, layers, one forward path, heads."""

from alphaalign_jax.models.attention import Cache, Segment
from alphaalign_jax.models.network import Network, Params
from alphaalign_jax.models.spec import ModelSpec
from alphaalign_jax.models.transformer import Transformer

__all__ = ["Cache", "ModelSpec", "Network", "Params", "Segment", "Transformer"]
