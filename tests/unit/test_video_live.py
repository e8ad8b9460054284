from __future__ import annotations

import gc
import logging
import re
import threading
import time

import numpy as np
import pytest

from edge_sdk.errors import ClosedError, VideoError
from edge_sdk.video import LiveSettings, LiveSource, Selection
from edge_sdk.video.keeper import Keeper
from edge_sdk.video.reader import Reader
from edge_sdk.video.slot import NewestSlot, SourceStats
from edge_sdk.video.watchdog import SourceEvent
from tests.cameras import FakeDevice, SimulatedClock, pictures
from tests.rtsp_server import wait_until
from tests.videos import index_of, picture

# Real threads in these tests: short, and long enough that a busy machine does not look like a stall.
QUICK = LiveSettings(stall_s=0.3, open_s=5, pause_s=0.01, max_pause_s=0.02, lost_s=20)


class InTurn(Reader):
    """A reader that runs when the test says so, on the test's thread."""

    hangs = False

    def start(self) -> None:
        pass

    def is_alive(self) -> bool:
        return self.hangs


class Hanging(InTurn):
    """A reader that never returns from the driver."""

    hangs = True


class World:
    """A keeper without threads under a simulated clock."""

    def __init__(self, *plans, selection=Selection(), settings=LiveSettings(), reader=InTurn) -> None:  # noqa: B008
        self.clock = SimulatedClock()
        self.events: list[SourceEvent] = []
        self.readers: list[Reader] = []
        self.device = FakeDevice(*plans)
        self.slot = NewestSlot(selection, self.clock)

        def make(*args) -> Reader:
            self.readers.append(reader(*args))
            return self.readers[-1]

        self.keeper = Keeper(
            self.device, settings, self.slot, on_event=self.events.append, clock=self.clock, reader=make
        )
        self.keeper._start_reader()
        self.taken: list = []

    def ask(self) -> None:
        frame = self.slot.take(0)
        if frame is not None:
            self.taken.append(frame)

    def until_due(self) -> None:
        self.clock.pass_s(self.keeper.step())
        self.keeper.step()

    @property
    def seqs(self) -> list[int]:
        return [frame.seq for frame in self.taken]


def slow_consumer(world: World, frames: int, every: int) -> list:
    """Steps of a device of 10 frames a second; the consumer asks at every so many."""
    steps: list = [picture(0), world.ask]
    for index in range(frames):
        steps += [lambda: world.clock.pass_s(0.1), picture(index)]
        if index % every == every - 1:
            # The frame just grabbed is delivered before the next grab, where this stands.
            steps += [lambda: world.clock.pass_s(0.02), world.ask]
    return steps


@pytest.mark.parametrize(("frames", "every"), [(12, 1), (12, 3), (12, 5), (7, 7)])
def test_a_slow_consumer_gets_the_newest_and_what_it_missed_is_counted(frames: int, every: int) -> None:
    world = World([])
    world.device.plans = [slow_consumer(world, frames, every)]
    world.readers[0].run()
    world.ask()
    expected = list(range(every - 1, frames, every))
    left = frames % every
    assert world.seqs == expected + ([frames - 1] if left else [])
    assert [index_of(frame.image) for frame in world.taken] == world.seqs
    stats = world.slot.stats
    assert (stats.received, stats.delivered, stats.corrupt) == (frames, len(world.seqs), 0)
    assert stats.dropped == frames - len(world.seqs)
    gaps = np.diff([-1, *world.seqs]) - 1
    assert gaps.sum() == stats.dropped


def test_captured_when_grabbed_and_aged_when_delivered() -> None:
    world = World([])
    world.device.plans = [slow_consumer(world, 4, 2)]
    world.readers[0].run()
    assert [frame.captured_s for frame in world.taken] == pytest.approx([1000.2, 1000.42])
    assert world.slot.stats.age_ms == pytest.approx(20)


def test_no_frame_is_delivered_twice() -> None:
    world = World([])
    world.device.plans = [[picture(0), world.ask, picture(1), *[world.ask] * 4, picture(2)]]
    world.readers[0].run()
    assert world.seqs == [0]
    world.ask()
    world.ask()
    assert world.seqs == [0, 1]


def test_a_stream_begins_when_its_first_frame_is_asked_for() -> None:
    world = World([])
    world.device.plans = [[*pictures(9), world.ask, picture(9)]]
    world.readers[0].run()
    world.ask()
    assert (world.seqs, index_of(world.taken[0].image)) == ([0], 9)
    assert world.slot.stats.dropped == 0


