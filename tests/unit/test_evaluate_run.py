"""The whole evaluation over tiny pairs: rows, refusals, JSON, table and report."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from edge_sdk.bundle import write_bundle
from edge_sdk.drawing import to_inline
from edge_sdk.errors import (
    BundleError,
    EdgeSdkError,
    FileFormatError,
    MissingFileError,
    RecipeError,
    ShapeError,
)
from edge_sdk.evaluate import EvaluateRecipe, Evaluation, evaluate
from edge_sdk.evaluate.accuracy import check_same_teacher
from edge_sdk.evaluate.clip import read_clip
from edge_sdk.evaluate.evaluation import JSON_NAME
from edge_sdk.evaluate.table import macs, milliseconds, size
from edge_sdk.runtime.result import StepKind
from edge_sdk.settings import parse_settings
from edge_sdk.tasks import Segmentation, TaskSpec, task_from_spec
from tests.graphs import chaining, per_frame, random_images, residual

SIZE = (24, 32)
FRAMES = 8
TASK = task_from_spec(residual().manifest().task)
IMAGES = random_images(FRAMES, SIZE)
PLOTS = ("distance", "tradeoff", "timeline", "distribution")
NAMES = ["teacher", "rival", "copy K=2", "flow K=2", "delta K=2", "copy K=3", "flow K=3", "delta K=3"]


def write_folder(folder: Path, labels: bool) -> Path:
    """The images as a source; labels are the teacher's answer with a stripe of ignored pixels."""
    masks = per_frame(SIZE).expected(IMAGES, [StepKind.KEYFRAME] * FRAMES)
    for name, pictures in (("images", IMAGES), ("labels", masks if labels else [])):
        for index, picture in enumerate(pictures):
            path = folder / name / f"{index:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if name == "labels":
                picture = picture.copy()
                picture[0] = 255
            cv2.imwrite(str(path), picture)
    return folder


@dataclass
class Recorder:
    """Notes every call of the progress argument."""

    calls: list[tuple[str, int, int]] = field(default_factory=list)

    def update(self, stage: str, done: int, total: int) -> None:
        self.calls.append((stage, done, total))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    pair = residual(SIZE)
    manifest = pair.manifest()
    assert manifest.steps.delta is not None
    steps = manifest.steps.model_copy(
        update={
            "keyframe": manifest.steps.keyframe.model_copy(update={"macs": 1000}),
            "delta": manifest.steps.delta.model_copy(update={"macs": 100}),
        }
    )
    write_bundle(folder / "pair", manifest.model_copy(update={"steps": steps}), pair.files())
    per_frame(SIZE).write(folder / "plain")
    write_folder(folder / "labelled", labels=True)
    write_folder(folder / "bare", labels=False)
    return folder


def recipe(root: Path, **changes) -> EvaluateRecipe:
    given = {
        "bundle": root / "pair",
        "source": str(root / "labelled"),
        "teacher": root / "plain",
        "rival": root / "plain",
        "intervals": (3, 2),
        "repeats": 3,
        "threads": 1,
    }
    return parse_settings(given | changes, EvaluateRecipe, "recipe")


@pytest.fixture(scope="module")
def progress() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def evaluation(root, progress) -> Evaluation:
    return evaluate(recipe(root), progress=progress)


@pytest.fixture(scope="module")
def report(evaluation, tmp_path_factory) -> Path:
    return evaluation.write_report(tmp_path_factory.mktemp("report") / "new")


def test_rows_and_progress(evaluation, progress):
    assert [row.name for row in evaluation.rows] == NAMES
    stages = list(dict.fromkeys(stage for stage, _, _ in progress.calls))
    assert stages[:4] == ["read", "teacher", "flow between frames", "delta K=2"]
    assert stages[-1] == "timing"
    last = {stage: (done, total) for stage, done, total in progress.calls}
    assert all(done == total for done, total in last.values())
    # Every alignment is run from its own first keyframe on.
    assert last["delta K=3"] == (FRAMES + FRAMES - 1 + FRAMES - 2,) * 2


def test_the_teacher_is_perfect_here_and_so_is_everyone_at_distance_0(evaluation):
    for name in ("teacher", "rival"):
        assert (evaluation.row(name).labels, evaluation.row(name).agreement) == (1.0, 1.0)
    for row in evaluation.rows:
        assert (row.by_distance[0].labels, row.by_distance[0].agreement) == (1.0, 1.0)
        assert [at.frames for at in row.by_distance] == [FRAMES - at.distance for at in row.by_distance]
    assert evaluation.row("teacher").consistency == pytest.approx(evaluation.row("rival").consistency, abs=0)


