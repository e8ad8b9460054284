"""Cameras and network streams as OpenCV opens them, each with its own settings."""

from __future__ import annotations

import glob
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from pydantic import Field

from edge_sdk.errors import RecipeError, VideoError
from edge_sdk.machine import read_l4t
from edge_sdk.video.base import MAX_FPS, is_rate
from edge_sdk.video.flip import FLIP_METHODS, Flip, before_flip, flipped
from edge_sdk.video.gstreamer import csi_pipeline, has_gstreamer, require_gstreamer, rtsp_pipeline
from edge_sdk.video.native import opencv, quiet
from edge_sdk.video.watchdog import LiveSettings

_V4L2_HINT = (
    "Check the name, the cable, your rights to the device (group video), and that nothing else has it open."
)
# An Argus daemon whose last client was killed gives no frames to the next one.
_CSI_HINT = (
    "Check the ribbon cable and the sensor's number; if a program that used a camera was killed: "
    "sudo systemctl restart nvargus-daemon."
)
_RTSP_HINT = "Check the address, the credentials and the network; try ffprobe -rtsp_transport tcp ADDRESS."

# GStreamer's own default of two seconds is for players that must not stutter.
_LATENCY_MS = 200

# The variable through which OpenCV takes FFmpeg's options is the whole process's.
_FFMPEG_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
_ffmpeg_lock = threading.Lock()


class LiveQuery(LiveSettings):
    """What all live sources can be asked for.

    Args:
        fps: frames a second to ask for; with a network stream, the rate where it tells none.
        flip: how pictures are turned.
    """

    fps: float | None = Field(default=None, gt=0, le=MAX_FPS, allow_inf_nan=False)
    flip: Flip = "none"


class SizedQuery(LiveQuery):
    """A camera whose mode can be chosen; what is left out is the camera's own choice.

    Args:
        width: pixels of the frames as they are delivered, after turning.
        height: the same.
    """

    width: int | None = Field(default=None, ge=1)
    height: int | None = Field(default=None, ge=1)


class CameraQuery(SizedQuery):
    """A camera of the operating system.

    Args:
        format: four letters of a pixel format, such as MJPG, which many USB cameras need for their full rate.
    """

    format: str | None = Field(default=None, pattern=r"^[A-Za-z0-9]{4}$")


class CsiQuery(SizedQuery):
    """A CSI camera of a Jetson.

    Args:
        sensor_mode: the sensor's mode; the driver's choice where left out.
    """

    sensor_mode: int | None = Field(default=None, ge=0)


class RtspQuery(LiveQuery):
    """An RTSP stream.

    Args:
        latency_ms: buffer against network jitter; 200 through GStreamer and FFmpeg's own where left out.
        drop: drop frames later than that, else deliver them late; through GStreamer only.
        transport: how packets travel; over UDP they may be lost.
        through: what reads the stream; ``auto`` is GStreamer on a Jetson, for its decoder, and else FFmpeg.
    """

    latency_ms: int | None = Field(default=None, ge=0, le=60_000)
    drop: bool = True
    transport: Literal["tcp", "udp"] = "tcp"
    through: Literal["auto", "gstreamer", "ffmpeg"] = "auto"


@dataclass(frozen=True)
class OpenCvDevice:
    """A device behind ``cv2.VideoCapture``; see :class:`~edge_sdk.video.reader.Device`.

    Attributes:
        name: how messages name it.
        hint: what to check where it fails.
        opener: makes the capture.
        query: what was asked for.
        turn: turn pictures here; False where the device does it.
    """

    name: str
    hint: str
    opener: Callable[[ModuleType], Any]
    query: LiveQuery
    turn: bool = True

    def connect(self) -> Any:
        """Open it.

        Raises:
            VideoError: it cannot be opened.
        """
        cv2 = opencv("reading a camera")
        with quiet(cv2):
            capture = self.opener(cv2)
        if not capture.isOpened():
            capture.release()
            raise VideoError(f"{self.name}: cannot be opened{_devices_found(self.name)}.", hint=self.hint)
        return capture

    def inspect(self, capture: Any, image: np.ndarray) -> float:
        """Compare the first picture with what was asked for; the rate in frames a second.

        Raises:
            VideoError: another size than asked for, or no known rate.
        """
        # A driver takes the nearest mode it has without an error: the picture is the only honest answer.
        if isinstance(self.query, SizedQuery):
            width, height = self.query.width, self.query.height
            if (height or image.shape[0], width or image.shape[1]) != image.shape[:2]:
                raise VideoError(
                    f"{self.name}: asked for width={width} height={height}, it delivers "
                    f"width={image.shape[1]} height={image.shape[0]}.",
                    hint="Ask for a size that the camera has (v4l2-ctl --list-formats-ext), or for none.",
                )
        rate = float(capture.get(opencv("reading a camera").CAP_PROP_FPS))
        if is_rate(rate):
            return rate
        if self.query.fps is None:
            mark = "#" if isinstance(self.query, RtspQuery) else "?"
            raise VideoError(
                f"{self.name}: its frame rate is unknown (the driver says {rate:g}).",
                hint=f"Pass it with the source, such as {self.name}{mark}fps=30.",
            )
        return self.query.fps

    def finish(self, image: np.ndarray) -> np.ndarray:
        """The picture as it is delivered."""
        return flipped(opencv("turning pictures"), image, self.query.flip) if self.turn else image


