"""The probe of new weights, and how engines of them are made."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.adapt.given import FrameCopies
from edge_sdk.adapt.prepare import Preparation, learning_cores, thread_on
from edge_sdk.adapt.probe import Lesson, Probe, judge
from edge_sdk.adapt.settings import AdaptSettings, ProbeSettings
from edge_sdk.bundle import FLOAT32
from edge_sdk.errors import BundleError, EngineError, RecipeError, ShapeError
from edge_sdk.runtime.engine import EngineOptions
from edge_sdk.runtime.onnxruntime import OrtBackend, OrtEngine
from edge_sdk.tasks import TaskSpec
from tests.fake_student import bright_bundle
from tests.fake_trainer import WEIGHT, with_threshold
from tests.graphs import per_frame, random_images, residual

TASK = TaskSpec(classes=("background", "thing"))
ONE = EngineOptions(threads=1)
LABEL = np.repeat(np.array([[0, 1]], np.uint8), 50, axis=1).repeat(10, axis=0)  # (10, 100): right half


def moved(pixels: int) -> np.ndarray:
    """The label with its edge moved to the left: an agreement of 50 / (50 + pixels)."""
    return np.roll(LABEL, -pixels, axis=1) | LABEL


@pytest.mark.parametrize(
    ("new", "used", "claimed", "allowed", "refused"),
    [
        (moved(5), moved(5), moved(5), {}, ""),
        (moved(4), moved(5), moved(4), {}, ""),
        (moved(6), moved(5), moved(6), {}, "agreement fell from 0.909 to 0.893"),
        (moved(6), moved(5), moved(6), {"drop": 0.02}, ""),
        (moved(7), moved(5), moved(7), {"drop": 0.02}, "agreement fell"),
        (moved(2), moved(5), moved(4), {}, ""),  # 2 % of the pixels
        (
            moved(1),
            moved(5),
            moved(4),
            {},
            "the engine differs from the trainer in 3.0% of the pixels, allowed are 2.0%",
        ),
        (moved(1), moved(5), moved(4), {"differing": 0.03}, ""),
        (moved(1) * 9, moved(5), moved(1), {"drop": 1.0}, "its mask is none: predicted"),
    ],
)
def test_what_new_weights_must_show(new, used, claimed, allowed, refused) -> None:
    settings = AdaptSettings(probe=ProbeSettings(**allowed))
    verdict = judge(new, used, claimed, LABEL, TASK, settings)
    assert verdict.refused.startswith(refused)
    assert bool(verdict.refused) == bool(refused)
    assert verdict.in_use == pytest.approx(50 / 55)


def test_a_label_of_other_classes_is_no_verdict() -> None:
    with pytest.raises(ShapeError, match="label: expected class ids below 2"):
        judge(LABEL, LABEL, LABEL, LABEL * 9, TASK, AdaptSettings())


def load(backend: OrtBackend, folder: Path, name: str) -> OrtEngine:
    return backend.load(folder / name, ONE)


def test_a_state_is_made_from_the_lesson_before(tmp_path) -> None:
    pair = residual()
    bundle = pair.write(tmp_path / "bundle")
    backend = OrtBackend()
    keyframe, delta = (load(backend, bundle.path, name) for name in ("keyframe.onnx", "delta.onnx"))
    probe = Probe(bundle.pair(), delta)
    student = probe.bind(keyframe, delta)
    earlier, image = random_images(2)
    lesson = Lesson(1, image, image[..., 0], earlier)
    _, state = pair.keyframe_formula(earlier, None)
    assert pair.delta_formula is not None
    expected, _ = pair.delta_formula(image, state)
    for warm in (False, True):
        assert np.array_equal(probe.mask(student, lesson, warm=warm), expected)


def test_engines_of_what_the_trainer_sends(tmp_path) -> None:
    bundle = bright_bundle(tmp_path / "bundle")
    backend = OrtBackend()
    preparation = Preparation(bundle, backend, ONE, FLOAT32, ())
    assert preparation.learns == ("delta",)
    graph = (bundle.path / "delta.onnx").read_bytes()
    assert preparation.size_bytes("delta") == len(graph)
    image = random_images(1)[0]
    probe = Probe(preparation.pair, load(backend, bundle.path, "delta.onnx"))
    keyframe = load(backend, bundle.path, "keyframe.onnx")
    lesson = Lesson(0, image, image[..., 0], image)

    loaded = preparation.load({"delta": with_threshold(graph, 7.0)})
    assert loaded.keyframe is None
    refitted = preparation.refit(
        {"delta": loaded.delta}, {WEIGHT: np.array([9.0], np.float32), "other": np.zeros(1)}
    )
    for engines, threshold in ((loaded, 7), (refitted, 9), (loaded, 7)):
        mask = probe.mask(probe.bind(keyframe, engines.delta), lesson)
        assert np.array_equal(mask, image[..., 0] >= threshold)

    with pytest.raises(EngineError, match="sent nothing for the delta step"):
        preparation.load({"keyframe": graph})
    with pytest.raises(EngineError, match="refuses it"):
        preparation.load({"delta": b"no graph"})
    with pytest.raises(EngineError, match=f"sent no '{WEIGHT}' for the delta step"):
        preparation.refit({"delta": loaded.delta}, {})
    with pytest.raises(ShapeError, match=WEIGHT):
        preparation.refit({"delta": loaded.delta}, {WEIGHT: np.zeros(2, np.float32)})


def test_what_was_made_is_closed_where_a_later_step_fails(tmp_path, monkeypatch) -> None:
    bundle = bright_bundle(tmp_path / "bundle")
    preparation = Preparation(bundle, OrtBackend(), ONE, FLOAT32, ())
    monkeypatch.setattr(preparation, "learns", ("keyframe", "delta"))
    closed = []
    monkeypatch.setattr(OrtEngine, "close", lambda engine: closed.append(engine.path.name))
    graph = (bundle.path / "keyframe.onnx").read_bytes()
    with pytest.raises(EngineError):
        preparation.load({"keyframe": graph, "delta": b"no graph"})
    assert closed == ["keyframe.onnx"]


def test_a_bundle_without_a_student_cannot_learn(tmp_path) -> None:
    for pair in (per_frame(), residual()):
        bundle = pair.write(tmp_path / pair.name)
        with pytest.raises(BundleError, match="no student that can learn"):
            Preparation(bundle, OrtBackend(), ONE, FLOAT32, ())


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores cannot be named here")
def test_learning_stays_on_its_cores(monkeypatch) -> None:
    before = os.sched_getaffinity(0)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {1, 5, 3})
    with pytest.raises(RecipeError, match="asks for 4 CPU cores"):
        learning_cores(AdaptSettings(cores=4))
    assert learning_cores(AdaptSettings(cores=2)) == (3, 5)
    monkeypatch.undo()
    one = learning_cores(AdaptSettings())
    with thread_on(one):
        assert os.sched_getaffinity(0) == set(one)
    assert os.sched_getaffinity(0) == before
    with thread_on(()):
        assert os.sched_getaffinity(0) == before


def test_copies_of_frames_outlive_the_streams_own() -> None:
    copies = FrameCopies((4, 6), keyframes=True)
    assert not copies.any_keyframe
    assert copies.last_keyframe()[0] == -1
    image, label = random_images(1)[0], np.ones((4, 6), np.uint8)
    copies.keyframe(3, image)
    first = copies.give(3, image, label, frame=4, epoch=1)
    kept = image.copy()
    image[:] = 0
    assert np.array_equal(first.image, kept)
    assert np.array_equal(copies.last_keyframe()[1], kept)
    second = copies.give(5, image, label, frame=6, epoch=1)
    assert np.array_equal(first.image, kept)  # the probe still needs it
    assert not second.image.any()
    assert [first.seq_of(frame) for frame in (4, 5, 9)] == [4, 5, 9]
