"""AlphaAlign (arXiv 2507.14987) in JAX: safety alignment of language models by reinforcement learning."""

__version__ = "0.1.0"
