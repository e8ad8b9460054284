"""Sources by URI: one string says where frames come from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from pydantic import BeforeValidator, Field

from edge_sdk.errors import MissingFileError, RecipeError
from edge_sdk.settings import Settings, parse_settings
from edge_sdk.video.base import MAX_FPS, Selection, VideoSource
from edge_sdk.video.labels import parse_labels
from edge_sdk.video.uri import SourceUri, parse_source_uri, parts_of
from edge_sdk.video.watchdog import OnEvent


class JoinedQuery(Settings):
    """Options of the whole: how often it is played."""

    loop: int = Field(default=1, ge=1)


class PartQuery(JoinedQuery):
    """Query of what lies on disk: which part of it, so that training and validation can take one recording apart."""

    start: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1)


class FileQuery(PartQuery):
    """Query of a video file: its rate where the container has none or a wrong one, and how many of the
    frames that the container announces may be missing at the end."""

    fps: float | None = Field(default=None, gt=0, le=MAX_FPS, allow_inf_nan=False)
    missing: int = Field(default=3, ge=0)


class FolderQuery(PartQuery):
    """Query of a folder of frames: its rate, and whether its ``labels/`` are read, or what their values stand for."""

    fps: float = Field(default=30.0, gt=0, le=MAX_FPS, allow_inf_nan=False)
    labels: Annotated[bool | dict[int, int], BeforeValidator(parse_labels)] = True


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
      ``?missing=N`` allows N of the announced frames to be missing at the end, ``?loop=3`` plays it three times.
    - ``frames/``: a folder of images in natural order of name, or one with ``images/`` and maybe ``labels/``.
      ``?fps=15`` sets the rate, ``?labels=0`` leaves labels unread, ``?labels=255:1,128:2`` reads the value 255 as
      class 1 and 128 as class 2, ``?loop=3`` plays it three times.
    - Of both, ``?start=40&limit=20`` is the part that begins at frame 40 and has at most 20 frames; ``loop`` and the
      arguments below go by that part.
    - ``joined:a.mp4,frames/?fps=25``: recorded sources one after another as one stream whose numbers and times run on;
      see :class:`~edge_sdk.video.joined.JoinedSource`. Options of all of them follow a ``#``:
      ``joined:one/,two/#labels=255:1&loop=3``, where ``loop`` plays the whole three times.
    - ``camera:0``: a camera by index; ``v4l2:///dev/video0`` or ``/dev/video0``: by device file.
      ``?width=&height=&fps=&format=MJPG`` ask for a mode, ``&flip=rotate-180`` turns the pictures.
    - ``csi://0``: a CSI camera of a Jetson, with ``?width=&height=&fps=&flip=&sensor_mode=``.
    - ``rtsp://user:password@host/path?the_cameras=own``: a network stream. Options follow a ``#``:
      ``#latency_ms=100&drop=0&transport=udp&through=gstreamer&fps=25&flip=``.
    - ``synthetic:shapes``: a generated scene. ``?height=&width=&fps=&frames=&seed=&speed=`` as in
      :class:`~edge_sdk.video.synthetic.SyntheticSettings`.
    - ``synthetic:motions``: a generated clip of one of twelve motion classes, named by its frames' truth.
      ``?height=&width=&fps=&frames=&seed=&motion=&noise=&contrast=`` as in
      :class:`~edge_sdk.video.motions.MotionSettings`.

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
    if parsed.scheme == "joined":
        return _joined(parsed, selection)
    if parsed.scheme != "path":
        return _live(parsed, selection, on_event)
    return _path(parsed, selection)


def _joined(parsed: SourceUri, selection: Selection) -> VideoSource:
    from edge_sdk.video.joined import JoinedSource

    uris = parts_of(parsed)
    given = {key: value for key, value in parsed.query.items() if key == "loop"}
    query = parse_settings(given, JoinedQuery, f"source {parsed.text}")
    with ExitStack() as opened:
        parts = []
        for uri in uris:
            part = _synthetic(uri, Selection()) if uri.scheme == "synthetic" else _path(uri, Selection())
            opened.callback(part.close)
            parts.append(part)
        joined = JoinedSource(parts, times=query.loop, selection=selection, uri=parsed.text)
        opened.pop_all()
    return joined


def _looped(
    open_it: Callable[[Selection], VideoSource], times: int, selection: Selection, uri: str
) -> VideoSource:
    from edge_sdk.video.joined import JoinedSource

    if times == 1:
        return open_it(selection)
    source = open_it(Selection())
    try:
        return JoinedSource((source,), times=times, selection=selection, uri=uri)
    except BaseException:
        source.close()
        raise


def _synthetic(parsed: SourceUri, selection: Selection) -> VideoSource:
    from edge_sdk.video.synthetic import SCENES, SyntheticSettings, SyntheticSource

    scene, where = parsed.target or "shapes", f"source {parsed.text}"
    if scene not in SCENES:
        raise RecipeError(f"{where}: unknown scene '{scene}', expected one of: {', '.join(SCENES)}.")
    if scene == "motions":
        return _motions(parsed, selection, where)
    settings = parse_settings(parsed.query, SyntheticSettings, where)
    return SyntheticSource(settings, selection=selection, uri=parsed.text)


def _motions(parsed: SourceUri, selection: Selection, where: str) -> VideoSource:
    from edge_sdk.video.motions import MotionSettings, MotionSource

    if "clips" in parsed.query:
        raise RecipeError(
            f"{where}: 'clips' makes it a list of clips, expected a single source.",
            hint="Leave it out for the clip of 'seed'; lists of clips are for training and evaluation of classifiers.",
        )
    settings = parse_settings(parsed.query, MotionSettings, where)
    return MotionSource(settings, selection=selection, uri=parsed.text)


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
        return _looped(
            lambda wanted: FrameFolder(
                path,
                fps=folder.fps,
                labels=folder.labels,
                uri=parsed.text,
                selection=wanted.within(folder.start, folder.limit),
            ),
            folder.loop,
            selection,
            parsed.text,
        )
    if not path.exists():
        raise MissingFileError(
            f"source: expected a video file or a folder of images at {path}, found none.",
            hint="Check the path; other sources are camera:0 and synthetic:shapes.",
        )
    query = parse_settings(parsed.query, FileQuery, f"source {parsed.text}")
    return _looped(
        lambda wanted: VideoFile(
            path,
            fps=query.fps,
            missing=query.missing,
            uri=parsed.text,
            selection=wanted.within(query.start, query.limit),
        ),
        query.loop,
        selection,
        parsed.text,
    )
