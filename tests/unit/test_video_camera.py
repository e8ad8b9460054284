from __future__ import annotations

import pytest

from edge_sdk.errors import ClosedError, VideoError
from edge_sdk.video import open_source
from tests.videos import install_fake, picture


def test_camera_absent() -> None:
    with pytest.raises(VideoError, match=r"camera:63: cannot be opened; devices found: .*Check the index"):
        open_source("camera:63")


def test_camera_counts_on_and_stamps_monotonically(monkeypatch: pytest.MonkeyPatch) -> None:
    made = install_fake(monkeypatch, [picture(i) for i in range(20)], fps=30.0)
    source = open_source("camera:0?width=64&height=48&fps=25", limit=3, stride=2)
    assert (source.live, source.size_hw, source.fps, source.frame_count) == (True, (48, 64), 12.5, 3)
    frames = list(source) + list(source)
    assert [f.seq for f in frames] == [0, 1, 2, 3, 4, 5]
    stamps = [f.captured_s for f in frames]
    assert stamps == sorted(stamps)
    assert stamps[0] > 0
    source.close()
    assert made[0].released
    with pytest.raises(ClosedError):
        iter(source)


@pytest.mark.parametrize(
    ("uri", "pictures", "fps", "message"),
    [
        (
            "camera:0?width=1280&height=720",
            2,
            30.0,
            "asked for width=1280 height=720, it delivers width=64 height=48",
        ),
        ("camera:0", 2, 0.0, r"frame rate is unknown .*camera:0\?fps=30"),
        ("camera:0", 0, 30.0, "camera:0: stopped delivering at frame 0"),
        ("camera:0", 4, 30.0, "camera:0: stopped delivering at frame 3.*Check the cable"),
    ],
)
def test_camera_fails_clearly(
    monkeypatch: pytest.MonkeyPatch, uri: str, pictures: int, fps: float, message: str
) -> None:
    made = install_fake(monkeypatch, [picture(i) for i in range(pictures)], fps=fps)
    with pytest.raises(VideoError, match=message), open_source(uri) as source:
        list(source)
    assert made[0].released


def test_camera_without_a_rate_takes_the_one_given(monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake(monkeypatch, [picture(0)], fps=0.0)
    assert open_source("camera:0?fps=15").fps == 15.0
