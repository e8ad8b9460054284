"""The newest annotated frame as a JPEG, drawn on a thread of its own and only while somebody watches."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_sdk.optional import require
from edge_sdk.runtime.result import StepKind

if TYPE_CHECKING:
    from edge_sdk.runtime.result import Result
    from edge_sdk.serve.settings import ServeSettings

_log = logging.getLogger(__name__)

_MOST_JOIN_S = 5.0
# (blue, green, red) of the mark of each kind of step, as on the page.
_COLOURS = {
    StepKind.KEYFRAME: (12, 89, 232),
    StepKind.DELTA: (214, 126, 28),
    StepKind.SKIP: (140, 140, 140),
}


class Pictures:
    """Hands the newest answer from the thread that infers to every viewer.

    The slot between the two threads holds one answer, a newer one replaces it, and it is filled only while the drawing
    thread waits for one: a run that nobody watches pays for no copy, and one that is watched for as many as are shown.

    Args:
        settings: size, quality and rate.
        on_error: called where a picture could not be drawn; the run and the server go on.
    """

    def __init__(self, settings: ServeSettings, on_error: Callable[[], None]) -> None:
        self._settings, self._on_error = settings, on_error
        self._cv2: Any = require("cv2", "the live page")
        self._changed = threading.Condition()
        self._wanted = self._closing = False
        self._slot: tuple[np.ndarray, Result] | None = None
        self._viewers = 0
        self._number = 0
        self._jpeg: bytes | None = None
        self._thread = threading.Thread(target=self._loop, name="edge-sdk-pictures", daemon=True)
        self._thread.start()

    @property
    def viewers(self) -> int:
        """How many watch."""
        return self._viewers

    def offer(self, image_bgr: np.ndarray, result: Result) -> None:
        """Leave an answer for the viewers; nothing is done where nobody waits for one.

        Args:
            image_bgr: (H, W, 3) uint8; not written to any more.
            result: may be written over by the next call of the runner.
        """
        if not self._wanted:
            return
        kept = (image_bgr, result.copy())
        with self._changed:
            if self._wanted:
                self._slot = kept
                self._changed.notify_all()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Somebody watches for as long as the block lasts."""
        with self._changed:
            self._viewers += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._viewers -= 1
                if not self._viewers:  # whoever comes next shall not see a picture of now
                    self._slot, self._jpeg, self._wanted = None, None, False
                self._changed.notify_all()

    def after(self, number: int, timeout_s: float) -> tuple[int, bytes] | None:
        """The newest picture and its number, once there is one with a higher number than ``number``.

        Returns:
            None where the time is over or the pictures have ended.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._closing or (self._jpeg is not None and self._number > number), timeout_s
            )
            if self._closing or self._jpeg is None or self._number <= number:
                return None
            return self._number, self._jpeg

    def close(self) -> None:
        """End the drawing; whoever waits is told. Closing twice does nothing."""
        with self._changed:
            self._closing, self._wanted = True, False
            self._changed.notify_all()
        # With a limit: a task's drawing that hangs shall not keep the run from ending.
        self._thread.join(_MOST_JOIN_S)

    @property
    def closing(self) -> bool:
        """Whether no more pictures will come."""
        return self._closing

    def _loop(self) -> None:
        failed = False
        while (taken := self._take()) is not None:
            began_s = time.monotonic()
            try:
                jpeg = self._draw(*taken)
            except Exception:  # noqa: BLE001  (a task's drawing is the user's own; the run must not end with it)
                self._on_error()
                if not failed:  # once: it would be said for every frame
                    _log.exception("the live page could not draw frame %d", taken[1].seq)
                failed = True
                jpeg = None
            with self._changed:
                if jpeg is not None and self._viewers:
                    self._jpeg, self._number = jpeg, self._number + 1
                    self._changed.notify_all()
                due_s = began_s + 1.0 / self._settings.max_fps
                self._changed.wait_for(lambda: self._closing, max(0.0, due_s - time.monotonic()))

    def _take(self) -> tuple[np.ndarray, Result] | None:
        """The next answer that somebody wants to see; None at the end."""
        with self._changed:
            while not self._closing:
                self._wanted = self._viewers > 0
                if self._wanted and self._slot is not None:
                    taken, self._slot, self._wanted = self._slot, None, False
                    return taken
                self._changed.wait()
            return None

    def _draw(self, image_bgr: np.ndarray, result: Result) -> bytes:
        cv2 = self._cv2
        drawn = result.plot(image_bgr)
        height, width = drawn.shape[:2]
        if width > self._settings.max_width:
            size = (self._settings.max_width, max(1, round(height * self._settings.max_width / width)))
            drawn = cv2.resize(drawn, size, interpolation=cv2.INTER_AREA)
        _mark(cv2, drawn, result)
        done, jpeg = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, self._settings.quality])
        if not done:
            raise ValueError(f"frame {result.seq}: OpenCV could not write {drawn.shape} as JPEG")
        encoded: bytes = jpeg.tobytes()
        return encoded


def _mark(cv2: Any, image: np.ndarray, result: Result) -> None:
    """Write onto the picture which frame it is and which step answered it; frame a keyframe."""
    height, width = image.shape[:2]
    colour = _COLOURS[result.kind]
    what = (
        result.kind.value if result.kind is StepKind.KEYFRAME else f"{result.kind.value} +{result.state_age}"
    )
    text = f"{result.seq}  {what}  {result.times.total_ms:.1f} ms"
    scale = min(0.5, width / 640)
    (text_width, text_height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    cv2.rectangle(image, (0, 0), (text_width + 12, text_height + below + 8), colour, cv2.FILLED)
    place = (6, text_height + 5)
    cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)
    if result.kind is StepKind.KEYFRAME:
        cv2.rectangle(image, (0, 0), (width - 1, height - 1), colour, max(2, width // 160))
