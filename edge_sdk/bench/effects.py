"""Whether two sets of rounds differ by more than a margin. Pure numbers: nothing here knows what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_sdk.bench.intervals import CONFIDENCE
from edge_sdk.bench.student import quantile, upper_tail

# With this probability a change of the smallest size that is told is found.
POWER = 0.9
# A prior is dropped where the rounds' own spread is this many times larger. With the few degrees of freedom there
# are, a spread within it is met often enough where the prior holds, and one above it next to never.
_CONTRADICTED = 2.5


@dataclass(frozen=True)
class Prior:
    """What is known of the spread between rounds before a run.

    Args:
        deviation: standard deviation of a round's figure.
        df: degrees of freedom that the knowledge is worth.
    """

    deviation: float
    df: float = 6.0


@dataclass(frozen=True)
class Effect:
    """Difference of two means.

    Args:
        difference: new less old.
        error: its standard error.
        df: degrees of freedom of the error.
    """

    difference: float
    error: float
    df: float

    def p_value(self, margin: float) -> float:
        """Probability of a difference as far beyond the margin as this, were the true one no larger than the margin.

        The worst case of ``|true difference| <= margin`` is at the margin, where the other side adds next to nothing;
        both sides are counted.
        """
        distance = abs(self.difference)
        if self.error == 0:
            return 0.0 if distance > margin else 1.0
        near = upper_tail((distance - margin) / self.error, self.df)
        far = upper_tail((distance + margin) / self.error, self.df)
        return min(near + far, 1.0)

    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference."""
        half = quantile((1 + CONFIDENCE) / 2, self.df) * self.error
        return self.difference - half, self.difference + half

    def detectable(self, margin: float, level: float) -> float:
        """Smallest true difference that is found beyond the margin with probability ``POWER``.

        Args:
            margin: differences up to here count as none.
            level: probability of finding one where there is none.
        """
        return margin + (quantile(1 - level, self.df) + quantile(POWER, self.df)) * self.error


def effect(old: np.ndarray, new: np.ndarray, prior: Prior | None = None, least_error: float = 0.0) -> Effect:
    """Difference between the means of two sets of rounds.

    The variance between rounds is pooled over both runs: they are runs of one program on one kind of machine, and with
    as many rounds in each the test holds even where their variances differ (Welch's standard error is then the same;
    what it costs is degrees of freedom, of which three rounds have two).

    Two runs of three rounds leave four degrees of freedom, whose quantiles are so large that a 10 % change drowns. So
    what is known beforehand is added, as limma does for experiments with few repeats (Smyth 2004): the variance is the
    mean of the prior's and the rounds' own, weighted with their degrees of freedom, which add up. Where the rounds'
    own spread contradicts the prior, it stands alone: a machine that is less quiet than the prior says is not taken
    for a quiet one. Simulated with spreads between rounds from a third of the prior's to 13 times as much, and 1 % more
    from process to process, the worst false alarm at a level of 2 % is 3 %, with a margin of 3 %.

    Args:
        old, new: (rounds,) float64 each, at least two.
        prior: None for none.
        least_error: the standard error is at least this.
    """
    df = float(len(old) + len(new) - 2)
    squares = float(((old - old.mean()) ** 2).sum() + ((new - new.mean()) ** 2).sum())
    variance = squares / df
    if prior is not None and variance <= (_CONTRADICTED * prior.deviation) ** 2:
        variance = (prior.df * prior.deviation**2 + squares) / (prior.df + df)
        df += prior.df
    error = math.sqrt(variance * (1 / len(old) + 1 / len(new)))
    return Effect(difference=float(new.mean() - old.mean()), error=max(error, least_error), df=df)


def levels(weights: Sequence[float], family: float) -> list[float]:
    """Each test's share of the family's level, by weight: where Holm's procedure begins."""
    return [family * weight / sum(weights) for weight in weights]


def holm(p_values: Sequence[float], weights: Sequence[float], family: float) -> list[bool]:
    """Which tests of a family find something, so that the probability of any wrong finding is at most ``family``.

    Holm's step-down procedure with weights: the tests are taken by rising p / weight, and each must stay within its
    share of the level among those that are left.
    """
    found = [False] * len(p_values)
    left = sum(weights)
    for place in sorted(range(len(p_values)), key=lambda place: p_values[place] / weights[place]):
        if p_values[place] > family * weights[place] / left:
            break
        found[place] = True
        left -= weights[place]
    return found
