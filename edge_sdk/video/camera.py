"""A camera by index, read frame by frame."""

from __future__ import annotations

import glob
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from edge_sdk.errors import VideoError
from edge_sdk.video.base import Selection, SourceBase, is_rate
from edge_sdk.video.frame import Frame
from edge_sdk.video.native import opencv, quiet, require_image


class Camera(SourceBase):
    """A live camera through OpenCV. ``seq`` goes on from one ``iter()`` to the next, because the camera does.

    Frames are delivered in the driver's order and stamped with ``time.monotonic()`` when they arrive; a
    consumer slower than the camera reads frames that the driver has queued.

    Args:
        index: the camera's number.
        width: pixels to ask for; ``None`` leaves the camera's choice.
        height: pixels to ask for.
        fps: frames a second to ask for; needed where the driver reports none.
        selection: which frames to deliver.
        uri: how messages name the source; ``camera:INDEX`` by default.

    Raises:
        VideoError: no such camera, it delivers nothing, another size than asked, or tells no rate. While
            iterating: it stops delivering.
    """

    live = True

    def __init__(
        self,
        index: int,
        *,
        width: int | None = None,
        height: int | None = None,
        fps: float | None = None,
        selection: Selection | None = None,
        uri: str | None = None,
    ) -> None:
        super().__init__(uri or f"camera:{index}")
        self._cv2 = opencv("reading a camera")
        self._selection = selection or Selection()
        self._capture = self._open(index)
        self._seq = 0
        try:
            self._configure(width, height, fps)
        except BaseException:
            self.close()
            raise
        self.frame_count = self._selection.limit

    def _open(self, index: int) -> Any:
        with quiet(self._cv2):
            capture = self._cv2.VideoCapture(index)
        if not capture.isOpened():
            capture.release()
            found = ", ".join(sorted(glob.glob("/dev/video*"))) or "none under /dev/video*"
            raise VideoError(
                f"camera:{index}: cannot be opened; devices found: {found}.",
                hint="Check the index, the cable, your rights to the device, and that it is not in use.",
            )
        return capture

    def _configure(self, width: int | None, height: int | None, fps: float | None) -> None:
        cv2 = self._cv2
        wanted = (
            (cv2.CAP_PROP_FRAME_WIDTH, width),
            (cv2.CAP_PROP_FRAME_HEIGHT, height),
            (cv2.CAP_PROP_FPS, fps),
        )
        for name, value in wanted:
            if value is not None:
                self._capture.set(name, value)
        image = self._read()
        self.size_hw = image.shape[:2]
        # A driver takes the nearest mode it has without an error: the picture is the only honest answer.
        if (height or image.shape[0], width or image.shape[1]) != self.size_hw:
            raise VideoError(
                f"{self.uri}: asked for width={width} height={height}, it delivers "
                f"width={image.shape[1]} height={image.shape[0]}.",
                hint="Ask for a size that the camera has (v4l2-ctl --list-formats-ext), or for none.",
            )
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        if not is_rate(rate):
            if fps is None:
                raise VideoError(
                    f"{self.uri}: its frame rate is unknown (the driver says {rate:g}).",
                    hint="Pass it with the source, such as camera:0?fps=30.",
                )
            rate = fps
        self.fps = rate / self._selection.stride

    def _read(self) -> np.ndarray:
        good, image = self._capture.read()
        if not good:
            raise VideoError(
                f"{self.uri}: stopped delivering at frame {self._seq}.",
                hint="Check the cable and the power of the camera, then open it again.",
            )
        require_image(image, f"{self.uri}: frame {self._seq}")
        return np.ascontiguousarray(image)

    def _frames(self) -> Iterator[Frame]:
        passed = 0
        for index in self._selection.indices(None):
            while passed <= index:
                image = self._read()
                captured_s = time.monotonic()
                passed += 1
            if image.shape[:2] != self.size_hw:
                raise VideoError(
                    f"{self.uri}: frame {self._seq} is {image.shape[0]} x {image.shape[1]}, "
                    f"the frames before it {self.size_hw[0]} x {self.size_hw[1]}.",
                    hint="Open the camera again.",
                )
            frame = Frame(image, self._seq, captured_s)
            self._seq += 1
            yield frame
            self._require_open()

    def _release(self) -> None:
        self._capture.release()
