"""The report of an adaptation: rows from kept runs, the table, Markdown, JSON and the page."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_sdk.adapt.judge import Judge
from edge_sdk.adapt.replay import Answers, FrameAnswers, LessonRecord, RunRecord, labels_of
from edge_sdk.adapt.report import AdaptReport, StreamFacts
from edge_sdk.adapt.score import PackedMasks
from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.adapt.table import markdown
from edge_sdk.conditions import Conditions
from edge_sdk.errors import FileFormatError, RecipeError, ShapeError, VideoError
from edge_sdk.runtime.result import StepKind
from edge_sdk.tasks import TaskSpec
from edge_sdk.video.frame import Frame, Truth

TASK = TaskSpec(classes=("background", "<car>"))
FRAMES = 24


def square(left: int) -> np.ndarray:
    mask = np.zeros((32, 64), np.uint8)
    mask[8:24, left : left + 16] = 1
    return mask


TRUTHS = [square(index) for index in range(FRAMES)]
IMAGES = [np.repeat(truth[:, :, None] * 200, 3, axis=2) for truth in TRUTHS]


def run(threshold: float, at: tuple[int, ...], behind: int) -> tuple[RunRecord, PackedMasks]:
    """A student that is ``behind`` pixels late on every frame that the teacher does not answer."""
    answers = [truth if i in at else square(max(i - behind, 0)) for i, truth in enumerate(TRUTHS)]
    lessons = [
        LessonRecord(seq=i, stride=8, before=0.5, after=0.9, updates=3, took_ms=60.0, taken=True) for i in at
    ]
    settings = AdaptSettings(threshold=threshold)
    record = RunRecord(
        settings=settings, frames=FRAMES, teacher_at=at, lessons=tuple(lessons), student_ms=2.0, wall_s=1.0
    )
    return record, PackedMasks(answers)


def a_report(frame_ms: float | None = 20.0) -> AdaptReport:
    judge = Judge(TASK, FrameAnswers(PackedMasks(TRUTHS), frame_ms), parts={"a": 0, "b": 12})
    rows, courses, keys = [], [], {}
    for threshold, at, behind in ((0.7, (0, 16), 2), (0.8, (0, 8, 16), 1)):
        record, masks = run(threshold, at, behind)
        row, course = judge.online(f"online {threshold}", record, masks)
        rows.append(row)
        courses.append(course)
        keys[row.name] = record.keyframes
    rows += judge.baselines(IMAGES, rows, keys)
    rows.append(judge.student("frozen", "frozen", PackedMasks([square(0)] * FRAMES), 2.0))
    return AdaptReport(
        rows=tuple(rows),
        courses=tuple(courses),
        stream=StreamFacts(
            uri="clip.mp4", frames=FRAMES, height=32, width=64, fps=24.0, teacher="bundle", teacher_ms=frame_ms,
            parts={"a": 0, "b": 12},
        ),
        task=TASK,
        conditions=Conditions.now(1),
    )  # fmt: skip


@pytest.fixture(scope="module")
def report() -> AdaptReport:
    pytest.importorskip("cv2")
    return a_report()


def test_a_run_has_its_score_share_and_both_costs(report: AdaptReport) -> None:
    row = report.row("online 0.8")
    assert (row.teacher_frames, row.share, row.updates) == (3, 3 / 24, 9)
    assert row.model is not None
    assert row.model.total_ms == 21 * 7 + 3 * 300 + 9 * 30
    assert row.clock is not None
    assert row.clock.total_ms == pytest.approx(21 * 2 + 3 * 20 + 3 * 60)
    assert row.student is not None
    assert row.student.frames == 21
    # One column of 16 is late on either side: 15 right of 17; teacher frames count whole.
    assert row.student.mean == pytest.approx(15 / 17)
    assert row.score.mean == pytest.approx((3 * 16 + 21 * 15) / (3 * 16 + 21 * 17))
    assert set(row.parts) == {"a", "b"}
    course = report.courses[1]
    assert (course.row, len(course.agreement), course.agreement[0]) == ("online 0.8", FRAMES, 1.0)
    assert course.agreement[1] == pytest.approx(15 / 17, abs=1e-4)


def test_baselines_stand_beside_each_run_with_its_share_of_teacher_frames(report: AdaptReport) -> None:
    for way in ("copy", "flow", "chained"):
        for threshold in (0.7, 0.8):
            run_row = report.row(f"online {threshold}")
            for placed in ("same frames", "evenly"):
                row = report.row(f"{way} (online {threshold}, {placed})")
                assert (row.share, row.threshold, row.updates) == (run_row.share, threshold, 0)
                assert (row.model is not None) == (way == "copy")
    copy = report.row("copy (online 0.8, same frames)")
    assert copy.clock is not None
    assert copy.clock.total_ms == pytest.approx(60)
    with pytest.raises(RecipeError, match="no 'x' in this report"):
        report.row("x")


def test_without_times_of_the_teacher_there_is_no_clock() -> None:
    pytest.importorskip("cv2")
    found = a_report(None)
    assert all(row.clock is None for row in found.rows)
    assert "clock" not in markdown(found)
    assert "speed-up, model" in markdown(found)


def test_json_comes_back_and_is_checked(report: AdaptReport) -> None:
    assert AdaptReport.from_json(report.to_json()) == report
    with pytest.raises(FileFormatError, match="not a readable report"):
        AdaptReport.from_json("{}")
    for wrong, message in (
        ({"rows": (report.rows[0],) * 2}, "name of its own"),
        ({"rows": report.rows[:1]}, "which is no row"),
        ({"courses": (report.courses[0].model_copy(update={"agreement": (1.0,)}),)}, "one figure a frame"),
    ):
        with pytest.raises(ValueError, match=message):
            AdaptReport.model_validate(dict(report) | wrong)


def test_the_table_reads_the_same_in_the_terminal_and_in_markdown(report: AdaptReport) -> None:
    rich = pytest.importorskip("rich.console")
    console = rich.Console(width=40, file=io.StringIO(), record=True)
    console.print(report.table(), soft_wrap=True)
    shown = console.export_text()
    for line in markdown(report).splitlines()[2:]:
        cells = [cell.strip(" *") for cell in line.strip("|").split(" | ")]
        assert re.search(r"\s+".join(map(re.escape, cells)), shown), cells


def test_the_page_is_one_file_that_says_what_was_found(report: AdaptReport, tmp_path) -> None:
    for package in ("jinja2", "matplotlib"):
        pytest.importorskip(package)
    html = report.write(tmp_path).read_text(encoding="utf-8")
    assert AdaptReport.load(tmp_path / "adapt.json") == report
    assert "http" not in re.sub(r"https?://www\.w3\.org\S*", "", html)
    assert html.count("<svg") == 4
    assert "online 0.8: the teacher answers 12.5 % of the frames, mean IoU" in html
    assert "&lt;car&gt;" in html
    assert "<car>" not in html
    assert not re.search(r"#0[123][0-9a-f]{4}\b", html)  # every stand-in became a colour of the page
    for name in ("agreement", "strides", "updates", "shares"):
        assert f'"{name}-' in html


def test_a_report_of_baselines_alone_has_a_page_too(report: AdaptReport) -> None:
    pytest.importorskip("matplotlib")
    from edge_sdk.adapt.page import render, verdicts

    only = report.model_copy(update={"courses": (), "rows": report.rows[-1:]})
    assert render(only).count("<svg") == 1
    assert verdicts(only) == []


def result(seq: int, kind: StepKind, mask: np.ndarray) -> Any:
    return SimpleNamespace(seq=seq, kind=kind, mask=mask, times=SimpleNamespace(total_ms=4.0))


def test_answers_are_kept_and_none_may_be_missing() -> None:
    answers = Answers()
    with pytest.raises(RecipeError, match="at least one frame"):
        answers.record()
    scratch = square(0)
    answers.add(result(0, StepKind.KEYFRAME, scratch))
    scratch[:] = 9  # the runner writes its memory again
    answers.add(result(1, StepKind.DELTA, square(1)))
    record = answers.record(AdaptSettings())
    assert (record.frames, record.teacher_at, record.student_ms) == (2, (0,), 4.0)
    assert np.array_equal(answers.masks[0], square(0))
    with pytest.raises(VideoError, match="frame 3 came where 2 was due"):
        answers.add(result(3, StepKind.DELTA, square(1)))


def test_the_judge_refuses_masks_that_are_too_few_and_runs_that_did_not_learn() -> None:
    judge = Judge(TASK, FrameAnswers(PackedMasks(TRUTHS), None))
    record, masks = run(0.8, (0,), 1)
    with pytest.raises(ShapeError, match="expected 24 as the teacher has, got 3"):
        judge.online("a", record, PackedMasks(masks[:3]))
    with pytest.raises(RecipeError, match="expected a run that learned"):
        judge.online("a", record.model_copy(update={"settings": None}), masks)


def test_labels_of_the_source_may_be_the_teachers() -> None:
    frames = [Frame(IMAGES[0], 0, 0.0, Truth(mask=TRUTHS[0])), Frame(IMAGES[1], 1, 0.0)]
    assert np.array_equal(labels_of(frames[:1]).masks[0], TRUTHS[0])
    with pytest.raises(RecipeError, match="frame 1: the source has no labels"):
        labels_of(frames)
