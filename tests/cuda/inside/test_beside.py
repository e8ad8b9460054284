"""A helper's thread prepares engines on the GPU while the owner's runs frames."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.errors import ClosedError, EngineError
from edge_sdk.runtime.cuda.device import CudaOptions
from edge_sdk.runtime.cuda.engine import CudaEngine
from edge_sdk.runtime.engine import EngineOptions
from edge_sdk.runtime.learning import NewEngines
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import EverySchedule, Schedule
from edge_sdk.runtime.steps import StepEngines
from edge_sdk.runtime.stream import Stream
from edge_sdk.tensors import TensorSpec
from tests.adapt_world import ALWAYS, ANYTHING_GOES, World, lesson, ramp, threshold_of
from tests.cuda.world import DRIVER, OUT_OF_MEMORY, DeviceOrtBackend, Driver, watched
from tests.fake_student import bright_bundle, threshold_graph
from tests.graphs import random_images, residual

SIZE = (16, 24)
FRAME = TensorSpec(name="frame", shape=(*SIZE, 3), dtype="uint8")
MASK = TensorSpec(name="mask", shape=SIZE, dtype="uint8")
IMAGES = random_images(6, SIZE)
OPTIONS = EngineOptions()
KINDS = ["pinned", "mapped", "managed"]


@pytest.fixture
def helper() -> Iterator[ThreadPoolExecutor]:
    """One thread beside this one."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture(params=["late", "shuffle"])
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    with watched(mode=request.param, seed=3) as found:
        yield found


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return bright_bundle(tmp_path / "bundle", size_hw=SIZE).path / "delta.onnx"


def bright(image: np.ndarray, threshold: float) -> np.ndarray:
    return (image[..., 0] >= threshold).astype(np.uint8)


class Bound:
    """An engine with buffers of its own."""

    def __init__(self, engine: CudaEngine) -> None:
        self.engine = engine
        self.frame, self.mask = engine.allocate(FRAME), engine.allocate(MASK)
        self.step = engine.bind({"frame": self.frame, "mask": self.mask})

    def answer(self, image: np.ndarray) -> np.ndarray:
        self.frame.host[:] = image
        self.step.run()
        return self.mask.host.copy()


def content(threshold: float) -> bytes:
    return threshold_graph(threshold, SIZE).SerializeToString()


@pytest.mark.parametrize("memory", KINDS)
def test_engines_come_and_go_beside_the_frames(
    memory: Any, graph: Path, driver: Driver, helper: ThreadPoolExecutor
) -> None:
    backend = DeviceOrtBackend(CudaOptions(memory=memory))
    mine = Bound(backend.load(graph, OPTIONS))
    helper.submit(backend.join_thread).result()
    before = driver.report().live

    def prepare(threshold: int) -> None:
        engine = backend.reload(graph, OPTIONS, content(threshold))
        try:
            bound = Bound(engine)
            for image in IMAGES:
                np.testing.assert_array_equal(bound.answer(image), bright(image, threshold))
            assert not bound.step.captured, "a graph belongs to the main stream"
        finally:
            engine.close()

    prepared = [helper.submit(prepare, threshold) for threshold in range(20, 240, 20)]
    frames = 0
    while frames < 20 or not all(done.done() for done in prepared):
        image = IMAGES[frames % len(IMAGES)]
        np.testing.assert_array_equal(mine.answer(image), bright(image, 128.0625))
        frames += 1
    for done in prepared:
        done.result()
    mine.answer(IMAGES[0])  # while a helper is at work nothing is captured
    assert mine.step.captured
    # Not a byte more than before; the graph is the frames' own.
    assert driver.report().live == before | {"executables": before["executables"] + 1}
    mine.engine.close()


def test_only_threads_that_have_joined_may_call(
    graph: Path, driver: Driver, helper: ThreadPoolExecutor
) -> None:
    backend = DeviceOrtBackend()
    for call in (backend.join_thread, lambda: backend.reload(graph, OPTIONS, content(1))):
        with pytest.raises(ClosedError, match="no engine is open"):
            helper.submit(call).result()
    mine = Bound(backend.load(graph, OPTIONS))
    with pytest.raises(EngineError, match="called from thread"):
        helper.submit(mine.engine.allocate, MASK).result()
    backend.join_thread()  # the owner itself: nothing happens
    for _ in range(2):
        helper.submit(backend.join_thread).result()
    helper.submit(mine.engine.allocate, MASK).result().close()
    stranger = threading.Thread(target=lambda: refused.append(refusal(mine.step.run)))
    refused: list[str] = []
    stranger.start()
    stranger.join()
    assert "called from thread" in refused[0]
    mine.engine.close()


