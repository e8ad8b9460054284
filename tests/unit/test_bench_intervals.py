"""Student's t against published tables and closed forms; intervals and slopes against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.bench.figures import Estimate
from edge_sdk.bench.intervals import MOST_POINTS, half_width, plain, positive, share, slope, wilson
from edge_sdk.bench.student import quantile, upper_tail

# Upper quantiles as tables print them (NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2).
TABLE = {
    1: (6.314, 12.706, 63.657),
    2: (2.920, 4.303, 9.925),
    3: (2.353, 3.182, 5.841),
    4: (2.132, 2.776, 4.604),
    5: (2.015, 2.571, 4.032),
    6: (1.943, 2.447, 3.707),
    7: (1.895, 2.365, 3.499),
    8: (1.860, 2.306, 3.355),
    9: (1.833, 2.262, 3.250),
    10: (1.812, 2.228, 3.169),
    15: (1.753, 2.131, 2.947),
    20: (1.725, 2.086, 2.845),
    30: (1.697, 2.042, 2.750),
    60: (1.671, 2.000, 2.660),
    100: (1.660, 1.984, 2.626),
}


@pytest.mark.parametrize(("df", "values"), TABLE.items())
def test_quantiles_of_the_published_table(df, values):
    found = [quantile(p, df) for p in (0.95, 0.975, 0.995)]
    assert found == pytest.approx(values, abs=0.0005)  # tables round to three places


@pytest.mark.parametrize("t", [0.0, 0.1, 1.0, 3.0, 40.0])
def test_tails_with_a_closed_form(t):
    assert upper_tail(t, 1) == pytest.approx(0.5 - math.atan(t) / math.pi, rel=1e-9)
    assert upper_tail(t, 2) == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)), rel=1e-9, abs=1e-12)
    u = 1 + t * t / 3
    closed = 0.5 - (t / (math.sqrt(3) * u) + math.atan(t / math.sqrt(3))) / math.pi
    assert upper_tail(t, 3) == pytest.approx(closed, rel=1e-8, abs=1e-12)


def test_tails_are_the_integral_of_the_density_at_every_number_of_degrees():
    t = np.linspace(0, 4, 4001)
    for df in range(1, 201):
        log_front = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
        density = np.exp(log_front - (df + 1) / 2 * np.log1p(t * t / df))
        below = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(t))])
        for place in (500, 2000, 4000):
            assert upper_tail(float(t[place]), df) == pytest.approx(0.5 - below[place], abs=1e-7)


@given(p=st.floats(1e-6, 1 - 1e-6), df=st.floats(0.7, 300))
def test_quantile_and_tail_are_inverse_and_the_sides_mirror(p, df):
    t = quantile(p, df)
    assert upper_tail(t, df) == pytest.approx(1 - p, rel=1e-7)
    assert upper_tail(-t, df) == pytest.approx(p, rel=1e-7)
    assert quantile(1 - p, df) == pytest.approx(-t, rel=1e-6, abs=1e-9)


def test_interval_of_a_time_is_on_its_logarithm():
    # Logarithms 0 and log 4: mean log 2, standard deviation log 4 / sqrt 2, error log 4 / 2 = log 2; t is 12.7062.
    found = positive(3.0, [1.0, 4.0])
    assert found.high == pytest.approx(3 * 2**12.7062, rel=1e-4)
    assert found.low == pytest.approx(3 / 2**12.7062, rel=1e-4)


def test_interval_of_a_difference_is_plain():
    # 1, 2, 3: standard deviation 1, error 1 / sqrt 3, t of two degrees 4.30265.
    assert half_width(np.array([1.0, 2.0, 3.0])) == pytest.approx(4.30265 / math.sqrt(3), rel=1e-6)
    found = plain(-0.5, [-1.0, 0.0, 1.0])
    assert (found.low, found.high) == pytest.approx((-0.5 - 2.48414, -0.5 + 2.48414), rel=1e-5)
    assert plain(0.5, [0.0, 0.5, 1.0], lowest=0.0, highest=1.0) == Estimate(value=0.5, low=0.0, high=1.0)


@pytest.mark.parametrize("make", [positive, plain])
@pytest.mark.parametrize("rounds", [[], [2.0]])
def test_one_round_tells_no_spread(make, rounds):
    assert make(2.0, rounds) == Estimate(value=2.0)


def test_a_time_of_zero_in_one_round_has_a_plain_interval_from_zero():
    # 0, 1: standard deviation and error 0.7071 and 0.5.
    found = positive(0.5, [0.0, 1.0])
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.0, 0.5 + 12.7062 * 0.5), rel=1e-5)


@given(
    values=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=8),
    value=st.floats(1e-3, 1e3),
    scale=st.floats(1e-3, 1e3),
)
def test_an_interval_holds_its_value_and_scales_with_it(values, value, scale):
    found = positive(value, values)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= value <= found.high
    scaled = positive(value * scale, np.array(values) * scale)
    assert (scaled.low, scaled.high) == pytest.approx((found.low * scale, found.high * scale), rel=1e-6)


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, 857, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson(count, of, low, high):
    assert wilson(count, of) == pytest.approx((low, high), abs=0.00006)


def test_a_share_has_the_wider_of_both_intervals():
    # No frame late in any round: the spread alone would promise that none ever is.
    none = share(0, 20, [0.0, 0.0])
    assert (none.value, none.low, none.high) == pytest.approx((0.0, 0.0, 0.1611), abs=6e-5)
    # All late ones in one round: the frames are no independent witnesses.
    spread = share(500, 1000, [0.0, 1.0])
    assert (spread.low, spread.high) == (0.0, 1.0)
    assert share(1, 4, [0.25]) == Estimate(value=0.25)


def test_slope_is_the_median_of_all_pairs():
    # Slopes of the pairs of (0, 0), (1, 1), (2, 2), (3, 9): 1, 1, 1, 3, 4, 7.
    found = slope(np.arange(4.0), np.array([0.0, 1.0, 2.0, 9.0]))
    assert found is not None
    assert found.value == 2.0
    # V = 4 x 3 x 13 / 18 = 8.667, C = 5.77 of 6 pairs: the interval is everything.
    assert (found.low, found.high) == (1.0, 7.0)


def test_interval_of_a_slope_by_sen():
    # Ten points: V = 10 x 9 x 25 / 18 = 125, C = 1.96 x 11.18 = 21.91 of 45 pairs: from the 11.54-th to the one after
    # the 33.46-th. Slopes of these points, in order, are worked out below by the definition.
    y = np.array([0.0, 2.0, 1.0, 5.0, 4.0, 6.5, 5.5, 9.0, 8.0, 12.0])
    slopes = sorted((y[j] - y[i]) / (j - i) for i in range(10) for j in range(i + 1, 10))
    found = slope(np.arange(10.0), y)
    assert found == Estimate(value=slopes[22], low=slopes[10], high=slopes[34])


def test_what_does_not_grow_has_an_empty_interval_and_one_moment_no_slope():
    assert slope(np.arange(9.0), np.full(9, 7.0)) == Estimate(value=0.0, low=0.0, high=0.0)
    assert slope(np.zeros(9), np.arange(9.0)) is None


def test_ties_narrow_the_interval_of_a_slope():
    y = np.array([0.0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    found = slope(np.arange(10.0), y)
    assert found is not None
    # 36 slopes of 0 and nine from 1/9 to 1. V = (2250 - 9 x 8 x 23) / 18 = 33, C = 11.26: up to the one after the
    # 28.13-th.
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_a_few_wild_readings_do_not_move_a_slope():
    x = np.arange(100.0)
    y = 3 * x
    y[::7] = 1e6
    found = slope(x, y)
    assert found is not None
    assert found.value == pytest.approx(3.0)


def test_very_many_readings_are_thinned():
    x = np.arange(20_000.0)
    found = slope(x, 5 + 0.25 * x)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    assert len(x) > MOST_POINTS


def test_coverage_of_the_slopes_interval():
    rng = np.random.default_rng(0)
    x = np.arange(30.0)
    inside = 0
    for _ in range(200):
        found = slope(x, 2 * x + rng.normal(0, 5, 30))
        assert found is not None
        inside += found.low <= 2 <= found.high
    # 95 % of 200 is 190, with a standard deviation of 3.
    assert 181 <= inside <= 199
