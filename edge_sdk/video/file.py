"""Frames of a video file, decoded by OpenCV; a file that ends early is an error, not a shorter video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.errors import VideoError
from edge_sdk.files import require_file
from edge_sdk.video.base import Selection, SourceBase, is_rate
from edge_sdk.video.folder import IMAGE_SUFFIXES
from edge_sdk.video.frame import Frame
from edge_sdk.video.native import opencv, require_image

# Beyond this a container's frame count is not a count: unknown lengths come out as huge or negative numbers.
_MAX_COUNT = 1 << 40


class VideoFile(SourceBase):
    """A video file. Opening decodes the first frame; each ``iter()`` decodes from the beginning again.

    ``start`` is reached by decoding, not by seeking, because OpenCV's seek is not exact in every container.

    A decoder reports a truncated or damaged file as a plain end. So the end is compared with the number of
    frames that the container announces: up to ``missing`` fewer are accepted, because containers without an
    exact count (Matroska, WebM, streams) have it estimated as duration x rate and come out off by a few;
    more is a :class:`VideoError`. A container that announces no count at all cannot be checked.

    Args:
        path: the file.
        fps: frames a second; ``None`` takes the container's.
        missing: announced frames that may be missing at the end.
        selection: which frames to deliver.
        uri: how messages name the source; the path by default.

    Raises:
        MissingFileError: no regular file there.
        VideoError: it cannot be opened, its first frame cannot be decoded, it tells no rate, or ``start`` is
            beyond its end. While iterating: it ends early, changes its size, or a frame cannot be decoded.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: float | None = None,
        missing: int = 3,
        selection: Selection | None = None,
        uri: str | None = None,
    ) -> None:
        super().__init__(uri or str(path))
        # Only a regular file: reading a pipe or a device could wait for ever.
        self._path = require_file(path, "source", hint="Check the path.")
        if self._path.suffix.lower() in IMAGE_SUFFIXES:
            # OpenCV would take it, and its name for a pattern of names.
            raise VideoError(
                f"{self._path}: expected a video, got a still image.", hint="Name the folder that it is in."
            )
        self._cv2 = opencv("reading a video file")
        self.missing = missing
        self._selection = selection or Selection()
        self._active: list[Any] = []
        self._announced, container_fps, self.size_hw = self._probe()
        self._media_fps = container_fps if fps is None else fps
        if not is_rate(self._media_fps) and fps is None:
            raise VideoError(
                f"{self._path}: its frame rate is unknown (the container says {container_fps:g}).",
                hint=f"Pass it with the source: {self._path}?fps=30",
            )
        self.fps = self._media_fps / self._selection.stride
        if self._announced is not None:
            self._selection.require_any(self._announced, self.uri)
        self.frame_count = self._selection.count(self._announced)

    def _open(self) -> Any:
        capture = self._cv2.VideoCapture(str(self._path))
        if not capture.isOpened():
            capture.release()
            raise VideoError(
                f"{self._path}: cannot be opened as a video ({self._path.stat().st_size} bytes).",
                hint="It is truncated, no video, or of a codec that this OpenCV lacks; see ffprobe.",
            )
        self._active.append(capture)
        return capture

    def _free(self, capture: Any) -> None:
        if capture in self._active:
            self._active.remove(capture)
        capture.release()

    def _probe(self) -> tuple[int | None, float, tuple[int, int]]:
        capture = self._open()
        try:
            count = capture.get(self._cv2.CAP_PROP_FRAME_COUNT)
            fps = float(capture.get(self._cv2.CAP_PROP_FPS))
            good, image = capture.read()
            if not good:
                raise VideoError(
                    f"{self._path}: frame 0 cannot be decoded.",
                    hint="It holds no frames or a codec that this OpenCV lacks; check it with ffprobe.",
                )
            require_image(image, f"{self._path}: frame 0")
        finally:
            self._free(capture)
        return (int(count) if 0 < count < _MAX_COUNT else None), fps, image.shape[:2]

    def _frames(self) -> Iterator[Frame]:
        capture = self._open()
        grabbed = 0
        try:
            for seq, index in enumerate(self._selection.indices(None)):
                while grabbed <= index:
                    if not capture.grab():
                        self._require_end(grabbed, seq)
                        return
                    grabbed += 1
                image = self._retrieve(capture, index)
                yield Frame(image, seq, index / self._media_fps)
                self._require_open()
        finally:
            self._free(capture)

    def _retrieve(self, capture: Any, index: int) -> np.ndarray:
        good, image = capture.retrieve()
        if not good:
            raise VideoError(
                f"{self._path}: frame {index} cannot be decoded.", hint="Copy or re-encode the file."
            )
        require_image(image, f"{self._path}: frame {index}")
        if image.shape[:2] != self.size_hw:
            raise VideoError(
                f"{self._path}: frame {index} is {image.shape[0]} x {image.shape[1]}, the frames before it "
                f"{self.size_hw[0]} x {self.size_hw[1]}.",
                hint="Re-encode the file to one size.",
            )
        return np.ascontiguousarray(image)

    def _require_end(self, decoded: int, delivered: int) -> None:
        """The decoder stopped after ``decoded`` frames: raise unless that is where the file should end."""
        if self._announced is not None and decoded < self._announced - self.missing:
            raise VideoError(
                f"{self._path}: ends or cannot be decoded at frame {decoded} "
                f"of the {self._announced} that its header announces.",
                hint="The file is truncated or damaged: copy it again, or use the good part with "
                f"`limit` or ?missing={self._announced - decoded}.",
            )
        if delivered == 0:
            self._selection.require_any(decoded, self.uri)

    def _release(self) -> None:
        for capture in list(self._active):
            self._free(capture)
