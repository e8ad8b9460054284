"""Sources by URI: one string says where frames come from."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field

from edge_sdk.errors import MissingFileError, RecipeError
from edge_sdk.settings import Settings, parse_settings
from edge_sdk.video.base import MAX_FPS, Selection, VideoSource
from edge_sdk.video.uri import SourceUri, parse_source_uri
from edge_sdk.video.watchdog import OnEvent


class FileQuery(Settings):
    """Query of a video file: its rate where the container has none or a wrong one, and how many of the
    frames that the container announces may be missing at the end."""

    fps: float | None = Field(default=None, gt=0, le=MAX_FPS, allow_inf_nan=False)
    missing: int = Field(default=3, ge=0)


class FolderQuery(Settings):
    """Query of a folder of frames: its rate, and whether its ``labels/`` are read."""

    fps: float = Field(default=30.0, gt=0, le=MAX_FPS, allow_inf_nan=False)
    labels: bool = True


def open_source(
    uri: str | Path,
    *,
    start: int = 0,
    limit: int | None = None,
    stride: int = 1,
    on_event: OnEvent | None = None,
) -> VideoSource:
    """Open the source that ``uri`` names; it is checked (there, decodable, of a known rate) before this
    returns.

    - ``clip.mp4``, ``file:///data/clip.mp4``: a video file. ``?fps=`` overrides the container's rate,
      ``?missing=N`` allows N of the announced frames to be missing at the end.
    - ``frames/``: a folder of images in natural order of name, or one with ``images/`` and maybe ``labels/``.
      ``?fps=15`` sets the rate, ``?labels=0`` leaves labels unread.
    - ``camera:0``: a camera by index; ``v4l2:///dev/video0`` or ``/dev/video0``: by device file.
      ``?width=&height=&fps=&format=MJPG`` ask for a mode, ``&flip=rotate-180`` turns the pictures.
    - ``csi://0``: a CSI camera of a Jetson, with ``?width=&height=&fps=&flip=&sensor_mode=``.
    - ``rtsp://user:password@host/path?the_cameras=own``: a network stream. Options follow a ``#``:
      ``#latency_ms=100&drop=0&transport=udp&through=gstreamer&fps=25&flip=``.
    - ``synthetic:shapes``: a generated scene. ``?height=&width=&fps=&frames=&seed=&speed=`` as in
      :class:`~edge_sdk.video.synthetic.SyntheticSettings`.

    Cameras and network streams are live, see :class:`~edge_sdk.video.live.LiveSource`: they deliver the newest frame
    only and are opened again when they stall, by the options ``stall_s``, ``lost_s`` and so on of
    :class:`~edge_sdk.video.watchdog.LiveSettings`. All others deliver every frame.

    Args:
        uri: what to open.
        start: frames left out at the beginning.
        limit: most frames to deliver; ``None`` for all.
        stride: deliver every ``stride``-th frame; ``fps`` of the source is divided by it.
        on_event: told when a live source stalls, is opened again, delivers again or is lost; others have no events.

    Raises:
        MissingFileError: no such file or folder.
        DependencyError: the source needs GStreamer, and this OpenCV has none.
        RecipeError: unknown scheme or query key, or a value out of range.
        VideoError: it cannot be opened or decoded, or has no frames to deliver.

    Example:
        >>> with open_source("synthetic:shapes?height=120&width=160&seed=7", limit=2) as source:
        ...     [frame.image.shape for frame in source]
        [(120, 160, 3), (120, 160, 3)]
    """
    parsed = parse_source_uri(str(uri))
    selection = Selection(start, limit, stride)
    if parsed.scheme == "synthetic":
        return _synthetic(parsed, selection)
    if parsed.scheme != "path":
        return _live(parsed, selection, on_event)
    return _path(parsed, selection)


def _synthetic(parsed: SourceUri, selection: Selection) -> VideoSource:
    from edge_sdk.video.synthetic import SCENES, SyntheticSettings, SyntheticSource

    scene = parsed.target or "shapes"
    if scene not in SCENES:
        raise RecipeError(
            f"source {parsed.text}: unknown scene '{scene}', expected one of: {', '.join(SCENES)}."
        )
    settings = parse_settings(parsed.query, SyntheticSettings, f"source {parsed.text}")
    return SyntheticSource(settings, selection=selection, uri=parsed.text)


def _live(parsed: SourceUri, selection: Selection, on_event: OnEvent | None) -> VideoSource:
    from edge_sdk.video import devices
    from edge_sdk.video.live import LiveSource

    where, target = f"source {parsed.text}", parsed.target
    # Messages of a running source name it without its options.
    name = parsed.text.split("#")[0] if parsed.scheme == "rtsp" else parsed.text.split("?")[0]
    query: devices.LiveQuery
    if parsed.scheme == "camera":
        index = _index(parsed, "camera:0")
        query = camera_query = parse_settings(parsed.query, devices.CameraQuery, where)
        device = devices.camera(name, index, camera_query)
    elif parsed.scheme == "v4l2":
        if not target.startswith("/dev/"):
            raise RecipeError(f"{where}: expected a device such as v4l2:///dev/video0, got '{target}'.")
        query = camera_query = parse_settings(parsed.query, devices.CameraQuery, where)
        device = devices.camera(name, target, camera_query)
    elif parsed.scheme == "csi":
        index = _index(parsed, "csi://0")
        query = csi_query = parse_settings(parsed.query, devices.CsiQuery, where)
        device = devices.csi(name, index, csi_query)
    else:
        _refuse_misplaced(parsed)
        query = rtsp_query = parse_settings(parsed.query, devices.RtspQuery, where)
        device = devices.rtsp(name, target, rtsp_query)
    return LiveSource(device, settings=query, selection=selection, uri=parsed.text, on_event=on_event)


def _index(parsed: SourceUri, example: str) -> int:
    if not (parsed.target.isascii() and parsed.target.isdigit()):
        pattern = example.replace("0", "INDEX")
        raise RecipeError(
            f"source {parsed.text}: expected {pattern} such as {example}, got '{parsed.target}'."
        )
    return int(parsed.target)


def _refuse_misplaced(parsed: SourceUri) -> None:
    """Our options in the camera's own query would be ignored without a word; some cameras have a ``fps``, too."""
    from edge_sdk.video.devices import RtspQuery

    given = dict(parse_qsl(urlsplit(parsed.target).query, keep_blank_values=True))
    for key in given:
        if key in RtspQuery.model_fields and key != "fps":
            raise RecipeError(
                f"source {parsed.text}: '{key}' stands in the query of the camera's address.",
                hint=f"Options of edge_sdk follow a '#': rtsp://host/path#{key}={given[key]}",
            )


def _path(parsed: SourceUri, selection: Selection) -> VideoSource:
    from edge_sdk.video.file import VideoFile
    from edge_sdk.video.folder import FrameFolder

    path = Path(parsed.target)
    if path.is_dir():
        folder = parse_settings(parsed.query, FolderQuery, f"source {parsed.text}")
        return FrameFolder(path, fps=folder.fps, labels=folder.labels, selection=selection, uri=parsed.text)
    if not path.exists():
        raise MissingFileError(
            f"source: expected a video file or a folder of images at {path}, found none.",
            hint="Check the path; other sources are camera:0 and synthetic:shapes.",
        )
    query = parse_settings(parsed.query, FileQuery, f"source {parsed.text}")
    return VideoFile(path, fps=query.fps, missing=query.missing, selection=selection, uri=parsed.text)
