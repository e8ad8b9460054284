"""``edge-sdk bench --compare``: what has changed is found, what has not is not, and each says how sure it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.bench.compare import changes, compare
from edge_sdk.bench.comparison import Change, Comparison
from edge_sdk.bench.document import SUBJECT, BenchDocument
from edge_sdk.bench.figures import Estimate
from edge_sdk.bench.metrics import Run, queued_again
from edge_sdk.errors import RecipeError
from edge_sdk.runtime.schedule import EverySchedule
from tests.bench_world import make_document

SEEDS = 40
# As few rounds as the quick preset has and as many as the standard one; frames and rounds as even and as uneven as
# machines are that are left alone.
WORLDS = [
    {"rounds": rounds, "noise": noise, "between": between}
    for rounds in (3, 6)
    for noise, between in ((0.02, 0.01), (0.05, 0.02))
]


@lru_cache(maxsize=200)
def run_of(seed: int, rounds: int, noise: float, between: float) -> BenchDocument:
    return make_document(seed=seed, rounds=rounds, noise=noise, between=between, rows=(SUBJECT,))


def found_in(world: dict[str, Any], **new: Any) -> list[set[str]]:
    """Metrics that changed, in each of many comparisons."""
    return [
        {
            change.metric
            for change in changes(
                run_of(2 * seed, **world), make_document(seed=2 * seed + 1, rows=(SUBJECT,), **world, **new)
            )
            if change.answer == "changed"
        }
        for seed in range(SEEDS)
    ]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("slow", "other"), [("delta", "keyframe"), ("keyframe", "delta")])
def test_a_step_that_is_a_tenth_slower_is_found(world, slow, other):
    found = found_in(world, slower={slow[0]: 1.1})
    assert sum(f"{slow} step p50" in names for names in found) >= 0.9 * SEEDS
    assert sum(f"{other} step p50" in names for names in found) <= 0.1 * SEEDS


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("machine", [1.0, 1.3])
def test_where_nothing_has_changed_nothing_is_reported(world, machine):
    found = found_in(world, machine=machine)
    assert sum(bool(names) for names in found) <= 0.1 * SEEDS


@pytest.mark.parametrize("world", WORLDS[2:])
def test_a_slower_step_is_found_on_a_slower_machine(world):
    """The margin is wider there, for a yardstick is no bundle."""
    found = found_in(world, machine=1.3, slower={"k": 1.15})
    assert sum("keyframe step p50" in names for names in found) >= 0.9 * SEEDS


def test_without_a_yardstick_a_slower_machine_is_a_slower_bundle():
    old, new = (without_yardstick(make_document(seed=seed, machine=factor, rows=(SUBJECT,))) for seed, factor in
                ((1, 1.0), (2, 1.3)))  # fmt: skip
    found = compare(old, new)
    assert (found.adjusted, found.machine, found.worse) == (False, None, True)
    assert "no yardstick in both runs: a slower machine cannot be told from a slower bundle" in found.notes()


def without_yardstick(made: BenchDocument) -> BenchDocument:
    return made.model_copy(
        update={
            name: tuple(block.model_copy(update={"yardstick_ms": None}) for block in getattr(made, name))
            for name in ("blocks", "bare")
        }
    )


OLD = make_document(seed=4, noise=0.0, between=0.0, rows=(SUBJECT,))


def by_name(found: Comparison) -> dict[str, Change]:
    return {change.metric: change for change in found.changes}


def test_without_noise_every_figure_is_exact():
    found = by_name(
        compare(OLD, make_document(seed=5, noise=0.0, between=0.0, machine=2.0, slower={"d": 1.25}))
    )
    step = found["delta step p50"]
    assert step.change is not None
    assert (step.answer, step.worse) == ("changed", True)
    assert step.change.value == pytest.approx(0.25)
    # The prior alone: 6 x 0.015^2 over 6 + 10 degrees, two runs of six rounds; t of 16 degrees is 2.1199.
    error = math.sqrt(6 * 0.015**2 / 16 * 2 / 6)
    assert step.change.high == pytest.approx(1.25 * math.exp(2.1199 * error) - 1, rel=1e-5)
    # The margin of 3 % and a tenth of what the machines differ by beyond 5 %, on the logarithm.
    drift = abs(
        np.log(yardsticks(make_document(seed=5, machine=2.0))).mean() - np.log(yardsticks(OLD)).mean()
    )
    assert step.margin == pytest.approx(1.03 * math.exp(0.1 * (drift - 0.05)) - 1)
    assert found["keyframe step p50"].answer == "no change"


def yardsticks(made: BenchDocument) -> np.ndarray:
    return np.array([b.yardstick_ms for b in made.blocks if b.mode == "saturated" and b.row == SUBJECT])


def test_the_other_way_round_is_faster():
    new = make_document(seed=5, noise=0.0, between=0.0, slower={"d": 1.25}, rows=(SUBJECT,))
    found = compare(new, OLD)
    step = by_name(found)["delta step p50"]
    assert step.change is not None
    assert step.change.value == pytest.approx(-0.2)
    assert (step.worse, found.worse) == (False, False)
    assert step in found.changed
    assert step.text().startswith("faster: -20.0 % (-")
    assert found.summary().startswith("better: delta step p50")


def test_the_text_of_a_comparison():
    found = compare(OLD, make_document(seed=5, noise=0.0, between=0.0, slower={"d": 1.1}, rows=(SUBJECT,)))
    lines = found.lines()
    assert lines[0] == "worse: delta step p50, mean saturated, age p50 of the usual frame"
    assert [line.split("  ")[0] for line in lines[2:9]] == [
        "keyframe step p50", "delta step p50", "mean saturated", "age p50 of the usual frame", "age p99",
        "deadline misses", "memory of the process",
    ]  # fmt: skip
    assert lines[3].endswith("slower: +10.0 % (+8.8 to +11.2 %)")
    assert "no change beyond 3.1 %: +0.0 % (-1.1 to +1.1 %)" in lines[2]
    assert lines[7].endswith(
        "0.00%     0.00%  no change beyond 1.0 points: +0.0 points (-0.5 to +0.5 points)"
    )
    assert lines[8].endswith("100.0 MB  100.0 MB  no change beyond 5.0 %: +0.0 % (-0.9 to +0.9 %)")
    assert lines[9].startswith("old: 2026-01-02T03:04:05+00:00, commit 0123abc; new: ")
    assert any("times are compared per yardstick" in line for line in lines)
    assert Comparison.model_validate_json(found.model_dump_json()) == found
    assert len(found.renderables()) == 2


def test_too_few_rounds_say_what_they_would_have_found():
    world = {"rounds": 2, "noise": 0.05, "between": 0.03, "rows": (SUBJECT,)}
    found = by_name(compare(make_document(seed=1, **world), make_document(seed=2, **world)))
    step = found["keyframe step p50"]
    assert step.answer == "cannot tell"
    assert step.smallest is not None
    assert step.smallest > 0.05
    assert step.text().endswith(f"; +{100 * step.smallest:.1f} % would be found in nine runs of ten")


def change_of(value: float, low: float, high: float, answer: Any, unit: str = "ms", **parts: Any) -> Change:
    return Change(
        metric="m", unit=unit, old=1.0, new=1.0, change=Estimate(value=value, low=low, high=high), margin=0.03,
        p_value=0.5, answer=answer, smallest=parts.pop("smallest", None), **parts,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (change_of(0.1, 0.05, 0.15, "changed"), "slower: +10.0 % (+5.0 to +15.0 %)"),
        (change_of(0.1, 0.05, 0.15, "changed", "bytes"), "higher: +10.0 % (+5.0 to +15.0 %)"),
        (change_of(-0.1, -0.15, -0.05, "changed", "mJ"), "lower: -10.0 % (-15.0 to -5.0 %)"),
        (change_of(0.02, 0.01, 0.03, "changed", "share"), "higher: +2.0 points (+1.0 to +3.0 points)"),
        (change_of(0.0, -0.01, 0.01, "no change"), "no change beyond 3.0 %: +0.0 % (-1.0 to +1.0 %)"),
        (change_of(0.0, -0.1, 0.1, "cannot tell"), "cannot tell: +0.0 % (-10.0 to +10.0 %)"),
        (
            change_of(0.0, -0.1, 0.1, "cannot tell", smallest=0.2),
            "cannot tell: +0.0 % (-10.0 to +10.0 %); +20.0 % would be found in nine runs of ten",
        ),
        (
            change_of(0.0, -0.5, 0.9, "cannot tell", smallest=56.0),
            "cannot tell: +0.0 % (-50.0 to +90.0 %); the rounds differ too much for any change to be found",
        ),
    ],
)
def test_the_text_of_a_change(change, text):
    assert change.text() == text


def with_source(**found: Any) -> Callable[[BenchDocument], BenchDocument]:
    return lambda made: made.model_copy(update={"source": made.source.model_copy(update=found)})


def with_recipe(**found: Any) -> Callable[[BenchDocument], BenchDocument]:
    return lambda made: made.model_copy(update={"recipe": made.recipe.model_copy(update=found)})


def with_conditions(**found: Any) -> Callable[[BenchDocument], BenchDocument]:
    return lambda made: made.model_copy(update={"conditions": made.conditions.model_copy(update=found)})


def with_machine(**found: Any) -> Callable[[BenchDocument], BenchDocument]:
    return lambda made: made.model_copy(update={"machine": made.machine.model_copy(update=found)})


def with_subject(**found: Any) -> Callable[[BenchDocument], BenchDocument]:
    return lambda made: made.model_copy(
        update={"rows": (made.rows[0].model_copy(update=found), *made.rows[1:])}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_source(width=960), "frames 480 x 360 in the old one, 960 x 360 in the new one"),
        (with_recipe(backend="tensorrt"), "backend onnxruntime in the old one, tensorrt in the new one"),
        (
            with_subject(schedule=EverySchedule(interval=10)),
            r"schedule 'every' \(interval 5, phase 0, between delta\) in the old one, 'every' \(interval 10",
        ),
        (with_subject(background=True), "keyframes beside the frames in the new one"),
    ],
)
def test_runs_that_did_other_work_are_refused(change, message):
    with pytest.raises(
        RecipeError, match=rf"compare: the runs did different work: .*{message}.*again as the old run"
    ):
        compare(OLD, change(OLD))


@pytest.mark.parametrize("margin", [0.0, 1.0, -0.1, math.nan])
def test_a_margin_is_a_share(margin):
    with pytest.raises(RecipeError, match="margin: expected a share above 0 and below 1, got"):
        compare(OLD, OLD, margin=margin)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (with_conditions(cpu="another"), ("processor", "a processor", "another")),
        (with_conditions(cores=8), ("processors", "2", "8")),
        (with_conditions(packages={"onnxruntime": "2.0"}), ("onnxruntime", "1.0", "2.0")),
        (with_machine(accelerator="a GPU"), ("accelerator", "none", "a GPU")),
        (with_machine(engine_report={"memory": "pinned"}), ("memory", "none", "pinned")),
        (with_subject(engine="onnxruntime-int8"), ("engine", "float32", "onnxruntime-int8")),
        (with_source(uri="other.mp4"), ("source", "clip.mp4", "other.mp4")),
    ],
)
def test_what_else_differs_is_listed(change, what):
    found = compare(OLD, change(OLD))
    assert [(d.what, d.old, d.new) for d in found.differences] == [what]
    assert f"differs: {what[0]}: {what[1]} -> {what[2]}" in found.notes()
    assert len(found.changes) == 7


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (with_source(fps=25.0), {"age p50 of the usual frame", "age p99", "deadline misses"}),
        (with_recipe(late="drop"), {"age p50 of the usual frame", "age p99", "deadline misses"}),
        (with_recipe(deadline_ms=20.0), {"deadline misses"}),
    ],
)
def test_another_pace_leaves_out_what_rests_on_it(change, missing):
    found = compare(OLD, change(OLD))
    assert set(by_name(compare(OLD, OLD))) - set(by_name(found)) == missing
    assert "the runs differ in pace or deadline: figures that rest on it are not compared" in found.remarks


def test_a_run_that_is_not_sound_is_told():
    throttled = make_document(seed=4, noise=0.0, between=0.0, rows=(SUBJECT,), throttled=("cpu: thermal",))
    assert any(
        remark.startswith("the new run is invalid: Clocks were held down in")
        for remark in compare(OLD, throttled).remarks
    )


def kept(made: BenchDocument, keep: Callable[[Any], bool]) -> BenchDocument:
    return made.model_copy(update={"blocks": tuple(block for block in made.blocks if keep(block))})


@pytest.mark.parametrize(
    ("change", "metrics"),
    [
        (lambda made: kept(made, lambda block: block.mode != "camera"), 4),
        (lambda made: kept(made, lambda block: block.mode == "camera"), 4),
        (lambda made: kept(made, lambda block: block.row != SUBJECT), 0),
        (lambda made: made.model_copy(update={"bare": ()}), 7),
        (lambda made: made.model_copy(update={"readings": ()}), 6),
        (lambda made: kept(made, lambda block: (block.round, block.mode) != (2, "saturated")), 7),
    ],
)
def test_what_either_run_lacks_is_missing(change, metrics):
    for old, new in ((OLD, change(OLD)), (change(OLD), OLD), (change(OLD), change(OLD))):
        found = compare(old, new)
        assert len(found.changes) == metrics
        assert not found.changed


def test_one_round_is_nothing_to_compare():
    single = kept(OLD, lambda block: block.round == 0)
    found = compare(OLD, single)
    step = by_name(found)["delta step p50"]
    assert (step.answer, step.change, step.smallest) == ("cannot tell", None, None)
    assert step.text() == "cannot tell: it takes two rounds in each run"


def test_energy_is_compared_where_the_machine_tells():
    def with_energy(made: BenchDocument, joules: float) -> BenchDocument:
        blocks = [block.model_copy(update={"energy_j": joules}) for block in made.blocks]
        return made.model_copy(update={"blocks": tuple(blocks)})

    found = by_name(compare(with_energy(OLD, 1.0), with_energy(OLD, 1.5)))["energy a frame"]
    assert (found.old, found.new, found.unit, found.worse) == (10.0, 15.0, "mJ", True)


def test_misses_are_compared_in_points():
    late = with_recipe(deadline_ms=15.0)(OLD)
    # Keyframes of 20 ms miss a deadline of 15 ms in both; a few more are late in the new run.
    found = by_name(compare(late, with_recipe(deadline_ms=15.0)(OLD)))["deadline misses"]
    assert (found.old, found.new, found.answer) == (0.2, 0.2, "cannot tell")
    # By chance alone: sqrt(0.2 x 0.8 x 2 / 600), nearly; the margin is one point.
    assert found.change is not None
    assert found.change.high == pytest.approx(2.2281 * math.sqrt(242 / 1204 * 962 / 1204 / 300), rel=1e-4)
    assert found.margin == pytest.approx(0.01)


def test_dropped_frames_are_not_judged_where_the_machine_itself_is_slower():
    def dropping(made: BenchDocument) -> BenchDocument:
        return made.model_copy(
            update={"blocks": tuple(block.model_copy(update={"dropped": 3}) for block in made.blocks)}
        )

    new = make_document(seed=5, machine=1.3, rows=(SUBJECT,))
    found = by_name(compare(dropping(OLD), dropping(new)))["deadline misses"]
    assert (found.answer, found.change) == ("cannot tell", None)
    assert found.note.startswith("the machine's own speed differs")


def test_a_faster_machine_does_not_hide_frames_that_would_be_late():
    """At 40 frames a second keyframes of 20 ms are in time; on a machine of half the speed they are not, and the
    yardstick says that this is the machine's doing."""
    old, new = (
        make_document(seed=seed, machine=factor, fps=40.0, noise=0.0, between=0.0, rows=(SUBJECT,))
        for seed, factor in ((1, 1.0), (2, 2.0))
    )
    found = by_name(compare(old, new))["deadline misses"]
    assert found.old == 0.0
    assert found.new > 0.1
    assert found.change is not None
    assert found.change.value == 0.0


