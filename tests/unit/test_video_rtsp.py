"""A stream over a real socket through OpenCV's own FFmpeg: what a server does to a live source."""

from __future__ import annotations

import time

import pytest

from edge_sdk.video import LiveSource, SourceState, open_source
from tests.rtsp_server import RtspServer, wait_until

cv2 = pytest.importorskip("cv2")

if not any("FFMPEG" in line and "YES" in line for line in cv2.getBuildInformation().splitlines()):
    pytest.skip("this OpenCV has no FFmpeg, which reads RTSP", allow_module_level=True)

OPTIONS = "#fps=50&stall_s=1&pause_s=0.05&open_s=15"


def opened(server: RtspServer, events: list, options: str = OPTIONS) -> LiveSource:
    source = open_source(server.url + options, on_event=events.append)
    assert isinstance(source, LiveSource)
    return source


def grey(frame) -> int:
    """The server's pictures grow lighter by one each."""
    return round(float(frame.image.mean()))


def test_frames_come_and_a_slow_consumer_gets_new_ones() -> None:
    with RtspServer() as server, opened(server, []) as source:
        assert (source.size_hw, source.fps, source.live) == ((48, 64), 50.0, True)
        first = source.take(10)
        assert first is not None
        wait_until(lambda: source.stats.received >= 25)
        second = source.take(10)
        assert second is not None
        assert second.seq >= 24
        # Old pictures were dropped, not queued: the picture is as many further as its number is.
        assert grey(second) - grey(first) == pytest.approx(second.seq - first.seq, abs=1)
        stats = source.stats
        assert stats.dropped == second.seq + 1 - 2  # all but the two
        assert time.monotonic() - second.captured_s < 1
    assert "PLAY" in server.requests[3]


@pytest.mark.parametrize("fault", ["hangs up", "falls silent"])
def test_a_server_that_goes_away_and_comes_back(fault: str) -> None:
    events: list = []
    with RtspServer() as server, opened(server, events) as source:
        before = source.take(10)
        assert before is not None
        if fault == "hangs up":
            server.hang_up()
        else:
            server.silent.set()
        wait_until(lambda: source.stats.stalls == 1)
        waiting = source.take(0)  # what came last, before the fault
        last = (waiting or before).seq
        server.silent.clear()
        after = source.take(20)
        assert after is not None
        assert after.seq > last + 1
        assert source.stats.reconnects == 1
        assert source.stats.delivered == (3 if waiting else 2)
        wait_until(lambda: events[-1].state is SourceState.open)  # told on another thread than the frames
        states = [event.state.value for event in events]
        assert states[:2] == ["open", "stalled"]
        assert events[1].reason in ("stopped delivering", "no frame for 1 s")


@pytest.mark.parametrize("options", ["&latency_ms=0", "&latency_ms=300&flip=clockwise"])
def test_options_reach_ffmpeg_unharmed(options: str) -> None:
    with RtspServer() as server, opened(server, [], OPTIONS + options) as source:
        assert source.size_hw == ((64, 48) if "clockwise" in options else (48, 64))
        assert source.take(10) is not None