def refusal(call: Callable[[], Any]) -> str:
    try:
        call()
    except EngineError as error:
        return str(error)
    return ""


def test_of_two_owners_it_is_not_known_which_to_help(
    graph: Path, driver: Driver, helper: ThreadPoolExecutor
) -> None:
    backend = DeviceOrtBackend()
    first = backend.load(graph, OPTIONS)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(backend.load, graph, OPTIONS).result()
        with pytest.raises(EngineError, match="2 threads run engines"):
            helper.submit(backend.join_thread).result()
        pool.submit(second.close).result()
    helper.submit(backend.join_thread).result()
    first.close()


@pytest.mark.parametrize("memory", KINDS)
def test_what_a_helper_binds_the_owner_runs(
    memory: Any, graph: Path, driver: Driver, helper: ThreadPoolExecutor
) -> None:
    backend = DeviceOrtBackend(CudaOptions(memory=memory))
    mine = Bound(backend.load(graph, OPTIONS))
    old = mine.engine
    mine.answer(IMAGES[0])
    new = helper.submit(backend.reload, graph, OPTIONS, content(50)).result()
    mine.step = helper.submit(new.bind, {"frame": mine.frame, "mask": mine.mask}).result()
    helper.submit(old.close).result()  # its buffers stay: the new step uses them
    for _ in range(3):
        np.testing.assert_array_equal(mine.answer(IMAGES[1]), bright(IMAGES[1], 50))
    assert mine.step.captured
    helper.submit(mine.step.run).result()  # plainly, on the helper's own stream
    np.testing.assert_array_equal(mine.answer(IMAGES[2]), bright(IMAGES[2], 50))
    new.close()


def test_the_last_one_out_may_be_a_helper(graph: Path, driver: Driver, helper: ThreadPoolExecutor) -> None:
    backend = DeviceOrtBackend()
    mine = Bound(backend.load(graph, OPTIONS))
    mine.answer(IMAGES[0])
    helper.submit(backend.join_thread).result()
    helper.submit(mine.engine.close).result()
    assert mine.engine.device.closed
    assert driver.report().live["retained"] == 0
    assert helper.submit(lambda: driver.depth).result() == 0
    # And a new one can be opened, by either thread.
    again = Bound(backend.load(graph, OPTIONS))
    np.testing.assert_array_equal(again.answer(IMAGES[0]), bright(IMAGES[0], 128.0625))
    again.engine.close()


def test_a_helper_that_gets_no_stream_has_not_joined(
    graph: Path, driver: Driver, helper: ThreadPoolExecutor
) -> None:
    backend = DeviceOrtBackend()
    mine = Bound(backend.load(graph, OPTIONS))
    driver.fail("cuStreamCreate", OUT_OF_MEMORY)
    with pytest.raises(EngineError, match="gives no stream"):
        helper.submit(backend.join_thread).result()
    with pytest.raises(EngineError, match="called from thread"):
        helper.submit(mine.engine.allocate, MASK).result()
    np.testing.assert_array_equal(mine.answer(IMAGES[0]), bright(IMAGES[0], 128.0625))
    mine.engine.close()


def test_nothing_is_captured_while_a_helper_is_at_work(
    graph: Path, driver: Driver, helper: ThreadPoolExecutor
) -> None:
    backend = DeviceOrtBackend()
    mine = Bound(backend.load(graph, OPTIONS))
    device, entered, leave = mine.engine.device, threading.Event(), threading.Event()

    def work() -> None:
        backend.join_thread()
        with device:
            entered.set()
            leave.wait(10)

    working = helper.submit(work)
    assert entered.wait(10)
    for _ in range(3):
        np.testing.assert_array_equal(mine.answer(IMAGES[0]), bright(IMAGES[0], 128.0625))
        assert not mine.step.captured
    leave.set()
    working.result()
    mine.answer(IMAGES[0])
    assert mine.step.captured
    mine.engine.close()


