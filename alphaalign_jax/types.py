"""Carriers: the arrays that travel between rooms, with shapes and dtypes.

Axis letters, used in every docstring, einsum and variable suffix of the project:

    B  prompts in a batch          G  rollouts of one prompt       N  rows, N = B * G
    P  shared template prefix      S  prompt slots after it        T  response slots
    L  decoder layers              D  model width                  F  feed-forward width
    H  query heads                 K  key/value heads              Q  query heads of one key/value head, H = K * Q
    C  head width                  V  vocabulary                   U  key slots of one attention segment

Everything is right-padded. A response slot is real iff its index is below ``length``; a token is trained iff
``sampled`` says so. Nothing is ever inferred from a token id being the pad id: in several tokenizers pad also ends
a turn.
"""

from __future__ import annotations

import enum
from typing import Any

import flax.struct
import jax
import numpy as np

Array = jax.Array | np.ndarray

BENIGN, HARMFUL = 0, 1
LABELS = ("benign", "harmful")


class Finish(enum.IntEnum):
    """Why a response ended."""

    LENGTH = 0  # ran out of slots: truncated
    STOP = 1  # a stop id was sampled; it is the response's last token


@flax.struct.dataclass
class Prompts:
    """A batch of tokenized prompts. The text of row b is ``prefix`` followed by ``tokens[b, :length[b]]``."""

    prefix: Array  # int32 [P], the template's constant head, shared by every row of the data set
    tokens: Array  # int32 [B, S], right-padded
    length: Array  # int32 [B], real slots of ``tokens``
    label: Array  # int32 [B], BENIGN or HARMFUL
    row: Array  # int32 [B], the prompt's number in the run: keys of its rollouts fold it in

    @property
    def batch(self) -> int:
        return self.tokens.shape[0]


@flax.struct.dataclass
class Rollout:
    """G sampled responses for each of B prompts."""

    tokens: Array  # int32 [B, G, T], right-padded
    length: Array  # int32 [B, G], real slots: forced prefix and stop token included
    finish: Array  # int32 [B, G], a ``Finish``
    sampled: Array  # bool [B, G, T], positions the policy chose: stop token included, forced prefix excluded
    logprob: Array  # float32 [B, G, T], log-prob under the true sampling distribution; 0 where not sampled


@flax.struct.dataclass
class Scores:
    """What the verifiers and the reward model said of a rollout."""

    format: Array  # bool [B, G], V_f
    refusal: Array  # bool [B, G], V_r
    answered: Array  # bool [B, G], there is a closed answer block with text in it
    helpfulness: Array  # float32 [B, G], raw reward-model score; NaN where it could not or need not score
    safety_reward: Array  # float32 [B, G], R_s
    helpfulness_reward: Array  # float32 [B, G], R_h
    reward: Array  # float32 [B, G], R = R_s + R_h; NaN where the score that R needs is missing: not trained on


@flax.struct.dataclass
class TrainBatch:
    """What the update steps read: a rollout with everything that is fixed during the optimizer's epochs."""

    prompts: Prompts
    tokens: Array  # int32 [B, G, T]
    sampled: Array  # bool [B, G, T], less the rows that train nothing
    old_logprob: Array  # float32 [B, G, T], the trainer's own recomputation before the update
    ref_logprob: Array  # float32 [B, G, T]; zeros without a reference
    old_value: Array  # float32 [B, G, T]; zeros without a critic
    weight: Array  # float32 [B, G, T], in the policy loss: 1, or the trainer's probability over the sampler's
    advantage: Array  # float32 [B, G, T], 0 where not sampled
    target: Array  # float32 [B, G, T], the critic's regression target (return), 0 where not sampled


@flax.struct.dataclass
class Examples:
    """Prompts with responses and nothing else known of them: to be imitated (G is 1), or scored."""

    prompts: Prompts
    tokens: Array  # int32 [B, G, T]
    sampled: Array  # bool [B, G, T], the response's own tokens, stop token included


@flax.struct.dataclass
class TrainState:
    """Everything a step changes.

    ``reference`` is constant but lives here so that resharding treats all models alike.
    """

    step: Array  # int32 []
    actor: Any  # pytree of float32 master weights
    average: Any  # their moving average over the steps; None without one
    actor_opt: Any
    critic: Any  # None without a critic
    critic_opt: Any
    reference: Any  # None without a reference
    ahead: Any  # the next step's ``Rollout``, sampled before this step's update; None where rollout.ahead is off
    kl_coef: Array  # float32 [], the KL controller's current coefficient

    @property
    def result(self) -> Any:
        """The policy's weights by which the run is judged, and which it exports."""
        return self.actor if self.average is None else self.average
