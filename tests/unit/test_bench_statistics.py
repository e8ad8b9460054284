"""Figures of bench runs on a simulated clock, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edge_sdk.bench.document import SUBJECT
from edge_sdk.bench.figures import ALL, Estimate, Figures, Jitter
from edge_sdk.bench.samples import BareBlock, Block
from edge_sdk.bench.statistics import compute
from tests.bench_blocks import T1, block, document_of, near, start
from tests.bench_world import make_document


def test_distribution_of_two_rounds():
    found = compute(document_of(block("kk", [10.0, 20.0]), block("kk", [12.0, 24.0], round=1)))
    total = found.rows[0].stages["total"][ALL]
    # The rounds differ by a factor of 1.2 in every figure: standard deviation of the logarithms log 1.2 / sqrt 2,
    # error half of log 1.2.
    factor = math.exp(T1 * math.log(1.2) / 2)
    assert factor == pytest.approx(3.1845, rel=1e-4)
    assert near(total.mean_ms, 16.5, 16.5 / factor, 16.5 * factor)
    assert near(total.p50_ms, 16.0, 16.0 / factor, 16.0 * factor)
    assert near(total.p90_ms, 22.8, 22.8 / factor, 22.8 * factor)  # 20 + 0.7 x 4
    assert near(total.p99_ms, 23.88, 23.88 / factor, 23.88 * factor)  # 20 + 0.97 x 4
    assert (total.frames, total.p999_ms, total.max_ms) == (4, pytest.approx(23.988), 24.0)


def test_kinds_are_told_apart_and_stages_that_were_not_run_are_missing():
    found = compute(document_of(block("kddk", [20.0, 8.0, 10.0, 22.0]), block("s", [0.5], round=1))).rows[0]
    assert list(found.stages) == ["step", "total"]
    step = found.stages["step"]
    assert {kind: (of.frames, of.p50_ms.value) for kind, of in step.items()} == {
        "all": (5, 10.0), "keyframe": (2, 21.0), "delta": (2, 9.0), "skip": (1, 0.5),
    }  # fmt: skip
    # Keyframes came in one round: no interval.
    assert step["keyframe"].mean_ms == Estimate(value=21.0)
    assert found.latency("skip") == found.stages["total"]["skip"]


def test_means_of_stages_add_up_where_a_kind_passes_one_by():
    frames = block("ks", [20.0, 1.0]).frames.model_copy(
        update={"copy_in_ms": (2.0, 0.0), "step_ms": (17.0, 0.0), "decode_ms": (1.0, 1.0)}
    )
    stages = compute(document_of(Block(row=SUBJECT, round=0, mode="saturated", frames=frames))).rows[0].stages
    assert {stage: list(kinds) for stage, kinds in stages.items()} == {
        "copy in": ["all", "keyframe"], "step": ["all", "keyframe"],
        "decode": ["all", "keyframe", "skip"], "total": ["all", "keyframe", "skip"],
    }  # fmt: skip
    means = {stage: kinds[ALL].mean_ms.value for stage, kinds in stages.items()}
    assert means == {"copy in": 1.0, "step": 8.5, "decode": 1.0, "total": 10.5}


def test_a_stall_is_seen_in_every_frame_that_waits_behind_it():
    """No coordinated omission: 5 ms a frame, one every 10 ms, and frame 10 takes 55 ms."""
    totals = [5.0] * 40
    totals[10] = 55.0
    due = [10.0 * index for index in range(40)]
    found = compute(document_of(block("k" * 40, totals, mode="camera", due_ms=due))).rows[0]
    age = found.stages["age"][ALL]
    # Ages 55, 50, 45 .. 10 of frames 10 to 19, then 5 again.
    assert age.mean_ms.value == pytest.approx((30 * 5 + sum(range(10, 60, 5))) / 40)
    assert age.p90_ms.value == pytest.approx(35.5)  # place 35.1 of 0 to 39: 35 + 0.1 x 5
    assert age.max_ms == 55.0
    # Measured at the moment of the call it would look like one slow frame in forty.
    assert found.stages["total"][ALL].p90_ms.value == 5.0
    assert found.deadline is not None
    assert (found.deadline.late, found.deadline.frames, found.deadline.deadline_ms) == (9, 40, 10.0)
    assert found.stages["capture"][ALL].max_ms == 45.0


def test_throughput_counts_the_intervals_between_answers():
    # Three answers 10 ms apart are two intervals; the pause between the blocks is in none.
    found = compute(
        document_of(block("kkk", [10.0] * 3), block("kk", [10.0, 25.0], round=1, from_ms=900.0))
    ).rows[0]
    factor = math.exp(T1 * math.log(100 / 40) / 2)
    value = 1e3 * 3 / 45
    assert near(found.throughput_fps, value, value / factor, value * factor)


def test_speedup_is_taken_within_each_round():
    found = compute(
        document_of(
            block("kd", [10.0, 2.0]),  # mean 6
            block("kk", [12.0, 12.0], row="teacher"),  # twice
            block("kd", [20.0, 4.0], round=1),  # mean 12, in a slow spell
            block("kk", [54.0, 54.0], row="teacher", round=1),  # 4.5 times
            block("kd", [1.0, 1.0], round=2),  # without the teacher
            rows=(SUBJECT, "teacher"),
        )
    )
    factor = math.exp(T1 * math.log(4.5 / 2) / 2)
    assert near(found.rows[0].speedup, 3.0, 3 / factor, 3 * factor)  # sqrt(2 x 4.5)
    assert found.rows[1].speedup == Estimate(value=1.0, low=1.0, high=1.0)


def test_there_is_no_speedup_at_camera_pace_or_without_a_teacher():
    blocks = [
        block("kk", [5.0] * 2, mode="camera", due_ms=[0.0, 10.0], row=row) for row in (SUBJECT, "teacher")
    ]
    found = compute(document_of(*blocks, block("k", [1.0]), rows=(SUBJECT, "teacher")))
    assert [(row.row, row.mode, row.speedup) for row in found.rows] == [
        (SUBJECT, "saturated", None), (SUBJECT, "camera", None), ("teacher", "camera", None),
    ]  # fmt: skip


def test_jitter_of_intervals_within_blocks():
    # Delivered at 5, 18, 25 and at 1005, 1015: intervals 13, 7 and 10 against a period of 10.
    found = compute(
        document_of(
            block("kkk", [5.0, 8.0, 5.0], mode="camera", due_ms=[0.0, 10.0, 20.0]),
            block("kk", [5.0, 5.0], mode="camera", due_ms=[1000.0, 1010.0], round=1),
        )
    ).rows[0]
    assert found.jitter == Jitter(interval_ms=10.0, deviation_ms=3.0, p99_ms=3.0)


def test_a_dropped_frame_is_a_miss():
    blocks = [
        block("kkkk", [5.0, 5.0, 15.0, 2.0], mode="camera", due_ms=[0.0, 10.0, 20.0, 40.0], dropped=1),
        block("kkkkk", [5.0] * 5, mode="camera", due_ms=[100.0 + 10 * i for i in range(5)], round=1),
    ]
    found = compute(document_of(*blocks)).rows[0].deadline
    assert found is not None
    assert (found.frames, found.late, found.dropped, found.miss_rate.value) == (10, 1, 1, 0.2)
    # 0.4 and 0: standard deviation 0.283, error 0.2, and so from 0 to 1.
    assert (found.miss_rate.low, found.miss_rate.high) == (0.0, 1.0)


def test_an_answer_at_the_deadline_is_in_time_and_the_recipe_may_set_another():
    made = document_of(block("kk", [10.0, 10.0], mode="camera", due_ms=[0.0, 10.0]))
    assert compute(made).rows[0].deadline.late == 0
    strict = made.model_copy(update={"recipe": made.recipe.model_copy(update={"deadline_ms": 9.5})})
    assert compute(strict).rows[0].deadline.late == 2


def test_energy_of_a_frame():
    found = compute(
        document_of(
            block("kk", [1.0] * 2, energy_j=0.02),
            block("k", [1.0], round=1, energy_j=0.04),
            block("k", [1.0]),
        )
    ).rows[0]
    # 60 mJ for the three frames of blocks that tell; 10 and 40 a frame by round, a factor of 4.
    factor = math.exp(T1 * math.log(4) / 2)
    assert near(found.energy_mj, 20.0, 20 / factor, 20 * factor)
    assert compute(document_of(block("k", [1.0]))).rows[0].energy_mj is None


def test_gpu_time_where_there_is_one():
    found = compute(
        document_of(block("kd", [10.0, 5.0], gpu_ms=(8.0, 4.0)), block("k", [9.0], round=1))
    ).rows[0]
    assert {kind: of.mean_ms.value for kind, of in found.gpu.items()} == {
        "all": 6.0,
        "keyframe": 8.0,
        "delta": 4.0,
    }
    assert compute(document_of(block("k", [9.0]))).rows[0].gpu == {}


def test_cost_is_the_median_of_differences_in_pairs():
    bare = [
        BareBlock(
            round=0,
            kinds="kdd",
            runner_ms=(20.3, 8.1, 8.2),
            wall_ms=(20.0, 8.0, 8.0),
            gpu_ms=(19.0, 7.0, 7.5),
        ),
        BareBlock(
            round=1,
            kinds="kdd",
            runner_ms=(30.5, 9.3, 9.2),
            wall_ms=(30.0, 9.0, 9.0),
            gpu_ms=(29.0, 8.0, 8.5),
        ),
    ]
    found = compute(document_of(block("kdd", [20.3, 8.1, 8.2]), bare=tuple(reversed(bare)))).cost
    assert list(found) == ["keyframe", "delta", "all"]
    # Differences of keyframes 0.3 and 0.5; error 0.1.
    assert near(found["keyframe"].own_ms, 0.4, 0.4 - T1 * 0.1, 0.4 + T1 * 0.1)
    # Of deltas 0.1, 0.2 and 0.3, 0.2: 0.2, and by round 0.15 and 0.25, error 0.05.
    assert near(found["delta"].own_ms, 0.2, 0.2 - T1 * 0.05, 0.2 + T1 * 0.05)
    # One third keyframes: 0.8 / 3, and by round 0.6 / 3 and 1 / 3, error 0.2 / 3.
    every = found["all"]
    assert near(every.own_ms, 0.8 / 3, (0.8 - T1 * 0.2) / 3, (0.8 + T1 * 0.2) / 3)
    assert (every.bare_ms, every.runner_ms) == pytest.approx(((25.0 + 2 * 8.5) / 3, (25.4 + 2 * 8.7) / 3))
    assert every.share == pytest.approx(0.8 / 42)
    assert (found["keyframe"].gpu_ms, found["delta"].gpu_ms) == (24.0, 7.75)


def test_on_a_cpu_the_bare_engine_has_no_gpu_time():
    found = compute(
        document_of(
            block("k", [1.0]), bare=(BareBlock(round=0, kinds="k", runner_ms=(2.0,), wall_ms=(1.0,)),)
        )
    )
    assert found.cost["all"].gpu_ms is None
    assert found.cost["all"].own_ms == Estimate(value=1.0)


def test_starting_is_told_by_medians_and_beside_the_usual_step():
    starts = (
        start(0, check_ms=5.0, first_ms={"keyframe": 50.0, "delta": 30.0}),
        start(1, check_ms=9.0, first_ms={"keyframe": 90.0}),
        start(2, check_ms=6.0, first_ms={"keyframe": 60.0}),
    )
    found = compute(document_of(block("kk", [10.0, 20.0]), starts=starts)).cold
    assert (found.check_ms, found.load_ms, found.bind_ms) == (6.0, 2.0, 3.0)
    assert (found.first_ms, found.second_ms) == ({"keyframe": 60.0, "delta": 30.0}, {"keyframe": 20.0})
    assert found.first_over_usual == {"keyframe": 4.0}  # no delta was run saturated


@pytest.mark.parametrize(
    ("blocks", "rows"),
    [
        ([], []),
        ([block("", [])], []),
        ([block("k", [1.0], mode="warm-up")], []),
        ([block("k", [1.0])], ["saturated"]),
        ([block("ss", [0.1, 0.1], mode="camera", due_ms=[0.0, 10.0])], ["camera"]),
    ],
)
def test_what_was_not_run_is_missing(blocks, rows):
    found = compute(document_of(*blocks))
    assert [row.mode for row in found.rows] == rows
    assert (found.cost, found.memory, found.yardstick_ms, found.stolen) == ({}, {}, None, None)
    assert len(found.worst) == sum(len(b.frames) for b in blocks if b.mode != "warm-up")
    assert Figures.model_validate_json(found.model_dump_json()) == found


def test_one_frame_has_no_interval_between_answers():
    found = compute(document_of(block("k", [5.0], mode="camera", due_ms=[0.0]))).rows[0]
    assert (found.throughput_fps, found.jitter) == (None, None)
    assert found.stages["age"][ALL].p99_ms == Estimate(value=5.0)


def test_skips_alone():
    found = compute(document_of(block("ss", [0.25, 0.25]), block("ss", [0.5, 0.5], round=1))).rows[0]
    assert list(found.stages["total"]) == ["all", "skip"]
    assert found.stages["total"]["skip"].mean_ms.value == 0.375


def test_a_row_that_is_missing_in_a_round_counts_in_the_others():
    whole = make_document(rounds=3, periods=4)
    kept = tuple(b for b in whole.blocks if (b.row, b.round) != ("teacher", 1))
    found = compute(whole.model_copy(update={"blocks": kept}))
    row = found.row("teacher", "saturated")
    assert row is not None
    assert row.stages["total"][ALL].frames == 2 * 20
    assert row.speedup == Estimate(value=1.0, low=1.0, high=1.0)
    assert found.row(SUBJECT, "saturated").speedup is not None


def test_frames_are_pooled_over_several_blocks_of_a_round():
    apart = document_of(block("kd", [10.0, 2.0]), block("kd", [14.0, 6.0], from_ms=100.0))
    found = compute(apart).rows[0].stages["total"]
    assert found["keyframe"].mean_ms == Estimate(value=12.0)
    assert np.isclose(found[ALL].mean_ms.value, 8.0)
