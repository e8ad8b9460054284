"""One connection to a device: a thread that opens it, reads it until told to stop, and releases it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from edge_sdk.errors import EdgeSdkError, VideoError
from edge_sdk.video.frame import Frame
from edge_sdk.video.native import require_image

# A camera may begin with a broken picture or two; one that goes on so is not what was asked for.
_FIRST_TRIES = 5


class Capture(Protocol):
    """What is used of ``cv2.VideoCapture``."""

    def grab(self) -> bool:
        """Wait for the next frame; False where none will come."""

    def retrieve(self) -> tuple[bool, Any]:
        """Decode the frame that was grabbed."""

    def release(self) -> None:
        """Free the device."""


class Device(Protocol):
    """Something that can be opened again and again."""

    @property
    def name(self) -> str:
        """How messages name it."""

    @property
    def hint(self) -> str:
        """What to check where it fails."""

    def connect(self) -> Capture:
        """Open it.

        Raises:
            EdgeSdkError: it cannot be opened.
        """

    def inspect(self, capture: Capture, image: np.ndarray) -> float:
        """Check the first picture, (H, W, 3) uint8 as delivered, and tell the rate in frames a second.

        Raises:
            VideoError: another size than asked for, or no known rate.
        """

    def finish(self, image: np.ndarray) -> np.ndarray:
        """The picture as it is delivered, such as turned."""


class Desk(Protocol):
    """Where a reader reports; it ignores readers that have been replaced."""

    def grabbed(self, reader: Reader, now_s: float) -> int | None:
        """A frame came; its ``seq``, or None where nobody wants it."""

    def opened(self, reader: Reader, size_hw: tuple[int, int], fps: float) -> None:
        """The first picture is good.

        Raises:
            VideoError: its size is not that of the frames before.
        """

    def deliver(self, reader: Reader, frame: Frame) -> None:
        """A good frame."""

    def spoiled(self, reader: Reader, seq: int | None, reason: str) -> None:
        """A frame that cannot be used."""

    def failed(self, reader: Reader, error: EdgeSdkError) -> None:
        """The device cannot be opened or has stopped; it is released already."""


class Reader(threading.Thread):
    """Reads ``device`` on a thread of its own, because a driver may block for ever.

    Such a thread is abandoned, never waited for: when its call returns after all, it releases the device and ends.

    Args:
        device: what to open.
        desk: where to report.
        clock: seconds, that of ``captured_s``.
    """

    def __init__(self, device: Device, desk: Desk, clock: Callable[[], float]) -> None:
        super().__init__(name=f"edge-sdk-read {device.name}", daemon=True)
        self._device, self._desk, self._clock = device, desk, clock
        self._stopping = False
        self._size_hw: tuple[int, int] | None = None

    def stop(self) -> None:
        """End after the call that the thread is in; does not wait."""
        self._stopping = True

    def run(self) -> None:
        """The thread."""
        try:
            self._connection()
        except EdgeSdkError as error:
            failure = error
        except Exception as error:  # noqa: BLE001  (a driver's own errors, such as cv2.error, have no common base)
            failure = VideoError(f"{self._device.name}: {type(error).__name__}: {error}")
        else:
            return
        self._desk.failed(self, failure)

    def _connection(self) -> None:
        capture = self._device.connect()
        try:
            self._read(capture)
        finally:
            capture.release()

    def _read(self, capture: Capture) -> None:
        bad_before_first = 0
        while not self._stopping:
            if not capture.grab():
                what = "delivers no frame" if self._size_hw is None else "stopped delivering"
                raise VideoError(f"{self._device.name}: {what}.", hint=self._device.hint)
            captured_s = self._clock()
            seq = self._desk.grabbed(self, captured_s)
            if seq is None and self._size_hw is not None:
                continue  # nobody wants it: not worth decoding
            try:
                image = self._decode(capture)
            except VideoError as error:
                self._desk.spoiled(self, seq, str(error))
                bad_before_first += self._size_hw is None
                if bad_before_first >= _FIRST_TRIES:
                    raise
                continue
            if self._size_hw is None:
                fps = self._device.inspect(capture, image)
                self._size_hw = (image.shape[0], image.shape[1])
                self._desk.opened(self, self._size_hw, fps)
            if seq is not None:
                self._desk.deliver(self, Frame(image, seq, captured_s))

    def _decode(self, capture: Capture) -> np.ndarray:
        name = self._device.name
        good, image = capture.retrieve()
        if not good or image is None:
            raise VideoError(f"{name}: a frame cannot be decoded.", hint=self._device.hint)
        require_image(image, f"{name}: frame")
        image = np.ascontiguousarray(self._device.finish(image))
        if self._size_hw is not None and image.shape[:2] != self._size_hw:
            raise VideoError(
                f"{name}: a frame is {image.shape[0]} x {image.shape[1]}, "
                f"those before it {self._size_hw[0]} x {self._size_hw[1]}."
            )
        return image
