"""What the model's arithmetic costs, counted from the architecture: matrix-product FLOPs and bytes that must be read.

A multiply-add is two FLOPs. Only matrix products are counted (norms, rotary embedding and softmax are not), causal
attention by the pairs that it keeps, and the shared template prefix and each prompt once: what the method needs, not
what a program spends on padding or on computing again.
"""

from __future__ import annotations

import dataclasses

from alphaalign_jax.models.spec import ModelSpec


@dataclasses.dataclass(frozen=True)
class Workload:
    """Sizes of one batch in tokens, each the mean over its rows."""

    prompts: int  # B
    group: int  # G
    prefix: float  # P
    prompt: float  # S, after the prefix
    response: float  # T

    @property
    def rows(self) -> int:
        """N."""
        return self.prompts * self.group

    @property
    def response_tokens(self) -> float:
        return self.rows * self.response

    @property
    def prompt_tokens(self) -> float:
        return self.prefix + self.prompts * self.prompt


def layer_gemms(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """Weight matrices of one layer as (rows, columns): a token costs ``2 * rows * columns`` in each."""
    d, f, c = spec.hidden_size, spec.intermediate_size, spec.head_dim
    return {
        "q": (d, spec.num_heads * c),
        "k": (d, spec.num_kv_heads * c),
        "v": (d, spec.num_kv_heads * c),
        "o": (spec.num_heads * c, d),
        "gate": (d, f),
        "up": (d, f),
        "down": (f, d),
    }


def prefill_flops(spec: ModelSpec, work: Workload) -> float:
    """Forward pass over the prefix and the prompts, without logits."""
    pairs = _causal(work.prefix) + work.prompts * (work.prompt * work.prefix + _causal(work.prompt))
    return _body(spec, work.prompt_tokens, pairs)


def response_flops(spec: ModelSpec, work: Workload, *, head: bool = True) -> float:
    """Forward pass over the responses after their prefilled prompts; ``head``: with logits for each token."""
    pairs = work.rows * (work.response * (work.prefix + work.prompt) + _causal(work.response))
    logits = 2.0 * work.response_tokens * spec.hidden_size * spec.vocab_size
    return _body(spec, work.response_tokens, pairs) + head * logits


def forward_flops(spec: ModelSpec, work: Workload, *, head: bool = True) -> float:
    """The trainer's pass over prompts and responses. Its gradient costs twice as much again."""
    return prefill_flops(spec, work) + response_flops(spec, work, head=head)


def decode_bytes(spec: ModelSpec, work: Workload, itemsize: int) -> float:
    """Bytes read to decode the responses token by token: at each step all weights, and all keys and values once."""
    weights = spec.num_layers * sum(rows * columns for rows, columns in layer_gemms(spec).values())
    weights += spec.hidden_size * spec.vocab_size
    kept = work.prompt_tokens + work.rows * work.response / 2
    cache = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * kept
    return work.response * itemsize * (weights + cache)


def _body(spec: ModelSpec, tokens: float, pairs: float) -> float:
    """All layers: products with weights for ``tokens``, scores and weighted sums for ``pairs`` of query and key."""
    linear = 2.0 * tokens * sum(rows * columns for rows, columns in layer_gemms(spec).values())
    return spec.num_layers * (linear + 4.0 * pairs * spec.num_heads * spec.head_dim)


def _causal(tokens: float) -> float:
    """Pairs of a query and itself or an earlier key."""
    return tokens * (tokens + 1) / 2
