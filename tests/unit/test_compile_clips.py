"""From the checkpoint of a clip network to a bundle that runs: scores, schedule, calibration, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exporting needs torch")
pytest.importorskip("onnx", reason="exporting needs onnx")
pytest.importorskip("onnxruntime", reason="an export is checked with ONNX Runtime")

from torch import nn  # noqa: E402

from edge_sdk.build.recipe import AccuracySettings, Int8Settings  # noqa: E402
from edge_sdk.bundle import Bundle  # noqa: E402
from edge_sdk.compile import CalibrateRecipe, ExportRecipe, calibrate, export  # noqa: E402
from edge_sdk.compile.calibrate import clip_bytes  # noqa: E402
from edge_sdk.compile.calibration_set import CalibrationSet  # noqa: E402
from edge_sdk.compile.graphs import ClassDecoder  # noqa: E402
from edge_sdk.compile.quantize.sensitivity import meet_budget  # noqa: E402
from edge_sdk.compile.quantize.variants import Quantizer  # noqa: E402
from edge_sdk.distill.clips.checkpoints import load_clip_model  # noqa: E402
from edge_sdk.distill.frames import FrameToInput  # noqa: E402
from edge_sdk.distill.modules import save_checkpoint  # noqa: E402
from edge_sdk.errors import CheckpointError, EdgeSdkError, RecipeError, ShapeError  # noqa: E402
from edge_sdk.runtime.result import StepKind  # noqa: E402
from edge_sdk.runtime.runner import EdgeRunner  # noqa: E402
from edge_sdk.runtime.schedule import AlwaysSchedule, EverySchedule, SampleSchedule  # noqa: E402
from edge_sdk.settings import parse_settings  # noqa: E402
from tests import clip_nets  # noqa: E402

LENGTH, SAMPLES, HW = clip_nets.LENGTH, clip_nets.SAMPLES, clip_nets.FRAME_HW
MOTIONS = f"synthetic:motions?clips=8&height={HW[0]}&width={HW[1]}&frames=14"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """A checkpoint and its bundle; for reading alone."""
    folder = tmp_path_factory.mktemp("tally")
    path = clip_nets.checkpoint(folder, "tally")
    return path, export(ExportRecipe(out=folder / "bundle", checkpoint=path, frame_hw=HW))


@pytest.fixture(scope="module")
def calibrated(made: tuple[Path, Bundle], tmp_path_factory: pytest.TempPathFactory) -> CalibrationSet:
    data = {
        "bundle": made[1].path, "out": tmp_path_factory.mktemp("set") / "set.npz",
        "draw": {"labelled": [MOTIONS], "clips": 4},
    }  # fmt: skip
    return calibrate(parse_settings(data, CalibrateRecipe, "test"))


def test_a_clip_has_the_scores_that_torch_gives_all_its_frames_at_once(made: tuple[Path, Bundle]) -> None:
    path, bundle = made
    network, model, _, _ = load_clip_model(path)
    to_input = FrameToInput(model.preprocess)
    images = clip_nets.frames(2 * LENGTH)
    kinds = []
    with EdgeRunner(bundle) as runner:
        for index, image in enumerate(images):
            result = runner(image)
            kinds.append(result.kind)
            begin = index - index % LENGTH
            seen = [images[begin + i * LENGTH // SAMPLES] for i in range(SAMPLES)]
            so_far = seen[: sum(begin + i * LENGTH // SAMPLES <= index for i in range(SAMPLES))]
            expected = clip_nets.spread(network, so_far, to_input).softmax(0).numpy()
            scores = bundle.task.encode(result.prediction)["scores"]
            assert scores.dtype == np.float32
            assert scores == pytest.approx(expected, abs=1e-5)
            assert scores.sum() == pytest.approx(1, abs=1e-5)
    assert [kinds.count(kind) for kind in (StepKind.KEYFRAME, StepKind.DELTA, StepKind.SKIP)] == [2, 6, 16]


def test_the_manifest_says_what_a_clip_network_is(made: tuple[Path, Bundle]) -> None:
    manifest = made[1].manifest
    assert (manifest.method, manifest.task.kind) == ("clip", "classification")
    assert manifest.schedule == SampleSchedule(length=LENGTH, samples=SAMPLES)
    assert {spec.name: spec.shape for spec in manifest.state} == {
        "total": (1, 8),
        "most": (1, 8),
        "seen": (1, 1),
    }
    assert manifest.steps.delta is not None
    outputs = {spec.name: spec for spec in manifest.steps.delta.outputs}
    assert (outputs["scores"].shape, outputs["scores"].dtype) == ((4,), "float32")
    assert {"state.total.next", "state.most.next", "state.seen.next"} <= set(outputs)
    agreement: Any = manifest.provenance["torch_and_onnxruntime_differ"]
    assert set(agreement) == {"state", "scores"}


@pytest.mark.parametrize("multi_label", [False, True])
def test_scores_are_shares_or_each_by_itself(multi_label: bool) -> None:
    logits = torch.tensor([[3.0, -1.0, 40.0, -200.0]])
    scores = ClassDecoder(multi_label)(logits)
    expected = torch.sigmoid(logits[0]) if multi_label else torch.softmax(logits[0], 0)
    assert scores.shape == (4,)
    assert torch.equal(scores, expected)


def test_another_schedule_and_several_labels(tmp_path: Path) -> None:
    path = clip_nets.checkpoint(tmp_path, "tally", multi_label=True, sampling="first")
    recipe = ExportRecipe(
        out=tmp_path / "bundle", checkpoint=path, frame_hw=HW, schedule=EverySchedule(interval=3)
    )
    bundle = export(recipe)
    assert bundle.manifest.schedule == EverySchedule(interval=3)
    with EdgeRunner(bundle) as runner:
        scores = bundle.task.encode(runner(clip_nets.frames(1)[0]).prediction)["scores"]
    network, model, _, _ = load_clip_model(path)
    logits = clip_nets.spread(network, clip_nets.frames(1), FrameToInput(model.preprocess))
    assert scores == pytest.approx(logits.sigmoid().numpy(), abs=1e-5)


def test_a_classifier_of_single_frames_is_a_module(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "w.pt", pooled(4).state_dict())
    recipe = frames_recipe(tmp_path, classes=["a", "b", "c", "d"])
    bundle = export(recipe)
    assert bundle.manifest.schedule == AlwaysSchedule()
    assert bundle.manifest.steps.delta is None
    with pytest.raises(
        ShapeError, match=r"expected class logits \(1, 2\) for a classification, got \(1, 4\)"
    ):
        export(frames_recipe(tmp_path, classes=["a", "b"], out=str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()


def pooled(count: int) -> nn.Module:
    """A network that classifies frames."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, count))


