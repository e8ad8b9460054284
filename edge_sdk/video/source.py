"""Sources by URI: one string says where frames come from."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from edge_sdk.errors import MissingFileError, RecipeError
from edge_sdk.settings import Settings, parse_settings
from edge_sdk.video.base import MAX_FPS, Selection, VideoSource
from edge_sdk.video.uri import SourceUri, parse_source_uri


class FileQuery(Settings):
    """Query of a video file: its rate where the container has none or a wrong one, and how many of the
    frames that the container announces may be missing at the end."""

    fps: float | None = Field(default=None, gt=0, le=MAX_FPS, allow_inf_nan=False)
    missing: int = Field(default=3, ge=0)


class FolderQuery(Settings):
    """Query of a folder of frames: its rate, and whether its ``labels/`` are read."""

    fps: float = Field(default=30.0, gt=0, le=MAX_FPS, allow_inf_nan=False)
    labels: bool = True


class CameraQuery(Settings):
    """Query of a camera: the mode to ask it for; what is left out is the camera's own choice."""

    width: int | None = Field(default=None, ge=1)
    height: int | None = Field(default=None, ge=1)
    fps: float | None = Field(default=None, gt=0, le=MAX_FPS, allow_inf_nan=False)


def open_source(uri: str | Path, *, start: int = 0, limit: int | None = None, stride: int = 1) -> VideoSource:
    """Open the source that ``uri`` names; it is checked (there, decodable, of a known rate) before this
    returns.

    - ``clip.mp4``, ``file:///data/clip.mp4``: a video file. ``?fps=`` overrides the container's rate,
      ``?missing=N`` allows N of the announced frames to be missing at the end.
    - ``frames/``: a folder of images in natural order of name, or one with ``images/`` and maybe ``labels/``.
      ``?fps=15`` sets the rate, ``?labels=0`` leaves labels unread.
    - ``camera:0``: a camera by index. ``?width=&height=&fps=`` ask for a mode.
    - ``synthetic:shapes``: a generated scene. ``?height=&width=&fps=&frames=&seed=&speed=`` as in
      :class:`~edge_sdk.video.synthetic.SyntheticSettings`.

    Args:
        uri: what to open.
        start: frames left out at the beginning.
        limit: most frames to deliver; ``None`` for all.
        stride: deliver every ``stride``-th frame; ``fps`` of the source is divided by it.

    Raises:
        MissingFileError: no such file or folder.
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
    if parsed.scheme == "camera":
        return _camera(parsed, selection)
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


def _camera(parsed: SourceUri, selection: Selection) -> VideoSource:
    from edge_sdk.video.camera import Camera

    if not (parsed.target.isascii() and parsed.target.isdigit()):
        raise RecipeError(
            f"source {parsed.text}: expected camera:INDEX such as camera:0, got '{parsed.target}'."
        )
    query = parse_settings(parsed.query, CameraQuery, f"source {parsed.text}")
    return Camera(
        int(parsed.target),
        width=query.width,
        height=query.height,
        fps=query.fps,
        selection=selection,
        uri=parsed.text,
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
