"""Budgets against documents whose figures are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.bench import BenchDocument, BenchRecipe, Budget, Relative, check, times, within
from edge_sdk.bench.budget import check_recipe
from edge_sdk.bench.document import SUBJECT
from edge_sdk.bench.figures import Estimate, Figures, RowFigures
from edge_sdk.bench.findings import Finding
from edge_sdk.bench.judge import judge
from edge_sdk.errors import RecipeError
from edge_sdk.settings import parse_settings
from tests.bench_world import make_document

READING = make_document(rounds=2, periods=4).readings[0].model_copy(update={"device_bytes": 2_000_000})


def full() -> BenchDocument:
    """A document that has every figure: growing memory, a GPU's memory, energy and dropped frames."""
    document = make_document(rounds=3, periods=6, growth_bytes=1000)
    readings = tuple(
        READING.model_copy(update={"at_ms": at * 500.0, "rss_bytes": 100_000_000 + 500 * at})
        for at in range(25)
    )
    blocks = tuple(
        block.model_copy(
            update={
                "energy_j": (5.0 if block.row == "teacher" else 2.0) + 0.01 * block.round,
                "dropped": 2 if block.mode == "camera" else 0,
            }
        )
        for block in document.blocks
    )
    return document.model_copy(update={"readings": readings, "blocks": blocks})


FULL = full()
FIGURES = FULL.figures


def in_mode(mode: Any, row: str = SUBJECT, figures: Figures = FIGURES) -> RowFigures:
    found = figures.row(row, mode)
    assert found is not None
    return found


def total(row: str, kind: str = "all") -> Any:
    return in_mode("saturated", row).stages["total"][kind]


AGE = in_mode("camera").stages["age"]
PACED = in_mode("camera")
assert PACED.jitter is not None
assert PACED.deadline is not None
# What each budget must be held against, written out here without its help.
EXPECTED: dict[str, float] = {
    "p50_ms": AGE["all"].p50_ms.value,
    "p90_ms": AGE["all"].p90_ms.value,
    "p99_ms": AGE["all"].p99_ms.value,
    "p999_ms": AGE["all"].p999_ms,
    "max_ms": AGE["all"].max_ms,
    "mean_ms": AGE["all"].mean_ms.value,
    "keyframe_p99_ms": AGE["keyframe"].p99_ms.value,
    "delta_p99_ms": AGE["delta"].p99_ms.value,
    "jitter_p99_ms": PACED.jitter.p99_ms,
    "miss_rate": PACED.deadline.miss_rate.value,
    "dropped": 6,
    "memory_bytes": max(reading.rss_bytes or 0 for reading in FULL.readings),
    "memory_growth_bytes_per_hour": 3_600_000,
    "device_memory_bytes": 2_000_000,
    "own_cost_ms": FIGURES.cost["all"].own_ms.value,
    "energy_mj": PACED.energy_mj.value if PACED.energy_mj else math.nan,
    "min_fps": in_mode("saturated").throughput_fps.value,  # type: ignore[union-attr]
    "min_miou": 0.57,
    "min_agreement": 0.87,
}


def broken(budget: Budget) -> list[str]:
    return [finding.budget for finding in judge(FULL, FIGURES, budget) if finding.broken]


def test_every_budget_is_in_the_table() -> None:
    assert set(EXPECTED) == set(Budget.model_fields)
    assert all(value > 0 for value in EXPECTED.values())


@pytest.mark.parametrize("name", Budget.model_fields)
def test_a_budget_holds_just_inside_and_at_its_limit_and_breaks_just_outside(name: str) -> None:
    value, step = EXPECTED[name], 1e-9 * EXPECTED[name]
    looser = -step if name.startswith("min_") else step
    (finding,) = judge(FULL, FIGURES, Budget.model_validate({name: value}))
    assert finding.figure.value == pytest.approx(value, rel=1e-12)
    value = finding.figure.value
    for limit, breaks in ((value + looser, []), (value, []), (value - looser, [name])):
        assert broken(Budget.model_validate({name: limit})) == breaks
    (breach,) = check(FULL, Budget.model_validate({name: value - looser}))
    line = breach.line()
    assert line.startswith(f"{name}: ")
    assert "\n" not in line
    assert ("below the budget of" if name.startswith("min_") else "over the budget of") in line
    assert "slowest frame" in line
    assert "cpu 2.00 GHz" in line  # its conditions
    # What is told of figure and limit tells them apart.
    said, limit_said = (
        line.split(": ", 1)[1].split(" ", 1)[0],
        line.split("the budget of ", 1)[1].split(" ", 1)[0],
    )
    assert said != limit_said


