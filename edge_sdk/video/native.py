"""OpenCV, imported late and kept quiet: what it would print, our errors say with the step that repairs it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from edge_sdk.errors import VideoError
from edge_sdk.optional import require


def opencv(purpose: str) -> ModuleType:
    """The module ``cv2``.

    FFmpeg's own log lines are turned off unless the environment already sets their level.

    Raises:
        DependencyError: OpenCV is not installed.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET; read when the first video is opened
    return require("cv2", purpose)


_quiet_lock = threading.Lock()
_quiet = {"depth": 0, "level": 0}


@contextmanager
def quiet(cv2: ModuleType) -> Iterator[None]:
    """No log lines of OpenCV's own while probing for something whose absence is reported by us."""
    logging = getattr(getattr(cv2, "utils", None), "logging", None)
    if logging is None:  # OpenCV before 4.5 cannot be asked
        yield
        return
    # The level is the process's, and sources are opened on several threads: the last one out restores it.
    with _quiet_lock:
        if not _quiet["depth"]:
            _quiet["level"] = logging.getLogLevel()
            logging.setLogLevel(logging.LOG_LEVEL_SILENT)
        _quiet["depth"] += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet["depth"] -= 1
            if not _quiet["depth"]:
                logging.setLogLevel(_quiet["level"])


def require_image(image: Any, what: str) -> None:
    """Raise :class:`VideoError` unless ``image`` is (H, W, 3) uint8, as every source promises."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise VideoError(
            f"{what}: expected (H, W, 3) uint8, got {got}.", hint="Re-encode it as 8-bit colour."
        )
