"""``edge-sdk tune``: the grid, thresholds from a clip, scores that are kept, the recipe that is written, the verb."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from edge_sdk import EdgeRunner, RunRecipe
from edge_sdk.bench import tune as module
from edge_sdk.bench.document import SUBJECT, BenchDocument, Row
from edge_sdk.bench.drifts import drift_schedule
from edge_sdk.bench.grid import change_schedule, engines_for, grid
from edge_sdk.bench.lineup import Lineup
from edge_sdk.bench.recipe import BenchRecipe
from edge_sdk.bench.samples import Block
from edge_sdk.bench.scorebook import NAME
from edge_sdk.bench.tune import TuneRecipe, Tuning, run_recipe, tune
from edge_sdk.bundle import Bundle, EngineSet
from edge_sdk.cli import app
from edge_sdk.errors import BundleError, EdgeSdkError, MissingFileError, RecipeError
from edge_sdk.evaluate.replay import mean_interval, replay
from edge_sdk.runtime.background import BackgroundKeyframes
from edge_sdk.runtime.engine import backend_named
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.schedule import AlwaysSchedule, ChangeSchedule, EverySchedule
from edge_sdk.settings import parse_settings
from tests.bench_world import columns, make_document
from tests.graphs import chaining, per_frame, residual, telling, trusted

SIZE = (32, 48)
COUNT = 24
BACKEND = backend_named("onnxruntime")
BACKGROUND = BackgroundKeyframes()


def moving(count: int = COUNT, step: int = 2) -> list[np.ndarray]:
    """A window that moves over a smooth picture."""
    noise = np.random.default_rng(0).integers(0, 256, (SIZE[0], SIZE[1] + step * count, 3), np.uint8)
    smooth = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), np.empty_like(noise), 0, 255, cv2.NORM_MINMAX)
    return [np.ascontiguousarray(smooth[:, at : at + SIZE[1]]) for at in range(0, step * count, step)]


IMAGES = moving()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    residual(SIZE).write(folder / "pair")
    per_frame(SIZE).write(folder / "plain")
    chaining(SIZE).write(folder / "chaining")
    masks = per_frame(SIZE).expected(IMAGES, [StepKind.KEYFRAME] * COUNT)
    for index, (image, mask) in enumerate(zip(IMAGES, masks, strict=True)):
        for name, picture in (("images", image), ("labels", mask)):
            path = folder / "clip" / name / f"{index:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture)
    return folder


def recipe(root: Path, **changes: Any) -> TuneRecipe:
    given = {
        "bundle": root / "pair", "source": str(root / "clip"), "intervals": (3, 6), "rounds": 2, "threads": 1,
        "seconds": 4.0, "check": False,
    }  # fmt: skip
    return parse_settings(given | changes, TuneRecipe, "recipe")


def lineup(root: Path, pair: str = "pair", teacher: bool = False, rival: bool = False) -> Lineup:
    plain = Bundle.open(root / "plain")
    return Lineup(Bundle.open(root / pair), plain if teacher else None, plain if rival else None)


def with_engines(bundle: Bundle, *names: str) -> Bundle:
    """``bundle`` as if it had engines of these names; the first is chosen for its backend."""
    engines = {
        name: EngineSet.model_validate(
            bundle.manifest.pair.model_dump()
            | {"backend": name.split("-")[0], "precision": name.split("-")[1], "identities": {}}
        )
        for name in names
    }
    chosen = {name.split("-")[0]: name for name in names[:1]}
    manifest = bundle.manifest.model_copy(update={"engines": engines, "chosen": chosen})
    return Bundle(bundle.path, manifest, bundle.manifest_sha256)


# The grid.


@pytest.mark.parametrize(
    ("names", "backend", "wanted", "expected"),
    [
        ((), "onnxruntime", None, ("float32",)),
        (("onnxruntime-int8",), "onnxruntime", None, ("float32", "onnxruntime-int8")),
        (("onnxruntime-int8", "onnxruntime-float32"), "onnxruntime", None, ("onnxruntime-float32", "onnxruntime-int8")),
        (("onnxruntime-int8", "tensorrt-int8"), "tensorrt", None, ("tensorrt-int8",)),
        (("onnxruntime-int8",), "onnxruntime", ("onnxruntime-int8",), ("onnxruntime-int8",)),
    ],
)  # fmt: skip
def test_engines(root, names, backend, wanted, expected) -> None:
    assert engines_for(with_engines(Bundle.open(root / "pair"), *names), backend, wanted) == expected


@pytest.mark.parametrize(
    ("names", "backend", "wanted", "error", "message"),
    [
        ((), "tensorrt", None, RecipeError, "it has no engines for tensorrt.* edge-sdk build RECIPE"),
        ((), "onnxruntime", ("onnxruntime-int8",), BundleError, "it has no engines 'onnxruntime-int8'"),
        (("tensorrt-int8",), "onnxruntime", ("tensorrt-int8",), BundleError, "it is built for tensorrt"),
    ],
)
def test_engines_that_cannot_be_had(root, names, backend, wanted, error, message) -> None:
    with pytest.raises(error, match=message):
        engines_for(with_engines(Bundle.open(root / "pair"), *names), backend, wanted)


def rows_of(
    found: Lineup, engines: tuple[str, ...], schedules: tuple[str, ...], **more: Any
) -> tuple[Row, ...]:
    return grid(found, BACKEND, engines, (3, 6), schedules, IMAGES, BACKGROUND, threads=1, **more)[0]  # type: ignore[arg-type]


def test_the_grid_is_precision_times_interval_times_schedule(root) -> None:
    pair = with_engines(Bundle.open(root / "pair"), "onnxruntime-int8")
    found = rows_of(
        Lineup(pair, None, Bundle.open(root / "plain")),
        ("float32", "onnxruntime-int8"),
        ("every", "background"),
    )
    assert [row.name for row in found] == [
        SUBJECT, "teacher", "teacher onnxruntime-int8", "rival",
        "copy K=3", "copy K=3 onnxruntime-int8", "flow K=3", "copy K=6", "copy K=6 onnxruntime-int8", "flow K=6",
        "K=3 float32", "background K=3 float32", "K=6 float32", "background K=6 float32",
        "background K=3 onnxruntime-int8", "K=6 onnxruntime-int8", "background K=6 onnxruntime-int8",
    ]  # fmt: skip
    subject = found[0]  # chosen engines, every 3 frames: the row K=3 onnxruntime-int8 would be the same
    assert (subject.engine, subject.schedule) == ("onnxruntime-int8", EverySchedule(interval=3))
    by_name = {row.name: row for row in found}
    assert by_name["background K=6 float32"].background
    assert by_name["background K=6 float32"].schedule == EverySchedule(interval=6)
    assert by_name["copy K=6"].schedule == EverySchedule(interval=6, between="skip")
    assert by_name["teacher"].note == "the bundle's keyframe step, which also writes the state"


def test_a_teacher_bundle_without_an_engine_leaves_its_place_to_the_keyframe_step(root) -> None:
    pair = with_engines(Bundle.open(root / "pair"), "onnxruntime-int8")
    found = rows_of(
        Lineup(pair, Bundle.open(root / "plain"), None), ("float32", "onnxruntime-int8"), ("every",)
    )
    by_name = {row.name: row for row in found}
    assert (by_name["teacher"].variant, by_name["teacher"].note) == ("teacher", "")
    keyframes = by_name["keyframes onnxruntime-int8"]
    assert (keyframes.variant, keyframes.schedule) == ("pair", AlwaysSchedule())
    assert "copy K=3 onnxruntime-int8" not in by_name


@pytest.mark.parametrize(
    ("pair", "threads", "background", "images", "notes"),
    [
        ("pair", 1, BACKGROUND, IMAGES, []),
        ("chaining", 1, BACKGROUND, IMAGES, ["no keyframes in the background: the delta step rewrites the state"]),
        ("pair", None, BackgroundKeyframes(threads=999), IMAGES, ["would leave none for the frames"]),
        ("plain", 1, BACKGROUND, IMAGES, ["the bundle has no delta step, so only its precision is tuned"]),
        ("pair", 1, BACKGROUND, [IMAGES[0]] * COUNT,
         ["no keyframes on change about every 3 frames: this clip does not change so",
          "no keyframes on change about every 6 frames"]),
    ],
)  # fmt: skip
def test_what_is_left_out_is_said(root, pair, threads, background, images, notes) -> None:
    rows, found = grid(
        lineup(root, pair), BACKEND, ("float32",), (3, 6), ("every", "change", "background"), images, background,
        threads,
    )  # fmt: skip
    assert len(found) == len(notes)
    assert all(part in note for part, note in zip(notes, found, strict=True))
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    background_rows = [row for row in rows if row.background]
    assert len(background_rows) == (2 if not notes or "change about" in notes[0] else 0)
    assert any(row.schedule.kind == "change" for row in rows) == (pair != "plain" and images is IMAGES)


@pytest.mark.parametrize("interval", [2, 3, 5, 8])
def test_thresholds_come_from_the_clip(interval) -> None:
    images = moving(96)
    schedule, mean = change_schedule(images, interval)
    assert mean == mean_interval(replay(schedule, images))
    assert mean == pytest.approx(interval, rel=0.35)
    assert schedule.max_interval == 4 * interval
    # Really: a runner's own schedule over the same pictures.
    rule, kinds, age = schedule.start(), [], None
    for image in images:
        kinds.append(rule.decide(image, age))
        age = 1 if kinds[-1] is StepKind.KEYFRAME else (age or 0) + 1
    assert len(images) / kinds.count(StepKind.KEYFRAME) == mean


@pytest.mark.parametrize("interval", [2, 3, 5])
def test_what_is_asked_of_trust_comes_from_the_clip(interval, tmp_path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, 96)
    images = [trusted(image, level) for image, level in zip(moving(96), levels, strict=True)]
    bundle = telling(SIZE).write(tmp_path / "pair")
    schedule, mean = drift_schedule(
        bundle, images, interval, 4 * interval, backend=BACKEND, engine="float32", threads=1
    )
    assert mean == pytest.approx(interval, rel=0.35)
    assert schedule.max_interval == 4 * interval
    with EdgeRunner(bundle, schedule=schedule, threads=1) as runner:
        kinds = [runner(image).kind for image in images]
    assert len(images) / kinds.count(StepKind.KEYFRAME) == mean


def test_drift_has_rows_where_the_delta_step_tells(root, tmp_path) -> None:
    images = [trusted(image, 40 * (index % 7)) for index, image in enumerate(IMAGES)]
    found = Lineup(telling(SIZE).write(tmp_path / "pair"), None, None)
    rows, notes = grid(found, BACKEND, ("float32",), (3, 6), ("every", "drift"), images, BACKGROUND, 1)
    assert notes == ()
    kinds = {row.name: row.schedule.kind for row in rows}
    assert kinds["drift K~3 float32"] == kinds["drift K~6 float32"] == "drift"
    rows, notes = grid(lineup(root), BACKEND, ("float32",), (3,), ("every", "drift"), IMAGES, BACKGROUND, 1)
    assert notes == ("no keyframes on drift: the delta step does not tell how much of its keyframe holds",)
    assert not any(row.schedule.kind == "drift" for row in rows)


# The whole, with and without real measuring.


class World:
    """Stands in for measuring: each row's frames take what the test says."""

    def __init__(self, times_ms: dict[str, float]) -> None:
        self.times_ms = times_ms
        self.calls: list[tuple[BenchRecipe, tuple[Row, ...] | None]] = []

    def bench(self, recipe: BenchRecipe, *, rows=None, backend=None, progress=None) -> BenchDocument:
        self.calls.append((recipe, rows))
        made = make_document(rounds=2)
        if rows is None:
            return made.model_copy(update={"recipe": recipe})
        blocks = []
        for index in range(2):
            for row in rows:
                step = self.times_ms.get(row.name, 50.0)
                frames = columns("kddddd", np.full(6, step))
                blocks.append(Block(row=row.name, round=index, mode="saturated", frames=frames))
        update = {
            "recipe": recipe,
            "rows": rows,
            "blocks": tuple(blocks),
            "bare": (),
            "starts": made.starts[:2],
        }
        return made.model_copy(update=update)