LATENCIES = {
    "p50_ms": ("all", "p50_ms", "all"),
    "p90_ms": ("all", "p90_ms", "all"),
    "p99_ms": ("all", "p99_ms", "all"),
    "p999_ms": ("all", "p999_ms", "all"),
    "max_ms": ("all", "max_ms", "all"),
    "mean_ms": ("all", "mean_ms", "all"),
    "keyframe_p99_ms": ("keyframe", "p99_ms", "keyframe"),
    "delta_p99_ms": ("delta", "p99_ms", "all"),  # the teacher has no deltas
}


def plain(value: Any) -> float:
    return value.value if isinstance(value, Estimate) else value


@pytest.mark.parametrize("name", LATENCIES)
def test_a_latency_relative_to_the_teacher_is_compared_saturated(name: str) -> None:
    kind, statistic, of_kind = LATENCIES[name]
    mine = plain(getattr(total(SUBJECT, kind), statistic))
    theirs = plain(getattr(total("teacher", of_kind), statistic))
    share = mine / theirs
    for factor, breaks in ((share * 1.000001, []), (share * 0.999999, [name])):
        assert broken(Budget.model_validate({name: times(factor, "teacher")})) == breaks
    for offset, breaks in ((max(0.0, mine - theirs) + 1e-6, []),):
        assert broken(Budget.model_validate({name: within(offset, "teacher")})) == breaks
    (finding,) = judge(FULL, FIGURES, Budget.model_validate({name: times(share / 2, "teacher")}))
    assert finding.mode == "saturated"
    assert finding.limit == pytest.approx(mine / 2)
    assert "of the row 'teacher')" in finding.text()
    has_interval = statistic not in ("p999_ms", "max_ms")
    assert (finding.figure.low is not None) == has_interval


def test_a_ratio_is_tighter_than_its_parts_where_the_machine_drifts() -> None:
    """All rows of a round are slow together (tests/bench_world.py), so their ratio hardly moves."""
    (finding,) = judge(FULL, FIGURES, Budget(mean_ms=times(0.5)))
    alone = total(SUBJECT).mean_ms
    assert alone.half_width > 0.02
    assert finding.figure.half_width is not None
    assert finding.figure.half_width < alone.half_width / 10


@pytest.mark.parametrize(
    ("name", "limit", "breaks"),
    [
        ("min_miou", within(0.0101), False),
        ("min_miou", within(0.0099), True),
        ("min_miou", times(0.98), False),
        ("min_miou", times(0.99), True),
        ("min_miou", within(0.0, "copy"), False),
        ("min_agreement", within(0.0101), False),
        ("min_agreement", within(0.0099), True),
        ("min_miou", Relative(of="teacher", factor=0.99, offset=0.005), False),
    ],
)
def test_accuracy_relative_to_a_row(name: str, limit: Relative, breaks: bool) -> None:
    assert broken(Budget.model_validate({name: limit})) == ([name] if breaks else [])


def test_energy_relative_to_a_row_is_compared_saturated() -> None:
    mine, theirs = (in_mode("saturated", row).energy_mj for row in (SUBJECT, "teacher"))
    assert mine is not None
    assert theirs is not None
    share = mine.value / theirs.value
    assert broken(Budget(energy_mj=times(share * 1.001))) == []
    assert broken(Budget(energy_mj=times(share * 0.999))) == ["energy_mj"]


def test_without_blocks_at_camera_pace_latency_is_the_time_from_call_to_answer() -> None:
    blocks = tuple(block for block in FULL.blocks if block.mode != "camera")
    document = FULL.model_copy(update={"blocks": blocks})
    (finding,) = judge(document, document.figures, Budget(p99_ms=1))
    assert (finding.mode, finding.figure) == ("saturated", total(SUBJECT).p99_ms)
    assert finding.text().endswith("saturated), over the budget of 1.00 ms")


def without(**changes: Any) -> BenchDocument:
    return FULL.model_copy(update=changes)


def bare_of(**changes: Any) -> BenchDocument:
    return without(blocks=tuple(block.model_copy(update=changes) for block in FULL.blocks))


def unscored(field: str) -> BenchDocument:
    return without(rows=tuple(row.model_copy(update={field: None}) for row in FULL.rows))


