"""Confidence intervals of rates: how far the random choice of n prompts alone may move a rate."""

from __future__ import annotations

import math
import statistics


def wilson(count: int, n: int, confidence: float = 0.95) -> tuple[float, float] | None:
    """Return the Wilson score interval of the rate ``count / n``: fractions (low, high).

    Unlike the rate plus or minus its standard error, it has a positive width at counts of 0 and n,
    and it stays within [0, 1]. Return None if n is 0. Raise ValueError unless 0 <= count <= n and
    0 < confidence < 1. Source: Wilson (1927), "Probable inference, the law of succession, and
    statistical inference", JASA 22.
    """
    if not 0 <= count <= n:
        raise ValueError(f"count={count} of n={n}: expected 0 <= count <= n")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a number between 0 and 1, such as 0.95")
    if n == 0:
        return None
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    rate = count / n
    centre = rate + z**2 / (2 * n)
    reach = z * math.sqrt(rate * (1 - rate) / n + (z / (2 * n)) ** 2)
    scale = 1 + z**2 / n
    # Exactly 0 and 1 at the ends, where the difference of equal numbers rounds to 1e-17, not 0.
    low = 0.0 if count == 0 else (centre - reach) / scale
    high = 1.0 if count == n else (centre + reach) / scale
    return low, high