@pytest.fixture
def world(monkeypatch) -> World:
    found = World({"K=6 float32": 5.0, "background K=3 float32": 6.0, "teacher": 20.0, "rival": 9.0})
    monkeypatch.setattr(module, "bench", found.bench)
    return found


def tuned(root: Path, **changes: Any) -> Tuning:
    return tune(recipe(root, **changes))


def test_what_is_chosen_is_measured_once_and_can_be_run(root, world, tmp_path) -> None:
    found = tuned(root, min_miou=0.0)
    assert found.choice.row == "K=6 float32"
    assert found.run == RunRecipe(
        bundle=root / "pair", engine="float32", schedule=EverySchedule(interval=6), threads=1
    )
    ((measured, rows),) = world.calls
    assert (measured.camera_share, measured.length_s, measured.round_count) == (0.0, 4.0, 2)
    assert rows is not None
    assert all(row.agreement is not None and row.labels is not None for row in rows)
    found.write(tmp_path / "run.yaml", "edge-sdk tune ...")
    text = (tmp_path / "run.yaml").read_text()
    assert text.startswith(
        "# Chosen by: edge-sdk tune ...\n# on a board, a processor, 2 cores, onnxruntime, 2026-01-02"
    )
    assert "commit 0123abc" in text
    assert "# mean 5.09 ms, p99 5.09 ms a frame, saturated; mIoU with the labels" in text
    with EdgeRunner.from_recipe(tmp_path / "run.yaml") as runner:
        assert [runner(image).kind.value[0] for image in IMAGES[:7]] == list("kdddddk")


