"""R_h, the helpfulness reward: a reward model's score, made comparable within a prompt's rollouts."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from alphaalign_jax.ops import FLOAT32_PRECISION, masked_spread
from alphaalign_jax.types import BENIGN, Array

HELPFULNESS_MODES = ("normalised", "raw", "off")

# A group of no larger spread has none: for scores near 0, whose error comes from larger terms in the reward model.
STD_FLOOR = 0.01


@flax.struct.dataclass
class HelpfulnessCounts:
    """How the reward came about; int32 scalars over the batch. All 0 when the reward is off."""

    benign: Array  # rollouts of benign prompts
    scored: Array  # benign rollouts with an answer and a finite score
    unscorable: Array  # benign rollouts with an answer and no finite score: the reward model failed on them
    needed: Array  # benign rollouts whose reward depends on their score: answered, not refused
    left_out: Array  # those of them that the reward model failed on
    flat_groups: Array  # benign prompts with too few scores or too little spread to compare (``normalised`` only)


def depends_on_score(refusal: Array, answered: Array, label: Array) -> jax.Array:
    """Return which rollouts' rewards depend on their own score, bool [B, G]: benign, answered and not refused.

    A refusal of a benign prompt earns r_f V_f - r_a, whatever its score is and whether or not it has one.
    """
    benign = (jnp.asarray(label) == BENIGN)[:, None]
    return benign & jnp.asarray(answered, bool) & ~jnp.asarray(refusal, bool)


def helpfulness_reward(
    score: Array,
    refusal: Array,
    answered: Array,
    label: Array,
    *,
    mode: str = "normalised",
    std_floor: float = STD_FLOOR,
    precision: float = FLOAT32_PRECISION,
) -> tuple[jax.Array, HelpfulnessCounts]:
    """R_h = max(z, 0) where a benign prompt was answered and not refused, else 0 (arXiv 2507.14987).

    ``normalised``: z = (r - mean) / std over the prompt's scored rollouts, std with n - 1. Refusals in an answer block
    are scored and enter mean and std, they only earn nothing: a group that mostly refuses then shows its one real
    answer as the better one, which is what should be learned. A group with fewer than two scores, or with a std of at
    most ``std_floor`` or two units in the last place of its largest score, gives exactly 0: dividing rounding noise by
    its own size would pay z = 2.5 to one of eight equal answers. The last place is that of the type which the reward
    model computes in: 100, 101, 99 and 100.5 differ in float32, and in bfloat16 they do not. Above the floor z is
    exact, it is not shrunk, and it is finite for all finite scores.
    ``raw``: z = r. ``off``: all 0 (AlphaAlign-Zero); ``score`` is not read.

    Args:
        score: float [B, G], the reward model's; NaN (or infinite) where there is none.
        refusal: bool [B, G], V_r.
        answered: bool [B, G], the response has an answer to score.
        label: int32 [B].
        std_floor: in units of the score.
        precision: of the type that the reward model computes in (``ops.precision_of``).

    Returns: float32 [B, G], always finite, and counts. Harmful and unanswered rows are neither scored nor failures.
    Raises ValueError for an unknown mode.
    """
    if mode not in HELPFULNESS_MODES:
        raise ValueError(f"helpfulness mode={mode!r}; valid: {', '.join(HELPFULNESS_MODES)}")
    zero = jnp.int32(0)
    if mode == "off":
        return jnp.zeros(jnp.shape(refusal), jnp.float32), HelpfulnessCounts(*[zero] * 6)

    score = jnp.asarray(score, jnp.float32)
    benign = (jnp.asarray(label) == BENIGN)[:, None]
    expected = benign & jnp.asarray(answered, bool)
    scored = expected & jnp.isfinite(score)
    needed = depends_on_score(refusal, answered, label)
    # Masked before any arithmetic: NaN times 0 is NaN.
    known = jnp.where(scored, score, 0.0)

    flat_groups = zero
    if mode == "normalised":
        known, has_spread = _standardise(known, scored, std_floor, precision)
        flat_groups = jnp.sum(benign & ~has_spread, dtype=jnp.int32)
    reward = jnp.where(scored & needed, jnp.maximum(known, 0.0), 0.0)
    count = lambda rows: jnp.sum(rows, dtype=jnp.int32)
    return reward, HelpfulnessCounts(
        benign=count(jnp.broadcast_to(benign, scored.shape)),
        scored=count(scored),
        unscorable=count(expected & ~scored),
        needed=count(needed),
        left_out=count(needed & ~scored),
        flat_groups=flat_groups,
    )


def _standardise(r: jax.Array, scored: jax.Array, floor: float, precision: float) -> tuple[jax.Array, jax.Array]:
    """Return z float32 [B, G] over the scored entries of each row, 0 elsewhere; and bool [B, 1]: is there spread?"""
    spread = masked_spread(r, scored, axis=-1, precision=precision)
    has_spread = spread.std > jnp.maximum(floor / spread.scale, spread.rounding)
    return jnp.where(has_spread, spread.deviation / jnp.where(has_spread, spread.std, 1.0), 0.0), has_spread
