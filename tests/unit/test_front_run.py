"""The whole front over tiny pairs and networks: rows, shares, refusals, JSON, table, report and command."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from onnx import numpy_helper
from rich.console import Console
from typer.testing import CliRunner

from edge_sdk.build.pipeline import build
from edge_sdk.build.recipe import BuildRecipe
from edge_sdk.bundle import Bundle, write_bundle
from edge_sdk.cli import app
from edge_sdk.errors import BundleError, FileFormatError, MissingFileError, RecipeError, ShapeError
from edge_sdk.evaluate.accuracy import Judge, per_frame_masks
from edge_sdk.evaluate.clip import read_clip
from edge_sdk.evaluate.front import Front, FrontRecipe, Point, measure_front, recovered
from edge_sdk.evaluate.front.document import JSON_NAME
from edge_sdk.evaluate.front.lineup import names_of
from edge_sdk.evaluate.front.pipeline import with_shares
from edge_sdk.evaluate.front.report import verdicts
from edge_sdk.evaluate.front.table import recovered_text, runs_text
from edge_sdk.evaluate.front.timing import pair_contender, whole_periods
from edge_sdk.evaluate.metrics import Reference, StreamScores, plan
from edge_sdk.evaluate.timing import Spread
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import ExternalSchedule
from edge_sdk.settings import parse_settings
from edge_sdk.tasks import TaskSpec
from tests.graphs import TinyPair, chaining, per_frame, residual
from tests.unit.test_evaluate_run import FRAMES, SIZE, TASK, Recorder, write_folder

# No convolution, so nothing to quantise: engines of float32 stand for those of any precision.
ENGINE = "onnxruntime-float32"
WHO = ["teacher", "coarse", "rough"]


def divided_by(quarter: float) -> TinyPair:
    """A network that is wrong more often, the further ``quarter`` is from 64: classes are ``blue // quarter``."""
    net = per_frame(SIZE)
    for tensor in net.keyframe.graph.initializer:
        if tensor.name == "quarter":
            tensor.CopyFrom(numpy_helper.from_array(np.array(quarter, np.float32), "quarter"))
    return net


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("front")
    made = {
        "plain": per_frame(SIZE), "rough": divided_by(90), "coarse": divided_by(70),
        "kept": residual(SIZE), "chain": chaining(SIZE),
    }  # fmt: skip
    for name, pair in made.items():
        bundle = pair.write(folder / name)
        data = {"bundle": bundle.path, "backends": ["onnxruntime"], "precisions": ["float32"]}
        build(parse_settings(data, BuildRecipe, "test"))
    residual(SIZE).write(folder / "unbuilt")
    write_folder(folder / "labelled", labels=True)
    write_folder(folder / "bare", labels=False)
    for path in (write_folder(folder / "ignored", labels=True) / "labels").iterdir():
        cv2.imwrite(str(path), np.full(SIZE, 255, np.uint8))
    return folder


def data(root: Path, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "teacher": "plain", "nets": ["coarse", "rough"], "pairs": ["kept", "chain"],
        "source": str(root / "labelled"), "intervals": [4, 2], "engines": [ENGINE], "repeats": 3, "threads": 1,
    } | changes  # fmt: skip
    for key in ("nets", "pairs"):
        found[key] = [str(root / name) for name in found[key]]
    return found | {"teacher": str(root / found["teacher"])}


def recipe(root: Path, **changes: Any) -> FrontRecipe:
    return parse_settings(data(root, **changes), FrontRecipe, "recipe")


@pytest.fixture(scope="module")
def progress() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def front(root, progress) -> Front:
    return measure_front(recipe(root), progress=progress)


@pytest.fixture(scope="module")
def report(front, tmp_path_factory) -> Path:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    return front.write_report(tmp_path_factory.mktemp("report") / "new")


def test_rows_and_progress(front, progress):
    rows = [*WHO, *(f"{who} K={k}" for k in (2, 4) for who in ("copy", "flow", "kept", "chain"))]
    assert [row.name for row in front.rows] == [*rows, *(f"{row} {ENGINE}" for row in rows)]
    assert [row.kind for row in front.of("float32")] == [
        "teacher", "net", "net", *("copy", "flow", "pair", "pair") * 2,
    ]  # fmt: skip
    last = {stage: (done, total) for stage, done, total in progress.calls}
    assert all(done == total for done, total in last.values())
    # One pass of the largest interval serves the smaller one, every alignment from its own first keyframe on.
    assert last["kept K=4"] == (sum(FRAMES - phase for phase in range(4)),) * 2
    assert "kept K=2" not in last
    assert last["timing"] == (3 * len(front.rows),) * 2


