"""Estimators of KL(policy || reference) from the sampled token's two log-probs, and controllers of its coefficient.

The names k1, k2, k3 are those of J. Schulman, "Approximating KL divergence" (2020),
http://joschu.net/blog/kl-approx.html:

    k1 = log p - log q               unbiased, may be negative
    k2 = (log p - log q)^2 / 2       biased, never negative
    k3 = q/p - 1 - log(q/p)          unbiased, never negative

k1 belongs in the reward. As a loss its gradient has mean zero whatever the reference is: it adds noise and pulls
nowhere, so ``losses.kl_loss`` takes k2 or k3 only.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from alphaalign_jax.ops import require_same_shape
from alphaalign_jax.types import Array

KL_KINDS = ("k1", "k2", "k3")
KL_CONTROLLERS = ("fixed", "adaptive")

# exp(20) is 5e8: far outside any trust region, far inside float32. verl uses the same bounds.
MAX_LOG_RATIO = 20.0
MAX_K3 = 10.0
# ref_logp - logp at which k3 is MAX_K3. From there on its gradient as a loss stays as it is.
K3_LINE_FROM = 2.6108686
# The largest relative error one update of the adaptive controller answers to (Ziegler et al. 2019).
MAX_PROPORTIONAL_ERROR = 0.2


def kl_penalty(logp: Array, ref_logp: Array, *, kind: str) -> jax.Array:
    """Per-token KL estimate: for logs, for the reward and for the adaptive controller.

    The bounds of k3 have no gradient, so a loss takes ``kl_loss_term``.

    Args:
        logp: float [..., T], log-prob of the sampled token under the policy, in nats.
        ref_logp: float [..., T], the same token under the reference.
        kind: one of ``KL_KINDS``. k3 bounds its log-ratio to +-20 and itself to 10, as verl's low-variance form does.

    Returns:
        float32 [..., T], nats; meaningless where no token was sampled, so reduce it with a mask.

    Raises:
        ValueError: unknown kind, or shapes that differ.
    """
    if kind not in KL_KINDS:
        raise ValueError(f"unknown KL estimator {kind!r}; choose one of {', '.join(KL_KINDS)}")
    require_same_shape(logp=logp, ref_logp=ref_logp)
    log_ratio = jnp.asarray(logp, jnp.float32) - jnp.asarray(ref_logp, jnp.float32)
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return 0.5 * jnp.square(log_ratio)
    reverse = jnp.clip(-log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    # expm1 keeps the digits that exp(x) - 1 loses at the small ratios where training lives.
    return jnp.minimum(jnp.expm1(reverse) - reverse, MAX_K3)


def kl_loss_term(logp: Array, ref_logp: Array, *, kind: str) -> jax.Array:
    """Return the per-token KL term of a loss: the value of ``kl_penalty``, with a gradient that pulls on every token.

    verl differentiates its bounded k3: at the bound the gradient is 0, so the tokens that drifted furthest are not
    pulled back. TRL does not bound k3: a token that the policy has all but given up pulls with exp(11) = 60,000. Here
    the bounds hold for the value only. The gradient is that of k3 up to the point where k3 reaches 10, and stays as it
    is there, as if k3 went on as a straight line. With u = ref_logp - logp:

        u <= 2.61    d/dlogp = 1 - exp(u)    from +1, where the policy left the reference far behind, to -12.6
        u >  2.61    d/dlogp = -12.6

    k2 has no bounds; it pulls with -u.

    Args:
        logp, ref_logp: float [..., T], nats, as in ``kl_penalty``.
        kind: "k2" or "k3".

    Returns:
        float32 [..., T], nats.

    Raises:
        ValueError: k1, whose gradient has mean zero; an unknown kind; shapes that differ.
    """
    if kind == "k1":
        raise ValueError("k1 as a loss has a gradient of mean zero; use 'k2' or 'k3', or put k1 in the reward")
    if kind != "k3":
        return kl_penalty(logp, ref_logp, kind=kind)
    require_same_shape(logp=logp, ref_logp=ref_logp)
    u = jnp.asarray(ref_logp, jnp.float32) - jnp.asarray(logp, jnp.float32)
    curved = jnp.minimum(u, K3_LINE_FROM)
    unbounded = jnp.expm1(curved) - curved + math.expm1(K3_LINE_FROM) * (u - curved)
    return unbounded + jax.lax.stop_gradient(kl_penalty(logp, ref_logp, kind="k3") - unbounded)


def update_kl_coef(
    kl_coef: Array | float,
    current_kl: Array | float,
    *,
    controller: str,
    target: float | None = None,
    horizon: int | None = None,
    n_steps: int | None = None,
) -> jax.Array:
    """The coefficient for the next step.

    ``fixed`` returns it unchanged. ``adaptive`` is the proportional controller of Ziegler et al. 2019 (arXiv
    1909.08593, section 2.2): ``coef * (1 + clip(kl / target - 1, +-0.2) * n_steps / horizon)``. A KL that is not a
    finite number leaves it as it is, or all later rewards would not be finite either.

    Args:
        kl_coef: float [].
        current_kl: float [], mean KL of the batch, nats per token; NaN if no token was sampled: its KL is unknown, not
            0, and 0 would lower the coefficient.
        controller: one of ``KL_CONTROLLERS``.
        target: adaptive: the KL to hold, nats per token, positive.
        horizon: adaptive: time constant in rows (responses), above ``0.2 * n_steps``.
        n_steps: adaptive: rows in this batch.

    Returns:
        float32 [].

    Raises:
        ValueError: unknown controller, or a missing or impossible number for the adaptive one.
    """
    if controller not in KL_CONTROLLERS:
        raise ValueError(f"unknown KL controller {controller!r}; choose one of {', '.join(KL_CONTROLLERS)}")
    kl_coef = jnp.asarray(kl_coef, jnp.float32)
    if controller == "fixed":
        return kl_coef
    if target is None or horizon is None or n_steps is None or target <= 0:
        raise ValueError(
            "the adaptive KL controller needs a positive target, a horizon and n_steps, "
            f"got target={target}, horizon={horizon}, n_steps={n_steps}"
        )
    if horizon <= MAX_PROPORTIONAL_ERROR * n_steps:
        raise ValueError(
            f"KL horizon {horizon} is too short for {n_steps} rows a step: one update could bring the coefficient to "
            f"zero or below, from where it never returns; set it above {MAX_PROPORTIONAL_ERROR * n_steps:g}"
        )
    error = jnp.asarray(current_kl, jnp.float32) / target - 1.0
    error = jnp.clip(error, -MAX_PROPORTIONAL_ERROR, MAX_PROPORTIONAL_ERROR)
    return jnp.where(jnp.isfinite(current_kl), kl_coef * (1.0 + error * (n_steps / horizon)), kl_coef)