def expected_delta(interval: int) -> dict[int, float]:
    """Agreement by distance, from the numpy twins of the graphs."""
    pair = residual(SIZE)
    teacher = pair.expected(IMAGES, [StepKind.KEYFRAME] * FRAMES)
    scores = {distance: TASK.score() for distance in range(interval)}
    for index in range(FRAMES):
        for distance in range(min(index, interval - 1) + 1):
            kinds = [StepKind.KEYFRAME] + [StepKind.DELTA] * distance
            got = pair.expected(IMAGES[index - distance : index + 1], kinds)[-1]
            scores[distance].update(Segmentation(got), Segmentation(teacher[index]))
    return {distance: score.compute()["miou"] for distance, score in scores.items()}


@pytest.mark.parametrize("interval", [2, 3])
def test_the_delta_row_is_what_the_graphs_compute(evaluation, interval):
    row = evaluation.row(f"delta K={interval}")
    got = {at.distance: at.agreement for at in row.by_distance}
    assert got == pytest.approx(expected_delta(interval))
    assert got[1] < 0.9  # the deltas of noise are far off: the test can tell


def test_a_pair_that_rewrites_its_state_is_run_in_order(root):
    chaining(SIZE).write(root / "chain")
    got = evaluate(recipe(root, bundle=root / "chain", intervals=(4,), repeats=1)).row("delta K=4")
    pair = chaining(SIZE)
    teacher = pair.expected(IMAGES, [StepKind.KEYFRAME] * FRAMES)
    score = TASK.score()
    for first in range(FRAMES - 3):
        mask = pair.expected(IMAGES[first : first + 4], [StepKind.KEYFRAME] + [StepKind.DELTA] * 3)[-1]
        score.update(Segmentation(mask), Segmentation(teacher[first + 3]))
    assert got.by_distance[3].agreement == pytest.approx(score.compute()["miou"])


def test_costs(evaluation):
    pixels = SIZE[0] * SIZE[1]
    costs = {row.name: (row.macs, row.state_bytes) for row in evaluation.rows}
    assert costs["delta K=2"] == (550, pixels * 4)
    assert costs["delta K=3"] == (400, pixels * 4)
    assert costs["copy K=3"] == (0, pixels)  # the tiny teacher counts 0
    assert costs["flow K=3"] == (0, pixels * 2)
    assert costs["teacher"] == (0, 0)


def test_timing_follows_the_schedule(evaluation):
    for row in evaluation.rows:
        assert row.timing.keyframes == tuple(index % row.interval == 0 for index in range(FRAMES))
        assert np.array(row.timing.frames_ms).shape == (3, FRAMES)
        assert row.timing.mean_ms.median > 0
        assert (row.timing.runner_ms is None) == (row.variant == "flow")
    assert evaluation.row("teacher").timing.speedup.median == 1.0


def test_without_labels_and_without_a_teacher_bundle(root):
    got = evaluate(recipe(root, source=str(root / "bare"), teacher=None, rival=None, phases=1, repeats=1))
    assert [row.name for row in got.rows] == ["teacher (keyframe step)", *NAMES[2:]]
    assert "also writes the state" in got.rows[0].note
    assert {row.labels for row in got.rows} == {None}
    assert got.source.labelled == 0
    assert got.source.label_consistency is None
    assert got.row("copy K=3").macs == 333  # the pair's own keyframe step
    # One alignment: frames 0, 3, 6 are keyframes.
    assert [at.frames for at in got.row("delta K=3").by_distance] == [3, 3, 2]
    assert "mIoU" not in [column.header for column in got.table().columns]
    assert [panel.title for panel in got.examples[0].panels] == ["frame", "teacher", "copy", "flow", "delta"]


def test_examples_lie_as_far_from_their_keyframe_as_it_gets(evaluation):
    assert evaluation.examples
    for example in evaluation.examples:
        assert (example.distance, example.index % 3) == (2, 2)
        titles = [panel.title for panel in example.panels]
        assert titles == ["frame", "labels", "teacher", "copy", "flow", "delta"]
        assert all(panel.jpeg.startswith(b"\xff\xd8") for panel in example.panels)
    assert sum("disagree most" in example.why for example in evaluation.examples) == 1


