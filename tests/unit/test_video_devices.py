"""Cameras and network streams: what is asked of OpenCV, and what is refused before it is asked."""

from __future__ import annotations

import os
import socket
import time

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import DependencyError, RecipeError, VideoError
from edge_sdk.settings import parse_settings
from edge_sdk.video import open_source
from edge_sdk.video.devices import RtspQuery, ffmpeg_options
from edge_sdk.video.flip import FLIP_METHODS, before_flip, flipped
from edge_sdk.video.gstreamer import csi_pipeline, fraction_of, quoted, rtsp_pipeline
from edge_sdk.video.uri import parse_source_uri
from tests.videos import FakeCapture, picture


class OpenedCapture(FakeCapture):
    """Remembers how it was opened, what was set, and FFmpeg's options at the time."""

    def __init__(self, arguments: tuple, pictures: list, fps: float) -> None:
        super().__init__(pictures, 0.0, fps)
        self.arguments = arguments
        self.settings: dict[int, float] = {}
        self.options = os.environ.get("OPENCV_FFMPEG_CAPTURE_OPTIONS")

    def set(self, name: int, value: float) -> bool:
        self.settings[name] = value
        return super().set(name, value)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch):
    """Captures that deliver 200 pictures, in the order in which they were opened."""
    made: list[OpenedCapture] = []

    def install(fps: float = 30.0, image: np.ndarray | None = None) -> list[OpenedCapture]:
        pictures = [picture(1) if image is None else image] * 200

        def capture(*arguments: object) -> OpenedCapture:
            made.append(OpenedCapture(arguments, pictures, fps))
            return made[-1]

        monkeypatch.setattr(cv2, "VideoCapture", capture)
        return made

    return install


@pytest.fixture
def gstreamer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GStreamer:   YES (1.20.3)\n")


