"""Where annotated frames go: a video file, a folder of PNGs, or nowhere; never half written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np

from edge_sdk.errors import ClosedError, OutputError, RecipeError, ShapeError, VideoError
from edge_sdk.files import atomic_file, atomic_folder
from edge_sdk.video.base import is_rate
from edge_sdk.video.native import opencv, quiet
from edge_sdk.video.uri import path_of_file_uri, unknown_scheme

# Encoders that every OpenCV build with FFmpeg carries.
_CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
_NUMBERED = re.compile(r"\d{6,}\.png")


class VideoSink(Protocol):
    """Takes frames of one size; what was written is in place after ``close()``, and not before."""

    frames: int

    def write(self, image_bgr: np.ndarray) -> None:
        """Append one (H, W, 3) uint8 BGR picture."""

    def close(self) -> None:
        """Finish and move into place; idempotent. Leaving a ``with`` block by an exception discards
        instead."""

    def __enter__(self) -> VideoSink: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_sink(uri: str | Path | None, *, fps: float, size_hw: tuple[int, int]) -> VideoSink:
    """Open the sink that ``uri`` names; missing parent folders are made.

    Args:
        uri: ``*.mp4`` or ``*.avi`` for a video file, a path that ends in ``/`` (or an existing folder) for
            numbered PNGs, ``None`` to throw frames away. ``file://`` is understood.
        fps: frames a second of the video; PNGs carry no rate.
        size_hw: height and width of every frame.

    Raises:
        RecipeError: a URI that no sink has, a rate or size out of range.
        VideoError: the encoder cannot be opened, or the folder holds files that are not ours to replace.

    Example:
        >>> with open_sink(None, fps=30.0, size_hw=(4, 6)) as sink:
        ...     sink.write(np.zeros((4, 6, 3), np.uint8))
        >>> sink.frames
        1
    """
    if not is_rate(fps):
        raise RecipeError(f"sink {uri}: `fps`: expected a frame rate, got {fps!r}.")
    height, width = size_hw
    if height < 1 or width < 1:
        raise RecipeError(
            f"sink {uri}: `size_hw`: expected a height and width of at least 1, got {size_hw!r}."
        )
    if uri is None:
        return NullSink(size_hw)
    text = str(uri)
    if scheme := unknown_scheme(text):
        raise RecipeError(
            f"sink {text}: unknown scheme '{scheme}', expected *.mp4, *.avi or a folder ending in '/'."
        )
    text = path_of_file_uri(text) if text.lower().startswith("file:") else text
    if text.endswith(("/", "\\")) or Path(text).is_dir():
        return PngFolderSink(Path(text), size_hw)
    if Path(text).suffix.lower() not in _CODECS:
        raise RecipeError(f"sink {text}: expected *.mp4, *.avi or a folder ending in '/'.")
    return VideoFileSink(Path(text), fps, size_hw)


S = TypeVar("S", bound="SinkBase")


class SinkBase:
    """Checks and the life of a sink; a sink adds ``_write`` and ``_finish``, and puts what it holds on
    ``_stack``."""

    def __init__(self, size_hw: tuple[int, int]) -> None:
        self.frames = 0
        self._name = type(self).__name__
        self._shape = (int(size_hw[0]), int(size_hw[1]), 3)
        self._stack = ExitStack()
        self._closed = False
        self._cut_short = False

    def __enter__(self: S) -> S:
        self._require_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif not self._closed:
            self._closed = True
            self._stack.__exit__(kind, error, trace)

    def write(self, image_bgr: np.ndarray) -> None:
        """Append one picture.

        Raises:
            ShapeError: it is not (H, W, 3) uint8 of the size the sink was opened for.
            ClosedError: the sink is closed.
            VideoError: it cannot be written.
        """
        self._require_open()
        if image_bgr.shape != self._shape or image_bgr.dtype != np.uint8:
            raise ShapeError(
                f"{self._name}: expected a frame {self._shape} uint8, "
                f"got {image_bgr.shape} {image_bgr.dtype}.",
                hint="Open the sink with the size_hw of the frames.",
            )
        # A signal that ends the run may raise before the picture is written or before it is counted.
        self._cut_short = True
        self._write(image_bgr)
        self.frames += 1
        self._cut_short = False

    def close(self) -> None:
        """Finish and move into place; idempotent.

        Raises:
            VideoError: nothing was written, or it cannot be finished; nothing is left behind then.
        """
        if self._closed:
            return
        self._closed = True
        with self._stack:
            self._finish()

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self._name}: the sink is closed.", hint="Open it again with open_sink().")

    def _require_frames(self) -> None:
        if self.frames == 0:
            raise VideoError(f"{self._name}: closed before a frame was written.", hint="Check the source.")

    def _write(self, image_bgr: np.ndarray) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        """Nothing to finish unless a sink says so."""


class NullSink(SinkBase):
    """Counts frames and throws them away."""

    def _write(self, image_bgr: np.ndarray) -> None:
        pass


class VideoFileSink(SinkBase):
    """A video file: MPEG-4 in ``.mp4``, Motion JPEG in ``.avi``.

    These encoders take even sizes only (OpenCV would cut a row or column off), so odd frames get their last
    row or column doubled.
    """

    def __init__(self, path: Path, fps: float, size_hw: tuple[int, int]) -> None:
        super().__init__(size_hw)
        self._name = str(path)
        self._cv2 = opencv("writing a video file")
        self._odd = (size_hw[0] % 2, size_hw[1] % 2)
        with ExitStack() as stack:
            self._path = stack.enter_context(_writable(path))
            self._writer = self._open(path, fps, (size_hw[1] + self._odd[1], size_hw[0] + self._odd[0]))
            stack.callback(self._writer.release)
            self._stack = stack.pop_all()

    def _open(self, path: Path, fps: float, size_wh: tuple[int, int]) -> Any:
        codec = _CODECS[path.suffix.lower()]
        with quiet(self._cv2):
            writer = self._cv2.VideoWriter(
                str(self._path), self._cv2.VideoWriter_fourcc(*codec), float(fps), size_wh
            )
        if not writer.isOpened():
            writer.release()
            raise VideoError(
                f"{path}: no encoder could be opened ({codec}, {size_wh[1]} x {size_wh[0]}, {fps:g} fps).",
                hint="Write PNGs instead (a path that ends in '/'), or install OpenCV with FFmpeg.",
            )
        return writer

    def _write(self, image_bgr: np.ndarray) -> None:
        if any(self._odd):
            bottom, right = self._odd
            image_bgr = self._cv2.copyMakeBorder(image_bgr, 0, bottom, 0, right, self._cv2.BORDER_REPLICATE)
        self._writer.write(image_bgr)

    def _finish(self) -> None:
        self._require_frames()
        self._writer.release()
        # The writer reports no errors, such as a full disk: what is in the file is the only answer.
        capture = self._cv2.VideoCapture(str(self._path))
        try:
            count = int(capture.get(self._cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        finally:
            capture.release()
        if count not in (self.frames, self.frames + self._cut_short):
            raise VideoError(
                f"{self._name}: {self.frames} frames were written, the file holds {max(count, 0)}.",
                hint="Check the space left on the disk, or write PNGs (a path that ends in '/').",
            )


class PngFolderSink(SinkBase):
    """Numbered PNGs, ``000000.png`` on. A folder of earlier numbered PNGs is replaced, any other content
    refused."""

    def __init__(self, path: Path, size_hw: tuple[int, int]) -> None:
        super().__init__(size_hw)
        self._name = str(path)
        self._cv2 = opencv("writing images")
        if path.exists():
            foreign = (
                [p.name for p in path.iterdir() if not _NUMBERED.fullmatch(p.name)] if path.is_dir() else [""]
            )
            if foreign:
                raise VideoError(
                    f"{path}: expected a new folder or one of numbered PNGs, found {foreign[0] or 'a file'}.",
                    hint="Name a folder that does not exist yet.",
                )
        self._folder = self._stack.enter_context(_writable(path, folder=True))

    def _write(self, image_bgr: np.ndarray) -> None:
        good, data = self._cv2.imencode(".png", image_bgr)
        if not good:
            raise VideoError(f"{self._name}: frame {self.frames} cannot be encoded as PNG.")
        target = self._folder / f"{self.frames:06d}.png"
        try:
            target.write_bytes(data.tobytes())
        except OSError as error:
            raise VideoError(
                f"{self._name}: frame {self.frames} cannot be written ({error.strerror}).",
                hint="Check the space left on the disk.",
            ) from error

    def _finish(self) -> None:
        self._require_frames()


@contextmanager
def _writable(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """The temporary path to write to; a refusal by the file system becomes a :class:`VideoError`."""
    with ExitStack() as stack:
        try:
            temporary = stack.enter_context(atomic_folder(path) if folder else atomic_file(path))
        except OutputError as error:
            raise VideoError(str(error)) from error
        yield temporary