def test_background_keyframes_are_in_the_recipe(root, world) -> None:
    world.times_ms["background K=3 float32"] = 1.0
    found = tuned(root, min_miou=0.0, background={"threads": 1})
    assert found.run is not None
    assert (found.run.background, found.run.schedule) == (
        BackgroundKeyframes(threads=1),
        EverySchedule(interval=3),
    )


def test_the_check_at_camera_pace_runs_what_was_chosen(root, world) -> None:
    found = tuned(root, min_miou=0.0, check=True, fps=50.0)
    (_, first), (checked, second) = world.calls
    assert (first is None, second) == (False, None)
    assert (checked.engine, checked.schedule, checked.fps) == ("float32", EverySchedule(interval=6), 50.0)
    assert (checked.accuracy, checked.baselines) == (False, False)
    assert found.paced is not None
    assert any(line.startswith("at 30 frames/s: answers ") for line in found.lines())


def test_nothing_meets_the_limits(root, world, tmp_path) -> None:
    found = tuned(root, max_ms=1.0, check=True)
    assert (found.choice.row, found.run, found.paced) == (None, None, None)
    assert len(world.calls) == 1
    assert "--max-ms 1 ms: the nearest row, K=6 float32, takes 5.09 ms" in found.lines()[2]
    with pytest.raises(RecipeError, match="nothing was chosen"):
        found.write(tmp_path / "run.yaml", "x")
    assert list(tmp_path.iterdir()) == []