def modes(*kept: str) -> BenchDocument:
    return without(blocks=tuple(block for block in FULL.blocks if block.mode in kept))


SILENT = tuple(
    reading.model_copy(update={"rss_bytes": None, "device_bytes": None}) for reading in FULL.readings
)
ONLY_SUBJECT = make_document(rounds=2, periods=4, rows=(SUBJECT,))


@pytest.mark.parametrize(
    ("document", "budget", "message"),
    [
        (unscored("labels"), {"min_miou": 0.5}, "min_miou: clip.mp4 has no labels for the row 'subject'. Give a fol"),
        (unscored("agreement"), {"min_agreement": 0.5}, "min_agreement: the row 'subject' was not compared with th"),
        (without(readings=SILENT), {"memory_bytes": 1}, "memory_bytes: no memory of this process could be read. "),
        (without(readings=SILENT), {"device_memory_bytes": 1}, "device_memory_bytes: no memory of a GPU could be rea"),
        (
            without(readings=FULL.readings[:3]),
            {"memory_growth_bytes_per_hour": 1},
            "memory_growth_bytes_per_hour: the run is too short to tell growth. Measure longer",
        ),
        (bare_of(energy_j=None), {"energy_mj": 1}, "energy_mj: the machine did not tell what the row 'subject' drew"),
        (without(bare=()), {"own_cost_ms": 1}, "own_cost_ms: the bare engine was not run beside the runner. It is"),
        (modes("saturated"), {"miss_rate": 0.1}, "miss_rate: the run has no blocks at camera pace. Measure with cam"),
        (modes("saturated"), {"dropped": 1}, "dropped: the run has no blocks at camera pace"),
        (modes("saturated"), {"jitter_p99_ms": 1}, "jitter_p99_ms: the run has no blocks at camera pace"),
        (modes("camera"), {"min_fps": 1}, "min_fps: the run has no saturated blocks. Measure a file or a scene"),
        (modes("camera"), {"mean_ms": times(1)}, "mean_ms: the run has no saturated blocks. Measure a file"),
        (ONLY_SUBJECT, {"mean_ms": times(1)}, "mean_ms: no row 'teacher' in this run, only subject. Rows come with"),
        (ONLY_SUBJECT, {"min_miou": times(1)}, "min_miou: no row 'teacher' in this run, only subject. Rows come with"),
        (FULL, {"mean_ms": times(1, "teachr")}, "mean_ms: no row 'teachr' in this run, only subject, teacher, copy"),
        (
            make_document(rounds=2, periods=4, interval=1),
            {"delta_p99_ms": 1},
            "delta_p99_ms: the row 'subject' answered no delta frame. Measure longer",
        ),
    ],
)  # fmt: skip
def test_a_figure_that_cannot_be_had_is_an_error_and_no_pass(
    document: BenchDocument, budget: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as error:
        check(document, Budget.model_validate(budget))
    assert str(error.value).startswith(f"budget {message}")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"p99": 40}, "budgets: unknown key 'p99', did you mean 'p99_ms'?."),
        ({"p99_ms": -1}, "budgets: 'p99_ms': expected a number of at least 0, or one relative to a row"),
        ({"p99_ms": "fast"}, "got 'fast'"),
        ({"p99_ms": True}, "'p99_ms': expected a number of at least 0"),
        ({"p99_ms": math.inf}, "'p99_ms': expected a number of at least 0"),
        ({"p99_ms": math.nan}, "'p99_ms': expected a number of at least 0"),
        ({"miss_rate": 1.5}, "'miss_rate': expected a share of 0 to 1, got 1.5"),
        ({"miss_rate": times(0.5)}, "'miss_rate': expected a number of at least 0, got Relative("),
        ({"memory_bytes": times(0.5)}, "'memory_bytes': expected a number of at least 0"),
        ({"min_miou": 58}, "'min_miou': expected a share of 0 to 1, got 58"),
    ],
)
def test_bad_budgets(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_settings(given, Budget, "budgets")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "make", [lambda: times(0), lambda: times(-1), lambda: within(-0.1), lambda: times(1, "")]
)
def test_bad_relative_limits(make: Any) -> None:
    with pytest.raises(ValueError, match=r"Input should be|String should have"):
        make()


def test_relative_limits_in_a_recipe() -> None:
    budget = parse_settings({"mean_ms": {"of": "teacher", "factor": 0.5}}, Budget, "budgets")
    assert budget.mean_ms == times(0.5, "teacher")
    assert budget.limits() == {"mean_ms": times(0.5, "teacher")}


