"""Deviations from a reference are counted right, and state passes between the float32 pair's terms and an engine's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_sdk.bundle import StateForm
from edge_sdk.errors import ShapeError
from edge_sdk.parity.comparison import AtDistance
from edge_sdk.parity.deviation import SAMPLE, Deviation, OutputDeviation, first_grown
from edge_sdk.parity.forms import kept, restored
from edge_sdk.parity.stream import answers_change_at
from edge_sdk.tensors import TensorSpec


@given(
    values=hnp.arrays(np.float32, hnp.array_shapes(min_dims=4, max_dims=4, max_side=5),
                      elements=st.floats(-100, 100, width=32)),
    scale=st.floats(0.5, 2), dtype=st.sampled_from(["uint8", "int8", "float16"]),
    permutation=st.permutations(range(4)),
)  # fmt: skip
def test_state_is_restored_up_to_half_a_level(
    values: np.ndarray, scale: float, dtype: str, permutation: list[int]
) -> None:
    form = StateForm(scale=scale, zero_point=128 if dtype == "uint8" else 0, permutation=tuple(permutation))
    shape = tuple(values.shape[axis] for axis in permutation)
    if dtype == "float16":
        form = StateForm(permutation=tuple(permutation))
    spec = TensorSpec(name="x", shape=shape, dtype=dtype)
    there = kept(values, spec, form)
    assert (there.shape, str(there.dtype), there.flags.c_contiguous) == (shape, dtype, True)
    back = restored(there, form)
    assert (back.shape, str(back.dtype)) == (values.shape, "float32")
    if dtype == "float16":  # half of the distance between two of them just below 128
        assert np.abs(back - values).max() <= 0.0313
        return
    # What lies beyond the type's ends becomes the end.
    held = np.clip(values, (np.iinfo(dtype).min - form.zero_point) * scale, 127 * scale)
    assert np.abs(back - held).max() <= scale * 0.5001


def test_a_state_of_another_shape_is_refused() -> None:
    spec = TensorSpec(name="x", shape=(2, 3), dtype="uint8")
    with pytest.raises(ShapeError, match=r"state 'x': \(3, 2\) in float32 does not become \(2, 3\)"):
        kept(np.zeros((3, 2), np.float32), spec, StateForm())
    assert kept(np.zeros((3, 2), np.float32), spec, StateForm(permutation=(1, 0))).shape == (2, 3)


@given(
    errors=hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-8, 8, width=32)),
    parts=st.integers(1, 4),
)
def test_errors_add_up_as_if_all_were_held(errors: np.ndarray, parts: int) -> None:
    expected = np.linspace(-3, 5, errors.size, dtype=np.float32)
    found = expected + errors
    deviation = Deviation("delta", 2, "x")
    for one, other in zip(np.array_split(found, parts), np.array_split(expected, parts), strict=True):
        if one.size:
            deviation.add(one, other)
    result = deviation.result()
    error = np.abs(found - expected)
    assert result.max == pytest.approx(float(error.max()))
    assert result.p99 == pytest.approx(float(np.quantile(error, 0.99, method="higher")))
    assert result.median == pytest.approx(float(np.quantile(error, 0.5, method="lower")))
    assert result.differing == pytest.approx(np.mean(error > 0))
    assert result.largest == pytest.approx(np.abs(expected).max())
    noise = float(np.square(error.astype(np.float64)).sum())
    if noise > 0:
        signal = float(np.square(expected.astype(np.float64)).sum())
        assert result.sqnr_db == pytest.approx(10 * math.log10(signal / noise))
    else:
        assert result.sqnr_db is None


def test_of_a_large_output_the_quantiles_are_of_a_fair_draw() -> None:
    error = np.random.default_rng(0).exponential(size=20 * SAMPLE).astype(np.float32)
    results = []
    for _ in range(2):
        deviation = Deviation("delta", 1, "x")
        deviation.add(error, np.zeros_like(error))
        results.append(deviation.result())
    assert results[0] == results[1]
    assert results[0].max == error.max()
    # Of 16384 draws the 99th percentile (4.6) has a standard deviation of 0.08.
    assert results[0].p99 == pytest.approx(np.quantile(error, 0.99), abs=0.4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_counted_and_stands_first(bad: float) -> None:
    deviation = Deviation("keyframe", 0, "x")
    found = np.ones(100, np.float32)
    found[7] = bad
    deviation.add(found, np.ones(100, np.float32))
    result = deviation.result()
    assert (result.not_finite, result.max, result.median) == (1, None, 0.0)
    assert result.relative == math.inf
    assert first_grown((result,), 1000.0) == result
    assert OutputDeviation.model_validate_json(result.model_dump_json()) == result


@pytest.mark.parametrize(
    ("same", "expected"),
    [
        ([1.0, 1.0, 1.0], None),
        ([1.0, 0.9995, 0.998], 2),
        ([0.98, 0.975, 0.972, 0.96], 3),
        ([0.98], None),
        ([], None),
    ],
)
def test_answers_change_where_clearly_more_differ(same: list[float], expected: int | None) -> None:
    empty: dict[str, Any] = {"frames": 1, "labels": None, "reference_labels": None, "agreement": None}
    rows = [AtDistance(distance=distance, same=value, **empty) for distance, value in enumerate(same)]
    assert answers_change_at(rows) == expected
