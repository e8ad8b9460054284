"""Several streams over one pair of engines."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.bundle import Bundle
from edge_sdk.errors import ClosedError, RecipeError, ShapeError
from edge_sdk.runtime.result import Result, StepKind
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import AlwaysSchedule, EverySchedule
from edge_sdk.runtime.several import MultiRunner, staggered
from edge_sdk.runtime.worker import Worker
from edge_sdk.video.frame import Frame
from tests.graphs import PAIRS, random_images

STREAMS = 4


@pytest.fixture(scope="module", params=sorted(PAIRS))
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return PAIRS[request.param]().write(tmp_path_factory.mktemp("several") / "b")


def facts(result: Result) -> tuple[int, StepKind, int, bytes]:
    return result.seq, result.kind, result.state_age, result.mask.tobytes()


def test_each_stream_is_answered_as_by_a_runner_alone(bundle: Bundle) -> None:
    images = [random_images(23, seed=stream) for stream in range(STREAMS)]
    # Streams come at their own rates, and stream 2 loses a frame.
    order = [stream for index in range(23) for stream in range(STREAMS) if index % (stream + 1) == 0]
    given: list[list[Frame]] = [[] for _ in range(STREAMS)]
    with MultiRunner(bundle, streams=STREAMS, schedule=EverySchedule(interval=6), threads=1) as runner:
        found: list[list[tuple[int, StepKind, int, bytes]]] = [[] for _ in range(STREAMS)]
        for stream in order:
            index = len(given[stream])
            seq = index + 1 if stream == 2 and index >= 4 else index
            frame = Frame(images[stream][index], seq, 0.0)
            given[stream].append(frame)
            found[stream].append(facts(runner(stream, frame)))
        schedules = runner.schedules
    for stream in range(STREAMS):
        with EdgeRunner(bundle, schedule=schedules[stream], threads=1) as alone:
            assert found[stream] == [facts(alone(frame)) for frame in given[stream]]


def test_keyframes_are_kept_apart(bundle: Bundle) -> None:
    images = random_images(24)
    with MultiRunner(bundle, streams=STREAMS, schedule=EverySchedule(interval=8), threads=1) as runner:
        kinds = [[runner(stream, image).kind for stream in range(STREAMS)] for image in images]
    assert kinds[0] == [StepKind.KEYFRAME] * STREAMS  # there is no state yet
    assert all(row.count(StepKind.KEYFRAME) <= 1 for row in kinds[1:])
    assert [sum(row[stream] is StepKind.KEYFRAME for row in kinds) for stream in range(STREAMS)] == [
        3,
        4,
        4,
        4,
    ]


@pytest.mark.parametrize(
    ("interval", "count", "phases"),
    [(8, 4, [0, 2, 4, 6]), (10, 3, [0, 3, 6]), (2, 4, [0, 0, 1, 1]), (1, 2, [0, 0])],
)
def test_phases_are_spread(interval: int, count: int, phases: list[int]) -> None:
    made = staggered(EverySchedule(interval=interval), count)
    assert [schedule.phase for schedule in made if isinstance(schedule, EverySchedule)] == phases


def test_other_schedules_are_shared() -> None:
    assert staggered(AlwaysSchedule(), 2) == [AlwaysSchedule(), AlwaysSchedule()]


def test_a_stream_that_fails_does_not_stop_the_others(bundle: Bundle) -> None:
    images = random_images(8)
    with MultiRunner(bundle, streams=2, threads=1) as runner:
        for seq, image in enumerate(images):
            runner.submit(0, np.zeros((3, 3, 3), np.uint8))  # a camera of another size
            runner.submit(1, Frame(image, seq, 0.0))
            result = runner.latest(1, after=seq - 1, timeout_s=20)
            assert result is not None
            assert result.seq == seq
        with pytest.raises(ShapeError):
            runner.latest(0, after=-1, timeout_s=20)
        assert runner.latest(0) is None
        assert runner.counts(1).answered == len(images)
        assert runner.counts(0).answered == 0


def test_streams_take_turns() -> None:
    """A stream that always has a frame waiting does not keep the others from theirs."""
    order: list[int] = []
    entered, go = threading.Semaphore(0), threading.Semaphore(0)

    def answer(stream: int, frame: Frame | np.ndarray) -> Result:
        order.append(stream)
        entered.release()
        assert go.acquire(timeout=20)
        raise ShapeError("none.")

    worker = Worker(answer, streams=3)
    image = np.zeros((1, 1, 3), np.uint8)
    worker.submit(image, 0)
    assert entered.acquire(timeout=20)
    for stream in (0, 1, 2):
        worker.submit(image, stream)
    for _ in range(5):
        go.release()
        assert entered.acquire(timeout=20)
        worker.submit(image, order[-1])  # it has the next one at once
    go.release(10)
    worker.close()
    assert order[:6] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda bundle: MultiRunner(bundle, streams=0), RecipeError, "streams"),
        (lambda bundle: MultiRunner(bundle, streams=True), RecipeError, "streams"),
        (
            lambda bundle: MultiRunner(bundle, streams=2).submit(2, random_images(1)[0]),
            IndexError,
            "0 to 1, got 2",
        ),
        (lambda bundle: MultiRunner(bundle, streams=2).latest(0), ClosedError, "not open"),
    ],
)
def test_misuse_is_named(bundle: Bundle, call, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call(bundle)


def test_closing_twice_and_opening_again(bundle: Bundle) -> None:
    runner = MultiRunner(bundle, streams=2, threads=1)
    for _ in range(2):
        with runner:
            assert runner(1, random_images(1)[0]).kind is StepKind.KEYFRAME
        runner.close()


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        MultiRunner(tmp_path / "none", streams=2)
