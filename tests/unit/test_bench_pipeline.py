"""A whole bench over tiny pairs: what is measured, in which order, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from edge_sdk.bench.clock import SystemClock
from edge_sdk.bench.document import SUBJECT, BenchDocument
from edge_sdk.bench.lineup import Lineup, default_rows, interval_of
from edge_sdk.bench.pipeline import bench
from edge_sdk.bench.recipe import BenchRecipe
from edge_sdk.bench.yardstick import Yardstick
from edge_sdk.cli import app
from edge_sdk.errors import BundleError, FileFormatError, MissingFileError, RecipeError, ShapeError
from edge_sdk.runtime.schedule import (
    AlwaysSchedule,
    ChangeSchedule,
    EverySchedule,
    ExternalSchedule,
    ScheduleSettings,
)
from edge_sdk.settings import parse_settings
from tests.bench_world import make_document
from tests.graphs import chaining, per_frame, random_images, residual
from tests.yardstick import PATH, graph

SIZE = (64, 96)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair, a plain teacher, and eight frames."""
    folder = tmp_path_factory.mktemp("bench")
    residual(SIZE).write(folder / "pair", EverySchedule(interval=4))
    per_frame(SIZE).write(folder / "teacher")
    chaining(SIZE).write(folder / "chaining", EverySchedule(interval=3))
    (folder / "clip").mkdir()
    for index, image in enumerate(random_images(8, SIZE)):
        cv2.imwrite(str(folder / "clip" / f"{index}.png"), image)
    return folder


@pytest.fixture(scope="module")
def document(world: Path) -> BenchDocument:
    """Two rounds of all that there is."""
    return bench(
        BenchRecipe(
            bundle=world / "pair",
            source=str(world / "clip"),
            teacher=world / "teacher",
            rival=world / "teacher",
            seconds=4,
            rounds=2,
            fps=100,
        )
    )


def test_every_row_is_measured_in_every_round(document: BenchDocument) -> None:
    names = [SUBJECT, "teacher", "copy", "flow", "rival"]
    assert [row.name for row in document.rows] == names
    for index in range(2):
        modes = [(block.row, block.mode) for block in document.blocks if block.round == index]
        expected = {(name, mode) for name in names for mode in ("warm-up", "saturated")}
        assert set(modes) == expected | {(SUBJECT, "camera")}
        # Saturated time is cut into blocks shorter than a slow spell of the machine.
        assert modes.count((SUBJECT, "saturated")) == sum(pair.round == index for pair in document.bare)
    first = [next(block.row for block in document.blocks if block.round == index) for index in range(2)]
    assert first == [SUBJECT, "teacher"]  # each round begins one further on


