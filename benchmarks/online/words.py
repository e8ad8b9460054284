"""RESULTS.md and what is claimed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_sdk.adapt.report import AdaptReport, Course, ReportRow
from edge_sdk.adapt.table import markdown, percent
from edge_sdk.evaluate.table import share

Claim = tuple[str, str, bool]
HOW = """\
Every figure is against the teacher's answers to every frame: intersection over union of each class, added up
over all frames, the teacher's own frames included, mean without background. Runs are `pace: in_turn`, as
published, and so do not hang on the speed of the machine. *same frames*: a baseline with just the teacher
frames of that run; *evenly*: as many, evenly spread. *flow* is taken from the frame to its teacher frame,
*chained* from frame to frame, as published. *offline* is the student trained on the whole stream beforehand;
*student as it began*: on DAVIS it has a last layer that has seen nothing, as the number of classes is new to
it. *published*: settings and student as published; *online*, on the camera's stream: with the settings of
cases.py, a student whose norm is fixed, and a teacher frame where the picture changes. Cost
model: 7 ms a student's frame, 300 ms a teacher's, 30 ms an update, as published; by the clock: one core for
frames and one for learning, ONNX Runtime float32."""
PACED = """\
Frames are due on the grid of the rate; a deadline is missed where the answer comes after the next frame is
due. One thread answers in both; *none* has its teacher frames at the same places. Threshold 0.9, which learns
most."""
MOST_TEACHER, LEAST_IOU, MOST_LATER = 0.12, 0.75, 0.01


def claims(camera: AdaptReport, pace: Sequence[dict[str, Any]]) -> list[Claim]:
    """Each claim: what is claimed, what was measured, whether it holds."""
    run = camera.row("online 0.8")
    mean = run.score.mean or 0.0
    found: list[Claim] = [
        ("camera, 0.8: the teacher answers at most 12 % of the frames", percent(run.share), run.share <= MOST_TEACHER),
        ("camera, 0.8: mean IoU with the teacher at least 0.75", share(mean), mean >= LEAST_IOU),
    ]  # fmt: skip
    for placed, where in (("evenly", "evenly spread"), ("same", "on its own teacher frames")):
        others = [row for row in camera.rows if row.placed == placed and row.threshold == run.threshold]
        best = max(others, key=lambda row: row.score.mean or 0.0)
        against = best.score.mean or 0.0
        text = f"{share(mean)} against {share(against)}, {best.name}"
        found.append((f"camera, 0.8: beats copy and flow at the same share, {where}", text, mean > against))
    # Its teacher frames are those of the run in which all layers learn, so the baselines on them are its own too.
    part, whole = camera.row("online 0.8, refit"), {course.row: course for course in camera.courses}
    if whole[part.name].teacher_at == whole[run.name].teacher_at:
        value = part.score.mean or 0.0
        text = f"{share(value)} against {share(against)}, {best.name}"
        claim = (
            "camera, 0.8, decoder and head alone learn (refit): beats copy and flow on its own teacher frames"
        )
        found.append((claim, text, value > against))
    for rate in dict.fromkeys(row["rate"] for row in pace):
        missed = {row["learns"]: row["missed"] for row in pace if row["rate"] == rate}
        later = missed[True] - missed[False]
        text = f"{percent(missed[True])} against {percent(missed[False])}"
        claim = (
            f"{rate:g} frames a second: deadline misses within a percentage point of those without learning"
        )
        found.append((claim, text, later <= MOST_LATER))
    return found


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _pace(rows: Sequence[dict[str, Any]]) -> str:
    head = ("frames a second", "learning", "frames", "missed", "missed, student's", "p50 ms", "p99 ms", "max ms",
            "teacher frames", "updates", "time that it learns")  # fmt: skip
    return _table(head, [
        (f"{row['rate']:g}", "beside" if row["learns"] else "none", str(row["frames"]), percent(row["missed"]),
         percent(row["missed_of_student"]), f"{row['p50_ms']:.1f}", f"{row['p99_ms']:.1f}", f"{row['max_ms']:.1f}",
         str(row["teacher_frames"]), str(row["updates"]), percent(row["learning_share"]))
        for row in rows
    ])  # fmt: skip


def _parts(report: AdaptReport) -> str:
    shown = [row for row in report.rows if row.parts and row.placed != "evenly"]
    names = list(report.stream.parts)
    return _table(("row", *names), [
        (row.name, *(share(row.parts[name].mean) for name in names)) for row in shown
    ])  # fmt: skip


def _classes(report: AdaptReport) -> str:
    names = [name for name in report.task.classes if any(name in row.score.classes for row in report.rows)]
    shown = [row for row in report.rows if row.placed != "evenly"]
    return _table(("row", *names), [
        (row.name, *(share(row.score.classes.get(name)) for name in names)) for row in shown
    ])  # fmt: skip


def _swaps(pairs: Sequence[tuple[ReportRow, Course]]) -> str:
    lines = []
    for row, course in pairs:
        prepared = [one.prepare_ms for one in course.lessons if one.prepare_ms is not None]
        updates = sum(one.updates for one in course.lessons)
        lesson_ms = sum(one.took_ms for one in course.lessons) / max(updates, 1)
        lines.append((
            course.settings.swap, f"{np.median(prepared):.1f}" if prepared else "-",
            f"{np.percentile(prepared, 99):.1f}" if prepared else "-", str(len(prepared)), f"{lesson_ms:.1f}",
            f"{course.student_ms:.2f}", share(row.score.mean), percent(row.share),
        ))  # fmt: skip
    head = ("swap", "prepare ms, p50", "p99", "swaps", "ms an update", "student ms", "mean IoU", "teacher")
    return _table(head, lines)


def _course(report: AdaptReport, names: Sequence[str]) -> list[tuple[ReportRow, Course]]:
    courses = {course.row: course for course in report.courses}
    return [(report.row(name), courses[name]) for name in names]


def _rows(report: AdaptReport, names: Sequence[str]) -> str:
    return markdown(report.model_copy(update={"rows": tuple(report.row(name) for name in names)}))


def results(
    command: str, reports: dict[str, AdaptReport], pace: Sequence[dict[str, Any]], proofs: Sequence[Claim],
    commits: Sequence[str],
) -> str:  # fmt: skip
    """RESULTS.md."""
    davis, camera = reports["davis"], reports["camera"]
    conditions = camera.conditions
    beside = ("online 0.8, memory", "online 0.8, join correct", "online 0.8, refit")
    main = {
        name: report.model_copy(update={"rows": tuple(row for row in report.rows if row.name not in beside)})
        for name, report in reports.items()
    }
    sizes = {
        name: f"{r.stream.frames} frames of {r.stream.width} x {r.stream.height}"
        for name, r in reports.items()
    }
    lines = [
        "# Online distillation on two streams", "",
        f"Written by `{command}`; settings in the recipes beside it and in cases.py. Machine: {conditions.cpu}, "
        f"{conditions.cores} cores; {conditions.date}; measured at commit {', '.join(dict.fromkeys(commits))}.", "",
        HOW, "",
        f"## Ten clips of DAVIS 2016, one after another, recorded masks ({sizes['davis']})", "",
        markdown(main["davis"]),
        "Mean IoU by clip:", "", _parts(main["davis"]),
        f"## A fixed camera, three times round, with a camvid-trained teacher ({sizes['camera']})", "",
        markdown(main["camera"]),
        "IoU by class:", "", _classes(main["camera"]),
        "Mean IoU by round:", "", _parts(main["camera"]),
        "## Beyond the paper", "",
        "A small memory of past teacher frames, learned again beside the newest (DAVIS), and a teacher frame where the "
        "picture changes:", "",
        _rows(davis, ("online 0.8", "online 0.8, memory", "online 0.8, on change")),
        "The student corrected by the teacher's last answer (`join: correct`), on the camera's stream:", "",
        _rows(camera, ("online 0.8", "online 0.8, join correct")),
        "A new engine for each new version, or refit of the open layers (decoder and head) alone:", "",
        _swaps(_course(camera, ("online 0.8", "online 0.8, refit"))),
        "## At camera pace", "",
        PACED, "",
        _pace(pace),
        "## Claims", "",
        _table(("claim", "measured", "holds"), [(a, b, "yes" if c else "**no**") for a, b, c in proofs]),
    ]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"
