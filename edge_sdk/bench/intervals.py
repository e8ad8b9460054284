"""How far a figure can be relied on: intervals from the spread between rounds, of shares, and of slopes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from edge_sdk.bench.figures import Estimate
from edge_sdk.bench.student import quantile

CONFIDENCE = 0.95
_BOTH_SIDES = (1 + CONFIDENCE) / 2
# Of the standard normal distribution, 1.95996...
NORMAL = NormalDist().inv_cdf(_BOTH_SIDES)
# A slope is taken over all pairs of points; more points than these are thinned, which keeps it below 0.2 million pairs.
MOST_POINTS = 600


def half_width(figures: np.ndarray) -> float:
    """Half of Student's 95 % interval of the mean of independent figures, at least two."""
    count = len(figures)
    return quantile(_BOTH_SIDES, count - 1) * float(np.std(figures, ddof=1)) / math.sqrt(count)


def positive(value: float, by_round: Sequence[float] | np.ndarray) -> Estimate:
    """A time, or another figure that is never negative, with its interval.

    What disturbs a time multiplies it, so the interval is Student's on the logarithm: with ``h`` the half width for
    the mean of the logarithms of the rounds' figures, it goes from ``value / exp(h)`` to ``value * exp(h)``. It is
    laid around ``value``, which rests on all samples, and not around the mean of the rounds, which for a tail is
    another figure: the 99th percentile of a short round lies lower. Where a round's figure is 0 there is no
    logarithm, and the interval is :func:`plain`, from 0 at least.

    Args:
        value: over all samples.
        by_round: (rounds,) the same figure of each round.
    """
    figures = np.asarray(by_round, np.float64)
    if len(figures) < 2:
        return Estimate(value=value)
    if value <= 0 or figures.min() <= 0:
        return plain(value, figures, lowest=0.0)
    factor = math.exp(half_width(np.log(figures)))
    return Estimate(value=value, low=value / factor, high=value * factor)


def plain(
    value: float,
    by_round: Sequence[float] | np.ndarray,
    lowest: float = -math.inf,
    highest: float = math.inf,
) -> Estimate:
    """A difference or another figure of either sign: Student's interval on the figures themselves, around ``value``,
    cut at what the figure can be.

    Args:
        value: over all samples.
        by_round: (rounds,) the same figure of each round.
        lowest, highest: values beyond which the figure has no meaning.
    """
    figures = np.asarray(by_round, np.float64)
    if len(figures) < 2:
        return Estimate(value=value)
    half = half_width(figures)
    return Estimate(value=value, low=max(value - half, lowest), high=min(value + half, highest))


def share(count: int, of: int, by_round: Sequence[float] | np.ndarray) -> Estimate:
    """A share in 0-1, such as that of the late frames.

    The wider, on each side, of Student's interval from the spread between rounds and Wilson's for independent frames.
    The first alone would be empty where no round had a late frame, and so claim that there never will be one; the
    second alone would take frames that are late together for independent.

    Args:
        count: frames that count.
        of: frames in all, at least one.
        by_round: (rounds,) the share in each round.
    """
    value = count / of
    spread = plain(value, by_round, lowest=0.0, highest=1.0)
    if spread.low is None or spread.high is None:
        return spread
    low, high = wilson(count, of)
    return Estimate(value=value, low=min(spread.low, low), high=max(spread.high, high))


def wilson(count: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of independent frames."""
    rate, squared = count / of, NORMAL**2
    middle = (rate + squared / (2 * of)) / (1 + squared / of)
    half = NORMAL * math.sqrt(rate * (1 - rate) / of + squared / (4 * of * of)) / (1 + squared / of)
    # Written out these two are exact, and rounding would miss them.
    return (0.0 if count == 0 else middle - half, 1.0 if count == of else middle + half)


def slope(x: np.ndarray, y: np.ndarray) -> Estimate | None:
    """Slope of ``y`` over ``x`` by Theil and Sen: the median over the slopes of all pairs of points, which a quarter
    of wild points does not move.

    The 95 % interval is Sen's (1968): of N slopes in order, from the (N - C) / 2-th to the one after the
    (N + C) / 2-th, where C = 1.96 sqrt(V) and V is the variance of Kendall's S with its corrections for ties. It takes
    the points for independent about the line; where readings follow each other closely it is too narrow, so a slope
    is worth a word only where it also adds up to something.

    More than ``MOST_POINTS`` points are first thinned: medians of neighbours.

    Args:
        x: (points,) float64, not falling.
        y: (points,) float64.

    Returns:
        None where all points have one ``x``.
    """
    x, y = _thinned(x), _thinned(y)
    first, second = np.triu_indices(len(x), 1)
    distance = x[second] - x[first]
    apart = distance != 0
    if not apart.any():
        return None
    slopes = np.sort((y[second] - y[first])[apart] / distance[apart])
    reach = NORMAL * math.sqrt(_kendall_variance(x, y))
    count = len(slopes)
    # Counted from 0: the (N - C) / 2-th is at place (N - C) / 2 - 1, and the one after the (N + C) / 2-th at that.
    low = max(math.floor((count - reach) / 2) - 1, 0)
    high = min(math.ceil((count + reach) / 2), count - 1)
    return Estimate(value=float(np.median(slopes)), low=float(slopes[low]), high=float(slopes[high]))


def _thinned(values: np.ndarray) -> np.ndarray:
    if len(values) <= MOST_POINTS:
        return values
    return np.array([np.median(part) for part in np.array_split(values, MOST_POINTS)])


def _kendall_variance(x: np.ndarray, y: np.ndarray) -> float:
    """Variance of Kendall's S without a trend, with ties in both (Kendall, Rank Correlation Methods, 4.3)."""
    n = len(x)
    ties = [np.unique(values, return_counts=True)[1].astype(np.float64) for values in (x, y)]
    single = n * (n - 1) * (2 * n + 5) - sum(float((t * (t - 1) * (2 * t + 5)).sum()) for t in ties)
    pairs = math.prod(float((t * (t - 1)).sum()) for t in ties) / (2 * n * (n - 1))
    triples = math.prod(float((t * (t - 1) * (t - 2)).sum()) for t in ties)
    # Rounding can leave a little below 0 where all values of one side are equal.
    return max(single / 18 + pairs + (triples / (9 * n * (n - 1) * (n - 2)) if n > 2 else 0.0), 0.0)
