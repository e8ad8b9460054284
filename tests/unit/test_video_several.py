from __future__ import annotations

import threading
import time
from collections import Counter
from itertools import islice

import cv2
import pytest

from edge_sdk.errors import ClosedError, MissingFileError, RecipeError, VideoError
from edge_sdk.video import LiveSettings, LiveSource, Selection, SeveralSources, open_source, open_sources
from tests.cameras import FakeDevice, pictures
from tests.rtsp_server import wait_until
from tests.videos import picture

QUICK = LiveSettings(stall_s=0.2, open_s=5, pause_s=0.01, max_pause_s=0.02, lost_s=0.5)


def scene(frames: int, seed: int = 1) -> str:
    return f"synthetic:shapes?height=32&width=48&frames={frames}&seed={seed}"


def test_recorded_sources_take_turns_and_each_gives_every_frame() -> None:
    with open_sources({"a": scene(2), "b": scene(5, 2), "c": scene(3, 3)}) as sources:
        seen = list(sources)
    assert [name for name, _ in seen] == list("abcabcbcbb")
    for name, count in (("a", 2), ("b", 5), ("c", 3)):
        assert [frame.seq for key, frame in seen if key == name] == list(range(count))
    alone = [frame.image.tobytes() for frame in open_source(scene(5, 2))]
    assert [frame.image.tobytes() for key, frame in seen if key == "b"] == alone
    assert sources.errors == {}


def gated(count: int) -> tuple[FakeDevice, LiveSource]:
    device = FakeDevice(pictures(count), gated=True)
    device.give()
    return device, LiveSource(device, settings=LiveSettings(stall_s=60))


def test_live_sources_take_turns_over_those_that_have_a_new_frame() -> None:
    pairs = [gated(50) for _ in range(3)]
    sources = SeveralSources(dict(enumerate(source for _, source in pairs)))
    for _, source in pairs:
        assert source.take(0) is None  # their streams begin here
    turns = iter(sources)

    def give(*names: int) -> None:
        for name in names:
            before = pairs[name][1].stats.received
            pairs[name][0].give()
            while pairs[name][1].stats.received == before:
                time.sleep(0.001)

    give(0, 1, 2)
    assert [next(turns)[0] for _ in range(3)] == [0, 1, 2]
    give(0, 0, 0, 2)  # a fast one has only its newest frame, and no more turns for it
    assert [(name, frame.seq) for name, frame in islice(turns, 2)] == [(0, 3), (2, 1)]
    give(1, 0)
    assert [name for name, _ in islice(turns, 2)] == [0, 1]
    threading.Timer(0.05, give, [2]).start()  # nothing there: it waits, for whichever comes
    assert next(turns)[0] == 2
    for device, _ in pairs:
        threading.Timer(0.1, device.give, [2]).start()
    sources.close()
    assert [device.released for device, _ in pairs] == [[True]] * 3


def running(frames: int = 100_000) -> FakeDevice:
    return FakeDevice([picture(0), lambda: time.sleep(0.002)] * frames)


def test_a_dead_source_never_stops_the_others() -> None:
    unblock = threading.Event()
    dead = FakeDevice(
        [picture(0), lambda: time.sleep(0.02), picture(1), picture(2), unblock.wait], [unblock.wait]
    )
    devices = {"a": running(), "dead": dead, "b": running()}
    sources = SeveralSources({name: LiveSource(d, settings=QUICK) for name, d in devices.items()})
    counts: Counter = Counter()
    longest, last = 0.0, time.perf_counter()
    with sources:
        for name, _ in sources:
            counts[name] += 1
            longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
            if "dead" in sources.errors and counts["a"] > 200:
                break
    assert counts["a"] > 100
    assert counts["b"] > 100
    assert counts["dead"] <= 2
    assert str(sources.errors["dead"]).startswith("fake:0: lost: no frame for 0.5 s")
    assert longest < 0.4  # shorter than what the dead one was given to come back
    unblock.set()
    assert devices["a"].released == devices["b"].released == [True]


def test_a_live_source_beside_a_file() -> None:
    sources = SeveralSources({"camera": LiveSource(running()), "file": open_source(scene(10))})
    with sources:
        seen = list(islice(sources, 30))
    names = Counter(name for name, _ in seen)
    assert names["file"] == 10
    assert names["camera"] == 20


def test_a_limit_is_each_streams_own() -> None:
    with SeveralSources(
        {n: LiveSource(running(), selection=Selection(limit=limit)) for n, limit in ((1, 3), (2, 5))}
    ) as sources:
        assert Counter(name for name, _ in sources) == {1: 3, 2: 5}
    with open_sources({"a": scene(9), "b": scene(9)}, limit=2) as sources:
        assert [name for name, _ in sources] == ["a", "b", "a", "b"]