@pytest.mark.parametrize(
    ("uri", "scheme", "target", "query"),
    [
        ("camera:0", "camera", "0", {}),
        ("camera:2?width=640", "camera", "2", {"width": "640"}),
        ("csi://0", "csi", "0", {}),
        ("CSI://1?flip=rotate-180", "csi", "1", {"flip": "rotate-180"}),
        ("v4l2:///dev/video0", "v4l2", "/dev/video0", {}),
        ("/dev/video3?format=MJPG", "v4l2", "/dev/video3", {"format": "MJPG"}),
        ("/dev/v4l/by-id/usb-cam", "v4l2", "/dev/v4l/by-id/usb-cam", {}),
        ("rtsp://10.0.0.7/live", "rtsp", "rtsp://10.0.0.7/live", {}),
        (
            "rtsp://10.0.0.7:8554/cam?channel=1&fps=5#latency_ms=50&stall_s=9",
            "rtsp",
            "rtsp://10.0.0.7:8554/cam?channel=1&fps=5",
            {"latency_ms": "50", "stall_s": "9"},
        ),
        ("file:///data/a%20b.mp4?fps=5", "path", "/data/a b.mp4", {"fps": "5"}),
        ("clip.mp4", "path", "clip.mp4", {}),
    ],
)
def test_uris(uri: str, scheme: str, target: str, query: dict) -> None:
    parsed = parse_source_uri(uri)
    assert (parsed.scheme, parsed.target, parsed.query) == (scheme, target, query)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("csi://front", "expected csi://INDEX such as csi://0, got 'front'"),
        ("csi://", "expected csi://INDEX such as csi://0, got ''"),
        ("camera:-1", "expected camera:INDEX such as camera:0, got '-1'"),
        ("v4l2://0", "expected a device such as v4l2:///dev/video0, got '0'"),
        ("csi://0?hight=720", "csi://0.hight=720: unknown key 'hight', did you mean 'height'"),
        ("csi://0?format=MJPG", "unknown key 'format'"),
        ("camera:0?flip=upside-down", "'flip': .*'rotate-180'.* got 'upside-down'"),
        ("camera:0?format=JPEGS", "'format': .*got 'JPEGS'"),
        ("camera:0?width=0", "'width': .*greater than or equal to 1, got '0'"),
        ("camera:0?fps=nan", "'fps': "),
        ("camera:0?stall_s=0", "'stall_s': .*greater than 0"),
        ("camera:0?width=1&width=2", "given twice"),
        ("/dev/video0?width", r"expected \?key=value"),
        ("rtsp:///live", "expected rtsp://HOST/PATH"),
        ("rtsp://host:port/live", "Port could not be cast"),
        ("rtsp://host/a b", "without spaces"),
        ("rtsp://host/live#latency=50", "unknown key 'latency', did you mean 'latency_ms'"),
        ("rtsp://host/live#latency_ms", "expected #key=value"),
        ("rtsp://host/live#transport=quic", "'transport': .*'tcp' or 'udp', got 'quic'"),
        ("rtsp://host/live#width=640", "unknown key 'width'"),
        (
            "rtsp://host/live?latency_ms=50",
            "'latency_ms' stands in the query of the camera's.* follow a '#': rtsp://host/path#latency_ms=50",
        ),
        ("rtsp://host/live#drop=1", "'drop' works through GStreamer.*Add through=gstreamer"),
        ("webrtc://host/live", "unknown scheme 'webrtc', expected a path.*csi://INDEX.*rtsp://HOST"),
    ],
)
def test_bad_uris(uri: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        open_source(uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["csi://0?width=1280", "rtsp://host/live#through=gstreamer"])
def test_without_gstreamer_the_repair_is_named(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  FFMPEG: YES\n  GStreamer:   NO\n")
    message = r"needs an OpenCV with GStreamer, \d.* has none\. On a Jetson use JetPack's own: pip uninstall"
    with pytest.raises(DependencyError, match=message):
        open_source(uri)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("camera:63", r"camera:63: cannot be opened; devices found: .*Check the name, the cable"),
        ("v4l2:///dev/video63", r"v4l2:///dev/video63: cannot be opened; devices found: .*group video"),
    ],
)
def test_a_camera_that_is_not_there(uri: str, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        open_source(uri)


def test_a_csi_pipeline(opened, gstreamer: None) -> None:
    made = opened()
    with open_source("csi://1?width=64&height=48&fps=29.97&flip=rotate-180&sensor_mode=3") as source:
        assert (source.live, source.size_hw, source.fps) == (True, (48, 64), 30.0)
    text, backend = made[0].arguments
    assert backend == cv2.CAP_GSTREAMER
    assert text == (
        "nvarguscamerasrc sensor-id=1 sensor-mode=3 ! "
        "video/x-raw(memory:NVMM), width=(int)64, height=(int)48, framerate=(fraction)30000/1001, "
        "format=(string)NV12 ! nvvidconv flip-method=2 ! video/x-raw, format=(string)BGRx ! videoconvert ! "
        "video/x-raw, format=(string)BGR ! appsink drop=true max-buffers=1 sync=false"
    )
    assert made[0].settings == {}


def test_a_csi_camera_is_asked_for_its_size_before_turning(opened, gstreamer: None) -> None:
    made = opened()
    with open_source("csi://0?width=64&height=48&flip=clockwise") as source:
        assert source.size_hw == (48, 64)
    assert "width=(int)48, height=(int)64, format" in made[0].arguments[0]
    assert "flip-method=3" in made[0].arguments[0]
    assert "framerate" not in csi_pipeline(0)


@pytest.mark.parametrize(
    ("jetson", "convert"),
    [
        (
            True,
            "nvvidconv ! video/x-raw, format=(string)BGRx ! videoconvert ! video/x-raw, format=(string)BGR",
        ),
        (False, "videoconvert ! video/x-raw, format=(string)BGR"),
    ],
)
def test_an_rtsp_pipeline(opened, gstreamer: None, monkeypatch, jetson: bool, convert: str) -> None:
    monkeypatch.setattr("edge_sdk.video.devices.read_l4t", lambda: "36.4.0" if jetson else None)
    made = opened()
    uri = "rtsp://me:se%40cret@10.0.0.7/live?a=1#latency_ms=50&drop=0&transport=udp"
    with open_source(uri + ("" if jetson else "&through=gstreamer")) as source:
        assert source.uri.startswith("rtsp://me:***@10.0.0.7/live?a=1#")
    text, backend = made[0].arguments
    assert backend == cv2.CAP_GSTREAMER
    assert text == (
        'rtspsrc location="rtsp://me:se%40cret@10.0.0.7/live?a=1" protocols=udp latency=50 drop-on-latency=false ! '
        f"decodebin ! {convert} ! appsink drop=true max-buffers=1 sync=false"
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", ""),
        ("#latency_ms=50", "rtsp_transport;tcp|max_delay;50000"),
        ("#transport=udp", "rtsp_transport;udp"),
        ("#transport=udp&latency_ms=0", "rtsp_transport;udp|max_delay;0"),
    ],
)
@pytest.mark.parametrize("before", [None, "stimeout;5"])
def test_rtsp_through_ffmpeg(opened, monkeypatch, options: str, expected: str, before: str | None) -> None:
    if before is None:
        monkeypatch.delenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", raising=False)
    else:
        monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", before)
    made = opened()
    more = ("&" if options else "#") + "stall_s=2&open_s=7"
    open_source("rtsp://10.0.0.7/live?fps=5" + options + more).close()
    url, backend, limits = made[0].arguments
    assert (url, backend) == ("rtsp://10.0.0.7/live?fps=5", cv2.CAP_FFMPEG)
    assert limits == [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 7000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 2000]
    assert made[0].options == ("|".join(filter(None, (expected, before))) or None)
    assert os.environ.get("OPENCV_FFMPEG_CAPTURE_OPTIONS") == before
    assert ffmpeg_options(parse_settings({}, RtspQuery, "")) == ""


