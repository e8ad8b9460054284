"""Student's t distribution, for a device that has no scipy."""

from __future__ import annotations

import math
from functools import lru_cache

# Where the continued fraction stops: relative, a few times the precision of a double.
_CLOSE = 1e-15
_TINY = 1e-300
_MOST_TERMS = 10_000


def upper_tail(t: float, df: float) -> float:
    """Probability that a t-distributed value is above ``t``; accurate to about 12 digits.

    Args:
        t: any number.
        df: degrees of freedom, above 0; need not be whole.
    """
    x = df / (df + t * t)
    half = 0.5 * _beta_share(df / 2, 0.5, x)
    return half if t >= 0 else 1 - half


@lru_cache(maxsize=4096)
def quantile(p: float, df: float) -> float:
    """The value below which a t-distributed value lies with probability ``p``.

    Args:
        p: above 0 and below 1.
        df: degrees of freedom, above 0; need not be whole.
    """
    if p == 0.5:
        return 0.0
    if p < 0.5:
        return -quantile(1 - p, df)
    wanted = 1 - p
    low, high = 0.0, 1.0
    while upper_tail(high, df) > wanted:
        low, high = high, high * 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if upper_tail(middle, df) > wanted else (low, middle)
    return (low + high) / 2


def _beta_share(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    # The fraction converges fast on one side of the mean alone; the other side is the complement.
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, 1 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function by Lentz's method (Abramowitz and Stegun 26.5.8)."""
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < _CLOSE:
            break
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
