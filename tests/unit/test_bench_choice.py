"""Which row is chosen: a table of rows and limits, and the points that a document gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_sdk.bench.choice import Choice, Limits, Point, choose, excesses, parts_of, points_of, slower
from edge_sdk.bench.document import SUBJECT, Row
from edge_sdk.bench.figures import Estimate
from edge_sdk.bench.samples import Block
from edge_sdk.errors import RecipeError
from edge_sdk.runtime.schedule import AlwaysSchedule, ChangeSchedule, EverySchedule
from edge_sdk.settings import parse_settings
from tests.bench_world import columns, make_document


def point(
    name: str,
    score: float,
    mean: float,
    p99: float = 20.0,
    *,
    noise: float = 0.0,
    parts: tuple[int, ...] = (3,),
    runs: bool = True,
) -> Point:
    """A row of four rounds that lie ``noise`` below and above the mean by turns, as a share of it."""
    shares = np.array([1 - noise, 1 + noise, 1 - noise, 1 + noise])

    def estimate(value: float) -> Estimate:
        return Estimate(value=value, low=value * (1 - 2 * noise), high=value * (1 + 2 * noise))

    return Point(
        row=name, score=score, loss=0.60 - score, mean_ms=estimate(mean), p99_ms=estimate(p99), parts=parts, runs=runs,
        rounds_ms=tuple(mean * shares), rounds_p99_ms=tuple(p99 * shares),
    )  # fmt: skip


TEACHER = point("teacher", 0.600, 15.0, 16.0, parts=(0,))
RIVAL = point("rival", 0.585, 9.0, 10.0, parts=(0,))
FRESH = point("K=5", 0.590, 9.5, 18.0, parts=(3, 5))
STALE = point("K=20", 0.570, 7.0, 18.0, parts=(3, 20))
COPY = point("copy", 0.400, 1.5, 16.0, parts=(1,))
FLOW = point("flow", 0.595, 2.0, 17.0, runs=False)
ROWS = (TEACHER, RIVAL, FRESH, STALE, COPY, FLOW)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        # accuracy limited: the fastest that keeps it
        ({"max_loss": 0.05}, "K=20"),
        ({"max_loss": 0.02}, "rival"),
        ({"max_loss": 0.0}, "teacher"),
        ({"min_miou": 0.3}, "copy"),
        ({"min_miou": 0.57}, "K=20"),
        ({"min_miou": 0.586}, "K=5"),
        # time limited: the most accurate that keeps it; what cannot be run is none
        ({"max_ms": 100}, "teacher"),
        ({"max_ms": 10}, "K=5"),
        ({"max_ms": 9}, "rival"),
        ({"max_ms": 2}, "copy"),
        ({"max_p99_ms": 17}, "teacher"),
        ({"max_p99_ms": 12}, "rival"),
        # both: the fastest of what keeps both, of the lowest p99 where that is what is limited
        ({"max_ms": 10, "max_loss": 0.05}, "K=20"),
        ({"max_p99_ms": 17, "max_loss": 0.3}, "rival"),
        ({"max_p99_ms": 17, "max_ms": 100, "min_miou": 0.5}, "rival"),
        ({"max_p99_ms": 20, "min_miou": 0.59}, "teacher"),
        ({"max_ms": 20, "max_p99_ms": 20, "min_miou": 0.59}, "K=5"),
    ],
)
def test_what_meets_the_limits(limits: dict[str, float], expected: str) -> None:
    found = choose(ROWS, Limits(**limits))
    assert found.row == expected
    assert found.why.startswith(f"{expected}: ")
    assert found.unmet == ()
    assert found.front == ("copy", "flow", "teacher")


@pytest.mark.parametrize(
    ("limits", "unmet"),
    [
        (
            {"max_ms": 1},
            ["--max-ms 1 ms: the nearest row, copy, takes 1.50 ms, up to 1.50 ms in its 95 % interval: "
             "0.50 ms too much"],
        ),
        (
            {"max_p99_ms": 8},
            ["--max-p99-ms 8 ms: the nearest row, rival, takes 10.00 ms, up to 10.00 ms in its 95 % interval: "
             "2.00 ms too much"],
        ),
        ({"min_miou": 0.7}, ["--min-miou 0.7: the nearest row, teacher, scores 0.600: 0.100 too little"]),
        # each alone is kept by some row: the row that is nearest to all of them
        (
            {"max_ms": 8, "max_loss": 0.02},
            ["--max-ms 8 ms: the row nearest to all limits, rival, takes 9.00 ms, up to 9.00 ms in its 95 % interval: "
             "1.00 ms too much"],
        ),
        (
            {"max_ms": 1, "min_miou": 0.9, "max_loss": 0.5},
            ["--max-ms 1 ms: the nearest row, copy, takes 1.50 ms, up to 1.50 ms in its 95 % interval: "
             "0.50 ms too much",
             "--min-miou 0.9: the nearest row, teacher, scores 0.600: 0.300 too little"],
        ),
    ],
)  # fmt: skip
def test_what_nothing_meets_is_said_with_how_much(limits: dict[str, float], unmet: list[str]) -> None:
    found = choose(ROWS, Limits(**limits))
    assert found.row is None
    assert list(found.unmet) == unmet
    assert found.why == "none of the 5 rows that can be run keeps every limit"


def test_a_loss_that_nothing_keeps() -> None:
    found = choose((RIVAL, COPY), Limits(max_loss=0.01))
    assert found.unmet == ("--max-loss 0.01: the nearest row, rival, loses 0.015: 0.005 too much",)


def test_without_limits_there_is_a_front_and_no_choice() -> None:
    found = choose(ROWS, Limits())
    assert (found.row, found.unmet) == (None, ())
    assert found.why == "no limits were given, so nothing is chosen"
    assert found.front == ("copy", "flow", "teacher")


@pytest.mark.parametrize(
    ("rows", "limits", "expected", "tied"),
    [
        # as fast within noise: the more accurate, however complicated
        ([point("a", 0.58, 8.0, noise=0.03), point("b", 0.59, 8.1, noise=0.02, parts=(3, 9))],
         {"max_loss": 0.1}, "b", ""),
        # as fast and as accurate: the simpler
        ([point("a", 0.58, 8.0, noise=0.03, parts=(3,)), point("b", 0.5803, 8.1, noise=0.02, parts=(0,))],
         {"max_loss": 0.1}, "b", "a"),
        # faster beyond noise: accuracy is no matter, it is kept
        ([point("a", 0.58, 8.0, noise=0.002), point("b", 0.60, 8.1, noise=0.001, parts=(0,))],
         {"max_loss": 0.1}, "a", ""),
        # as accurate: the faster
        ([point("a", 0.58, 8.0, noise=0.001), point("b", 0.5803, 9.0, parts=(0,))], {"max_ms": 20}, "a", ""),
        # as accurate and as fast: the simpler
        ([point("a", 0.58, 8.0, noise=0.03), point("b", 0.5803, 8.05, noise=0.02, parts=(0,))],
         {"max_ms": 20}, "b", "a"),
        # more accurate by a place that is shown: the time is kept, so it is no matter
        ([point("a", 0.581, 9.0), point("b", 0.580, 8.0, parts=(0,))], {"max_ms": 20}, "a", ""),
    ],
)  # fmt: skip
def test_ties(rows: list[Point], limits: dict[str, float], expected: str, tied: str) -> None:
    for order in (rows, rows[::-1]):
        found = choose(order, Limits(**limits))
        assert found.row == expected
        assert found.why.endswith(f"; {tied} tie with it and are not simpler") == bool(tied)


def test_the_reason_says_where_another_is_faster_within_noise() -> None:
    a, b = point("a", 0.58, 8.0, noise=0.03), point("b", 0.59, 8.1, noise=0.02)
    found = choose([a, b], Limits(min_miou=0.5))
    assert found.why == (
        "b: within noise as fast as a, the fastest of 2 rows that keep every limit, 8.10 ms a frame, score 0.590, "
        "0.010 below the float32 teacher's"
    )


def test_a_slow_spell_that_covers_both_is_no_noise() -> None:
    # Rounds differ by a third, and side by side b is always 2 % slower.
    rounds = np.array([8.0, 12.0, 9.0, 10.0])
    a = point("a", 0.58, 9.75).model_copy(update={"rounds_ms": tuple(rounds)})
    b = point("b", 0.58, 9.95).model_copy(update={"rounds_ms": tuple(rounds * [1.02, 1.021, 1.019, 1.02])})
    assert slower(b, a)
    assert not slower(a, b)
    assert not slower(a, a)


def test_single_rounds_are_compared_by_their_intervals() -> None:
    a, b = (
        point(name, 0.5, mean).model_copy(update={"rounds_ms": (mean,)})
        for name, mean in (("a", 8.0), ("b", 8.5))
    )
    assert slower(b, a)
    wide = a.model_copy(update={"mean_ms": Estimate(value=8.0, low=7.0, high=9.0)})
    assert not slower(b, wide)


def test_a_limit_holds_only_where_the_whole_interval_keeps_it() -> None:
    shaky = point("shaky", 0.6, 8.0, noise=0.1)  # up to 9.6
    assert excesses(shaky, Limits(max_ms=9)) == {"max_ms": pytest.approx(0.6)}
    assert excesses(shaky, Limits(max_ms=9.6)) == {}
    assert (
        "up to 9.60 ms in its 95 % interval: 0.60 ms too much" in choose([shaky], Limits(max_ms=9)).unmet[0]
    )
    single = shaky.model_copy(update={"mean_ms": Estimate(value=8.0)})
    assert excesses(single, Limits(max_ms=9)) == {}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_ms": 0}, "greater than 0"),
        ({"max_p99_ms": float("inf")}, "finite"),
        ({"min_miou": 1.5}, "less than or equal to 1"),
        ({"max_loss": -0.1}, "greater than or equal to 0"),
        ({"max_los": 0.1}, "did you mean 'max_loss'"),
    ],
)
def test_limits_that_mean_nothing_are_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_settings(limits, Limits, "limits")


def test_the_simpler_has_fewer_parts() -> None:
    def row(variant: str, schedule: Any, engine: str = "float32", background: bool = False) -> Row:
        return Row(name="r", variant=variant, engine=engine, schedule=schedule, background=background)  # type: ignore[arg-type]

    every, skip = EverySchedule(interval=5), EverySchedule(interval=5, between="skip")
    ordered = [
        row("teacher", AlwaysSchedule()),
        row("teacher", AlwaysSchedule(), "onnxruntime-int8"),
        row("copy", skip),
        row("pair", AlwaysSchedule()),
        row("pair", every),
        row("pair", EverySchedule(interval=10)),
        row("pair", every, background=True),
        row("pair", ChangeSchedule(threshold=3)),
        row("pair", every, "onnxruntime-int8"),
    ]
    assert [parts_of(found) for found in ordered] == sorted(parts_of(found) for found in ordered)


# From a document.


def test_points_of_a_document() -> None:
    document = make_document(rounds=3, noise=0.0, between=0.0)
    points = {found.row: found for found in points_of(document)}
    assert list(points) == [row.name for row in document.rows]
    for name, found in points.items():
        figures = document.figures.row(name, "saturated")
        assert figures is not None
        assert found.mean_ms == figures.stages["total"]["all"].mean_ms
        assert found.p99_ms == figures.stages["total"]["all"].p99_ms
        assert found.loss == pytest.approx(0.58 - found.score)
        assert len(found.rounds_ms) == len(found.rounds_p99_ms) == 3
        assert found.runs == (name != "flow")
    blocks = [b for b in document.blocks if (b.row, b.mode) == (SUBJECT, "saturated")]
    assert points[SUBJECT].rounds_ms == pytest.approx([np.mean(b.frames.total_ms) for b in blocks])


def test_blocks_of_one_round_count_together() -> None:
    document = make_document(rounds=2)
    times = ((0, [4.0, 6.0]), (1, [9.0]), (0, [14.0]), (1, [9.0]))
    split = tuple(
        Block(row=SUBJECT, round=index, mode="saturated", frames=columns("k" * len(steps), np.array(steps)))
        for index, steps in times
    )
    others = tuple(b for b in document.blocks if (b.row, b.mode) != (SUBJECT, "saturated"))
    found = points_of(document.model_copy(update={"blocks": (*others, *split)}))[0]
    assert found.rounds_ms == pytest.approx((8.09, 9.09))  # with the runner's own 0.09 ms
    assert found.rounds_p99_ms == pytest.approx((13.93, 9.09))


def test_keyframes_beside_the_frames_are_judged_by_the_other_frames() -> None:
    document = make_document(rounds=2, noise=0.0, between=0.0)
    rows = tuple(row.model_copy(update={"background": row.name == SUBJECT}) for row in document.rows)
    found = points_of(document.model_copy(update={"rows": rows}))[0]
    figures = document.figures.row(SUBJECT, "saturated")
    assert figures is not None
    deltas = figures.stages["total"]["delta"]
    assert (found.mean_ms, found.p99_ms) == (deltas.mean_ms, deltas.p99_ms)
    assert np.mean(found.rounds_ms) == pytest.approx(deltas.mean_ms.value)


def test_without_labels_the_teachers_answers_are_the_measure() -> None:
    document = make_document(rounds=2)
    rows = tuple(row.model_copy(update={"labels": None}) for row in document.rows)
    points = {p.row: p for p in points_of(document.model_copy(update={"rows": rows}))}
    assert points["teacher"].score == pytest.approx(0.88)
    assert points[SUBJECT].loss == pytest.approx(1 - 0.87)


def test_rows_without_a_score_are_left_out_and_a_bench_without_any_is_refused() -> None:
    document = make_document(rounds=2)
    bare = document.rows[0].model_copy(update={"labels": None, "agreement": None})
    some = document.model_copy(update={"rows": (bare, *document.rows[1:])})
    assert [p.row for p in points_of(some)] == ["teacher", "copy", "flow"]
    none = document.model_copy(update={"rows": (bare,)})
    with pytest.raises(RecipeError, match="no row of this bench has a score"):
        points_of(none)


def test_a_schedule_that_looks_is_weighed_with_the_clips_own_interval() -> None:
    document = make_document(rounds=2, noise=0.0, between=0.0, interval=5)
    whole = {found.row: found for found in points_of(document)}[SUBJECT]
    weighed = {found.row: found for found in points_of(document, {SUBJECT: 10.0})}[SUBJECT]
    figures = document.figures.row(SUBJECT, "saturated")
    assert figures is not None
    kinds = figures.stages["total"]
    keyframe, delta = kinds["keyframe"].mean_ms.value, kinds["delta"].mean_ms.value
    assert weighed.mean_ms.value == pytest.approx(0.1 * keyframe + 0.9 * delta)
    assert weighed.mean_ms.half_width == pytest.approx(whole.mean_ms.half_width or 0.0)
    assert weighed.p99_ms == whole.p99_ms
    ratio = weighed.mean_ms.value / whole.mean_ms.value
    assert weighed.rounds_ms == pytest.approx(np.array(whole.rounds_ms) * ratio)


def test_the_teacher_of_float32_is_the_measure_of_loss() -> None:
    document = make_document(rounds=2)
    teacher = document.row("teacher")
    lucky = teacher.model_copy(update={"name": "teacher int8", "engine": "onnxruntime-int8", "labels": 0.59})
    more = document.model_copy(
        update={
            "rows": (*document.rows, lucky),
            "blocks": (*document.blocks, *(
                Block(row="teacher int8", round=r, mode="saturated", frames=columns("kk", np.array([9.0, 9.0])))
                for r in range(2)
            )),
        }
    )  # fmt: skip
    losses = {found.row: found.loss for found in points_of(more)}
    assert losses["teacher"] == 0.0
    assert losses["teacher int8"] == pytest.approx(-0.01)
    assert "0.010 above the float32 teacher's" in choose(points_of(more), Limits(max_loss=0.0)).why


def test_a_choice_survives_json() -> None:
    found = choose(ROWS, Limits(max_ms=10))
    assert Choice.model_validate_json(found.model_dump_json()) == found
