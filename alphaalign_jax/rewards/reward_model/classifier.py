"""A Hugging Face sequence classifier as reward model, in Flax, on this process's own devices.

Shapes are static: texts are grouped by length into buckets, and each bucket runs in batches of one size, so there is
one compiled program a bucket however many rows a step brings. Axis letters: N rows of a batch, U slots of a bucket.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alphaalign_jax.hf.load import load
from alphaalign_jax.hf.paths import is_classifier, load_config, num_labels, resolve
from alphaalign_jax.hf.tokenizer import load_tokenizer, token_ids
from alphaalign_jax.models import ModelSpec, Network, Params
from alphaalign_jax.parallel import Layout, build_mesh, host_memory, rule_table, use
from alphaalign_jax.parallel.digest import digests
from alphaalign_jax.rewards.reward_model.chat_text import ChatText
from alphaalign_jax.rewards.reward_model.protocol import DTYPES, checked_texts

log = logging.getLogger(__name__)
_SHORTEST_BUCKET = 128


def length_buckets(max_length: int) -> tuple[int, ...]:
    """128 and its doublings up to ``max_length``, which is always the last: padding at most doubles a text's cost."""
    sizes = []
    size = _SHORTEST_BUCKET
    while size < max_length:
        sizes.append(size)
        size *= 2
    return (*sizes, max_length)


def pool_index(ids: Sequence[int], pad_id: int | None) -> int:
    """The slot whose score a transformers ``...ForSequenceClassification`` returns for an unpadded text.

    That is the last token, unless the text ends in the config's pad token (a template whose end of turn doubles as
    pad): transformers looks for the rightmost token that is not pad, and its reward models were trained that way.
    """
    last = len(ids) - 1
    while last > 0 and ids[last] == pad_id:
        last -= 1
    return last


