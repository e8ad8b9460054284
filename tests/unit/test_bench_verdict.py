"""What speaks against the figures of a run, each with its figure, on documents in which it is known."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_sdk.bench.document import SUBJECT, BenchDocument
from edge_sdk.bench.verdict import Verdict
from tests.bench_world import columns, make_document

# Quiet in every respect, and long enough for a p99.
SOUND = make_document(seed=3, rows=(SUBJECT,))


def with_machine(**found: Any) -> Callable[[BenchDocument], BenchDocument]:
    return lambda made: made.model_copy(update={"machine": made.machine.model_copy(update=found)})


def with_conditions(**found: Any) -> Callable[[BenchDocument], BenchDocument]:
    return lambda made: made.model_copy(update={"conditions": made.conditions.model_copy(update=found)})


def with_readings(**found: Any) -> Callable[[BenchDocument], BenchDocument]:
    """Every second reading says so."""

    def change(made: BenchDocument) -> BenchDocument:
        readings = [r.model_copy(update=found) if i % 2 else r for i, r in enumerate(made.readings)]
        return made.model_copy(update={"readings": tuple(readings)})

    return change


def with_all_readings(**found: Any) -> Callable[[BenchDocument], BenchDocument]:
    return lambda made: made.model_copy(
        update={"readings": tuple(reading.model_copy(update=found) for reading in made.readings)}
    )


def without_rounds(*numbers: int) -> Callable[[BenchDocument], BenchDocument]:
    return lambda made: made.model_copy(
        update={"blocks": tuple(block for block in made.blocks if block.round not in numbers)}
    )


def short(made: BenchDocument) -> BenchDocument:
    other = make_document(seed=3, rows=(SUBJECT,), periods=9)
    return made.model_copy(update={"blocks": other.blocks, "bare": other.bare})


def uneven_yardstick(made: BenchDocument) -> BenchDocument:
    blocks = [b.model_copy(update={"yardstick_ms": 2.0 if b.round else 3.0}) for b in made.blocks]
    return made.model_copy(update={"blocks": tuple(blocks), "bare": ()})


def slow_round(made: BenchDocument) -> BenchDocument:
    """The first round's steps take half as long again."""
    blocks = []
    for block in made.blocks:
        frames = block.frames
        if block.round == 0 and block.mode == "saturated":
            longer = {
                name: tuple(1.5 * ms for ms in getattr(frames, name)) for name in ("step_ms", "total_ms")
            }
            frames = frames.model_copy(update=longer)
        blocks.append(block.model_copy(update={"frames": frames}))
    return made.model_copy(update={"blocks": tuple(blocks)})


def test_a_quiet_run_is_sound():
    verdict = SOUND.verdict
    assert (verdict.grade, verdict.reasons) == ("sound", ())
    assert verdict == Verdict.of(SOUND, SOUND.figures)


@pytest.mark.parametrize(
    ("change", "grade", "reason"),
    [
        (
            with_readings(throttled=("gpu: thermal", "cpu: power")), "invalid",
            r"^Clocks were held down in \d+ of \d+ readings \(cpu: power, gpu: thermal\)\.$",
        ),
        (
            with_machine(throttle_events={"cpu0 thermal": 3, "cpu1 thermal": 0, "soc": 1}), "invalid",
            r"^The hardware counted 4 throttle events during the run \(cpu0 thermal 3, soc 1\)\.$",
        ),
        (
            with_readings(stolen=0.03), "doubtful",
            r"^Other machines on the same host took 1\.5% of the processors' time, at worst 3% between two readings\.$",
        ),
        (
            with_conditions(load=0.75), "doubtful",
            r"^Other work was running when the run began: 0\.75 processes on 2 processors\.$",
        ),
        (without_rounds(5), "doubtful", r"^Only 5 of 6 rounds were measured saturated\.$"),
        (without_rounds(*range(6)), "doubtful", r"^The bundle itself answered no frame in 6 rounds\.$"),
        (short, "doubtful", r"^The p99 saturated rests on 270 frames; below 300 it is little more than the slowest"),
        (
            uneven_yardstick, "doubtful",
            r"^The machine itself was uneven: the yardstick took 2\.00 ms in its fastest round and 3\.00 ms in its slo",
        ),
        (
            slow_round, "doubtful",
            r"^The mean saturated, 12\.09 ms, is known to ±19% only: above ±10% its rounds differ too much to tell",
        ),
        (
            lambda made: with_machine(clocks_locked=False)(with_readings(clock_mhz={"cpu0": 1500.0})(made)), "doubtful",
            r"^Clocks are not locked, and cpu0 ran between 1500 and 2000 MHz\.$",
        ),
    ],
)  # fmt: skip
def test_what_speaks_against_a_run(change, grade, reason):
    verdict = change(SOUND).verdict
    assert verdict.grade == grade
    assert any(re.search(reason, found) for found in verdict.reasons), verdict.reasons


