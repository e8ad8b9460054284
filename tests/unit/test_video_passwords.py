"""A password in a source's URI opens the source and is found nowhere else."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge_sdk.build.recipe import AccuracySettings
from edge_sdk.cli import app
from edge_sdk.errors import RecipeError
from edge_sdk.evaluate import EvaluateRecipe, evaluate
from edge_sdk.parity import record_reference
from edge_sdk.settings import parse_settings
from edge_sdk.video import VideoSource, open_source
from edge_sdk.video.base import Selection
from edge_sdk.video.folder import FrameFolder
from edge_sdk.video.uri import SourceUri, without_password
from edge_sdk.video.watchdog import OnEvent
from tests.graphs import residual
from tests.parity_world import SIZE, settings, write_source

URI = "rtsp://me:hunter2@10.0.0.7/live?token=hunter2#stall_s=9"
SHOWN = "rtsp://me:***@10.0.0.7/live?token=***#stall_s=9"


@pytest.fixture
def camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every network stream gives the frames of a folder; the addresses that were opened."""
    folder = Path(write_source(tmp_path / "frames"))
    opened: list[str] = []

    def live(parsed: SourceUri, selection: Selection, on_event: OnEvent | None) -> VideoSource:
        opened.append(parsed.target)
        return FrameFolder(folder, fps=30, selection=selection, uri=parsed.text)

    monkeypatch.setattr("edge_sdk.video.source._live", live)
    return opened


REPORT = ["evaluation.json", "report.html"]
COMPARISON = ["comparison.html", "comparison.json", "reference.npz"]


COMPARE = ["compare", "PAIR", URI, "--interval", "3", "--reference", "OUT/reference.npz", "--out", "OUT"]
EVALUATE = ["evaluate", "PAIR", URI, "--intervals", "2", "--repeats", "1", "--out", "OUT"]


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        (["run", "PAIR", URI, "--results", "OUT/results.jsonl", "--json"], ["results.jsonl"]),
        (EVALUATE, REPORT),
        ([*EVALUATE, "--json"], REPORT),
        (COMPARE, COMPARISON),
        ([*COMPARE, "--json"], COMPARISON),
        (["run", "OTHER", URI], []),
        (["evaluate", "OTHER", URI, "--intervals", "2"], []),
        (["evaluate", "PAIR", URI, "--intervals", "100"], []),
        (["compare", "OTHER", URI], []),
        (["compare", "PAIR", URI, "--interval", "200"], []),
    ],
)
def test_a_verb_shows_and_writes_the_address_without_its_password(
    camera: list[str],
    arguments: list[str],
    files: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    residual(SIZE).write(tmp_path / "PAIR")
    residual((16, 16)).write(tmp_path / "OTHER")
    (tmp_path / "OUT").mkdir()
    for name in ("PAIR", "OTHER", "OUT"):
        arguments = [text.replace(name, str(tmp_path / name)) for text in arguments]
    with caplog.at_level(logging.DEBUG):
        done = CliRunner().invoke(app, arguments)
    assert done.exit_code == (0 if files else 2)
    assert "me:hunter2@" in camera[0]
    assert "rtsp://me:***@10.0.0.7/live" in done.output
    assert "hunter2" not in done.output + caplog.text
    written = {path.name: path.read_bytes() for path in sorted((tmp_path / "OUT").iterdir())}
    assert list(written) == files
    assert [name for name, content in written.items() if b"hunter2" in content] == []


def test_what_is_recorded_of_a_recipe_has_no_password(camera: list[str], tmp_path: Path) -> None:
    bundle = residual(SIZE).write(tmp_path / "pair")
    recipe = parse_settings(
        {"bundle": bundle.path, "source": URI, "intervals": (2,)}, EvaluateRecipe, "recipe"
    )
    assert json.loads(evaluate(recipe).to_json())["recipe"]["source"] == SHOWN
    reference = record_reference(bundle, settings(URI), tmp_path / "reference.npz")
    assert reference.header.settings.source == SHOWN
    assert len(camera) == 2


def test_what_a_build_records_of_its_recipe_has_no_password() -> None:
    accuracy = parse_settings({"source": URI}, AccuracySettings, "accuracy")
    assert accuracy.source == URI
    assert accuracy.model_dump(mode="json")["source"] == SHOWN


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("rtsp://me:secret@host/a", "rtsp://me:***@host/a"),
        ("rtsp://me:se@cr:et@host/a", "rtsp://me:***@host/a"),
        ("rtsp://me:se/cr@et@host/a", "rtsp://me:***@host/a"),
        ("rtsp://me:secret@host:554/a", "rtsp://me:***@host:554/a"),
        ("http://me:secret@host/a", "http://me:***@host/a"),
        ("rtsp://me@host/a", "rtsp://me@host/a"),
        ("rtsp://host:554/a:b@c", "rtsp://host:554/a:b@c"),
        ("rtsp://host/a?user=me&password=secret&n=1", "rtsp://host/a?user=me&password=***&n=1"),
        ("rtsp://host/a?Token=secret#fps=5", "rtsp://host/a?Token=***#fps=5"),
        ("rtsp://host/user=me_password=secret_channel=1", "rtsp://host/user=me_password=***"),
        ("file:///clips/key=1/a.mp4", "file:///clips/key=1/a.mp4"),
        ("clips/token=1.mp4", "clips/token=1.mp4"),
        ("synthetic:shapes?seed=1", "synthetic:shapes?seed=1"),
    ],
)
def test_passwords_are_not_shown(uri: str, shown: str) -> None:
    assert without_password(uri) == shown


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://me:hunter2@host/a", r"http://me:\*\*\*@host/a: unknown scheme 'http'"),
        ("rtsp://me:hun/hunter2@host/a", r"rtsp://me:\*\*\*@host/a: expected rtsp://user:.* %2F"),
        ("rtsp://me:hunter2@host:hunter2@/a", r"rtsp://me:\*\*\*@/a"),
        ("rtsp://me:hunter2@host/live#latency=50", "unknown key 'latency'"),
    ],
)
def test_a_uri_that_is_refused_is_named_without_its_password(uri: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        open_source(uri)
    assert "hunter2" not in str(caught.value)
