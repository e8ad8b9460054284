"""What meets a bundle of clips on the device: run, compare, bench and tune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_sdk.bench.document import EVERY_FRAME, SUBJECT, BenchDocument
from edge_sdk.bench.lineup import Lineup, default_rows, interval_of
from edge_sdk.bench.pipeline import bench
from edge_sdk.bench.recipe import BenchRecipe
from edge_sdk.bench.tune import TuneRecipe, tune
from edge_sdk.bench.wording import conditions, schedule_text
from edge_sdk.bundle import Bundle
from edge_sdk.cli import app
from edge_sdk.errors import BundleError, FileFormatError, RecipeError
from edge_sdk.parity import CompareRecipe, ReferenceSettings, compare, record_reference
from edge_sdk.runtime.schedule import AlwaysSchedule, ChangeSchedule, SampleSchedule
from edge_sdk.video import open_source
from tests.clip_bundles import write_clip_bundle
from tests.graphs import per_frame

pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")
SIZE = (32, 32)
CLASSES = ("left", "right", "up")
CLIP = "synthetic:motions?height=32&width=32&frames=30&motion=left"
SCHEDULE = SampleSchedule(length=10, samples=4)  # of 10 frames 0, 2, 5 and 7


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clip_bundle(folder / "student", 4, length=10, classes=CLASSES, size_hw=SIZE)
    write_clip_bundle(folder / "teacher", 10, length=10, classes=CLASSES, size_hw=SIZE)
    write_clip_bundle(folder / "several", 4, length=10, classes=CLASSES, size_hw=SIZE, multi_label=True)
    per_frame(SIZE).write(folder / "segmentation")
    return folder


def test_run_draws_writes_lines_and_states_the_latency(world: Path, tmp_path: Path) -> None:
    lines, pictures = tmp_path / "lines.jsonl", f"{tmp_path}/pictures/"
    arguments = ["run", str(world / "student"), CLIP, "--out", pictures, "--results", str(lines)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert (
        "answers cover the clip so far, at most 10 frames (0.333 s), a new one every 3 frames (0.1 s)" in said
    )
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert "".join(line["kind"][0] for line in found) == "ksdssdsdss" * 3
    assert all(sum(line["scores"].values()) == pytest.approx(1, abs=1e-5) for line in found)
    assert all(set(line["scores"]) == set(CLASSES) for line in found)
    assert found[3]["scores"] == found[2]["scores"] != found[5]["scores"]
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 30


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("{kind: sample, length: 5, samples: 2}", "ksdss" * 6),
        ("{kind: sample, length: 5, samples: 1, restart: false}", "kssss" + "dssss" * 5),
        ("{kind: change, threshold: 255, between: skip, max_interval: 10}", "ksssssssss" * 3),
    ],
)
def test_other_schedules_come_from_a_file(world: Path, tmp_path: Path, text: str, kinds: str) -> None:
    (tmp_path / "s.yaml").write_text(f"schedule: {text}\n")
    lines = tmp_path / "lines.jsonl"
    arguments = ["run", str(world / "student"), CLIP, "--schedule", str(tmp_path / "s.yaml"), "--json"]
    done = CliRunner().invoke(app, [*arguments, "--results", str(lines)])
    assert done.exit_code == 0, done.output
    found = [json.loads(line)["kind"][0] for line in lines.read_text().splitlines()]
    assert "".join(found) == kinds
    coverage = json.loads(done.stdout)["coverage"]
    assert (coverage is None) == ("sample" not in text)


def parity_settings(**values: Any) -> ReferenceSettings:
    return ReferenceSettings(source=CLIP, **values)


@pytest.mark.parametrize("name", ["student", "several"])
def test_compare_takes_the_frames_that_the_device_sees(world: Path, name: str, tmp_path: Path) -> None:
    reference = record_reference(Bundle.open(world / name), parity_settings(), tmp_path / "reference.npz")
    assert (reference.header.interval, reference.header.frames) == (4, 12)
    assert reference.header.labelled == tuple(range(12))
    images = [frame.image for frame in open_source(CLIP)]
    bundle = Bundle.open(world / name)
    taken = list(reference.stream(bundle.task))
    expected = [clip * 10 + place for clip in range(3) for place in SCHEDULE.seen]
    assert all((moment.image == images[at]).all() for moment, at in zip(taken, expected, strict=True))
    found = compare(CompareRecipe(bundle=world / name, reference=reference.path))
    (engine,) = found.engines
    assert found.metric == "top1"
    assert (engine.agreement, engine.same, engine.drop_points) == (1.0, 1.0, 0.0)
    assert engine.labels == engine.reference_labels is not None
    assert [row.frames for row in engine.by_distance] == [3, 3, 3, 3]


@pytest.mark.parametrize(("limit", "frames"), [(4, 4), (5, 5), (9, 9), (200, 12)])
def test_a_limit_counts_the_frames_that_are_seen(
    world: Path, limit: int, frames: int, tmp_path: Path
) -> None:
    bundle = Bundle.open(world / "student")
    found = record_reference(bundle, parity_settings(limit=limit), tmp_path / "reference.npz")
    assert found.header.frames == frames


def test_labels_of_another_bundle_are_named(tmp_path: Path) -> None:
    bundle = write_clip_bundle(tmp_path / "b", 4, length=10, size_hw=SIZE)
    with pytest.raises(FileFormatError, match=r"labels of frame 0: .*blue, green, red\), found 'left'"):
        record_reference(bundle, parity_settings(), tmp_path / "reference.npz")


def rows_of(world: Path, bundle: str = "student", **values: Any) -> dict[str, Any]:
    recipe = BenchRecipe(bundle=world / bundle, **values)
    return {row.name: row for row in default_rows(recipe, Lineup.open(recipe), "onnxruntime")}


def test_a_benchs_rows_are_those_that_mean_something_for_clips(world: Path) -> None:
    assert list(rows_of(world)) == [SUBJECT, EVERY_FRAME]
    rows = rows_of(world, teacher=world / "teacher", rival=world / "teacher")
    assert list(rows) == [SUBJECT, "teacher", "rival", EVERY_FRAME]
    assert rows[SUBJECT].schedule == SCHEDULE
    assert rows["teacher"].schedule == rows[EVERY_FRAME].schedule == SampleSchedule(length=10, samples=10)
    assert list(rows_of(world, "teacher")) == [SUBJECT]
    assert list(rows_of(world, baselines=False)) == [SUBJECT]
    assert "edge-sdk evaluate" in rows[SUBJECT].note


@pytest.mark.parametrize("other", ["several", "segmentation"])
def test_other_tasks_do_not_compete(world: Path, other: str) -> None:
    with pytest.raises(BundleError, match=r"its task is .*classification of left, right, up"):
        rows_of(world, teacher=world / other)


@pytest.mark.parametrize(
    ("schedule", "frames", "text"),
    [
        (SCHEDULE, 10, "every 10 frames, 4 of each 10 frames seen"),
        (SCHEDULE.model_copy(update={"restart": False}), 10, "at the start, 4 of each 10 frames seen"),
        (
            ChangeSchedule(threshold=3, between="skip"),
            10,
            "on a change above 3 grey levels, frames between skipped",
        ),
        (AlwaysSchedule(), 1, "every frame"),
    ],
)
def test_schedules_read_well(schedule: Any, frames: int, text: str) -> None:
    assert (interval_of(schedule), schedule_text(schedule)) == (frames, text)


def test_a_bench_times_keyframes_deltas_and_skips(world: Path) -> None:
    document = bench(
        BenchRecipe(
            bundle=world / "student", source=CLIP, teacher=world / "teacher", seconds=4, rounds=2, fps=200
        )
    )
    assert [row.name for row in document.rows] == [SUBJECT, "teacher", EVERY_FRAME]
    assert all(row.labels is None and row.agreement is None for row in document.rows)
    blocks = [block for block in document.blocks if (block.row, block.mode) == (SUBJECT, "saturated")]
    assert blocks
    assert all(set(block.frames.kinds[::10]) == {"k"} and len(block.frames) % 10 == 0 for block in blocks)
    figures = document.figures
    latency = figures.row(SUBJECT, "saturated")
    assert latency is not None
    assert {"keyframe", "delta", "skip"} <= latency.stages["total"].keys()
    # A frame that is not seen costs nothing measurable: microseconds, where the whole tiny step takes tens of them.
    assert latency.stages["total"]["skip"].p50_ms.value < 0.3 * latency.stages["total"]["delta"].p50_ms.value
    assert latency.speedup is not None
    said = dict(conditions(document, figures))
    assert (
        said["answers"]
        == "cover the clip so far, at most 10 frames (0.05 s), a new one every 3 frames (0.015 s)"
    )
    again = BenchDocument.from_json(document.to_json(figures))
    assert again.rows == document.rows


def test_accuracy_that_is_asked_for_by_name_is_refused(world: Path) -> None:
    with pytest.raises(RecipeError, match=r"a classification is not scored .*edge-sdk evaluate"):
        bench(BenchRecipe(bundle=world / "student", source=CLIP, accuracy=True, seconds=4, rounds=2))
    with pytest.raises(RecipeError, match=r"a classification is not scored .*edge-sdk evaluate"):
        tune(TuneRecipe(bundle=world / "student", source=CLIP, intervals=(2,)))