def test_an_rtsp_server_that_never_answers_is_given_up_in_time() -> None:
    if "FFMPEG" not in cv2.getBuildInformation():
        pytest.skip("this OpenCV has no FFmpeg")
    with socket.create_server(("127.0.0.1", 0)) as server:
        begin = time.perf_counter()
        uri = f"rtsp://me:secret@127.0.0.1:{server.getsockname()[1]}/live#open_s=0.5"
        with pytest.raises(
            VideoError, match=r"rtsp://me:\*\*\*@127.*(cannot be opened|no frame within)"
        ) as caught:
            open_source(uri)
        assert time.perf_counter() - begin < 10
        assert "secret" not in str(caught.value)


def test_what_a_v4l2_camera_is_asked_for(opened) -> None:
    made = opened()
    with open_source("/dev/video7?width=64&height=48&fps=25&format=MJPG") as source:
        assert source.fps == 25.0
    assert made[0].arguments == ("/dev/video7", cv2.CAP_V4L2)
    assert list(made[0].settings.items()) == [
        (cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*"MJPG")),  # type: ignore[attr-defined]
        (cv2.CAP_PROP_FRAME_WIDTH, 64),
        (cv2.CAP_PROP_FRAME_HEIGHT, 48),
        (cv2.CAP_PROP_FPS, 25.0),
    ]
    assert made[0].released


@pytest.mark.parametrize(
    ("uri", "fps", "message"),
    [
        (
            "camera:0?width=1280&height=720",
            30.0,
            "asked for width=1280 height=720, it delivers width=64 height=48",
        ),
        ("camera:0?width=48&height=64", 30.0, "it delivers width=64 height=48"),
        ("camera:0", 0.0, r"frame rate is unknown .the driver says 0.*camera:0\?fps=30"),
        ("rtsp://host/a?b=1", 90000.0, r"rate is unknown .*rtsp://host/a\?b=1#fps=30"),
    ],
)
def test_a_camera_other_than_asked_for(opened, uri: str, fps: float, message: str) -> None:
    made = opened(fps)
    with pytest.raises(VideoError, match=message):
        open_source(uri)
    assert all(capture.released for capture in made)