def test_the_rival_wins_where_it_is_the_better_point(root, world) -> None:
    world.times_ms |= {"rival": 2.0}
    found = tuned(root, rival=root / "plain", teacher=root / "plain", max_loss=0.0)
    assert found.choice.row == "rival"
    assert found.run is not None
    assert (found.run.bundle, found.run.schedule) == (root / "plain", AlwaysSchedule())


@pytest.mark.parametrize(
    ("row", "bundle"),
    [
        (Row(name="a", variant="pair", engine="e", schedule=ChangeSchedule(threshold=1)), "pair"),
        (Row(name="a", variant="teacher", engine="e", schedule=AlwaysSchedule()), "plain"),
        (
            Row(name="a", variant="copy", engine="e", schedule=EverySchedule(interval=2, between="skip")),
            "plain",
        ),
        (Row(name="a", variant="rival", engine="e", schedule=AlwaysSchedule()), "rival"),
    ],
)
def test_each_kind_of_row_has_its_recipe(root, row, bundle) -> None:
    found = run_recipe(recipe(root, teacher=root / "plain", rival=root / "rival"), row)
    assert (found.bundle, found.engine, found.schedule) == (root / bundle, "e", row.schedule)
    without = run_recipe(recipe(root), row.model_copy(update={"variant": "teacher"}))
    assert without.bundle == root / "pair"


def test_scores_are_kept_and_measured_anew_only_where_they_rest_on_something_else(
    root, world, tmp_path, monkeypatch
):
    asked: list[list[str]] = []
    real = module.scores_of

    def counting(rows, *args, **more):
        asked.append([row.name for row in rows])
        return real(rows, *args, **more)

    monkeypatch.setattr(module, "scores_of", counting)
    options = {"out": tmp_path, "min_miou": 0.0, "schedules": ("every",)}
    first = tuned(root, **options, intervals=(3,))
    again = tuned(root, **options, intervals=(3,))
    more = tuned(root, **options)  # K=6 too
    other = tuned(root, **options, limit=20)
    assert [len(names) for names in asked] == [4, 3, 7]
    assert asked[1] == ["copy K=6", "flow K=6", "K=6 float32"]
    assert again.points == first.points
    kept = {point.row: point.score for point in first.points}
    assert {p.row: p.score for p in more.points if p.row in kept} == kept
    assert len(other.points) == len(more.points)
    (tmp_path / NAME).write_text("{")
    assert len(tuned(root, **options).points) == 7


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"intervals": (3, 3)}, RecipeError, "expected each of 'intervals' once"),
        ({"intervals": (1,)}, RecipeError, "greater than or equal to 2"),
        ({"intervals": ()}, RecipeError, "intervals"),
        ({"schedules": ("every", "sometimes")}, RecipeError, "schedules"),
        ({"engines": "float32"}, RecipeError, "engines"),
        ({"limit": 6}, RecipeError, "limit 6 must be above the largest interval 6"),
        ({"rounds": 1}, RecipeError, "rounds"),
        ({"write": Path("run.yaml")}, RecipeError, "write: the recipe is for what meets the limits, expected one of"),
        ({"max_loss": 2}, RecipeError, "max_loss"),
        ({"intervals": (30,), "limit": 40}, RecipeError, "a keyframe every 30 frames needs 3[0-9] frames, .* gave 24"),
        ({"source": "nowhere"}, MissingFileError, "nowhere"),
        ({"bundle": "nowhere"}, EdgeSdkError, "nowhere"),
        ({"engines": ("onnxruntime-int8",)}, BundleError, "it has no engines 'onnxruntime-int8'"),
        ({"backend": "abacus"}, RecipeError, "abacus"),
    ],
)  # fmt: skip
def test_refusals(root, world, changes, error, message) -> None:
    with pytest.raises(error, match=message):
        tuned(root, **changes)
    assert world.calls == []


