"""The test behind a comparison, against numbers worked out by hand and in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.bench.effects import Effect, Prior, effect, holm, levels


def test_effect_of_known_rounds():
    found = effect(np.array([1.0, 2.0, 3.0]), np.array([3.0, 4.0, 8.0]))
    # Squares 2 and 14 over 4 degrees: variance 4, error sqrt(4 x 2 / 3).
    assert found == Effect(difference=3.0, error=pytest.approx(math.sqrt(8 / 3)), df=4.0)
    # With a prior of 3: (6 x 9 + 16) / 10 = 7.
    known = effect(np.array([1.0, 2.0, 3.0]), np.array([3.0, 4.0, 8.0]), Prior(3.0))
    assert known == Effect(difference=3.0, error=pytest.approx(math.sqrt(14 / 3)), df=10.0)
    # A prior of 0.7 is contradicted: 2 is more than 2.5 times 0.7.
    assert effect(np.array([1.0, 2.0, 3.0]), np.array([3.0, 4.0, 8.0]), Prior(0.7)) == found
    assert effect(np.array([1.0, 1.0]), np.array([1.0, 1.0]), None, 0.25).error == 0.25


def test_p_value_against_a_margin():
    found = Effect(difference=3.0, error=1.0, df=4.0)
    # t of 4 degrees above 2.132 in 5 %, above 2.776 in 2.5 %; the far side adds less than 0.2 %.
    assert found.p_value(3.0 - 2.132) == pytest.approx(0.05, abs=0.01)
    assert found.p_value(0.0) == pytest.approx(2 * 0.01997, abs=1e-4)
    assert Effect(-3.0, 1.0, 4.0).p_value(1.0) == found.p_value(1.0)
    assert [Effect(0.1, 0.0, 4.0).p_value(margin) for margin in (0.05, 0.2)] == [0.0, 1.0]
    assert found.interval() == pytest.approx((3 - 2.77645, 3 + 2.77645), abs=1e-5)
    # 2.132 to be significant at 5 %, 1.533 more to be so in nine of ten.
    assert found.detectable(0.5, 0.05) == pytest.approx(0.5 + 2.1318 + 1.5332, rel=1e-4)


@pytest.mark.parametrize(
    ("p_values", "weights", "found"),
    [
        ([], [], []),
        ([0.01, 0.04, 0.03], [1, 1, 1], [True, False, False]),  # 0.03 > 0.05 / 2
        ([0.01, 0.02, 0.03], [1, 1, 1], [True, True, True]),
        ([0.02, 0.001], [1, 1], [True, True]),
        ([0.03, 0.03], [1, 1], [False, False]),
        ([0.03, 0.03], [3, 1], [True, True]),  # 0.0375, then all that is left
        ([0.02, 0.2], [1, 3], [False, False]),
    ],
)
def test_holm(p_values, weights, found):
    assert holm(p_values, weights, 0.05) == found


def test_levels_are_shares_of_the_family():
    assert levels([8, 2], 0.05) == pytest.approx([0.04, 0.01])
    assert levels([], 0.05) == []


@given(
    p_values=st.lists(st.floats(0, 1), min_size=1, max_size=9),
    weight=st.floats(0.1, 10),
)
def test_holm_finds_at_least_what_bonferroni_does_and_knows_no_order(p_values, weight):
    weights = [weight] * len(p_values)
    found = holm(p_values, weights, 0.05)
    assert all(f for p, f in zip(p_values, found) if p < 0.05 / len(p_values))
    assert not any(f for p, f in zip(p_values, found) if p > 0.05)
    assert holm(p_values[::-1], weights, 0.05)[::-1] == found or len(set(p_values)) < len(p_values)


def test_false_alarms_of_the_test_itself_on_machines_of_every_quietness():
    """Three rounds against three, the spread from a third of what the prior says to 13 times as much, and 1 % more
    from process to process: at a level of 2 % an alarm is false in no more than 4 % of comparisons."""
    rng = np.random.default_rng(0)
    count, margin = 1000, math.log(1.03)
    for spread in (0.005, 0.015, 0.03, 0.06, 0.2):
        new = rng.normal(0, spread, (count, 3)) + rng.normal(0, 0.01 * math.sqrt(2), (count, 1))
        old = rng.normal(0, spread, (count, 3))
        alarms = [effect(a, b, Prior(0.015)).p_value(margin) < 0.02 for a, b in zip(old, new, strict=True)]
        assert np.mean(alarms) <= 0.045