def test_when_every_stream_has_failed_it_is_said() -> None:
    lost = LiveSettings(stall_s=0.1, pause_s=0.01, max_pause_s=0.01, lost_s=0.15)
    fakes = {name: LiveSource(FakeDevice([picture(0)], []), settings=lost) for name in "ab"}
    with (
        SeveralSources(fakes) as sources,
        pytest.raises(VideoError, match=r"every stream has failed: ([ab]): fake:0: lost: .*; (?!\1)[ab]: "),
    ):
        list(sources)
    assert sorted(sources.errors) == ["a", "b"]


def test_a_damaged_file_ends_its_own_stream_only(tmp_path, caplog) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f"{index}.png"), picture(index))
    (folder / "1.png").write_bytes(b"no picture")
    with open_sources({"bad": folder, "good": scene(4)}) as sources:
        names = [name for name, _ in sources]
    assert names == ["bad", "good", "good", "good", "good"]
    assert "1.png" in str(sources.errors["bad"])
    assert caplog.text.count("stream bad is left out") == 1


def test_what_cannot_be_opened() -> None:
    with pytest.raises(MissingFileError, match=r"nowhere\.mp4"):
        open_sources({"a": scene(2), "b": "nowhere.mp4"})
    with open_sources({"a": scene(2), "b": "nowhere.mp4"}, required=False) as sources:
        assert list(sources.errors) == ["b"]
        assert len(list(sources)) == 2
    with pytest.raises(MissingFileError):
        open_sources({"b": "nowhere.mp4"}, required=False)
    with pytest.raises(RecipeError, match="unknown key"):
        open_sources({"a": scene(2), "b": "camera:0?hight=3"}, required=False)
    with pytest.raises(RecipeError, match="expected at least one"):
        open_sources({})
    with pytest.raises(RecipeError, match="expected at least one"):
        open_sources([])
    with pytest.raises(RecipeError, match=r"expected several, got 'camera:0'.*open_source\(\) for one"):
        open_sources("camera:0")


def test_a_list_numbers_its_streams() -> None:
    with open_sources([scene(1), scene(2)]) as sources:
        assert [name for name, _ in sources] == [0, 1, 1]


def test_a_camera_that_is_missing_at_the_start_joins_when_it_is_there(monkeypatch) -> None:
    tries: list[str] = []
    late = running()

    def opening(uri, **options):
        tries.append(uri)
        if uri == "camera:late":
            if tries.count(uri) < 4:
                raise VideoError("camera:late: cannot be opened.")
            return LiveSource(late)
        return LiveSource(running()) if uri == "camera:0" else open_source(uri, **options)

    monkeypatch.setattr("edge_sdk.video.several.open_source", opening)
    monkeypatch.setattr("edge_sdk.video.several._RETRIES", LiveSettings(pause_s=0.02, max_pause_s=0.05))
    seen: Counter = Counter()
    with open_sources(
        {"here": "camera:0", "late": "camera:late", "file": "nowhere.mp4"}, required=False
    ) as sources:
        assert sorted(sources.errors) == ["file", "late"]
        for name, _ in sources:
            seen[name] += 1
            if seen["late"] >= 3:
                break
        assert sorted(sources.errors) == ["file"]
        assert sorted(sources.sources) == ["here", "late"]
    assert seen["here"] >= 3
    assert (tries.count("camera:late"), tries.count("nowhere.mp4")) == (4, 1)
    assert late.released == [True]


def test_closing_ends_the_tries_for_a_missing_camera(monkeypatch) -> None:
    def opening(uri, **options):
        if uri == "camera:late":
            raise VideoError("camera:late: cannot be opened.")
        return open_source(uri, **options)

    monkeypatch.setattr("edge_sdk.video.several.open_source", opening)
    with open_sources({"here": scene(2), "late": "camera:late"}, required=False) as sources:
        turns = iter(sources)
        assert [next(turns)[0] for _ in range(2)] == ["here", "here"]
        threading.Timer(0.05, sources.close).start()
        with pytest.raises(ClosedError):
            next(turns)
    wait_until(lambda: not any(t.name == "edge-sdk-open late" for t in threading.enumerate()))


def test_one_that_fails_to_open_closes_the_rest(monkeypatch) -> None:
    closed = []
    scene_of = open_source

    def opening(uri, **options):
        source = scene_of(uri, **options)
        monkeypatch.setattr(source, "close", lambda: closed.append(uri), raising=False)
        return source

    monkeypatch.setattr("edge_sdk.video.several.open_source", opening)
    with pytest.raises(MissingFileError):
        open_sources({"a": scene(2), "b": "nowhere.mp4", "c": scene(3)})
    assert sorted(closed) == [scene(2), scene(3)]


def test_closing_ends_a_wait() -> None:
    device, source = gated(3)
    sources = SeveralSources({"a": source})
    threading.Timer(0.05, sources.close).start()
    threading.Timer(0.15, device.give, [5]).start()
    with pytest.raises(ClosedError):
        list(sources)
    with pytest.raises(ClosedError, match="open_sources"):
        iter(sources).__next__()
    with pytest.raises(ClosedError), sources:
        pass