def test_a_camera_is_refused(root, world, monkeypatch) -> None:
    class Camera(SimpleNamespace):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(module, "open_source", lambda *_, **__: Camera(live=True, uri="camera:0"))
    with pytest.raises(
        RecipeError, match=r"expected a file, a folder or a scene, got a camera, .* Record a clip"
    ):
        tuned(root)


# The command, with real measuring.


def command(root: Path, tmp_path: Path, *args: object, **changes: Any) -> Any:
    data = {
        "bundle": str(root / "pair"), "source": str(root / "clip"), "intervals": [3], "schedules": ["every"],
        "seconds": 4, "rounds": 2, "threads": 1, "check": False, **changes,
    }  # fmt: skip
    (tmp_path / "tune.yaml").write_text(yaml.safe_dump(data))
    return CliRunner().invoke(app, ["tune", "--recipe", str(tmp_path / "tune.yaml"), *map(str, args)])


def test_the_command_from_end_to_end(root, tmp_path) -> None:
    run, out = tmp_path / "run.yaml", tmp_path / "out"
    result = command(root, tmp_path, "--max-ms", 1000, "--write", run, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["choice"]["row"] == "teacher"  # nothing is more accurate, and all are in time
    assert report["limits"] == {"max_ms": 1000.0}
    names = [point["row"] for point in report["points"]]
    assert names == [SUBJECT, "teacher", "copy K=3", "flow K=3"]
    assert report["points"][1]["score"] == 1.0
    assert report["points"][0]["settings"]["schedule"] == {**EverySchedule(interval=3).model_dump()}
    assert report["run"] == RunRecipe.load(run).model_dump(mode="json")
    assert {path.name for path in out.iterdir()} == {"bench.json", "bench.html", "scores.json"}
    assert BenchDocument.load(out / "bench.json").row("teacher").labels == 1.0
    ran = CliRunner().invoke(app, ["run", "--recipe", str(run), str(root / "clip"), "--json"])
    assert json.loads(ran.stdout)["keyframes"] == COUNT


def test_people_get_a_table_and_a_reason(root, tmp_path, world) -> None:
    result = command(root, tmp_path, "--min-miou", 0.0)
    assert result.exit_code == 0, result.output
    assert "chosen" in result.stdout
    assert "…" not in result.stdout
    assert "keep every limit" in result.stdout
    assert "edge_sdk 0.1.0, commit 0123abc" in result.stdout


def test_an_unmet_limit_is_exit_code_1_and_writes_nothing(root, tmp_path, world) -> None:
    run = tmp_path / "run.yaml"
    result = command(root, tmp_path, "--max-ms", 0.5, "--write", run)
    assert result.exit_code == 1
    assert "--max-ms 0.5 ms: the nearest row" in result.stdout
    assert "over --max-ms" in result.stdout
    assert not run.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--write", "run.yaml"), "write: the recipe is for what meets the limits"),
        (("--intervals", "3,x", "--max-ms", 9), "--intervals: expected whole numbers"),
        (("--schedules", "always", "--max-ms", 9), "schedules"),
        (("--engines", "onnxruntime-int8"), "it has no engines 'onnxruntime-int8'"),
    ],
)
def test_the_commands_refusals(root, tmp_path, world, args, message) -> None:
    result = command(root, tmp_path, *args)
    assert result.exit_code == 2
    assert message in result.output


def test_bundle_and_source_must_come_from_somewhere() -> None:
    result = CliRunner().invoke(app, ["tune"])
    assert result.exit_code == 2
    assert "BUNDLE and SOURCE: expected on the command line or in a recipe" in result.output