@given(
    gaps=st.lists(st.floats(0, 50), min_size=1, max_size=30),
    totals=st.lists(st.floats(0.1, 60), min_size=30, max_size=30),
    overheads=st.lists(st.floats(0, 3), min_size=30, max_size=30),
)
def test_frames_that_are_queued_again_at_the_same_speed_have_the_ages_they_had(gaps, totals, overheads):
    due = np.cumsum(gaps)
    called, free = [], 0.0
    for at, total, overhead in zip(due, totals, overheads):
        called.append(max(at, free) + overhead)
        free = called[-1] + total
    total_ms = np.array(totals[: len(due)])
    ages = queued_again(due, np.array(called), total_ms, np.ones(len(due)))
    assert ages == pytest.approx(np.array(called) - due + total_ms, abs=1e-6)


def test_a_queue_shrinks_on_a_faster_machine():
    due = np.array([0.0, 10.0, 20.0, 30.0])
    called = np.array([0.0, 25.0, 30.0, 35.0])  # 25 ms, then 5 ms each behind it
    total = np.array([25.0, 5.0, 5.0, 5.0])
    assert queued_again(due, called, total, np.full(4, 0.8)).tolist() == pytest.approx([20.0, 14.0, 8.0, 4.0])
    assert queued_again(due, called, total, np.full(4, 2.0)).tolist() == pytest.approx(
        [50.0, 50.0, 50.0, 50.0]
    )


def test_ages_without_a_reference_are_those_that_were_measured():
    run = Run(OLD)
    assert run.ages() is run.pool("camera").stages["age"]
