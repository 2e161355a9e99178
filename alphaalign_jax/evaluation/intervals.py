"""Confidence intervals of measured rates: how far chance alone, in the draw of n prompts, may have moved a rate."""

from __future__ import annotations

import math
import statistics


def wilson(count: int, n: int, confidence: float = 0.95) -> tuple[float, float] | None:
    """Return the Wilson score interval of the rate ``count / n``: fractions, (low, high).

    Unlike the rate plus or minus its standard error, it has a width at 0 and at n of n too, and stays within 0 and 1.
    None if n is 0. Raises ValueError unless 0 <= count <= n and 0 < confidence < 1. Source: Wilson (1927), "Probable
    inference, the law of succession, and statistical inference", JASA 22.
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
    # Exactly 0 and 1 at the ends, where rounding leaves 1e-17 of a difference of equals.
    low = 0.0 if count == 0 else (centre - reach) / scale
    high = 1.0 if count == n else (centre + reach) / scale
    return low, high
