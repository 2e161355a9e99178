"""The rollout engine: a policy's weights in rollout layout, compiled sampling, and the verifiers' verdicts on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from alphaalign_jax import config
from alphaalign_jax.models import Network, Params
from alphaalign_jax.models.attention import KEY_SLOTS, VALUE_SLOTS
from alphaalign_jax.models.distribution import Sampling
from alphaalign_jax.parallel import Layout, compiled
from alphaalign_jax.rewards.verifiers import Verdict, Verifiers
from alphaalign_jax.rollout import sampler
from alphaalign_jax.rollout.sampler import Decoding
from alphaalign_jax.types import Array, Prompts, Rollout


@dataclasses.dataclass(frozen=True)
class InFlight:
    """How a batch is decoded whose responses differ in length.

    The key/value cache starts small and doubles when it is full, so that early tokens do not attend over slots that are
    empty yet. Rows that are done are dropped once as few are left as there are prompts, and again at each half, so that
    the longest responses are not decoded at the price of all. Each size of batch with each size of cache that occurs is
    a program of its own: few, and compiled where they are first met.
    """

    cache: int  # response slots of the first cache; 0: all that a response may have
    fewest_rows: int  # a batch is not made smaller than this; 0: rows are never dropped

    def __post_init__(self):
        if self.cache < 0 or self.fewest_rows < 0:
            raise ValueError(f"{self}: expected 0 or more of each")

    @classmethod
    def of(cls, settings: config.Rollout) -> InFlight:
        return cls(settings.cache, settings.fewest_rows)

    def capacity(self, filled: int, slots: int) -> int:
        """Cache slots once ``filled`` are."""
        size = self.cache or slots
        while size <= filled:
            size *= 2
        return min(size, slots)

    def fewer(self, rows: int, prompts: int, shards: int) -> int:
        """Rows of the next smaller batch over ``shards`` devices; 0: there is none.

        No more than prompts: a row that is kept has its prompt's keys for itself, and so there are never more of them.
        """
        half = -(-min(rows, 2 * prompts) // (2 * shards)) * shards
        return half if self.fewest_rows and self.fewest_rows <= half < rows else 0


def place(prompts: Prompts, layout: Layout) -> Prompts:
    """Prompts on the mesh: rows over the batch axes, the template prefix everywhere."""
    layout.check("prompts", prompts.tokens.shape, ("batch", None))
    put = lambda x, *axes: jax.device_put(np.asarray(x, np.int32), layout.sharding(*axes))
    return Prompts(
        prefix=put(prompts.prefix),
        tokens=put(prompts.tokens, "batch", None),
        length=put(prompts.length, "batch"),
        label=put(prompts.label, "batch"),
        row=put(prompts.row, "batch"),
    )


class Engine:
    """Samples from weights that it is handed; owns none, so the trainer can hand it fresh ones every step."""

    def __init__(
        self,
        network: Network,
        layout: Layout,
        verifiers: Verifiers | None,
        stop_ids: tuple[int, ...],
        *,
        in_flight: InFlight,
    ):
        """``network``: the policy's as it is sampled from; its weights are kept in its compute dtype. Without
        ``verifiers`` it does not ``judge``.

        Where its layers are not scanned, no layer's weights and keys are copied out of a stack at each token, and
        programs take longer to compile.
        """
        self.in_flight, self.network = in_flight, network
        self.layout, self.stop_ids = layout, stop_ids
        self.verifiers = jax.device_put(verifiers, layout.replicated)
        shardings = layout.tree_shardings(self.network.axes, self.network.shapes(), "rollout layout, policy")
        cast = lambda params: jax.tree.map(lambda x: x.astype(network.dtype), self.network.from_stacked(params))
        # Cast on the way: half the bytes move where the rollout runs in bfloat16.
        self.prepare: Callable[[Params], Params] = jax.jit(cast, out_shardings=shardings)
        bind = self.network.bind
        self.start = compiled(
            lambda params, *args, **sizes: sampler.start(bind(params), *args, **sizes),
            layout,
            name="prefill",
            static_argnames=("group", "slots", "capacity"),
        )
        self.decode = compiled(
            lambda params, state, sampling, forced, leave_at: sampler.decode(
                bind(params), state, sampling, stop_ids=stop_ids, forced=forced, leave_at=leave_at
            ),
            layout,
            name="decode",
            donate_argnums=1,
        )
        self._longer = compiled(sampler.longer, layout, name="grow cache", static_argnames=("axis", "capacity"))
        self._drop = compiled(sampler.drop, layout, name="drop rows", static_argnames="rows")
        self._finish = compiled(sampler.finish, layout, name="finish")
        self._judge = compiled(lambda v, tokens, length, finish: v.judge(tokens, length, finish), layout, name="judge")

    def rollout(
        self,
        params: Params,
        prompts: Prompts,
        key: jax.Array,
        sampling: Sampling,
        *,
        group: int,
        slots: int,
        forced: Array | None = None,
        limit: Array | None = None,
    ) -> Rollout:
        """``group`` responses of at most ``slots`` tokens for each prompt; ``params`` from ``prepare``."""
        state = self.prefill(params, prompts, key, group=group, slots=slots, limit=limit)
        return self.complete(params, state, sampling, forced)

    def prefill(
        self, params: Params, prompts: Prompts, key: jax.Array, *, group: int, slots: int, limit: Array | None = None
    ) -> Decoding:
        """Rows with their prompts read and no token drawn.

        ``limit`` int32 [B, G], at least 1: the most tokens of each response, where that is less than ``slots``.
        """
        if limit is not None and (np.shape(limit) != (prompts.batch, group) or np.min(limit) < 1):
            raise ValueError(f"limit {np.shape(limit)}: expected {(prompts.batch, group)} numbers from 1 on")
        sizes = dict(group=group, slots=slots, capacity=self.in_flight.capacity(0, slots))
        return self.start(params, place(prompts, self.layout), key, limit=limit, **sizes)

    def complete(self, params: Params, state: Decoding, sampling: Sampling, forced: Array | None = None) -> Rollout:
        """Draws tokens until all rows are done; ``state``, from ``prefill``, is donated.

        The host looks at the rows only when the cache is full or rows are to be dropped.
        """
        prompts, slots = state.done.shape[0], state.drawn.tokens.shape[-1]
        fewer = lambda rows: self.in_flight.fewer(rows, prompts, self.layout.size("batch"))
        while True:
            state = self.decode(params, state, sampling, forced, fewer(state.rows))
            left, filled = map(int, jax.device_get((state.left, state.t)))
            if not left or filled == slots:
                return self._finish(state.drawn, state.origin, state.batch, forced)
            while left <= fewer(state.rows):
                state = self._drop(state, rows=fewer(state.rows))
            if filled == state.capacity:
                # One after the other: the old keys are gone before there are old and new values.
                capacity = self.in_flight.capacity(filled, slots)
                state = state.replace(k=self._longer(state.k, axis=KEY_SLOTS, capacity=capacity))
                state = state.replace(v=self._longer(state.v, axis=VALUE_SLOTS, capacity=capacity))

    def judge(self, rollout: Rollout) -> Verdict:
        return self._judge(self.verifiers, rollout.tokens, rollout.length, rollout.finish)


def trim(rollout: Rollout, slots: int) -> Rollout:
    """The first ``slots`` response positions; the caller has seen that no response is longer."""
    cut = lambda x: x[..., :slots]
    return rollout.replace(tokens=cut(rollout.tokens), sampled=cut(rollout.sampled), logprob=cut(rollout.logprob))