@pytest.mark.parametrize(
    ("start", "stride", "indices"), [(0, 3, [1, 4, 7]), (4, 1, [5, 6, 7, 8, 9]), (2, 4, [3, 7])]
)
def test_frames_left_out_on_request_make_no_gap(start: int, stride: int, indices: list[int]) -> None:
    world = World([], selection=Selection(start=start, stride=stride))
    steps: list = [picture(0), world.ask]
    for index in range(1, 10):
        steps += [picture(index), world.ask]
    world.device.plans = [steps]
    world.readers[0].run()
    assert world.seqs == list(range(len(indices)))
    assert [index_of(frame.image) for frame in world.taken] == indices
    assert world.slot.stats.dropped == 0


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (None, "a frame cannot be decoded"),
        (picture(1, 24, 32), "a frame is 24 x 32, those before it 48 x 64"),
        (picture(1)[..., 0], r"expected \(H, W, 3\) uint8, got \(48, 64\) uint8"),
        (picture(1).astype(np.uint16), "got .* uint16"),
    ],
)
def test_corrupt_frames_are_counted_logged_once_and_leave_a_gap(bad, reason: str, caplog) -> None:
    world = World([])
    steps: list = [picture(0), world.ask]
    for image in (picture(1), bad, picture(2), bad, bad, picture(3)):
        steps += [image, world.ask]
    world.device.plans = [steps]
    with caplog.at_level(logging.WARNING):
        world.readers[0].run()
    assert world.seqs == [0, 2, 5]
    assert world.slot.stats == SourceStats(received=6, delivered=3, corrupt=3, stalls=1, age_ms=0.0)
    (record,) = caplog.records
    assert "frame 1 is left out and counted as corrupt: fake:0: " in record.message
    assert record.levelname == "WARNING"
    assert re.search(reason, record.message)


def test_corrupt_frames_alone_are_a_stall() -> None:
    world = World([])
    steps: list = [picture(0), world.ask, picture(1)]
    for _ in range(40):
        steps += [lambda: world.clock.pass_s(0.1), None, world.keeper.step]
    world.device.plans = [steps]
    world.readers[0].run()
    assert [event.state.value for event in world.events] == ["open", "stalled"]
    assert world.slot.stats.corrupt == 30  # one each 0.1 s for 3 s, then nobody reads on


def test_the_pauses_of_a_device_that_hangs_for_ever() -> None:
    settings = LiveSettings(stall_s=3, open_s=10, pause_s=1, pause_growth=3, max_pause_s=20, lost_s=100)
    world = World([], settings=settings)
    world.device.plans = [[picture(0), world.ask]]
    world.readers[0].run()
    # The device said itself that it ends; from then on, openings get no answer.
    begin = world.clock()
    while world.keeper.state.value != "lost":
        world.until_due()
    told = [(e.state.value, round(e.at_s - begin, 3), e.attempt, e.pause_s) for e in world.events]
    assert told == [
        ("open", 0, 0, 0),
        ("stalled", 0, 0, 1),
        ("reopening", 1, 1, 1),
        ("stalled", 11, 1, 3),
        ("reopening", 14, 2, 3),
        ("stalled", 24, 2, 9),
        ("reopening", 33, 3, 9),
        ("stalled", 43, 3, 20),
        ("reopening", 63, 4, 20),
        ("stalled", 73, 4, 20),
        ("reopening", 93, 5, 20),
        ("lost", 100, 5, 0),
    ]
    assert world.events[1].reason == "stopped delivering"
    with pytest.raises(
        VideoError,
        match=r"fake:0: lost: .*5 openings; no answer within 10 s of opening\. Check the",
    ):
        world.slot.take(None)
    assert (world.slot.stats.stalls, world.slot.stats.reconnects) == (1, 0)


def test_readers_that_hang_are_few() -> None:
    world = World([picture(0)], reader=Hanging, settings=LiveSettings(lost_s=float("inf")))
    world.readers[0].run()
    for _ in range(50):
        world.until_due()
    assert len(world.readers) == 3
    Hanging.hangs = False
    try:
        for _ in range(4):
            world.until_due()
        assert len(world.readers) > 3
    finally:
        Hanging.hangs = True


def test_reconnecting_leaves_one_gap_and_a_late_reader_is_ignored() -> None:
    late: list = []
    world = World([])
    world.device.plans = [[picture(0), world.ask, *pictures(3, 1), lambda: late.append(world.readers[0])]]
    world.device.plans.append([*pictures(4, 10)])
    world.readers[0].run()
    world.ask()
    assert world.seqs == [2]
    old = world.readers[0]
    world.until_due()
    assert world.keeper.state.value == "reopening"
    world.readers[1].run()
    world.ask()
    # 3 was left open for what nobody saw; 10 was the picture that showed that it delivers again.
    assert (world.seqs, index_of(world.taken[-1].image)) == ([2, 6], 13)
    before = world.slot.stats
    assert world.keeper.grabbed(old, 0.0) is None
    world.keeper.deliver(old, world.taken[0])
    world.keeper.spoiled(old, 1, "late")
    world.keeper.failed(old, VideoError("late"))
    assert world.slot.stats == before
    assert before.reconnects == 1


def test_another_size_after_reconnecting_is_a_failed_opening() -> None:
    world = World([picture(0)], [picture(0, 24, 32)])
    world.readers[0].run()
    world.until_due()
    world.readers[1].run()
    world.keeper.step()
    assert world.events[-1].state.value == "stalled"
    assert "its frames are 24 x 32 now, before they were 48 x 64" in world.events[-1].reason
    assert world.device.released == [True, True]


