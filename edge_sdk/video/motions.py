"""Generated clips of twelve motion classes that no single frame tells apart, for tests, tables and the demo.

A frame shows what kind of thing happens (something travels, turns, changes its size, two meet, lamps light up) but
never which way: places, colours, sizes and phases are drawn alike for every class of a kind. Whoever sees one frame
alone is right in five clips of twelve at best. Every frame is a function of the settings and its index alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from pydantic import Field

from edge_sdk.errors import VideoError
from edge_sdk.settings import Settings
from edge_sdk.video.base import MAX_FPS, Selection
from edge_sdk.video.frame import Frame, Truth
from edge_sdk.video.scenes import SceneSource

MOTION_CLASSES = (
    "left", "right", "up", "down", "clockwise", "anticlockwise", "approach", "recede", "bounce", "pass",
    "warm_first", "cold_first",
)  # fmt: skip
_HEADINGS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_BACKGROUND_CELLS = 6
_NOISE_TABLE = 1 << 16


class MotionSettings(Settings):
    """Settings of a motion clip, as in a ``synthetic:motions`` URI.

    Args:
        height: of the frames, in pixels.
        width: of the frames, in pixels.
        fps: frames a second.
        frames: length of the clip; what happens is spread over the whole of it, however long it is.
        seed: of everything drawn. Without ``motion``, the seeds 0, 1, 2, ... go through the classes in turn.
        motion: the class, one of ``MOTION_CLASSES``.
        noise: standard deviation of the sensor noise, in grey levels.
        contrast: of things against the background, as a share of the full range.
        size: factor on the size of things; small ones need many pixels to be seen.
    """

    height: int = Field(default=96, ge=16, le=4320)
    width: int = Field(default=96, ge=16, le=7680)
    fps: float = Field(default=30.0, gt=0, le=MAX_FPS, allow_inf_nan=False)
    frames: int = Field(default=60, ge=2, le=10_000_000)
    seed: int = Field(default=0, ge=0, lt=2**63)
    motion: str | None = None
    noise: float = Field(default=24.0, ge=0, le=128, allow_inf_nan=False)
    contrast: float = Field(default=0.35, gt=0, le=1, allow_inf_nan=False)
    size: float = Field(default=1.0, gt=0, le=2, allow_inf_nan=False)


class MotionScene:
    """One clip of one class; lengths are in units of the frame's shorter side, time runs from 0 to 1.

    Args:
        settings: the clip; the defaults where left out.

    Raises:
        VideoError: there is no such class.
    """

    def __init__(self, settings: MotionSettings | None = None) -> None:
        self.settings = s = settings or MotionSettings()
        self.motion = s.motion or MOTION_CLASSES[s.seed % len(MOTION_CLASSES)]
        if self.motion not in MOTION_CLASSES:
            raise VideoError(
                f"synthetic motions: expected motion to be one of {', '.join(MOTION_CLASSES)}, got '{s.motion}'."
            )
        # The class is no part of the seed: clips of one kind differ in nothing but what happens.
        self._rng = np.random.default_rng((s.seed, 1))
        side = min(s.height, s.width)
        y, x = np.mgrid[0 : s.height, 0 : s.width].astype(np.float32)
        self._x, self._y = (x + 0.5) / side, (y + 0.5) / side
        self._size = (s.width / side, s.height / side)
        self._edge = max(1.5 / side, 0.02)
        self._background = self._draw_background()
        self._noise = self._rng.normal(0, 1, _NOISE_TABLE).astype(np.float32)
        self._draw_things()

    def __len__(self) -> int:
        return self.settings.frames

    def __reduce__(self) -> tuple[type[MotionScene], tuple[MotionSettings]]:
        return MotionScene, (self.settings,)

    def frame_at(self, index: int) -> Frame:
        """Frame ``index``; its truth holds the clip's class.

        Raises:
            VideoError: there is no such frame.
        """
        s = self.settings
        if not 0 <= index < s.frames:
            raise VideoError(f"synthetic motions: no frame {index}, the clip has frames 0 to {s.frames - 1}.")
        picture = self._background.copy()
        for x, y, radius, colour in self._discs(index / (s.frames - 1)):
            if radius > 0:
                away = np.hypot(self._x - x, self._y - y)
                cover = np.clip((radius - away) / self._edge + 0.5, 0, 1)[..., None]
                picture += cover * (colour - picture)
        count = picture.size
        start = (index * 0x9E3779B1) % _NOISE_TABLE
        noise = np.take(self._noise, np.arange(start, start + count), mode="wrap").reshape(picture.shape)
        image = np.clip(np.rint(picture + noise * s.noise), 0, 255).astype(np.uint8)
        return Frame(image, index, index / s.fps, Truth(labels=(self.motion,)))

    def _draw_background(self) -> np.ndarray:
        """Smooth blotches in colour, (H, W, 3) float32 grey levels."""
        rng, s = self._rng, self.settings
        coarse = rng.uniform(70, 170, (_BACKGROUND_CELLS, _BACKGROUND_CELLS, 3))
        rows = _blend(_BACKGROUND_CELLS, s.height)
        columns = _blend(_BACKGROUND_CELLS, s.width)
        return np.einsum("hi,ijc,wj->hwc", rows, coarse, columns).astype(np.float32)

    def _draw_things(self) -> None:
        rng = self._rng
        width, height = self._size
        self._start = rng.uniform((0, 0), (width, height))
        self._angle = rng.uniform(0, 2 * math.pi)
        self._distance = rng.uniform(0.55, 1.1)
        self._turn = rng.uniform(0.5, 1.4) * 2 * math.pi
        self._radius = rng.uniform(0.08, 0.12) * self.settings.size
        self._wobble = rng.uniform(0, 2 * math.pi, 2)
        self._meet = rng.uniform(0.35, 0.65)
        self._late = rng.uniform(0, 0.1, 2)
        self._colours = [self._colour() for _ in range(3)]
        low = np.array((70.0, 110.0, 200.0)), np.array((200.0, 110.0, 70.0))
        self._lamps = [colour + rng.uniform(-25, 25, 3) for colour in low]
        self._strays = rng.uniform(0.15, 0.85, (2, 2)) * (width, height)

    def _colour(self) -> np.ndarray:
        """A colour that stands out by ``contrast``, brighter or darker."""
        away = self._rng.choice((-1, 1)) * 255 * self.settings.contrast
        return np.clip(120 + away * self._rng.uniform(0.6, 1.4, 3), 0, 255)

    def _discs(self, time: float) -> Iterator[tuple[float, float, float, np.ndarray]]:
        """Place, radius and colour of each disc, from back to front."""
        if self.motion in _HEADINGS:
            yield from self._travelling(time)
        elif self.motion in ("clockwise", "anticlockwise"):
            yield from self._turning(time)
        elif self.motion in ("approach", "recede"):
            x, y = self._drifting(time)
            grown = time if self.motion == "approach" else 1 - time
            yield x, y, self._radius * (0.7 + 2.0 * self._distance * grown), self._colours[0]
        elif self.motion in ("bounce", "pass"):
            yield from self._meeting(time)
        else:
            yield from self._lighting(time)

    def _drifting(self, time: float) -> tuple[float, float]:
        """Near the middle, never quite still."""
        a, b = self._wobble
        x = self._size[0] / 2 + 0.08 * math.sin(5.3 * time + a) + 0.1 * math.cos(a)
        return x, self._size[1] / 2 + 0.08 * math.sin(4.1 * time + b) + 0.1 * math.cos(b)

    def _travelling(self, time: float) -> Iterator[tuple[float, float, float, np.ndarray]]:
        """Out on one side, in again on the other."""
        (dx, dy), (width, height) = _HEADINGS[self.motion], self._size
        sway = 0.05 * math.sin(6.0 * time + self._wobble[0])
        x = self._start[0] + dx * self._distance * time + abs(dy) * sway
        y = self._start[1] + dy * self._distance * time + abs(dx) * sway
        margin = 2 * self._radius
        x = (x + margin / 2) % (width + margin) - margin / 2
        yield x, (y + margin / 2) % (height + margin) - margin / 2, 1.3 * self._radius, self._colours[0]

    def _turning(self, time: float) -> Iterator[tuple[float, float, float, np.ndarray]]:
        """Three discs of unlike size on a ring: it looks the same only after a whole turn."""
        x, y = self._drifting(time)
        sign = 1 if self.motion == "clockwise" else -1
        for number, share in enumerate((1.0, 0.75, 0.5)):
            angle = self._angle + sign * self._turn * time + 2 * math.pi * number / 3
            yield (
                x + 0.24 * math.cos(angle),
                y + 0.24 * math.sin(angle),
                self._radius * share,
                self._colours[0],
            )

    def _meeting(self, time: float) -> Iterator[tuple[float, float, float, np.ndarray]]:
        """Two discs run into each other; each goes back, or on."""
        x, y = self._drifting(self._meet)
        reach = (time - self._meet) * 0.9
        if self.motion == "bounce":
            reach = -abs(reach)
        along = (math.cos(self._angle), math.sin(self._angle))
        for sign, colour in zip((1, -1), self._lamps, strict=True):
            yield x + sign * reach * along[0], y + sign * reach * along[1], self._radius, colour

    def _lighting(self, time: float) -> Iterator[tuple[float, float, float, np.ndarray]]:
        """One lamp and then the other, each for about a third of the clip."""
        first = 0 if self.motion == "warm_first" else 1
        spans = ((0.08, 0.42), (0.58, 0.92))
        for number, place in enumerate(self._strays):
            begin, end = spans[0 if number == first else 1]
            late = self._late[number] - 0.05
            lit = begin + late <= time <= end + late
            yield place[0], place[1], self._radius * (1.2 if lit else 0.0), self._lamps[number]


def _blend(cells: int, size: int) -> np.ndarray:
    """Matrix (size, cells) that draws a row of ``cells`` values out smoothly."""
    place = np.linspace(0, cells - 1, size)
    return np.clip(1 - np.abs(place[:, None] - np.arange(cells)), 0, 1)


class MotionSource(SceneSource[MotionScene]):
    """A :class:`MotionScene` as a stream; ``scene`` gives random access to its frames.

    Args:
        settings: the clip.
        selection: which frames to deliver.
        uri: how messages name the source.
    """

    def __init__(
        self,
        settings: MotionSettings | None = None,
        *,
        selection: Selection | None = None,
        uri: str = "synthetic:motions",
    ) -> None:
        super().__init__(MotionScene(settings), selection, uri)
