"""The evaluation of clip classifiers over tiny step graphs: rows, refusals, JSON, table and report."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from edge_sdk.cli import app
from edge_sdk.errors import BundleError, DependencyError, FileFormatError, RecipeError, ShapeError
from edge_sdk.evaluate.clips import ClipEvaluateRecipe, ClipEvaluation, evaluate_clips
from edge_sdk.evaluate.clips.passes import Course
from edge_sdk.evaluate.clips.reading import check_memory
from edge_sdk.evaluate.clips.table import latency
from edge_sdk.settings import parse_settings
from edge_sdk.tasks import ClassificationScore
from tests.clip_bundles import (
    CLASSES,
    DELTA_MACS,
    KEYFRAME_MACS,
    LENGTH,
    always,
    answers,
    random_clips,
    write_clip_bundle,
    write_clips,
)
from tests.graphs import per_frame

EACH = 4
CLIPS = random_clips(EACH)
SEEN = {"teacher": range(LENGTH), "student": (0, 4, 8), "rival": (0,)}
TRUTHS = [CLASSES.index(name.split("/")[0]) for name in CLIPS]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, seen in SEEN.items():
        write_clip_bundle(folder / name, len(seen))
    write_clips(folder / "list", CLIPS)
    return folder


def recipe(root: Path, **changes) -> ClipEvaluateRecipe:
    data = {
        "bundle": root / "student", "teacher": root / "teacher", "rival": root / "rival",
        "source": str(root / "list"), "repeats": 3, "timed": 2, "threads": 1,
    }  # fmt: skip
    return parse_settings(data | changes, ClipEvaluateRecipe, "recipe")


@pytest.fixture(scope="module")
def evaluation(root) -> ClipEvaluation:
    return evaluate_clips(recipe(root))


def expected(name: str) -> np.ndarray:
    """Whether each answer is right, (clips, frames)."""
    given = [answers(list(images), SEEN[name]) for images in CLIPS.values()]
    return np.array(given) == np.array(TRUTHS)[:, None]


def test_the_clips_tell_rows_apart():
    shares = [expected(name)[:, -1].mean() for name in SEEN]
    assert shares[0] > shares[2]
    assert all(0 < share < 1 for share in shares[1:])


@pytest.mark.parametrize("name", SEEN)
def test_a_row_is_what_the_graphs_compute(evaluation, name):
    row, right = evaluation.row(name), expected(name)
    assert evaluation.primary == "top1" == next(iter(row.scores))
    assert row.scores["top1"] == pytest.approx(right[:, -1].mean())
    assert row.answers.by_frame == pytest.approx(tuple(right.mean(axis=0)))
    assert row.answers.right == pytest.approx(right.mean())
    assert row.by_class == pytest.approx(
        {label: right[EACH * i : EACH * (i + 1), -1].mean() for i, label in enumerate(CLASSES)}
    )
    last = [answers(images, SEEN[name])[-1] for images in CLIPS.values()]
    teachers = [answers(images, SEEN["teacher"])[-1] for images in CLIPS.values()]
    assert row.agreement == pytest.approx(np.mean(np.equal(last, teachers)))


@pytest.mark.parametrize("name", SEEN)
def test_a_stream_knows_nothing_of_where_clips_begin(evaluation, name):
    images = np.concatenate(list(CLIPS.values()))[LENGTH // 2 :]
    truths = np.repeat(TRUTHS, LENGTH)[LENGTH // 2 :]
    starts = range(0, len(images), LENGTH)
    seen = {start + place for start in starts for place in SEEN[name]}
    right = np.equal(answers(images, sorted(seen), list(starts)), truths)
    row = evaluation.row(name)
    assert row.streamed is not None
    assert row.streamed.right == pytest.approx(right.mean())
    padded = np.concatenate([np.full(LENGTH // 2, np.nan), right]).reshape(-1, LENGTH)
    assert row.streamed.by_frame == pytest.approx(tuple(np.nanmean(padded, axis=0)))


def test_costs(evaluation):
    found = {row.name: (row.seen, row.macs, row.state_bytes) for row in evaluation.rows}
    assert found == {
        "teacher": (12, KEYFRAME_MACS + 11 * DELTA_MACS, 16),
        "student": (3, KEYFRAME_MACS + 2 * DELTA_MACS, 16),
        "rival": (1, KEYFRAME_MACS, 0),
    }


def test_timing(evaluation):
    for row in evaluation.rows:
        timing = row.timing
        assert np.array(timing.runs_ms).shape == (3, 2)
        assert (timing.skipped_ms is None) == (row.name == "teacher")
        assert timing.seen_ms > 0
        assert timing.clip_ms.median == pytest.approx(np.median(np.mean(timing.runs_ms, axis=1)), abs=1e-3)
    assert evaluation.rows[0].timing.speedup.median == 1.0


def test_without_others_the_student_is_its_own_yardstick(root):
    got = evaluate_clips(recipe(root, teacher=None, rival=None, streamed=0, limit=5, repeats=1, timed=99))
    (row,) = got.rows
    assert (row.name, row.agreement, row.streamed) == ("student", 1.0, None)
    assert (got.source.clips, len(row.timing.runs_ms[0])) == (5, 5)
    assert "in a stream" not in [column.header for column in got.table().columns]


def test_longer_clips_are_spread_and_further_bundles_get_rows(root, tmp_path):
    long = {name: np.repeat(images, 2, axis=0) for name, images in CLIPS.items()}
    write_clips(tmp_path / "long", long)
    window = write_clip_bundle(tmp_path / "window", 3, restart=False)
    got = evaluate_clips(recipe(root, source=str(tmp_path / "long"), others=[window.path], repeats=1))
    assert got.row("student").answers.by_frame == pytest.approx(tuple(expected("student").mean(axis=0)))
    assert got.row("window").scores == got.row("student").scores
    assert got.source.fps == pytest.approx(15.0)  # half the folder's 30
    assert "sliding window" in latency(got.row("window"), got.source.fps)
    assert "12 frames (0.8 s), sees 3" in latency(got.row("student"), got.source.fps)


def test_json_round_trip(evaluation, tmp_path):
    assert ClipEvaluation.from_json(evaluation.to_json()) == evaluation
    data = json.loads(evaluation.to_json())
    assert (data["kind"], data["bundles"][0]["role"]) == ("clips", "subject")
    with pytest.raises(FileFormatError, match="not a readable evaluation of clips"):
        ClipEvaluation.from_json("{")
    with pytest.raises(RecipeError, match="no 'nobody' in this evaluation, only teacher, student, rival"):
        evaluation.row("nobody")


def test_report_is_whole_and_needs_nothing_else(evaluation, tmp_path):
    changed = evaluation.source.model_copy(update={"uri": "<script>alert(1)</script>"})
    html = evaluation.model_copy(update={"source": changed}).write_report(tmp_path / "new").read_text()
    for row in evaluation.rows:
        assert f"</span>{row.name}</td>" in html
    assert html.count("<svg") == 3
    for outside in ("http", "<link", "<script", "@import", "#03"):
        assert outside not in html, outside
    assert ClipEvaluation.load(tmp_path / "new" / "evaluation.json").rows == evaluation.rows
    assert "points of top-1 against teacher, with 3 of 12 frames seen" in html


def test_table_is_whole_on_a_narrow_terminal(evaluation):
    console = Console(width=60, soft_wrap=True, file=io.StringIO())
    console.print(evaluation.table())
    text = console.file.getvalue()
    assert "…" not in text
    (line,) = [line.split() for line in text.splitlines() if line.split()[:1] == ["student"]][:1]
    assert line[1] == f"{evaluation.row('student').scores['top1']:.3f}"
    assert "a new one about every 4 frames" in " ".join(text.split())


def test_noise_is_reported(evaluation):
    noisy = evaluation.rows[1]
    spread = noisy.timing.clip_ms.model_copy(update={"median": 2.0, "iqr": 1.0})
    timing = noisy.timing.model_copy(update={"noisy": True, "clip_ms": spread})
    rows = (
        *(row.model_copy(update={"timing": row.timing.model_copy(update={"noisy": False})}) for row in evaluation.rows),
        noisy.model_copy(update={"timing": timing}),
    )  # fmt: skip
    (warning,) = evaluation.model_copy(update={"rows": rows}).warnings
    assert "student spread by more than 10 %" in warning
    assert evaluation.model_copy(update={"rows": rows[:-1]}).warnings == ()


def test_top_1_alone_where_torchmetrics_is_missing(root, monkeypatch):
    def missing(self: object) -> dict[str, float]:
        raise DependencyError("no torchmetrics")

    monkeypatch.setattr(ClassificationScore, "compute", missing)
    got = evaluate_clips(recipe(root, repeats=1, limit=3, streamed=0))
    assert list(got.row("student").scores) == ["top1"]
    assert "torchmetrics" in got.methods["scores"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"repeats": 0}, RecipeError, "repeats"),
        ({"streamd": 3}, RecipeError, "did you mean 'streamed'"),
        ({"engines": ("float32",)}, RecipeError, "not float32, which is always there"),
        ({"engines": ("onnxruntime-int8",)}, BundleError, "no engines 'onnxruntime-int8', only float32"),
        ({"length": 10}, BundleError, "its clips have 12 frames, expected 10"),
        ({"others": ("rival", "elsewhere/rival")}, RecipeError, "two rows would be named 'rival'"),
        (
            {"teacher": "short"},
            BundleError,
            "student .*: its clips have 12 frames, expected 6",
        ),
        ({"rival": "masks"}, BundleError, "rival .*masks: its task is segmentation, expected one that"),
        ({"rival": "large"}, BundleError, r"it takes frames of 8 x 8 \(height x width\), .* takes 6 x 8"),
        ({"rival": "renamed"}, BundleError, "its classes .* are not those of bundle"),
        ({"rival": "multi"}, BundleError, "one of the two alone is multi-label"),
        (
            {"bundle": "single", "teacher": None, "rival": None},
            RecipeError,
            "'always' does not say how long a",
        ),
        ({"source": "brief"}, RecipeError, "clip blue/0: it has 3 frames, expected at least 12"),
        ({"source": "unknown"}, FileFormatError, "names of classes .* found 'purple'"),
        ({"source": "wide"}, ShapeError, "12 x 16 .* takes 6 x 8"),
    ],
)
def test_refusals(root, tmp_path, changes, error, message):
    made = {
        "short": lambda at: write_clip_bundle(at, 2, length=6),
        "masks": lambda at: per_frame((6, 8)).write(at),
        "large": lambda at: write_clip_bundle(at, 2, size_hw=(8, 8)),
        "renamed": lambda at: write_clip_bundle(at, 2, classes=("a", "b", "c")),
        "multi": lambda at: write_clip_bundle(at, 2, multi_label=True),
        "single": always,
        "elsewhere/rival": lambda at: write_clip_bundle(at, 1),
        "brief": lambda at: write_clips(at, random_clips(1, length=3)),
        "unknown": lambda at: write_clips(at, {"purple/0": CLIPS["blue/0"]}),
        "wide": lambda at: write_clips(at, {"red/0": np.zeros((12, 12, 16, 3), np.uint8)}),
    }

    def placed(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(map(placed, value))
        if value in made:
            made[value](tmp_path / str(value))
            return str(tmp_path / str(value))
        return str(root / value) if isinstance(value, str) and (root / value).exists() else value

    with pytest.raises(error, match=message):
        evaluate_clips(recipe(root, **{key: placed(value) for key, value in changes.items()}))


def test_memory_is_bounded():
    check_memory(2, 5, (10, 10), limit=3000)
    with pytest.raises(RecipeError, match=r"timed: 3 clips .* Set `timed` to at most 2") as caught:
        check_memory(3, 5, (10, 10), limit=3000)
    assert "`timed`" in str(caught.value)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6))
def test_settled_is_the_first_frame_from_which_all_is_right(clips):
    course = Course(5)
    for right in clips:
        course.add(right)
    found = course.answers()
    firsts = [next((n + 1 for n in range(5) if all(right[n:])), float("inf")) for right in clips]
    middle = float(np.median(firsts))
    assert found.settled == (middle if np.isfinite(middle) else None)
    assert found.right == pytest.approx(np.mean(clips))


def test_the_command_picks_by_the_bundle(root, tmp_path):
    settings = {"bundle": str(root / "student"), "source": str(root / "list"), "repeats": 1, "streamed": 0}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    for words in (
        ["--recipe", str(tmp_path / "recipe.yaml"), "--limit", "3"],
        [str(root / "student"), str(root / "list"), "--limit", "3", "--repeats", "1"],
    ):
        done = CliRunner().invoke(app, ["evaluate", *words, "--json"])
        assert done.exit_code == 0, done.output
        data = json.loads(done.stdout)
        assert (data["kind"], data["source"]["clips"]) == ("clips", 3)
    done = CliRunner().invoke(
        app, ["evaluate", str(root / "student"), str(root / "list"), "--intervals", "5"]
    )
    assert done.exit_code != 0