def camera(name: str, which: int | str, query: CameraQuery) -> OpenCvDevice:
    """A camera by index, through whatever OpenCV finds, or by device file, through V4L2."""

    def opener(cv2: ModuleType) -> Any:
        if isinstance(which, int):
            capture = cv2.VideoCapture(which)
        else:
            # A name under /dev/v4l/by-id stays when the camera comes back with another number.
            capture = cv2.VideoCapture(str(Path(which).resolve()), cv2.CAP_V4L2)
        height, width = before_flip((query.height, query.width), query.flip)
        if query.format is not None:
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*query.format))
        for prop, value in (
            (cv2.CAP_PROP_FRAME_WIDTH, width),
            (cv2.CAP_PROP_FRAME_HEIGHT, height),
            (cv2.CAP_PROP_FPS, query.fps),
        ):
            if value is not None:
                capture.set(prop, value)
        return capture

    return OpenCvDevice(name, _V4L2_HINT, opener, query)


def csi(name: str, sensor: int, query: CsiQuery) -> OpenCvDevice:
    """A CSI camera through the Jetson's image processor, which also turns the pictures.

    Raises:
        DependencyError: this OpenCV has no GStreamer.
    """
    require_gstreamer(opencv("reading a CSI camera"), f"{name}: a CSI camera")
    text = csi_pipeline(
        sensor,
        size_hw=before_flip((query.height, query.width), query.flip),
        fps=query.fps,
        sensor_mode=query.sensor_mode,
        flip_method=FLIP_METHODS[query.flip],
    )
    return OpenCvDevice(
        name, _CSI_HINT, lambda cv2: cv2.VideoCapture(text, cv2.CAP_GSTREAMER), query, turn=False
    )


def rtsp(name: str, url: str, query: RtspQuery) -> OpenCvDevice:
    """An RTSP stream; ``name`` must not hold its password.

    Raises:
        DependencyError: GStreamer is asked for, and this OpenCV has none.
        RecipeError: ``drop`` is asked for without GStreamer.
    """
    cv2 = opencv("reading an RTSP stream")
    jetson = read_l4t() is not None
    if query.through == "gstreamer" or (query.through == "auto" and jetson and has_gstreamer(cv2)):
        require_gstreamer(cv2, f"{name}: through=gstreamer")
        latency_ms = _LATENCY_MS if query.latency_ms is None else query.latency_ms
        text = rtsp_pipeline(
            url, latency_ms=latency_ms, drop=query.drop, transport=query.transport, jetson=jetson
        )
        return OpenCvDevice(name, _RTSP_HINT, lambda cv2: cv2.VideoCapture(text, cv2.CAP_GSTREAMER), query)
    if "drop" in query.model_fields_set:
        raise RecipeError(
            f"source {name}: 'drop' works through GStreamer, this stream is read through FFmpeg.",
            hint="Add through=gstreamer, or leave drop out.",
        )
    return OpenCvDevice(name, _RTSP_HINT, lambda cv2: _open_ffmpeg(cv2, url, query), query)


def ffmpeg_options(query: RtspQuery) -> str:
    """FFmpeg's options in OpenCV's way of writing them; empty where OpenCV's own (TCP) will do."""
    options = [] if query.transport == "tcp" else [f"rtsp_transport;{query.transport}"]
    if query.latency_ms is not None:
        options += [f"rtsp_transport;{query.transport}"] if not options else []
        options.append(f"max_delay;{query.latency_ms * 1000}")
    return "|".join(options)


def _open_ffmpeg(cv2: ModuleType, url: str, query: RtspQuery) -> Any:
    limits = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
        int(query.open_s * 1000),
        cv2.CAP_PROP_READ_TIMEOUT_MSEC,
        int(query.stall_s * 1000),
    ]
    options = ffmpeg_options(query)
    if not options:
        return cv2.VideoCapture(url, cv2.CAP_FFMPEG, limits)
    with _ffmpeg_lock:
        before = os.environ.get(_FFMPEG_OPTIONS)
        # What is in the environment already comes last, and so wins.
        os.environ[_FFMPEG_OPTIONS] = options if before is None else f"{options}|{before}"
        try:
            return cv2.VideoCapture(url, cv2.CAP_FFMPEG, limits)
        finally:
            if before is None:
                del os.environ[_FFMPEG_OPTIONS]
            else:
                os.environ[_FFMPEG_OPTIONS] = before


def _devices_found(name: str) -> str:
    if name.startswith("rtsp"):
        return ""
    return f"; devices found: {', '.join(sorted(glob.glob('/dev/video*'))) or 'none under /dev/video*'}"