def test_opencv_has_its_threads_back(root):
    before = cv2.getNumThreads()
    with pytest.raises(RecipeError):
        evaluate(recipe(root, threads=before + 1, limit=3, intervals=(3,), source="synthetic:nowhere"))
    assert cv2.getNumThreads() == before


def test_json_round_trip(evaluation, report):
    bare = evaluation.model_copy(update={"examples": ()})
    assert Evaluation.from_json(evaluation.to_json()) == bare
    assert Evaluation.load(report.parent / JSON_NAME) == bare
    data = json.loads(evaluation.to_json())
    assert data["schema_version"] == 1
    assert "examples" not in data
    assert data["conditions"]["packages"]["onnxruntime"]
    assert (data["conditions"]["cores"] >= 1, data["conditions"]["threads"]) == (True, 1)
    assert data["bundles"][0]["provenance"] == {"made_by": "tests"}


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 2}'])
def test_what_is_no_evaluation_is_refused(text, tmp_path):
    file = tmp_path / "evaluation.json"
    file.write_text(text)
    with pytest.raises(FileFormatError, match=r"evaluation\.json: not a readable evaluation"):
        Evaluation.load(file)


def test_report_is_whole_and_needs_nothing_else(evaluation, report):
    html = report.read_text(encoding="utf-8")
    assert html.rstrip().endswith("</html>")
    for row in evaluation.rows:
        assert f"</span>{row.name}</td>" in html
    assert html.count("<svg") == 4
    assert html.count("data:image/jpeg;base64,") == 6 * len(evaluation.examples)
    for outside in ("http", "<link", "<script", "@import", 'src="/', "xmlns"):
        assert outside not in html, outside
    for known in (evaluation.conditions.cpu, "made_by", evaluation.bundles[0].sha256["delta.onnx"]):
        assert known in html
    # Stand-in colours have all been replaced by the page's.
    assert "var(--delta)" in html
    assert "#0305a5" not in html


def test_report_escapes_what_others_wrote(evaluation, monkeypatch):
    from edge_sdk.evaluate import report

    monkeypatch.setattr(report, "all_plots", lambda _: dict.fromkeys(PLOTS, "<svg/>"))
    source = evaluation.source.model_copy(update={"uri": "<script>alert(1)</script>"})
    html = report.render(evaluation.model_copy(update={"source": source, "examples": ()}))
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "which holds no pictures" in html


def test_table_is_whole_on_a_narrow_terminal(evaluation):
    console = Console(width=60, soft_wrap=True, file=io.StringIO())
    console.print(evaluation.table())
    text = console.file.getvalue()
    assert "…" not in text
    lines = [line.split() for line in text.splitlines()]
    delta = next(line for line in lines if line[:2] == ["delta", "K=3"])
    assert delta[2] == f"{evaluation.row('delta K=3').labels:.3f}"
    assert delta[-2:] == ["3.1", "kB"]