def test_accuracy_is_that_of_every_interval_run_by_itself(root, front):
    clip = read_clip(str(root / "labelled"), TASK, SIZE)
    teacher = per_frame_masks(Bundle.open(root / "plain"), clip, 1, lambda done: None)
    for name in ("kept", "chain"):
        judge = Judge(
            clip, teacher, Bundle.open(root / name), threads=1, phases_of=range, own_teacher=True,
            tick=lambda *args: None, consistency=False,
        )  # fmt: skip
        for interval in (2, 4):
            expected = judge.delta(interval)
            for engine in ("", f" {ENGINE}"):
                row = front.row(f"{name} K={interval}{engine}")
                assert (row.labels, row.agreement) == (expected.labels, expected.agreement)
                assert row.by_distance == expected.by_distance
        assert front.row(f"copy K={interval}").labels == judge.copy(interval).labels
        assert front.row(f"flow K={interval}").by_distance == judge.flow(interval).by_distance
    assert front.row("teacher").labels == 1
    assert 1 > front.row("coarse").labels > front.row("rough").labels


def test_one_alignment_runs_every_interval(root):
    made = Recorder()
    found = measure_front(recipe(root, phases=1, repeats=1, engines=[], pairs=["chain"]), progress=made)
    assert [at.frames for at in found.row("chain K=4").by_distance] == [2, 2, 2, 2]
    assert [at.frames for at in found.row("chain K=2").by_distance] == [4, 4]
    assert found.row("coarse").at_interval == {}
    assert found.row("chain K=2").teacher == found.row("teacher").labels
    assert {"chain K=2", "chain K=4"} <= {stage for stage, _, _ in made.calls}
    assert found.methods["phases"].startswith("Accuracy with keyframes at frames 0, K")
    assert found.warnings[-1].startswith("Every row was timed once")


def test_shares_are_those_of_the_rows(front):
    for engine in ("float32", ENGINE):
        (teacher,) = front.of(engine, "teacher")
        for row in front.of(engine):
            assert (row.recovered is not None) == (row.kind == "pair")
            assert len(row.recovered_runs) == (3 if row.kind == "pair" else 0)
            assert row.times.speedup.median > 0
        assert teacher.times.speedup == Spread(median=1, iqr=0)
        for row in front.of(engine, "pair"):
            point, most, *nets = (
                Point(found.name, found.times.mean_ms.median, found.labels_at(row.interval))
                for found in (row, teacher, *front.of(engine, "net"))
            )
            assert row.recovered == recovered(point, nets, most)


def test_networks_are_scored_over_the_frames_that_rows_of_an_interval_count(root, front):
    """The network's mask at every distance of a pass over all phases, as if a pair had answered so."""
    clip = read_clip(str(root / "labelled"), TASK, SIZE)
    teacher, coarse = (
        per_frame_masks(Bundle.open(root / name), clip, 1, lambda done: None) for name in ("plain", "coarse")
    )
    for interval in (2, 4):
        scores = StreamScores(Reference(Bundle.open(root / "kept").task, clip.masks, teacher, None), interval)
        for phase in range(interval):
            scores.add_phase((at, coarse[at.index].mask) for at in plan(len(clip), interval, phase))
        row = front.row("coarse")
        assert row.labels_at(interval) == row.at_interval[interval] == scores.labels()
        assert row.labels_at(interval) != row.labels
        assert front.row(f"copy K={interval}").teacher == front.row("teacher").labels_at(interval)
    assert front.row("coarse").teacher is None


def timed(front: Front, **means: tuple[float, float]) -> list:
    """Rows of float32 whose mean times in two runs, by name, are set; those without are left out."""
    rows = []
    for row in front.of("float32"):
        if row.name.replace(" K=", "_") in means:
            runs = means[row.name.replace(" K=", "_")]
            times = row.times.model_copy(update={"runs_ms": runs, "mean_ms": Spread.of(runs)})
            rows.append(row.model_copy(update={"times": times, "note": ""}))
    return rows