def frames_recipe(folder: Path, classes: list[str], **values: Any) -> ExportRecipe:
    data = {
        "out": str(folder / "bundle"), "frame_hw": HW, "task": {"kind": "classification", "classes": classes},
        "module": {"factory": f"{__name__}:pooled", "arguments": {"count": 4}, "checkpoint": str(folder / "w.pt")},
        **values,
    }  # fmt: skip
    return parse_settings(data, ExportRecipe, "test")


# Checkpoint, changes of its meta data, changes of the recipe; the error and what it says.
REFUSED: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], type[EdgeSdkError], str]] = [
    (
        {"sampling": "middle"},
        {},
        {},
        RecipeError,
        "'schedule': .* trained on the frames of sampling 'middle'",
    ),
    ({}, {"features": 128}, {}, RecipeError, r"takes feature vectors \(128 numbers a frame\)"),
    ({}, {}, {"decode_stride": 2}, RecipeError, "'decode_stride': expected none for a classification"),
    ({}, {}, {"sliding": True}, RecipeError, "'sliding': expected a network of encoder, aggregator and head"),
    ({}, {"kind": "songs"}, {}, CheckpointError, "expected one written by edge-sdk train or distill"),
]


@pytest.mark.parametrize(("model", "meta", "recipe", "error", "message"), REFUSED)
def test_what_cannot_be_meant_is_refused(
    model: dict[str, Any],
    meta: dict[str, Any],
    recipe: dict[str, Any],
    error: Any,
    message: str,
    tmp_path: Path,
) -> None:
    path = clip_nets.checkpoint(tmp_path, "tally", **model)
    content = torch.load(path)
    content["meta"] |= meta
    save_checkpoint(path, content)
    with pytest.raises(error, match=message):
        export(ExportRecipe(out=tmp_path / "bundle", checkpoint=path, frame_hw=HW, **recipe))
    assert not (tmp_path / "bundle").exists()


# Calibration


def test_a_clip_is_calibrated_with_the_frames_that_a_device_sees(
    calibrated: CalibrationSet, made: tuple[Path, Bundle]
) -> None:
    header = calibrated.header
    assert header.counts == {"keyframe": (4,), "delta": (0, 4, 4, 4)}
    assert header.interval == SAMPLES
    assert [len(clip.frames) for clip in header.clips] == [LENGTH] * 4
    seeds = [clip.source.split("seed=")[1] for clip in header.clips]
    assert seeds == ["0", "2", "4", "6"]
    told = 4 * clip_bytes(made[1], LENGTH)
    assert calibrated.size_bytes - 16_000 < told < 1.5 * calibrated.size_bytes  # the header is not counted
    counts = [float(given.inputs["state.seen"].item()) for given in calibrated.passes("delta")]
    assert counts == [1.0, 2.0, 3.0] * 4


def test_int8_keeps_accumulators_head_and_scores_in_float32(
    made: tuple[Path, Bundle], calibrated: CalibrationSet
) -> None:
    quantizer = Quantizer(made[1], calibrated)
    for backend in ("onnxruntime", "tensorrt"):
        done = quantizer.int8(Int8Settings(), backend)
        assert {spec.dtype for spec in done.variant.state} == {"float32"}
        assert done.variant.forms == {}
        # No convolution decides the answer, so none is the last layer.
        assert done.variant.provenance["kept"] == {"keyframe": {}, "delta": {}}


def test_an_accuracy_budget_is_tried_on_the_frames_that_a_device_sees(
    made: tuple[Path, Bundle], calibrated: CalibrationSet
) -> None:
    quantizer = Quantizer(made[1], calibrated)
    source = f"synthetic:motions?seed=3&height={HW[0]}&width={HW[1]}&frames=24"
    accuracy = AccuracySettings(source=source, max_drop=100, sweep="never")
    found = meet_budget(quantizer, Int8Settings(), accuracy, "onnxruntime", lambda *figures: None)
    ((kept, lost),) = found.trials
    # Frames between those that are seen repeat the answer, so what is lost comes in steps of three frames.
    assert kept == 0
    assert (24 * lost / 100 / 3) == pytest.approx(round(24 * lost / 100 / 3), abs=1e-2)