class ClassifierRewardModel:
    """Scores rows with a sequence classifier (``LlamaForSequenceClassification`` and its kin) and its own tokenizer.

    A row whose question leaves no room for any of its answer is NaN; a longer answer loses its end, never the end of
    turn.

    Args:
        path: whatever ``hf.load`` takes (a local directory, a hub id), with its own tokenizer and chat template.
        batch_size: rows of one device batch; must divide over the mesh's data and fsdp axes.
        max_length: longest text in tokens; longer answers are cut.
        buckets: ascending padded lengths, ending in ``max_length``; None: 128 and its doublings.
        dtype: of weights and computation; the score head and the scores are float32 whatever it is.
        label: which of the classifier's labels is the reward, needed when it has more than one.
        mesh: sizes of ``data``, ``fsdp`` and ``tensor`` over ``devices``.
        devices: this process's (default: all of them). Never another host's: each host scores its own rows, so hosts
            enter this program a different number of times.
        rules: name of the rule table that lays the weights over the mesh.
        on_host: keep the weights in the host's memory and bring them to the devices for each call.

    Raises:
        ValueError: for any of these, before anything is compiled.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        batch_size: int = 8,
        max_length: int = 2048,
        buckets: Sequence[int] | None = None,
        dtype: str = "bfloat16",
        label: int | None = None,
        mesh: Mapping[str, int] | None = None,
        devices: Sequence[jax.Device] | None = None,
        rules: str = "fsdp_tensor",
        on_host: bool = False,
    ):
        self._name = f"reward model {path}"
        local = resolve(path)
        config = load_config(local)
        if not is_classifier(config):
            kinds = config.get("architectures")
            raise ValueError(f"{self._name}: architectures={kinds}, expected one ending in ForSequenceClassification")
        spec = ModelSpec.from_hf(config, num_labels=num_labels(config))
        self._pad_id = config.get("pad_token_id")
        self._buckets = self._checked_buckets(max_length, buckets, spec.max_positions)
        label = self._checked_label(label, spec.num_labels)
        if batch_size < 1:
            raise ValueError(f"{self._name}: batch_size={batch_size} must be at least 1")
        if dtype not in DTYPES:
            raise ValueError(f"{self._name}: dtype={dtype!r}, expected one of {', '.join(DTYPES)}")
        self._layout = Layout(build_mesh(**dict(mesh or {}), devices=devices or jax.local_devices()), rule_table(rules))
        self._layout.check("reward model batch", (batch_size,), ("batch",))
        self._batch_size = batch_size
        tokenizer = load_tokenizer(local)
        last = max(token_ids(tokenizer))
        if last >= spec.vocab_size:  # a lookup past the table's end does not fail under jit
            raise ValueError(f"{self._name}: the tokenizer's ids go up to {last}, vocab_size={spec.vocab_size}")
        self._text = ChatText(tokenizer, max_length, self._name)
        if self._text.last_id == self._pad_id:
            log.warning(
                "%s: its texts end in token %d, which is also the config's pad_token_id; as in transformers, scores "
                "are read at the last token before it",
                self._name,
                self._pad_id,
            )
        network = Network(spec, "score", dtype=dtype, remat="none")
        _, self._weights = load(local, network, self._layout, dtype)
        self._on_device = None
        if on_host:
            self._on_device = jax.tree.map(lambda x: x.sharding, self._weights)
            self._weights = jax.device_put(self._weights, host_memory(self._on_device))
        self._program = _scorer(network, self._layout, label)

    @functools.cached_property
    def identity(self) -> str:
        """A digest of its weights, its tokenizer and its template; on every mesh and host the same."""
        known = digests(self._weights, across=False), self._text("How so?", "In this way: 1, 2 and é.")
        return f"sha256 {hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]}"

    def score(self, questions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """float32 [n]; NaN where the answer does not fit beside its question."""
        return self.dispatch(questions, answers)()

    def dispatch(self, questions: Sequence[str], answers: Sequence[str]) -> Callable[[], np.ndarray]:
        """Tokenizes, launches every batch, and returns the function that waits for the scores, float32 [n]."""
        questions, answers = checked_texts(questions, answers)
        if self._weights is None:
            raise ValueError(f"{self._name} is closed")
        texts = [self._text(question, answer) for question, answer in zip(questions, answers, strict=True)]
        launched, weights = [], self._weights
        if self._on_device is not None:
            weights = jax.device_put(weights, self._on_device)
        for bucket, rows in self._batches(texts):
            tokens, last = self._padded([texts[row] for row in rows], bucket)
            launched.append((rows, self._program(weights, tokens, last)))

        def finish() -> np.ndarray:
            scores = np.full(len(texts), np.nan, np.float32)
            for rows, values in launched:
                scores[rows] = np.asarray(values)[: len(rows)]  # the rest are padding rows
            return scores

        return finish

    def close(self) -> None:
        """Frees the weights."""
        self._weights = None

    def _batches(self, texts: Sequence[list[int] | None]) -> list[tuple[int, list[int]]]:
        """(bucket, row numbers) of each device batch; rows without a text are in none."""
        by_bucket: dict[int, list[int]] = {}
        for row, ids in enumerate(texts):
            if ids is not None:
                by_bucket.setdefault(next(size for size in self._buckets if len(ids) <= size), []).append(row)
        size = self._batch_size
        return [(bucket, rows[i : i + size]) for bucket, rows in by_bucket.items() for i in range(0, len(rows), size)]

    def _padded(self, texts: Sequence[list[int]], bucket: int) -> tuple[jax.Array, jax.Array]:
        """int32 [N, U] right-padded and int32 [N] pooled slots. Under the causal mask padding is never seen."""
        tokens = np.zeros((self._batch_size, bucket), np.int32)
        last = np.zeros((self._batch_size,), np.int32)
        for row, ids in enumerate(texts):
            tokens[row, : len(ids)] = ids
            last[row] = pool_index(ids, self._pad_id)
        layout = self._layout
        return jax.device_put((tokens, last), (layout.sharding("batch", "length"), layout.sharding("batch")))

    def _checked_buckets(self, max_length: int, buckets: Sequence[int] | None, positions: int) -> tuple[int, ...]:
        if not 1 <= max_length <= positions:
            raise ValueError(f"{self._name}: max_length={max_length} is not in 1..max_position_embeddings={positions}")
        sizes = tuple(buckets) if buckets else length_buckets(max_length)
        if sizes[0] < 1 or list(sizes) != sorted(set(sizes)) or sizes[-1] != max_length:
            raise ValueError(f"{self._name}: buckets={sizes} must ascend from >= 1 and end in max_length={max_length}")
        return sizes

    def _checked_label(self, label: int | None, num_labels: int) -> int:
        if label is None and num_labels == 1:
            return 0
        if label is None or not 0 <= label < num_labels:
            raise ValueError(f"{self._name}: it has {num_labels} labels; set label to 0..{num_labels - 1}, got {label}")
        return label


def _scorer(network: Network, layout: Layout, label: int) -> Callable[[Params, Any, Any], jax.Array]:
    """Jitted (weights, tokens int32 [N, U], last int32 [N]) -> float32 [N]."""

    def score(weights: Params, tokens: jax.Array, last: jax.Array) -> jax.Array:
        model = network.bind(weights)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        with use(layout):
            hidden, _ = model.extend(tokens[:, None], positions[:, None], keep_kv=False)  # [N, 1, U, D]
            pooled = jnp.take_along_axis(hidden[:, 0], last[:, None, None], axis=1)[:, 0]  # [N, D]
            return model.logits(pooled)[:, label]

    return jax.jit(score, out_shardings=layout.replicated)
