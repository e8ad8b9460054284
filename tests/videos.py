"""Small videos and images for tests, and a capture that does as it is told."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

FRAMES = 24


def picture(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A picture whose mean grey tells its index, also after lossy coding."""
    image = np.full((height, width, 3), 20 + 8 * index, np.uint8)
    image[: height // 4] = 255 - image[: height // 4]
    return image


def index_of(image: np.ndarray) -> int:
    return round((float(image[image.shape[0] // 2 :].mean()) - 20) / 8)


def write_video(path: Path, count: int = FRAMES, fps: float = 12.5, code: str = "MJPG") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), fps, (64, 48))  # type: ignore[attr-defined]
    assert writer.isOpened()
    for index in range(count):
        writer.write(picture(index))
    writer.release()
    return path


def write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


class FakeCapture:
    """A container that announces ``count`` frames at ``fps`` and holds the ``pictures``."""

    def __init__(self, pictures: list[np.ndarray | None], count: float, fps: float) -> None:
        self.pictures, self.count, self.fps, self.at, self.released = pictures, count, fps, -1, False

    def isOpened(self) -> bool:
        return True

    def getBackendName(self) -> str:
        return "FAKE"

    def get(self, name: int) -> float:
        return self.fps if name == cv2.CAP_PROP_FPS else self.count

    def set(self, name: int, value: float) -> bool:
        if name == cv2.CAP_PROP_FPS and self.fps > 0:
            self.fps = value
        return True

    def grab(self) -> bool:
        self.at += 1
        return self.at < len(self.pictures)

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        image = self.pictures[self.at]
        return image is not None, image

    def read(self) -> tuple[bool, np.ndarray | None]:
        return self.retrieve() if self.grab() else (False, None)

    def release(self) -> None:
        self.released = True


def install_fake(
    monkeypatch: pytest.MonkeyPatch, pictures: list[np.ndarray | None], count: float = 0.0, fps: float = 25.0
) -> list[FakeCapture]:
    """Make ``cv2.VideoCapture`` a :class:`FakeCapture`; the list fills with those that are opened."""
    made: list[FakeCapture] = []

    def capture(*_: object) -> FakeCapture:
        made.append(FakeCapture(pictures, count, fps))
        return made[-1]

    monkeypatch.setattr(cv2, "VideoCapture", capture)
    return made