RECIPE = BenchRecipe(bundle=Path("bundle"), source="clip.mp4")


@pytest.mark.parametrize(
    ("changes", "budget", "message"),
    [
        (
            {"source": None},
            Budget(min_miou=0.5),
            "budget min_miou: a synthetic scene has no accuracy. Give a clip",
        ),
        (
            {"source": None},
            Budget(min_agreement=0.5),
            "budget min_agreement: a synthetic scene has no accuracy",
        ),
        (
            {"camera_share": 0.0},
            Budget(miss_rate=0.5),
            "budget miss_rate: the recipe has no blocks at camera pace",
        ),
        (
            {"baselines": False},
            Budget(mean_ms=times(1)),
            "budget mean_ms: the recipe leaves out the row 'teacher'",
        ),
        ({}, Budget(mean_ms=times(1, "rival")), "budget mean_ms: the recipe names no rival"),
        ({}, Budget(mean_ms=times(1), min_miou=0.5, miss_rate=0.1), None),
        ({"camera_share": 0.0}, Budget(p99_ms=1), None),
        ({"rival": Path("rival")}, Budget(mean_ms=times(1, "rival")), None),
    ],
)
def test_what_a_recipe_cannot_tell_is_refused_before_the_run(
    changes: dict[str, Any], budget: Budget, message: str | None
) -> None:
    recipe = RECIPE.model_copy(update=changes)
    if message is None:
        check_recipe(recipe, budget)
        return
    with pytest.raises(RecipeError, match="Give ") as error:
        check_recipe(recipe, budget)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("limit", "breaks", "uncertain"),
    [(37, True, False), (39, True, True), (41, False, True), (43, False, False)],
)
def test_the_figure_decides_and_the_line_says_what_its_interval_reaches(
    limit: float, breaks: bool, uncertain: bool
) -> None:
    finding = Finding(budget="p99_ms", figure=Estimate(value=40, low=38, high=42), limit=limit, mode="camera")
    assert (finding.broken, finding.uncertain) == (breaks, uncertain)
    side = "over" if breaks else "within"
    expected = (
        f"p99_ms: 40.00 ms (95 % interval 38.00 to 42.00, at camera pace), {side} the budget of {limit}.00 ms"
    )
    if uncertain:
        expected += f"; the interval reaches {'within' if breaks else 'beyond'} the budget: measure longer"
    assert finding.text() == expected


@given(value=st.floats(1e-6, 1e6), limit=st.floats(1e-6, 1e6), more=st.floats(0, 1e6), least=st.booleans())
def test_a_looser_limit_breaks_no_more_and_what_is_told_shows_the_breach(
    value: float, limit: float, more: float, least: bool
) -> None:
    name = "min_fps" if least else "mean_ms"
    looser = limit - more if least else limit + more
    tight, loose = (Finding(budget=name, figure=Estimate(value=value), limit=at) for at in (limit, looser))
    assert tight.broken or not loose.broken
    assert tight.broken == (value < limit if least else value > limit)
    assert "\n" not in tight.text()


@pytest.mark.parametrize(("name", "kind"), [("delta_p99_ms", "delta"), ("keyframe_p99_ms", "keyframe")])
def test_the_worst_frame_is_of_the_budgets_kind_and_pace(name: str, kind: str) -> None:
    for limit, mode in ((0.0, "camera"), (times(0.001), "saturated")):
        (breach,) = check(FULL, Budget.model_validate({name: limit}))
        assert breach.worst is not None
        assert (breach.worst.kind, breach.worst.mode) == (kind, mode)
        stage = "age" if mode == "camera" else "total"
        assert breach.worst.latency_ms == pytest.approx(in_mode(mode).stages[stage][kind].max_ms)


def test_an_invalid_run_is_a_breach_by_itself() -> None:
    document = make_document(rounds=2, periods=4, throttled=("gpu: thermal",))
    assert document.verdict.grade == "invalid"
    first, *others = check(document, Budget(mean_ms=0.001))
    assert [breach.budget for breach in others] == ["mean_ms"]
    line = first.line()
    assert line.startswith("verdict: the run is invalid: ")
    assert "gpu: thermal" in line
    assert "slowest frame" in line
    assert "\n" not in line


def test_a_budget_without_limits_holds() -> None:
    assert check(FULL, Budget()) == ()