@pytest.mark.parametrize(
    "change",
    [
        with_machine(throttle_events={"cpu0 thermal": 0}),
        with_readings(stolen=0.01),
        with_conditions(load=0.5),
        with_conditions(load=None),
        with_machine(clocks_locked=False),
        with_readings(clock_mhz={"cpu0": 1500.0}),
        lambda made: with_machine(clocks_locked=True)(with_readings(clock_mhz={"cpu0": 1500.0})(made)),
    ],
)
def test_what_does_not(change):
    assert change(SOUND).verdict.grade == "sound"


def test_throttling_comes_before_what_is_only_doubtful():
    made = with_readings(throttled=("cpu: power",))(with_conditions(load=2.0)(SOUND))
    reasons = made.verdict.reasons
    assert [reason.split()[0] for reason in reasons] == ["Clocks", "Other"]


def test_a_power_limit_is_no_throttling_but_heat_beside_it_is():
    assert with_readings(throttled=("gpu: power cap",))(SOUND).verdict.grade == "sound"
    both = with_readings(throttled=("gpu: power cap", "gpu: thermal"))(SOUND).verdict
    assert both.grade == "invalid"
    assert both.reasons[0].endswith("(gpu: thermal).")


@pytest.mark.parametrize(
    ("made", "remark"),
    [
        (SOUND, "The first keyframe step took 60.0 ms, 2.8 times its usual time: warm the runner up"),
        (SOUND, "The p99.9 at camera pace rests on 600 frames; below 3000 read it as the maximum."),
        (make_document(growth_bytes=200_000), "MB an hour."),
        (make_document(fps=150.0, rows=(SUBJECT,)), "of 150.0 frames a second"),
        (
            SOUND.model_copy(update={"readings": ()}),
            "The machine tells neither clocks nor temperatures: nobody can say whether it was throttled.",
        ),
        (
            with_all_readings(clock_mhz={}, temperature_c={})(SOUND),
            "The machine tells neither clocks nor temperatures: nobody can say whether it was throttled.",
        ),
        (
            with_readings(clock_mhz={"cpu0": 1500.0})(SOUND),
            "Nothing says whether clocks are locked, and cpu0 ran between 1500 and 2000 MHz.",
        ),
        (with_readings(throttled=("gpu: power cap",))(SOUND), "gpu: power cap in "),
    ],
)
def test_what_is_worth_knowing(made, remark):
    assert any(remark in found for found in made.verdict.remarks), made.verdict.remarks


def test_no_remark_without_its_reason():
    remarks = " ".join(SOUND.verdict.remarks)
    assert not any(word in remarks for word in ("sustained", "grew", "locked", "tells"))


def test_growth_that_adds_up_to_little_is_no_remark():
    # 10 kB a second for a minute.
    assert not any("grew" in remark for remark in make_document(growth_bytes=10_000).verdict.remarks)


def test_growth_over_a_few_seconds_is_no_remark():
    quick = make_document(growth_bytes=1_000_000, rows=(SUBJECT,), rounds=2)
    assert quick.figures.memory["process"].growth_bytes_per_hour is None or not any(
        "grew" in remark for remark in quick.verdict.remarks
    )


def test_a_queue_that_grows_is_seen_before_the_rate_is_lost():
    """Frames of 33.6 ms at 30 a second: the rate is nearly kept, and each frame waits a little longer."""
    blocks = []
    for block in SOUND.blocks:
        if block.mode == "camera":
            start = block.frames.due_ms[0]
            times = [start + 1e3 / 30 * place for place in range(200)]
            frames = columns("k" * 200, np.full(200, 33.51), np.array(times), start)
            block = block.model_copy(update={"frames": frames})
        blocks.append(block)
    remarks = SOUND.model_copy(update={"blocks": tuple(blocks)}).verdict.remarks
    # 0.267 ms a frame over the 150 frames between the middles of the quarters.
    assert "The rate is not sustained: frames waited 40.0 ms longer at the end of a block." in remarks