class Learner:
    """What a stream asks of its learner, as far as swaps go."""

    def __init__(self) -> None:
        self.schedule: Schedule = EverySchedule(interval=5).start()
        self.ready: list[NewEngines] = []
        self.taken: list[NewEngines] = []

    def attach(self, stream: Stream) -> None:
        """Engines are bound where they are made."""

    def collect(self) -> NewEngines | None:
        return self.ready.pop(0) if self.ready else None

    def took(self, engines: NewEngines) -> None:
        self.taken.append(engines)

    def label(self, seq: int, truth: Any) -> None:
        return None

    def keyframe(self, seq: int, image: np.ndarray, mask: np.ndarray) -> bool:
        return False

    def reset(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize("memory", KINDS)
def test_a_stream_takes_engines_that_a_helper_bound(
    memory: Any, driver: Driver, helper: ThreadPoolExecutor, tmp_path: Path
) -> None:
    """Each mask is that of exactly one version, and what a version took is given back."""
    bundle = bright_bundle(tmp_path / "bundle", teacher=100, size_hw=SIZE)
    backend = DeviceOrtBackend(CudaOptions(memory=memory))
    engines = StepEngines.load(bundle, backend, OPTIONS, with_delta=True)
    learner = Learner()
    stream = Stream(bundle, engines, learner.schedule, None, learner)
    assert engines.delta is not None
    in_use: Any = engines.delta

    def prepare(threshold: int) -> None:
        new = backend.reload(bundle.path / "delta.onnx", OPTIONS, content(threshold))
        probe = Bound(new)
        np.testing.assert_array_equal(probe.answer(IMAGES[0]), bright(IMAGES[0], threshold))
        learner.ready.append(stream.bind_new(None, new, 0, IMAGES[0]))

    version, seq = 128.0625, 0
    live: list[dict[str, int]] = []
    for threshold in range(30, 110, 10):
        work = helper.submit(prepare, threshold)
        while not learner.taken:
            result = stream(IMAGES[seq % len(IMAGES)])
            expected = 100 if seq % 5 == 0 else threshold if learner.taken else version
            np.testing.assert_array_equal(result.mask, bright(IMAGES[seq % len(IMAGES)], expected))
            seq += 1
        work.result()
        version = threshold
        helper.submit(in_use.close).result()
        in_use = learner.taken.pop().engines[-1]
        live.append(driver.report().live)
    assert all(found["memory"] == live[1]["memory"] for found in live[1:])
    assert all(found["streams"] == live[1]["streams"] for found in live[1:])
    stream.close()
    in_use.close()
    engines.close()


def test_a_state_made_with_new_weights_is_taken_over(
    driver: Driver, helper: ThreadPoolExecutor, tmp_path: Path
) -> None:
    pair = residual(SIZE)
    bundle = pair.write(tmp_path / "bundle", EverySchedule(interval=100))
    backend = DeviceOrtBackend()
    engines = StepEngines.load(bundle, backend, OPTIONS, with_delta=True)
    learner = Learner()
    learner.schedule = EverySchedule(interval=100).start()
    stream = Stream(bundle, engines, learner.schedule, None, learner)
    contents = {step: (bundle.path / f"{step}.onnx").read_bytes() for step in ("keyframe", "delta")}

    def prepare() -> None:
        keyframe, delta = (
            backend.reload(bundle.path / f"{step}.onnx", OPTIONS, data) for step, data in contents.items()
        )
        learner.ready.append(stream.bind_new(keyframe, delta, 0, IMAGES[0]))

    results = [stream(image).copy() for image in IMAGES[:3]]
    for _ in range(2):
        helper.submit(prepare).result()
        results += [stream(image).copy() for image in IMAGES[3:5]]
    kinds = [result.kind for result in results]
    assert [kind.value for kind in kinds].count("keyframe") == 1, "the state went on"
    expected = pair.expected([*IMAGES[:3], *IMAGES[3:5], *IMAGES[3:5]], kinds)
    for result, mask in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.mask, mask)
    stream.close()
    for new in learner.taken:
        for engine in new.engines:
            helper.submit(engine.close).result()
    engines.close()
    assert DRIVER.depth == 0


@pytest.mark.parametrize(
    ("memory", "pace"), [("pinned", "beside"), ("managed", "beside"), ("pinned", "in_turn")]
)
def test_a_student_learns_on_the_gpu(
    memory: Any, pace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way, on the runner's own thread: lessons, engines made beside it, probes and swaps."""
    world = World(tmp_path, monkeypatch, rule="count")
    settings = AdaptSettings(stride=ALWAYS, probe=ANYTHING_GOES, pace=pace)
    with watched(mode="shuffle", seed=7):
        backend = DeviceOrtBackend(CudaOptions(memory=memory))
        with EdgeRunner(world.bundle, backend=backend, adapt=settings) as runner:
            for version in range(1, 4):
                status = lesson(runner, ramp())
                assert (status.version, status.refused, status.last_error) == (version, 0, "")
            if pace == "beside":
                assert delta(runner) == 3
        del runner
        gc.collect()  # managed memory lives as long as its views, and a learner holds some of them in circles


def delta(runner: EdgeRunner) -> int:
    """The threshold of the student in use."""
    while True:
        result = runner(ramp())
        if result.kind is StepKind.DELTA:
            return threshold_of(ramp(), result)
