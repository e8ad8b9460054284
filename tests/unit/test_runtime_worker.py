"""The runner's own thread: submit from anywhere, the newest frame counts, errors and callbacks do no harm."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edge_sdk.bundle import Bundle
from edge_sdk.errors import ClosedError, EngineError, RecipeError
from edge_sdk.runtime.result import Result
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.worker import Worker, WorkerCounts
from edge_sdk.video.frame import Frame
from tests.graphs import random_images, residual


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return residual().write(tmp_path_factory.mktemp("worker") / "b")


class Gate:
    """An answer that waits at a gate, so that a test decides when the thread is busy."""

    def __init__(self, bundle: Bundle) -> None:
        self.runner = EdgeRunner(bundle, threads=1).open()
        self.entered, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.error: EngineError | None = None

    def __call__(self, stream: int, frame: Frame | np.ndarray) -> Result:
        self.entered.release()
        assert self.go.acquire(timeout=20)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return self.runner(frame)


def frames(count: int) -> list[Frame]:
    return [Frame(image, seq, 0.0) for seq, image in enumerate(random_images(count))]


def test_only_the_newest_waiting_frame_is_answered(bundle: Bundle) -> None:
    gate = Gate(bundle)
    worker = Worker(gate)
    given = frames(5)
    worker.submit(given[0])
    assert gate.entered.acquire(timeout=20)  # the thread is busy with frame 0
    for frame in given[1:]:
        worker.submit(frame)
    assert worker.latest() is None
    gate.go.release(2)
    first = worker.latest(after=-1, timeout_s=20)
    assert first is not None
    last = first if first.seq == 4 else worker.latest(after=first.seq, timeout_s=20)
    assert last is not None
    assert last.seq == 4
    assert worker.counts() == WorkerCounts(submitted=5, answered=2, replaced=3)
    worker.close()


def test_an_error_is_raised_once_and_the_stream_goes_on(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(bundle)
    gate.error = EngineError("the device hiccuped.")
    worker = Worker(gate)
    gate.go.release(2)
    with caplog.at_level(logging.ERROR):
        worker.submit(frames(1)[0])
        with pytest.raises(EngineError, match="hiccuped"):
            worker.latest(after=-1, timeout_s=20)
    assert worker.latest() is None
    worker.submit(frames(2)[1])
    result = worker.latest(after=-1, timeout_s=20)
    assert result is not None
    assert result.seq == 1
    assert worker.counts() == WorkerCounts(submitted=2, answered=1, failed=1)
    assert [record.message for record in caplog.records].count(
        "stream 0: a submitted frame was not answered: the device hiccuped."
    ) == 1
    worker.close()


def test_a_callback_that_raises_is_counted_and_logged(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []

    def on_result(result: Result) -> None:
        seen.append(result.seq)
        if result.seq == 0:
            raise KeyError("the application's own")

    with (
        caplog.at_level(logging.ERROR),
        EdgeRunner(bundle, threads=1, threaded=True, on_result=on_result) as runner,
    ):
        last = -1
        for frame in frames(3):
            runner.submit(frame)
            result = runner.latest(after=last, timeout_s=20)
            assert result is not None
            last = result.seq
        runner.reset()  # runs on the thread, after the last callback
        assert runner.counts == WorkerCounts(submitted=3, answered=3, callback_errors=1)
    assert seen == [0, 1, 2]
    assert [record.message for record in caplog.records] == ["stream 0: on_result failed for frame 0"]


def test_calls_from_many_threads_are_answered_one_after_another(bundle: Bundle) -> None:
    images = random_images(64)
    with EdgeRunner(bundle, threads=1, threaded=True) as runner, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda image: runner(image).seq, images))
    assert sorted(results) == list(range(64))


def test_a_threaded_runner_answers_as_a_plain_one(bundle: Bundle) -> None:
    images = random_images(12)
    with EdgeRunner(bundle, threads=1) as plain, EdgeRunner(bundle, threads=1, threaded=True) as threaded:
        for image in images:
            one, other = plain(image), threaded(image)
            assert (one.kind, one.seq, one.state_age) == (other.kind, other.seq, other.state_age)
            np.testing.assert_array_equal(one.mask, other.mask)


def test_latest_belongs_to_the_caller(bundle: Bundle) -> None:
    given = frames(2)
    with EdgeRunner(bundle, threads=1, threaded=True) as runner:
        runner.submit(given[0])
        first = runner.latest(after=-1, timeout_s=20)
        assert first is not None
        kept = first.mask.copy()
        runner.submit(given[1])
        runner.latest(after=0, timeout_s=20)
        np.testing.assert_array_equal(first.mask, kept)


def test_waiting_ends_when_the_runner_closes(bundle: Bundle) -> None:
    runner = EdgeRunner(bundle, threads=1, threaded=True).open()
    failures: list[Exception] = []

    def wait() -> None:
        try:
            runner.latest(after=-1)
        except ClosedError as error:
            failures.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    runner.close()
    waiting.join(20)
    assert not waiting.is_alive()
    assert len(failures) == 1
    with pytest.raises(ClosedError):
        runner.submit(random_images(1)[0])


def test_waiting_has_an_end(bundle: Bundle) -> None:
    with EdgeRunner(bundle, threads=1, threaded=True) as runner:
        assert runner.latest(after=-1, timeout_s=0.01) is None


def test_the_threads_runner_needs_one(bundle: Bundle) -> None:
    with EdgeRunner(bundle, threads=1) as runner:
        for call in (lambda: runner.submit(random_images(1)[0]), runner.latest, lambda: runner.counts):
            with pytest.raises(RecipeError, match="threaded=True"):
                call()
    with pytest.raises(RecipeError, match="threaded=True"):
        EdgeRunner(bundle, on_result=print)


def test_an_error_while_opening_leaves_no_thread(bundle: Bundle, tmp_path) -> None:
    before = threading.active_count()
    broken = residual().write(tmp_path / "b")
    (broken.path / "delta.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError):
        EdgeRunner(broken, threads=1, threaded=True).open()
    assert threading.active_count() == before
