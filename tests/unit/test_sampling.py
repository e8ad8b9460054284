from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import RecipeError
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.schedule import SampleSchedule
from edge_sdk.sampling import Sampling, sampled

KINDS = list(Sampling.__args__)  # type: ignore[attr-defined]
IMAGE = np.zeros((2, 2, 3), np.uint8)


@pytest.mark.parametrize(
    ("kind", "length", "k", "expected"),
    [
        ("uniform", 10, 3, [0, 3, 6]),
        ("uniform", 300, 30, list(range(0, 300, 10))),  # as published
        ("first", 10, 4, [0, 1, 2, 3]),
        ("middle", 10, 4, [3, 4, 5, 6]),
        ("middle", 9, 4, [2, 3, 4, 5]),
        ("last", 10, 4, [6, 7, 8, 9]),
        ("first_middle_last", 12, 6, [0, 1, 5, 6, 10, 11]),
        ("first_middle_last", 10, 5, [0, 1, 4, 5, 9]),
        ("first_middle_last", 10, 1, [0]),
        ("first_middle_last", 10, 2, [0, 4]),
        ("first_middle_last", 6, 5, [0, 1, 2, 3, 5]),
    ],
)
def test_frames_by_hand(kind: Sampling, length: int, k: int, expected: list[int]) -> None:
    assert sampled(kind, length, k).tolist() == expected


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(KINDS), length=st.integers(1, 60), data=st.data())
def test_so_many_of_the_clip_each_once_and_in_order(kind: Sampling, length: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, length))
    found = sampled(kind, length, k, np.random.default_rng(data.draw(st.integers(0, 9))))
    assert found.dtype == np.int64
    assert len(found) == k
    assert (np.diff(found) > 0).all()
    assert found[0] >= 0
    assert found[-1] < length


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 60), data=st.data())
def test_uniform_is_what_the_schedule_sees(length: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, length))
    schedule = SampleSchedule(length=length, samples=k).start()
    steps = [schedule.decide(IMAGE, None if index == 0 else index) for index in range(length)]
    seen = [index for index, step in enumerate(steps) if step is not StepKind.SKIP]
    assert sampled("uniform", length, k).tolist() == seen


def test_every_frame_is_drawn_alike_and_a_seed_draws_the_same() -> None:
    rng = np.random.default_rng(3)
    counts = np.bincount(np.concatenate([sampled("random", 8, 3, rng) for _ in range(2000)]))
    assert np.abs(counts - 750).max() < 100  # about 4.6 standard deviations
    once, again = (sampled("random", 50, 9, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(once, again)


@pytest.mark.parametrize(
    ("kind", "length", "k", "message"),
    [
        ("uniform", 10, 0, "'samples': expected 1 to 10, the frames of a clip, got 0"),
        ("last", 10, 11, "got 11"),
        ("random", 10, 2, "random frames need a generator"),
        (
            "every",
            10,
            2,
            "expected one of uniform, random, first, middle, last, first_middle_last, got 'every'",
        ),
    ],
)
def test_refused(kind: Sampling, length: int, k: int, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        sampled(kind, length, k)