def test_shares_follow_the_times(front):
    times = {"teacher": (20.0, 22.0), "rough": (2.0, 2.0), "coarse": (6.0, 6.0), "chain_2": (4.0, 5.0)}
    found = {row.name: row for row in with_shares(timed(front, **times))}
    row, rough, coarse = (
        found["chain K=2"], found["rough"].labels_at(2), found["coarse"].labels_at(2),
    )  # fmt: skip
    rivals = [rough + part * (coarse - rough) for part in (0.625, 0.5, 0.75)]
    expected = [(row.labels - rival) / (1 - rival) for rival in rivals]
    assert [row.recovered.share, *row.recovered_runs] == pytest.approx(expected)
    assert row.recovered.between == ("rough", "coarse")
    assert recovered_text(row) == f"{expected[0]:.2f}"
    assert runs_text(row) == f"{min(expected[1:]):.2f} to {max(expected[1:]):.2f}"
    # A network that is slower and worse than another is told, and does not count.
    found = {row.name: row for row in with_shares(timed(front, **times | {"coarse": (1.0, 1.0)}))}
    assert found["rough"].note == "no more accurate than a faster network, and left out of the rival"
    assert found["chain K=2"].recovered.between == ("coarse", "teacher")
    # In one run faster than every network, in the other not.
    found = {row.name: row for row in with_shares(timed(front, **times | {"chain_2": (1.0, 6.0)}))}
    assert found["chain K=2"].recovered_runs[0] is None
    assert runs_text(found["chain K=2"]).endswith(", 1 none")
    found = {row.name: row for row in with_shares(timed(front, **times | {"chain_2": (1.0, 1.0)}))}
    assert recovered_text(found["chain K=2"]).startswith("(")
    assert (
        "no pair has a recovered share"
        in verdicts(front.model_copy(update={"rows": tuple(found.values())}))[0]
    )


@pytest.mark.parametrize(
    ("frames", "intervals", "expected"),
    [(101, (5, 10, 20), 100), (8, (2, 4), 8), (9, (2, 4), 8), (11, (3, 4), 11), (30, (7,), 28)],
)
def test_timed_frames_are_whole_periods_where_there_are_any(frames, intervals, expected):
    assert whole_periods(frames, intervals) == expected


def test_a_pair_is_timed_with_a_keyframe_every_k_frames_on_a_shared_runner(root):
    clip = read_clip(str(root / "labelled"), TASK, SIZE)
    with EdgeRunner(Bundle.open(root / "chain"), schedule=ExternalSchedule(), threads=1) as runner:
        contenders = {interval: pair_contender(runner, interval) for interval in (2, 3)}
        for interval in (2, 3, 2):
            contender = contenders[interval]
            contender.reset()
            samples = [contender.step(frame) for frame in clip.frames]
            kinds = [StepKind.DELTA if index % interval else StepKind.KEYFRAME for index in range(FRAMES)]
            assert [sample.kind for sample in samples] == kinds
            assert [sample.state_age for sample in samples] == [index % interval for index in range(FRAMES)]


def test_several_clips_are_streams_of_their_own(root, front):
    twice = measure_front(recipe(root, source=[str(root / "labelled")] * 2, repeats=1, engines=[]))
    assert [source.frames for source in twice.sources] == [FRAMES, FRAMES]
    for row in front.of("float32"):
        again = twice.row(row.name)
        assert again.labels == pytest.approx(row.labels)  # a keyframe at the seam: nothing goes over it
        assert [at.frames for at in again.by_distance] == [2 * at.frames for at in row.by_distance]
    assert f"Run: {2 * FRAMES} frames in 2 clip(s), whole periods" in twice.methods["timing"]


def test_costs(front):
    pixels = SIZE[0] * SIZE[1]
    states = {row.name: row.state_bytes for row in front.of("float32")}
    assert (states["teacher"], states["coarse"], states["kept K=2"]) == (0, 0, 4 * pixels)
    assert (states["copy K=4"], states["flow K=4"]) == (pixels, 2 * pixels)


def test_json_round_trip(front, report):
    assert Front.from_json(front.to_json()) == front
    assert Front.load(report.parent / JSON_NAME) == front
    found = json.loads(front.to_json())
    assert found["schema_version"] == 1
    assert [bundle["role"] for bundle in found["bundles"]] == ["teacher", "rival", "rival", "pair", "pair"]
    assert found["machines"]["onnxruntime"]["device"]
    assert found["recipe"]["intervals"] == [2, 4]
    with pytest.raises(FileFormatError, match=r"not a readable front"):
        Front.from_json('{"schema_version": 2}')


def test_report_is_whole_and_needs_nothing_else(front, report):
    html = report.read_text(encoding="utf-8")
    assert html.rstrip().endswith("</html>")
    for row in front.rows:
        assert f"</span>{row.name}</td>" in html
    assert html.count("<svg") == 2
    for outside in ("http", "<link", "<script", "@import", 'src="/', "xmlns", "#03"):
        assert outside not in html, outside
    for known in (front.conditions.cpu, "rival: networks on every frame", *verdicts(front)):
        assert known.replace("'", "&#39;") in html
    assert len(verdicts(front)) == 4