def test_blocks_hold_whole_periods_of_the_schedule(document: BenchDocument) -> None:
    for block in document.blocks:
        if block.row == SUBJECT and block.mode != "camera":
            assert block.frames.kinds == "kddd" * (len(block.frames) // 4)
        if block.row in ("copy", "flow"):
            assert block.frames.kinds == "ksss" * (len(block.frames) // 4)
        assert block.yardstick_ms is not None
        assert block.yardstick_ms > 0
    for pair in document.bare:
        assert pair.kinds == "kddd" * (len(pair.kinds) // 4)
        assert len(pair.runner_ms) == len(pair.wall_ms) == len(pair.kinds)


def test_camera_frames_are_due_on_the_grid(document: BenchDocument) -> None:
    for block in document.blocks:
        if block.mode == "camera":
            frames = block.frames
            assert len(frames) + block.dropped == pytest.approx(
                2000 * document.recipe.camera_share / 10, rel=0.6
            )
            period = np.diff(np.array(frames.due_ms)) / np.diff(np.array(frames.seq))
            np.testing.assert_allclose(period, 10.0, atol=1e-3)


def test_starts_scores_and_readings_are_kept(document: BenchDocument) -> None:
    assert [start.round for start in document.starts] == [0, 1]
    for start in document.starts:
        assert start.load_ms > 0
        assert set(start.first_ms) == {"keyframe", "delta"}
    assert all(row.agreement is not None and row.labels is None for row in document.rows)
    assert document.row("teacher").agreement == 1.0
    assert document.readings
    assert document.readings[0].rss_bytes
    assert [facts.role for facts in document.bundles] == ["subject", "teacher", "rival"]
    assert document.source.frames == 8
    assert document.source.fps == 100


def test_document_survives_its_json(document: BenchDocument) -> None:
    text = document.to_json()
    assert BenchDocument.from_json(text) == document
    data = json.loads(text)
    assert data["figures"]["rows"]
    assert data["verdict"]["grade"] in ("sound", "doubtful", "invalid")


def test_a_synthetic_scene_is_not_scored(world: Path) -> None:
    found = bench(
        BenchRecipe(
            bundle=world / "chaining", seconds=4, rounds=2, baselines=False, camera_share=0, threads=1
        )
    )
    assert found.source.uri.startswith("synthetic:")
    assert [(row.agreement, row.labels) for row in found.rows] == [(None, None)]
    assert {block.mode for block in found.blocks} == {"warm-up", "saturated"}
    assert found.figures.row(SUBJECT, "camera") is None


@pytest.mark.parametrize(
    ("schedule", "interval"),
    [
        (AlwaysSchedule(), 1),
        (EverySchedule(interval=7), 7),
        (ChangeSchedule(threshold=3, max_interval=12), 12),
        (ChangeSchedule(threshold=3), 10),
        (ExternalSchedule(), 10),
    ],
)
def test_interval_of(schedule: ScheduleSettings, interval: int) -> None:
    assert interval_of(schedule) == interval


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, [SUBJECT, "teacher", "copy", "flow"]),
        ({"baselines": False}, [SUBJECT]),
        ({"schedule": AlwaysSchedule()}, [SUBJECT]),
        ({"intervals": (2, 4)}, [SUBJECT, "teacher", "copy", "flow", "K=2 float32"]),
        ({"engines": ("float32",), "baselines": False}, [SUBJECT]),
    ],
)
def test_default_rows(world: Path, settings: dict[str, object], names: list[str]) -> None:
    recipe = parse_settings({"bundle": str(world / "pair"), **settings}, BenchRecipe, "test")
    assert [row.name for row in default_rows(recipe, Lineup.open(recipe), "onnxruntime")] == names


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seconds": 3}, "9 rounds leave 0.333333 s a round, expected at least 2 s"),
        ({"rounds": 1}, "'rounds': Input should be greater than or equal to 2, got 1"),
        ({"fps": 0}, "'fps'"),
        ({"late": "wait"}, "'late': Input should be 'queue' or 'drop', got 'wait'"),
        ({"presett": "quick"}, "unknown key 'presett', did you mean 'preset'?"),
        ({"intervals": (5, 5)}, "each once"),
        ({"camera_share": 1}, "'camera_share'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_settings({"bundle": "b", **settings}, BenchRecipe, "test")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"bundle": "nowhere"}, MissingFileError, "nowhere"),
        ({"engine": "onnxruntime-int8"}, BundleError, "onnxruntime-int8"),
        ({"backend": "abacus"}, RecipeError, "backend"),
        ({"teacher": "pair"}, BundleError, "teacher"),
        ({"source": "synthetic:shapes?height=32&width=32"}, ShapeError, "32"),
    ],
)
def test_wrong_input_is_known_before_anything_is_measured(
    world: Path, settings: dict[str, str], error: type[Exception], message: str
) -> None:
    paths = {key: str(world / value) for key, value in settings.items() if key in ("bundle", "teacher")}
    recipe = parse_settings({"bundle": str(world / "pair"), **settings, **paths}, BenchRecipe, "test")
    with pytest.raises(error, match=message):
        bench(recipe)


def test_the_yardstick_is_the_graph_that_its_script_writes() -> None:
    assert PATH.read_bytes() == graph().SerializeToString()
    yardstick = Yardstick(1, SystemClock())
    times = [yardstick.measure_ms() for _ in range(3)]
    yardstick.close()
    assert all(0.05 < value < 1000 for value in times)


def _invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["bench", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_command_shows_and_compares_documents(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(make_document(seed=1).to_json())
    new.write_text(make_document(seed=2, slower={"d": 1.2}).to_json())
    code, shown, _ = _invoke("--document", str(new), "--compare", str(old), "--out", str(tmp_path / "report"))
    assert code == 1
    assert "slower" in shown
    assert "verdict" in shown
    assert (tmp_path / "report" / "bench.html").is_file()
    assert BenchDocument.load(tmp_path / "report" / "bench.json") == BenchDocument.load(new)
    code, shown, _ = _invoke("--document", str(old), "--compare", str(old), "--json")
    assert code == 0
    assert set(json.loads(shown)) == {"bench", "comparison"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "BUNDLE: expected on the command line or in a recipe"),
        (("--document", "OLD", "--fps", "3"), "'fps' was given beside it"),
        (("--document", "missing.json"), "missing.json"),
        (("pair", "--compare", "BAD"), "not a readable bench document"),
    ],
)
def test_command_names_what_is_wrong(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "bad.json").write_text('{"schema_version": 7}')
    (tmp_path / "old.json").write_text(make_document(rounds=2, periods=2).to_json())
    named = {"OLD": str(tmp_path / "old.json"), "BAD": str(tmp_path / "bad.json")}
    code, _, errors = _invoke(*(named.get(argument, argument) for argument in arguments))
    assert code == 2
    assert message in " ".join(errors.split())


def test_unreadable_documents(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="not a readable bench document"):
        BenchDocument.from_json("[]")
    with pytest.raises(FileFormatError, match="not a readable bench document"):
        BenchDocument.from_json("{")
