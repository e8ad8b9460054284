"""GStreamer pipelines as text, for an OpenCV that was built with GStreamer (JetPack's is)."""

from __future__ import annotations

from fractions import Fraction
from types import ModuleType

from edge_sdk.errors import DependencyError

# One buffer, the newest: older ones are dropped before they are converted to Python's memory.
_SINK = "appsink drop=true max-buffers=1 sync=false"
_TO_BGR = "video/x-raw, format=(string)BGRx ! videoconvert ! video/x-raw, format=(string)BGR"


def csi_pipeline(
    sensor: int,
    *,
    size_hw: tuple[int | None, int | None] = (None, None),
    fps: float | None = None,
    sensor_mode: int | None = None,
    flip_method: int = 0,
) -> str:
    """Text of a pipeline from a CSI camera through the Jetson's image processor.

    Args:
        sensor: the camera's number.
        size_hw: height and width before turning; None leaves the sensor's choice.
        fps: frames a second; None leaves the sensor's choice.
        sensor_mode: the sensor's mode; None lets the driver choose.
        flip_method: nvvidconv's number of how to turn the picture.
    """
    height, width = size_hw
    caps = ["video/x-raw(memory:NVMM)"]
    if width is not None:
        caps.append(f"width=(int){width}")
    if height is not None:
        caps.append(f"height=(int){height}")
    if fps is not None:
        rate = fraction_of(fps)
        caps.append(f"framerate=(fraction){rate.numerator}/{rate.denominator}")
    caps.append("format=(string)NV12")
    mode = "" if sensor_mode is None else f" sensor-mode={sensor_mode}"
    return (
        f"nvarguscamerasrc sensor-id={sensor}{mode} ! {', '.join(caps)} ! "
        f"nvvidconv flip-method={flip_method} ! {_TO_BGR} ! {_SINK}"
    )


def rtsp_pipeline(url: str, *, latency_ms: int, drop: bool, transport: str, jetson: bool) -> str:
    """Text of a pipeline from an RTSP stream of any codec.

    Args:
        url: the stream, credentials included.
        latency_ms: the jitter buffer.
        drop: frames later than that are dropped rather than delivered late.
        transport: ``tcp`` or ``udp``.
        jetson: whether pictures come from the Jetson's own decoder, in its own memory.
    """
    convert = f"nvvidconv ! {_TO_BGR}" if jetson else "videoconvert ! video/x-raw, format=(string)BGR"
    return (
        f"rtspsrc location={quoted(url)} protocols={transport} latency={latency_ms} "
        f"drop-on-latency={str(drop).lower()} ! decodebin ! {convert} ! {_SINK}"
    )


def quoted(text: str) -> str:
    """``text`` as one string of a pipeline, whatever it holds."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def fraction_of(fps: float) -> Fraction:
    """A rate as cameras state it: 29.97 is 30000/1001, 12.5 is 25/2."""
    whole = round(fps * 1.001)
    if abs(fps - round(fps)) > 1e-3 and abs(fps * 1.001 - whole) < 1e-2:
        return Fraction(whole * 1000, 1001)
    return Fraction(fps).limit_denominator(1000)


def has_gstreamer(cv2: ModuleType) -> bool:
    """Whether this OpenCV was built with GStreamer."""
    return any("GStreamer" in line and "YES" in line for line in cv2.getBuildInformation().splitlines())


def require_gstreamer(cv2: ModuleType, what: str) -> None:
    """Raise where this OpenCV has no GStreamer.

    Raises:
        DependencyError: naming the OpenCV that was found and how to get another.
    """
    if not has_gstreamer(cv2):
        raise DependencyError(
            f"{what} needs an OpenCV with GStreamer, {cv2.__version__} at {cv2.__file__} has none.",
            hint="On a Jetson use JetPack's own: pip uninstall opencv-python opencv-python-headless, apt install "
            "python3-opencv, and a virtual environment with --system-site-packages; then see edge-sdk doctor.",
        )