def test_table_is_whole_on_a_narrow_terminal(front):
    console = Console(width=60, soft_wrap=True, file=io.StringIO())
    console.print(front.table())
    text = console.file.getvalue()
    assert "…" not in text
    lines = [line.split() for line in text.splitlines()]
    line = next(line for line in lines if line[:2] == ["chain", "K=4"])
    assert line[2] == f"{front.row('chain K=4').labels:.3f}"
    assert "2 pairs beside 2 networks of teacher" in text
    for row in front.of("float32", "pair"):
        assert not row.recovered.reason or f"{row.name}: no share: {row.recovered.reason}" in text


def test_the_command_writes_table_json_and_report(root, tmp_path):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    file = tmp_path / "front.yaml"
    file.write_text(yaml.safe_dump(data(root, repeats=1, engines=[])))
    result = CliRunner().invoke(app, ["front", str(file), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "chain K=2" in result.stdout
    assert f"report: {tmp_path / 'out' / 'report.html'}" in result.stdout
    result = CliRunner().invoke(app, ["front", str(file), "--json"])
    assert result.exit_code == 0, result.output
    assert [row["name"] for row in json.loads(result.stdout)["rows"]][:3] == WHO


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"nets": ["coarse"]}, RecipeError, "'nets': .*at least 2"),
        ({"pairs": []}, RecipeError, "'pairs': .*at least 1"),
        ({"source": []}, RecipeError, "'source': .*at least 1"),
        ({"intervals": [1, 2]}, RecipeError, "greater than or equal to 2"),
        ({"intervals": [2, 2]}, RecipeError, "each interval once"),
        ({"limit": 3}, RecipeError, "limit 3 is below the largest interval 4"),
        ({"net": ["coarse"]}, RecipeError, "unknown key 'net', did you mean 'nets'"),
        ({"engines": ["float32"]}, RecipeError, "not float32, which is always there"),
        ({"nets": ["coarse", "coarse"]}, RecipeError, "name bundle .*coarse more than once"),
        ({"nets": ["coarse", "nowhere"]}, MissingFileError, "nowhere"),
        ({"nets": ["coarse", "kept"]}, RecipeError, "name bundle .*kept more than once"),
        ({"pairs": ["unbuilt"]}, BundleError, f"bundle .*unbuilt: it has no engines '{ENGINE}'.*edge-sdk build"),
        ({"nets": ["coarse", "unbuilt"]}, BundleError, "nets .*unbuilt: expected a per-frame bundle"),
        ({"pairs": ["small_net"]}, BundleError, "pairs .*small_net: expected a keyframe and a delta step"),
        ({"pairs": ["kept", "small"]}, BundleError, r"pairs .*small: it takes frames of 4 x 6 .* 24 x 32"),
        ({"nets": ["rough", "small_net"]}, BundleError, r"nets .*small_net: it takes frames of 4 x 6"),
        ({"nets": ["rough", "other"]}, BundleError, r"nets .*other: its task is segmentation of x, y, z, w"),
        ({"teacher": "rough", "nets": ["plain", "coarse"]}, BundleError,
         r"pairs .*kept: teacher: its masks differ from those of the bundle's keyframe step on \d+"),
        ({"source": "{root}/bare"}, RecipeError, "bare: expected labels, it has none.*labels/"),
        ({"source": ["{root}/labelled", "{root}/bare"]}, RecipeError, "bare: expected labels"),
        ({"source": "{root}/ignored"}, RecipeError, "expected labels of classes that count"),
        ({"intervals": [9]}, RecipeError, "intervals: 9 needs as many frames, source .* gave 8"),
        ({"source": "synthetic:shapes?height=48&width=64&frames=8"}, ShapeError, "48 x 64 .* takes 24 x 32"),
    ],
)  # fmt: skip
def test_refusals(root, changes, error, message):
    residual((4, 6)).write(root / "small")
    per_frame((4, 6)).write(root / "small_net")
    other = per_frame(SIZE)
    task = TaskSpec(classes=("x", "y", "z", "w"))
    write_bundle(root / "other", other.manifest().model_copy(update={"task": task}), other.files())
    text = json.dumps(changes).replace("{root}", str(root))
    with pytest.raises(error, match=f"(?s){message}"):
        measure_front(recipe(root, **json.loads(text)))


def test_a_folder_is_named_by_as_much_as_tells_it_from_the_others():
    paths = [Path(text) for text in ("/r/a/bundle", "/r/b/bundle", "/r/net_16", "/r/teacher", "/s/b/bundle")]
    assert list(names_of(paths).values()) == ["a/bundle", "r/b/bundle", "net_16", "r/teacher", "s/b/bundle"]