# With real threads.


def test_frames_arrive_by_threads_and_all_is_released() -> None:
    device = FakeDevice(pictures(400), gated=True)
    device.give(2)
    with LiveSource(device, settings=QUICK, selection=Selection(limit=3)) as source:
        assert (source.live, source.size_hw, source.fps, source.frame_count) == (True, (48, 64), 30.0, 3)
        frames = iter(source)
        seqs = []
        feeder = threading.Timer(0.05, device.give, [1])
        feeder.start()
        for frame in frames:
            seqs.append(frame.seq)
            threading.Timer(0.02, device.give, [1]).start()
        assert seqs == [0, 1, 2]
        assert source.take(0) is None or source.stats.delivered == 4
        device.give(5)
    assert device.released == [True]
    with pytest.raises(ClosedError, match="closed"):
        next(iter(source))
    with pytest.raises(ClosedError):
        source.take(0)


def test_a_reader_that_blocks_for_ever_is_replaced() -> None:
    unblock = threading.Event()
    events: list = []
    device = FakeDevice([picture(0), *pictures(1), unblock.wait, picture(9)], pictures(5000), gated=True)
    device.give(3)
    before = set(threading.enumerate())  # readers that other tests left hanging are no concern of this one
    source = LiveSource(device, settings=QUICK, on_event=events.append)
    threads = [t for t in threading.enumerate() if t.name.startswith("edge-sdk-read") and t not in before]
    assert len(threads) == 1
    feeding = threading.Event()

    def feed() -> None:
        while not feeding.wait(0.005):
            device.give()

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        first = source.take(10)
        assert first is not None
        assert source.stats.reconnects == 1
        seqs = [first.seq, *(frame.seq for frame, _ in zip(source, range(5), strict=False))]
        assert seqs == sorted(set(seqs))
        assert device.released == [False, False]
        unblock.set()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert device.released == [True, False]
    finally:
        feeding.set()
        feeder.join()
        device.give(2)
        source.close()
    assert device.released == [True, True]
    assert [event.state.value for event in events] == ["open", "stalled", "reopening", "open"]
    assert events[1].reason == "no frame for 0.3 s"


def test_closing_does_not_wait_for_a_reader_that_hangs(caplog) -> None:
    unblock = threading.Event()
    source = LiveSource(FakeDevice([picture(0), unblock.wait]))
    begin = time.perf_counter()
    source.close()
    assert time.perf_counter() - begin < 5
    assert "the driver does not return, so the device is not released" in caplog.text
    assert "Check the fake." in caplog.text
    unblock.set()


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (VideoError("fake:0: cannot be opened.", hint="Plug it in."), "cannot be opened. Plug it in"),
        (RuntimeError("driver says no"), "fake:0: RuntimeError: driver says no"),
        ([], "fake:0: delivers no frame. Check the fake"),
        ([None] * 5, "fake:0: a frame cannot be decoded"),
        ([ValueError("odd")], "fake:0: ValueError: odd"),
    ],
)
def test_a_device_that_does_not_open(plan, message: str) -> None:
    device = FakeDevice(plan)
    with pytest.raises(VideoError, match=message):
        LiveSource(device, settings=QUICK)
    assert all(device.released)


def test_an_opening_that_hangs_is_an_error_in_time() -> None:
    unblock = threading.Event()
    device = FakeDevice([unblock.wait, picture(0)])
    with pytest.raises(VideoError, match=r"fake:0: no frame within 0\.05 s of opening\. Check the fake"):
        LiveSource(device, settings=LiveSettings(open_s=0.05))
    unblock.set()


def test_whoever_waits_is_told_when_the_source_is_lost_or_closed() -> None:
    device = FakeDevice([picture(0)], VideoError("fake:0: unplugged."))
    lost = LiveSettings(stall_s=0.1, pause_s=0.01, max_pause_s=0.01, lost_s=0.2)
    with LiveSource(device, settings=lost) as source, pytest.raises(VideoError, match=r"lost: .*unplugged"):
        list(source)


def test_closing_ends_the_wait_of_another_thread() -> None:
    unblock = threading.Event()
    source = LiveSource(FakeDevice([picture(0), unblock.wait]))
    threading.Timer(0.1, source.close).start()
    with pytest.raises(ClosedError):
        next(iter(source))
    unblock.set()


def test_what_on_event_raises_is_logged_and_the_source_goes_on(caplog) -> None:
    def fail(event) -> None:
        raise ValueError("mine")

    forever = [*pictures(2), lambda: time.sleep(0.001)]
    device = FakeDevice(pictures(1), forever * 2000)
    with LiveSource(device, settings=QUICK, on_event=fail) as source:
        assert source.take(10) is not None
    assert caplog.text.count("on_event failed for reopening of fake:0") == 1


def test_a_forgotten_source_lets_the_device_go() -> None:
    device = FakeDevice([*pictures(1), lambda: time.sleep(0.001)] * 100_000)
    source = LiveSource(device)
    source.take(10)
    del source
    gc.collect()
    wait_until(lambda: device.released == [True])