def test_noise_is_reported(evaluation):
    quiet, noisy = evaluation.rows[0], evaluation.rows[1]
    timing = noisy.timing.model_copy(
        update={"noisy": True, "mean_ms": noisy.timing.mean_ms.model_copy(update={"median": 2.0, "iqr": 1.0})}
    )
    calm = quiet.model_copy(update={"timing": quiet.timing.model_copy(update={"noisy": False})})
    changed = evaluation.model_copy(update={"rows": (calm, noisy.model_copy(update={"timing": timing}))})
    (warning,) = changed.warnings
    assert "the runs of rival spread" in warning
    assert "50%" in warning
    assert changed.model_copy(update={"rows": (calm,)}).warnings == ()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"intervals": (5, 5)}, RecipeError, "each interval once"),
        ({"intervals": ()}, RecipeError, "intervals"),
        ({"intervals": (1,)}, RecipeError, "greater than or equal to 2"),
        ({"phases": 2}, RecipeError, "phases"),
        ({"repeats": 0}, RecipeError, "repeats"),
        ({"limit": 4, "intervals": (5,)}, RecipeError, "limit 4 is below the largest interval 5"),
        ({"repaets": 1}, RecipeError, "did you mean 'repeats'"),
        ({"intervals": (9,)}, RecipeError, "intervals: 9 needs as many frames, source .* gave 8"),
        ({"bundle": "plain"}, BundleError, "expected a keyframe and a delta step"),
        ({"rival": "pair"}, BundleError, "rival .*: expected a per-frame bundle, it has a delta step"),
        (
            {"rival": "small"},
            BundleError,
            r"rival .*: it takes frames of 4 x 6 \(height x width\), .* 24 x 32",
        ),
        (
            {"teacher": "other"},
            BundleError,
            r"teacher .*: its task is segmentation of x, y, z, w \(ignored: 255\)",
        ),
        ({"teacher": "nowhere"}, MissingFileError, "nowhere"),
        ({"source": "synthetic:shapes?height=48&width=64&frames=8"}, ShapeError, "48 x 64 .* takes 24 x 32"),
        ({"source": "nowhere"}, MissingFileError, "nowhere"),
    ],
)
def test_refusals(root, changes, error, message):
    per_frame((4, 6)).write(root / "small")
    other = per_frame(SIZE)
    task = TaskSpec(classes=("x", "y", "z", "w"))
    write_bundle(root / "other", other.manifest().model_copy(update={"task": task}), other.files())
    placed = {
        key: root / value if key in ("bundle", "teacher", "rival") else value
        for key, value in changes.items()
    }
    with pytest.raises(error, match=message):
        evaluate(recipe(root, **placed))


def test_a_teacher_of_other_weights_is_refused(root):
    # A graph that answers from green where the pair's keyframe step answers from blue.
    pair = residual(SIZE)
    wrong = per_frame(SIZE)
    graph = wrong.keyframe.graph
    for node in graph.node:
        if node.op_type == "Div":
            node.input[0] = "green"
    assert [node.input[0] for node in graph.node if node.op_type == "Div"] == ["green"]
    wrong.write(root / "wrong")
    assert pair.size_hw == wrong.size_hw
    with pytest.raises(
        BundleError, match=r"differ from those of the bundle's keyframe step on \d+\.\d+% of the"
    ):
        evaluate(recipe(root, teacher=root / "wrong"))


def test_a_few_pixels_of_rounding_are_no_other_teacher():
    check_same_teacher(1, 1000)
    with pytest.raises(BundleError, match=r"on 0\.20% of the pixels"):
        check_same_teacher(2, 1000)


def test_a_clip_beyond_memory_is_refused_with_the_limit_that_fits(root):
    uri = str(root / "bare")
    room = 5 * 10 * SIZE[0] * SIZE[1]
    with pytest.raises(RecipeError, match="Set `limit` to at most 5"):
        read_clip(uri, TASK, SIZE, memory_bytes=room)
    assert len(read_clip(uri, TASK, SIZE, limit=5, memory_bytes=room)) == 5


def test_labels_of_another_size_are_refused(root, tmp_path):
    folder = write_folder(tmp_path / "odd", labels=True)
    for path in (folder / "labels").iterdir():
        cv2.imwrite(str(path), np.zeros((4, 4), np.uint8))
    with pytest.raises(EdgeSdkError, match=r"(?s)label.*4"):
        read_clip(str(folder), TASK, SIZE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (milliseconds(0.0123), "0.012"),
        (milliseconds(4.326), "4.33"),
        (milliseconds(44.32), "44.3"),
        (milliseconds(None), "-"),
        (macs(10_500_000_000), "10.50 G"),
        (macs(2_340_000), "2.34 M"),
        (macs(0), "0"),
        (macs(None), "-"),
        (size(999), "999 B"),
        (size(75_200_000), "75.2 MB"),
    ],
)
def test_cells(text, expected):
    assert text == expected


def test_an_inlined_plot_keeps_references_apart():
    svg = (
        '<?xml version="1.0"?><!DOCTYPE svg><svg width="4pt" height="3pt" viewBox="0 0 4 3" '
        'xmlns="http://outside" xmlns:xlink="http://outside"><metadata>x</metadata>'
        '<path id="m" clip-path="url(#c)" style="stroke: #0305a5"/><use xlink:href="#m"/></svg>'
    )
    assert to_inline(svg, "p") == (
        '<svg viewBox="0 0 4 3" role="img">'
        '<path id="p-m" clip-path="url(#p-c)" style="stroke: var(--delta)"/><use href="#p-m"/></svg>'
    )
