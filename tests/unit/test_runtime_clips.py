"""The runner on a state that every step rewrites and a few frames of each clip: against sessions run by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk.bundle import Bundle
from edge_sdk.errors import BundleError
from edge_sdk.manifest import StepName
from edge_sdk.recording import Content, RecordingBackend
from edge_sdk.runtime.background import BackgroundKeyframes
from edge_sdk.runtime.engine import backend_named
from edge_sdk.runtime.result import Result, StepKind
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import EverySchedule, SampleSchedule
from edge_sdk.tasks.base import Classification
from edge_sdk.video.frame import Frame
from tests.clip_bundles import SIZE, write_clip_bundle
from tests.graphs import random_images

ort = pytest.importorskip("onnxruntime")
SCHEDULE = SampleSchedule(length=7, samples=3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_clip_bundle(tmp_path_factory.mktemp("clips") / "b", 3, length=7)


def scores_of(result: Result) -> np.ndarray:
    assert isinstance(result.prediction, Classification)
    return result.prediction.scores


def by_hand(bundle: Bundle, images: list[np.ndarray], kinds: str) -> list[tuple[bytes, bytes]]:
    """Scores and state after each frame, by plain ONNX Runtime sessions that are handed their own state."""
    keyframe = ort.InferenceSession(str(bundle.path / "keyframe.onnx"), providers=["CPUExecutionProvider"])
    delta = ort.InferenceSession(str(bundle.path / "delta.onnx"), providers=["CPUExecutionProvider"])
    found, scores, state = [], np.zeros(0), np.zeros(0)
    for image, kind in zip(images, kinds, strict=True):
        if kind == "k":
            scores, state = keyframe.run(["scores", "state.sum.next"], {"frame": image})
        elif kind == "d":
            scores, state = delta.run(["scores", "state.sum.next"], {"frame": image, "state.sum": state})
        found.append((scores.tobytes(), state.tobytes()))
    return found


class States:
    """Keeps the state that each step wrote, and how often a step ran."""

    def __init__(self) -> None:
        self.last, self.runs = b"", 0

    def before(self, step: StepName, inputs: Mapping[str, Content]) -> None:
        self.runs += 1

    def after(self, step: StepName, outputs: Mapping[str, Content]) -> None:
        self.last = outputs["state.sum.next"].array.tobytes()


@pytest.mark.parametrize(
    ("schedule", "lost", "kinds"),
    [
        # Of 7 frames 0, 2 and 4.
        (SCHEDULE, {}, "ksdsdssksdsdssksd"),
        (SCHEDULE, {5: 2}, "ksdsdksdsdssksdsd"),  # as many lost as lie between two samples: a new clip
        (SCHEDULE, {5: 1}, "ksdsdsksdsdssksds"),  # fewer: the clip goes on
        (SCHEDULE, {4: 1}, "ksdsdsksdsdssksds"),  # and a sample that was lost is taken late
        (SCHEDULE.model_copy(update={"restart": False}), {}, "ksdsdssdsdsdssdsd"),
    ],
)
def test_scores_and_state_are_bit_for_bit_those_of_sessions(
    bundle: Bundle, schedule: SampleSchedule, lost: dict[int, int], kinds: str
) -> None:
    images, seq = random_images(len(kinds), SIZE), 0
    backend, seen = RecordingBackend(backend_named("onnxruntime"), bundle), States()
    found, ages = [], []
    with EdgeRunner(bundle, backend=backend, schedule=schedule, threads=1) as runner:
        backend.observer = seen
        for index, image in enumerate(images):
            seq += 1 + lost.get(index, 0)
            result = runner(Frame(image, seq, 0.0))
            found.append((scores_of(result).tobytes(), seen.last))
            ages.append((result.kind.value[0], result.state_age))
    assert "".join(kind for kind, _ in ages) == kinds
    assert found == by_hand(bundle, images, kinds)
    assert seen.runs == len(kinds) - kinds.count("s")  # a frame that is not seen runs nothing
    clip = 0
    for index, (kind, age) in enumerate(ages):
        clip = 0 if kind == "k" else clip + 1 + lost.get(index, 0)
        assert age == clip


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.booleans(), min_size=1, max_size=30), seed=st.integers(0, 100))
def test_interleaved_runners_equal_runners_alone(bundle: Bundle, order: list[bool], seed: int) -> None:
    images = [random_images(len(order), SIZE, seed=2 * seed + stream) for stream in range(2)]
    schedules = (SCHEDULE, SampleSchedule(length=5, samples=5, restart=False))
    found: list[list[bytes]] = [[], []]
    with (
        EdgeRunner(bundle, schedule=schedules[0], threads=1) as one,
        EdgeRunner(bundle, schedule=schedules[1], threads=1) as two,
    ):
        for which in order:
            place = len(found[which])
            found[which].append(scores_of((one, two)[which](images[which][place])).tobytes())
    for stream, schedule in enumerate(schedules):
        with EdgeRunner(bundle, schedule=schedule, threads=1) as alone:
            count = len(found[stream])
            assert found[stream] == [scores_of(alone(image)).tobytes() for image in images[stream][:count]]


def test_reset_and_requested_keyframes_begin_a_clip(bundle: Bundle) -> None:
    images = random_images(9, SIZE)
    with EdgeRunner(bundle, schedule=SCHEDULE, threads=1) as runner:
        kinds = []
        for index, image in enumerate(images):
            if index == 3:
                runner.request_keyframe()
            if index == 6:
                runner.reset()
            kinds.append(runner(image).kind.value[0])
    assert "".join(kinds) == "ksdksdksd"


def test_results_are_views_that_a_copy_outlives(bundle: Bundle) -> None:
    images = random_images(3, SIZE)
    with EdgeRunner(bundle, schedule=EverySchedule(interval=3), threads=1) as runner:
        first = runner(images[0])
        kept, before = first.copy(), scores_of(first).copy()
        runner(images[1])
        assert not np.array_equal(scores_of(first), before)
        assert np.array_equal(scores_of(kept), before)
        assert not scores_of(first).flags.writeable
        with pytest.raises(TypeError, match=r"a classification result has none; read result.prediction"):
            _ = kept.mask
        drawn = kept.plot(images[0])
        assert drawn.shape == images[0].shape


def test_what_does_not_go_together_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match="rewrite"),
        EdgeRunner(bundle, schedule=SCHEDULE, background=BackgroundKeyframes()),
    ):
        pass
    single = write_clip_bundle(tmp_path / "single", 1, length=7)
    assert _kinds(single, 2) == [StepKind.KEYFRAME, StepKind.SKIP]
    with pytest.raises(BundleError, match="schedule 'sample': it asks for delta steps"):
        EdgeRunner(single, schedule=SCHEDULE)


def _kinds(bundle: Bundle, count: int) -> list[StepKind]:
    with EdgeRunner(bundle, threads=1) as runner:
        return [runner(image).kind for image in random_images(count, SIZE)]
