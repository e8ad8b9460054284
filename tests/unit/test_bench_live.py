"""A bench on a camera: opened once, the bundle alone, at the camera's own pace."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.bench import footage as module
from edge_sdk.bench.compare import compare
from edge_sdk.bench.document import SUBJECT, BenchDocument, Row
from edge_sdk.bench.pipeline import bench
from edge_sdk.bench.recipe import BenchRecipe
from edge_sdk.bench.report import render
from edge_sdk.bench.table import renderables
from edge_sdk.bench.wording import source_text
from edge_sdk.errors import RecipeError, ShapeError
from edge_sdk.runtime.schedule import AlwaysSchedule, EverySchedule
from edge_sdk.video import LiveSource
from tests.cameras import FakeDevice, Step
from tests.graphs import per_frame, random_images, residual

SIZE = (48, 64)
PERIOD_S = 0.01
CAMERA = "camera:0"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return residual(SIZE).write(tmp_path_factory.mktemp("live") / "pair", EverySchedule(interval=4)).path


def device(size_hw: tuple[int, int] = SIZE) -> FakeDevice:
    """A picture every ten milliseconds, for longer than any run here."""
    images = random_images(8, size_hw)
    steps: list[Step] = []
    for index in range(2000):
        steps += [lambda: time.sleep(PERIOD_S), images[index % len(images)]]
    return FakeDevice(steps)


def connect(patch: pytest.MonkeyPatch, camera: FakeDevice) -> None:
    patch.setattr(module, "open_source", lambda uri: LiveSource(camera, uri=uri))


@pytest.fixture(scope="module")
def run(pair: Path) -> tuple[BenchDocument, FakeDevice]:
    """Two rounds of two seconds."""
    camera = device()
    with pytest.MonkeyPatch.context() as patch:
        connect(patch, camera)
        return bench(BenchRecipe(bundle=pair, source=CAMERA, seconds=4, rounds=2)), camera


def test_the_camera_is_opened_once_and_released(run: tuple[BenchDocument, FakeDevice]) -> None:
    assert run[1].released == [True]


def test_the_bundle_alone_is_measured_at_the_cameras_pace(run: tuple[BenchDocument, FakeDevice]) -> None:
    document, _ = run
    assert [row.name for row in document.rows] == [SUBJECT]
    assert [(block.round, block.mode) for block in document.blocks] == [
        (index, mode) for index in range(2) for mode in ("warm-up", "camera")
    ]
    assert document.bare == ()
    assert document.source.live
    assert (document.source.uri, document.source.frames, document.source.fps) == (CAMERA, 1, 30.0)
    assert (document.source.height, document.source.width) == SIZE


def test_frames_are_the_cameras_own(run: tuple[BenchDocument, FakeDevice]) -> None:
    paced = [block for block in run[0].blocks if block.mode == "camera"]
    seqs = [seq for block in paced for seq in block.frames.seq]
    assert seqs == sorted(set(seqs))  # one stream over both rounds, no frame twice
    for block in paced:
        due = np.array(block.frames.due_ms)
        # Half of what can come: the machine may be busy with other tests.
        assert len(due) + block.dropped > 0.5 * (due[-1] - due[0]) / 1e3 / PERIOD_S
        assert block.dropped == block.frames.seq[-1] - block.frames.seq[0] + 1 - len(due)
        assert float(np.median(np.diff(due) / np.diff(block.frames.seq))) >= 0.9e3 * PERIOD_S


def test_a_document_of_a_camera_can_be_shown_kept_and_compared(
    run: tuple[BenchDocument, FakeDevice], capsys: pytest.CaptureFixture[str]
) -> None:
    from edge_sdk.cli.output import show

    document, _ = run
    assert BenchDocument.from_json(document.to_json()) == document
    text = source_text(document)
    assert "late frames are dropped for newer ones" in text
    assert "late frames wait" not in text
    assert text in render(document)
    show(*renderables(document))
    shown = capsys.readouterr().out
    assert "subject, camera pace" in shown
    assert "saturated" not in shown
    assert not compare(document, document).worse


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"fps": 30}, "fps"),
        ({"teacher": "other"}, "teacher"),
        ({"rival": "other"}, "rival"),
        ({"engines": ("float32",)}, "engines"),
        ({"intervals": (2,)}, "intervals"),
        ({"late": "queue"}, "late"),
        ({"camera_share": 0.45}, "camera_share"),
        ({"limit": 100}, "limit"),
        ({"accuracy": True}, "accuracy"),
        ({"baselines": True}, "baselines"),
    ],
)
def test_what_a_camera_leaves_without_a_meaning_is_refused(
    pair: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, Any], name: str
) -> None:
    if name in ("teacher", "rival"):
        settings = {name: per_frame(SIZE).write(tmp_path / "other").path}
    camera = device()
    connect(monkeypatch, camera)
    with pytest.raises(
        RecipeError, match=f"'{name}' was given, and camera:0 is a live source.*Leave out '{name}'"
    ):
        bench(BenchRecipe(bundle=pair, source=CAMERA, seconds=4, rounds=2, **settings))
    assert camera.released == [True]


def test_leaving_out_what_a_camera_never_has_is_no_mistake(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, device((32, 32)))
    left_out: dict[str, Any] = {"accuracy": False, "baselines": False, "fps": None, "engines": ()}
    with pytest.raises(ShapeError, match="32 x 32"):  # the next thing that is looked at
        bench(BenchRecipe(bundle=pair, source=CAMERA, **left_out))


def test_rows_of_ones_own_need_frames_that_come_again(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, device())
    rows = [
        Row(name=name, variant="pair", engine="float32", schedule=AlwaysSchedule())
        for name in (SUBJECT, "other")
    ]
    with pytest.raises(RecipeError, match="rows: 2 were given, and camera:0 is a live source"):
        bench(BenchRecipe(bundle=pair, source=CAMERA), rows=rows)
