"""Architectures of published models, as their ``config.json`` says: for a plan of a model that is not at hand.

Only what ``ModelSpec.from_hf`` reads and shapes depend on. What is trained is always read from the model's own files.
"""

from __future__ import annotations

from typing import Any

_LLAMA3 = dict(
    model_type="llama",
    rope_theta=500000.0,
    rms_norm_eps=1e-5,
    vocab_size=128256,
    max_position_embeddings=131072,
    rope_scaling=dict(
        rope_type="llama3",
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
)
_QWEN25 = dict(model_type="qwen2", rope_theta=1e6, rms_norm_eps=1e-6, max_position_embeddings=32768)


def _sizes(d: int, f: int, layers: int, heads: int, kv_heads: int, **other: Any) -> dict[str, Any]:
    return dict(
        hidden_size=d,
        intermediate_size=f,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        hidden_act="silu",
        **other,
    )


CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-3B": _QWEN25 | _sizes(2048, 11008, 36, 16, 2, vocab_size=151936, tie_word_embeddings=True),
    "Qwen/Qwen2.5-7B": _QWEN25 | _sizes(3584, 18944, 28, 28, 4, vocab_size=152064, tie_word_embeddings=False),
    "meta-llama/Llama-3.2-3B": _LLAMA3 | _sizes(3072, 8192, 28, 24, 8, head_dim=128, tie_word_embeddings=True),
    "sfairXC/FsfairX-LLaMA3-RM-v0.1": _LLAMA3
    | dict(architectures=["LlamaForSequenceClassification"], num_labels=1, rope_scaling=None)
    | _sizes(4096, 14336, 32, 32, 8, max_position_embeddings=8192, tie_word_embeddings=False),
}


def config_of(hub_id: str) -> dict[str, Any] | None:
    """Of a hub id, with or without its ``-Instruct``; None where it is not among them."""
    return CONFIGS.get(hub_id) or CONFIGS.get(hub_id.removesuffix("-Instruct"))