def test_a_camera_without_a_rate_takes_the_one_given(opened) -> None:
    opened(fps=0.0)
    with open_source("camera:0?fps=15", stride=2) as source:
        assert source.fps == 7.5


def paced(capture: FakeCapture) -> bool:
    time.sleep(0.002)
    return FakeCapture.grab(capture)


def test_seq_goes_on_from_one_iteration_to_the_next(opened, monkeypatch) -> None:
    monkeypatch.setattr(OpenedCapture, "grab", paced)
    opened()
    with open_source("camera:0", limit=3) as source:
        frames = list(source) + list(source)
    seqs, stamps = [f.seq for f in frames], [f.captured_s for f in frames]
    assert len(seqs) == 6
    assert seqs == sorted(set(seqs))
    assert stamps == sorted(stamps)
    assert 0 <= time.monotonic() - stamps[0] < 60


ARROW = np.arange(6, dtype=np.uint8).reshape(2, 3, 1).repeat(3, axis=2)


@pytest.mark.parametrize(
    ("flip", "rows"),
    [
        ("none", [[0, 1, 2], [3, 4, 5]]),
        ("counterclockwise", [[2, 5], [1, 4], [0, 3]]),
        ("rotate-180", [[5, 4, 3], [2, 1, 0]]),
        ("clockwise", [[3, 0], [4, 1], [5, 2]]),
        ("horizontal", [[2, 1, 0], [5, 4, 3]]),
        ("vertical", [[3, 4, 5], [0, 1, 2]]),
        ("upper-left-diagonal", [[0, 3], [1, 4], [2, 5]]),
        ("upper-right-diagonal", [[5, 2], [4, 1], [3, 0]]),
    ],
)
def test_flips(flip, rows: list) -> None:
    turned = flipped(cv2, ARROW, flip)
    assert turned[..., 0].tolist() == rows
    assert before_flip(turned.shape[:2], flip) == ARROW.shape[:2]


def test_every_flip_has_a_method_of_nvvidconv() -> None:
    assert sorted(FLIP_METHODS.values()) == list(range(8))


def test_a_turned_camera_is_asked_for_its_own_size(opened) -> None:
    made = opened()
    with open_source("camera:0?width=48&height=64&flip=clockwise") as source:
        assert source.size_hw == (64, 48)
        frame = next(iter(source))
        assert frame.image.shape == (64, 48, 3)
        assert frame.image.flags.c_contiguous
    assert made[0].settings == {cv2.CAP_PROP_FRAME_WIDTH: 64, cv2.CAP_PROP_FRAME_HEIGHT: 48}


@pytest.mark.parametrize(
    ("fps", "text"),
    [
        (30, "30"),
        (29.97, "30000/1001"),
        (59.94, "60000/1001"),
        (23.976, "24000/1001"),
        (12.5, "25/2"),
        (1, "1"),
    ],
)
def test_rates_as_cameras_state_them(fps: float, text: str) -> None:
    assert str(fraction_of(fps)) == text


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30))
def test_an_address_cannot_leave_its_quotes(address: str) -> None:
    text = rtsp_pipeline(address, latency_ms=1, drop=True, transport="tcp", jetson=False)
    inside = text.removeprefix("rtspsrc location=")
    end, escaped = 1, False
    while escaped or inside[end] != '"':
        escaped = not escaped and inside[end] == "\\"
        end += 1
    assert inside[: end + 1] == quoted(address)
    assert inside[end + 1 :].startswith(" protocols=tcp")
