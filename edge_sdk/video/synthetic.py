"""Generated video: textured objects over a moving background, with exact masks, boxes and a motion class.

Every frame is a function of the settings and its index alone, so any frame can be had without those before
it, and a seed is a clip. Lengths below are in frame heights and speeds in heights a second: a scene is the
same problem at every size and rate. Frames are bit-identical from run to run with the same OpenCV and numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from edge_sdk.errors import VideoError
from edge_sdk.settings import Settings
from edge_sdk.video.actors import MAX_RADIUS, Life, Track, draw_life, draw_track
from edge_sdk.video.base import MAX_FPS, Selection
from edge_sdk.video.frame import Frame, Truth
from edge_sdk.video.native import opencv
from edge_sdk.video.scenes import SceneSource
from edge_sdk.video.textures import TILE_HEIGHTS, ground_tile, object_tile, sky_tile

SCENES = ("shapes", "motions")
SYNTHETIC_CLASSES = ("sky", "ground", "striped", "checked", "dotted", "blotched")
SYNTHETIC_PALETTE = (
    (230, 180, 100),
    (60, 120, 90),
    (60, 60, 230),
    (50, 210, 240),
    (200, 60, 180),
    (240, 240, 60),
)
SYNTHETIC_MOTIONS = ("pan_left", "pan_right", "tilt_up", "tilt_down", "zoom_in", "zoom_out")

_FIRST_OBJECT_CLASS = 2
_TRACKS = 12  # of which about 5 are in the picture at a time
_VARIANTS = 4  # textures a class
_ZOOM_RANGE = (0.8, 1.35)
_TILT_RANGE = 0.36
_SKY_PARALLAX = 0.4
_HILLS = ((0.06, 5.0), (0.04, 9.0), (0.02, 23.0))  # amplitude in heights, radians a height
_NOISE_SHIFTS = 32
_SUBPIXEL_BITS = 4
_MAX_TILE = 1080


class SyntheticSettings(Settings):
    """Settings of a scene, as in a ``synthetic:`` URI.

    Args:
        height: of the frames, in pixels.
        width: of the frames, in pixels.
        fps: frames a second; at a lower rate things move further from frame to frame.
        frames: length of the clip. Zoom and tilt are spread over it, because they have an end.
        seed: of everything drawn; another seed is another clip.
        speed: factor on all motion; 0 is a still scene.
    """

    height: int = Field(default=240, ge=32, le=4320)
    width: int = Field(default=320, ge=32, le=7680)
    fps: float = Field(default=30.0, gt=0, le=MAX_FPS, allow_inf_nan=False)
    frames: int = Field(default=300, ge=1, le=10_000_000)
    seed: int = Field(default=0, ge=0, lt=2**63)
    speed: float = Field(default=1.0, ge=0, le=20, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class _View:
    """The camera at one moment: its place in the world, and pixels a height unit."""

    x: float
    y: float
    zoom: float
    scale: float


class SyntheticScene:
    """One clip of the scene ``shapes``: sky and ground behind up to twelve objects of four texture classes.

    Objects of one class differ in shape, size, pattern scale and hue, hues overlap between classes, and
    objects cover one another, enter, leave, turn and change their size. The camera pans, tilts or zooms in
    one direction (:attr:`motion`); exposure drifts, and there is sensor noise.

    Args:
        settings: the clip; the defaults where left out.

    Example:
        >>> scene = SyntheticScene(SyntheticSettings(height=120, width=160, seed=3))
        >>> scene.frame_at(42).truth.mask.shape
        (120, 160)
    """

    def __init__(self, settings: SyntheticSettings | None = None) -> None:
        self.settings = settings or SyntheticSettings()
        s = self.settings
        self._aspect = s.width / s.height
        rng = np.random.default_rng((s.seed, 0))
        self.motion = SYNTHETIC_MOTIONS[int(rng.integers(len(SYNTHETIC_MOTIONS)))]
        self._draw_camera(rng)
        self._draw_look(rng)
        reach = (self._aspect / 2 / self._zoom[0] + MAX_RADIUS, 0.5 / self._zoom[0] + MAX_RADIUS)
        self._tracks = sorted(
            (draw_track(rng, reach, slot) for slot in range(_TRACKS)), key=lambda track: track.nearness
        )
        self._lives: dict[tuple[int, int, int], Life] = {}

    def __len__(self) -> int:
        return self.settings.frames

    def __reduce__(self) -> tuple[type[SyntheticScene], tuple[SyntheticSettings]]:
        # A scene is its settings; data loaders send scenes to their workers.
        return SyntheticScene, (self.settings,)

    def frame_at(self, index: int) -> Frame:
        """Frame ``index`` with its truth; ``seq`` is the index. Any order of calls gives the same frames.

        Raises:
            VideoError: there is no such frame.
        """
        s = self.settings
        if not 0 <= index < s.frames:
            raise VideoError(f"synthetic scene: no frame {index}, the clip has frames 0 to {s.frames - 1}.")
        view = self._view(index / s.fps * s.speed)
        image, owners = self._background(view)
        classes = np.zeros(256, np.uint8)
        classes[1] = 1
        regions: list[tuple[int, int, tuple[slice, slice]]] = []
        for number, track in enumerate(self._tracks, start=2):
            life, region = self._draw(track, number, index / s.fps * s.speed, view, image, owners)
            if region is not None:
                classes[number] = life.class_id
                regions.append((number, life.class_id, region))
        truth = Truth(
            mask=self._cv2.LUT(owners, classes), boxes=self._boxes(owners, regions), labels=(self.motion,)
        )
        return Frame(self._expose(image, index), index, index / s.fps, truth)

    # What is drawn once.

    def _draw_camera(self, rng: np.random.Generator) -> None:
        s = self.settings
        duration = max(s.frames / s.fps * s.speed, 1e-9)
        pan = float(rng.uniform(0.15, 0.35))
        # Tilt and zoom cannot go on for ever; they never reverse either, so a long clip has slower ones.
        tilt = min(float(rng.uniform(0.08, 0.16)), _TILT_RANGE / duration)
        low, high = _ZOOM_RANGE
        growth = min(float(rng.uniform(0.12, 0.25)), math.log(high / low) / duration)
        self._pan = {"pan_left": -pan, "pan_right": pan}.get(self.motion, 0.0)
        self._tilt = {"tilt_up": -tilt, "tilt_down": tilt}.get(self.motion, 0.0)
        self._growth = {"zoom_in": growth, "zoom_out": -growth}.get(self.motion, 0.0)
        self._zoom_0 = {"zoom_in": low, "zoom_out": high}.get(self.motion, float(rng.uniform(0.9, 1.1)))
        last = self._zoom_0 * math.exp(self._growth * duration)
        self._zoom = (min(self._zoom_0, last), max(self._zoom_0, last))
        self._tilt_0 = -self._tilt * duration / 2
        self._shake = rng.uniform(0, 2 * math.pi, 4)

    def _draw_look(self, rng: np.random.Generator) -> None:
        s = self.settings
        self._cv2 = opencv("drawing synthetic video")
        side = min(s.height, _MAX_TILE)
        self._sky = sky_tile(self._cv2, rng, side)
        self._ground = ground_tile(self._cv2, rng, side)
        object_side = max(16, round(side * TILE_HEIGHTS))
        self._tiles = [
            [object_tile(self._cv2, rng, family, object_side) for _ in range(_VARIANTS)]
            for family in SYNTHETIC_CLASSES[_FIRST_OBJECT_CLASS:]
        ]
        self._horizon = float(rng.uniform(-0.08, 0.1))
        self._hills = [
            (a * rng.uniform(0.7, 1.3), f * rng.uniform(0.8, 1.25), rng.uniform(0, 2 * math.pi))
            for a, f in _HILLS
        ]
        self._light = (rng.uniform(0.3, 0.8), rng.uniform(0, 2 * math.pi), rng.uniform(0.08, 0.2))
        noise = rng.normal(0, 4, (s.height + _NOISE_SHIFTS, s.width + _NOISE_SHIFTS, 3))
        self._noise = np.clip(np.rint(noise), -20, 20).astype(np.int8)

    # What a frame is made of.

    def _view(self, time_s: float) -> _View:
        a, b, c, d = self._shake
        x = self._pan * time_s + 0.003 * math.sin(7.1 * time_s + a) + 0.002 * math.sin(12.7 * time_s + b)
        y = self._tilt_0 + self._tilt * time_s
        y += 0.003 * math.sin(6.3 * time_s + c) + 0.002 * math.sin(11.3 * time_s + d)
        zoom = self._zoom_0 * math.exp(self._growth * time_s)
        return _View(x, y, zoom, zoom * self.settings.height)

    def _background(self, view: _View) -> tuple[np.ndarray, np.ndarray]:
        """The picture without objects, and who owns each pixel: 0 the sky, 1 the ground."""
        s = self.settings
        # The hills' outline in pixels; the ground is below it.
        columns = np.linspace(0, s.width, max(2, s.width // 4) + 1)
        world = view.x + (columns - s.width / 2) / view.scale
        elevation = np.full_like(world, self._horizon)
        for amplitude, frequency, phase in self._hills:
            elevation += amplitude * np.sin(frequency * world + phase)
        rows = (elevation - view.y) * view.scale + s.height / 2
        outline = np.stack(
            [
                np.append(columns, [s.width + 8, s.width + 8, -8, -8]),
                np.append(rows, [rows[-1], 2 * s.height, 2 * s.height, rows[0]]),
            ],
            axis=1,
        )
        owners = np.zeros((s.height, s.width), np.uint8)
        self._fill(owners, np.clip(outline, -2 * s.height - 8, 2 * s.height + s.width), 1)
        top = int(np.clip(rows.min() - 2, 0, s.height))
        bottom = int(np.clip(rows.max() + 2, 0, s.height))
        image = np.empty((s.height, s.width, 3), np.uint8)
        if bottom > 0:
            self._warp_world(self._sky, view, _SKY_PARALLAX, image[:bottom], 0)
        if top < s.height:
            ground = np.empty((s.height - top, s.width, 3), np.uint8)
            self._warp_world(self._ground, view, 1.0, ground, top)
            self._cv2.copyTo(ground, owners[top:], image[top:])
        return image, owners

    def _warp_world(
        self, tile: np.ndarray, view: _View, parallax: float, target: np.ndarray, row_0: int
    ) -> None:
        s = self.settings
        side = tile.shape[0]
        step = side / view.scale
        # Modulo the period first: the warp works in 32-bit floats.
        x = (view.x * parallax * side - s.width / 2 * step) % side
        y = (view.y * parallax * side + (row_0 - s.height / 2) * step) % side
        matrix = np.array([[step, 0, x], [0, step, y]], np.float64)
        self._warp(tile, matrix, target)

    def _warp(self, tile: np.ndarray, matrix: np.ndarray, target: np.ndarray) -> None:
        cv2 = self._cv2
        size_wh = (target.shape[1], target.shape[0])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        cv2.warpAffine(tile, matrix, size_wh, dst=target, flags=flags, borderMode=cv2.BORDER_WRAP)

    def _draw(
        self, track: Track, number: int, time_s: float, view: _View, image: np.ndarray, owners: np.ndarray
    ) -> tuple[Life, tuple[slice, slice] | None]:
        """Draw one object where it is in the picture; also says in which region of it."""
        s = self.settings
        x, y, cycle = track.at(time_s, view.x, view.y)
        life = self._life(track.slot, cycle)
        radius, angle = life.pose(time_s)
        outline = life.outline_at(radius * view.scale, angle)
        outline += (x * view.scale + s.width / 2, y * view.scale + s.height / 2)
        left, top = np.floor(outline.min(axis=0)).astype(int) - 1
        right, bottom = np.ceil(outline.max(axis=0)).astype(int) + 2
        rows = slice(max(top, 0), min(bottom, s.height))
        columns = slice(max(left, 0), min(right, s.width))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return life, None
        self._fill(owners, outline, number)
        mask = (owners[rows, columns] == number).view(np.uint8)
        tile = self._tiles[life.class_id - _FIRST_OBJECT_CLASS][life.variant]
        patch = np.empty((*mask.shape, 3), np.uint8)
        # The pattern is fixed to the object: it turns and grows with it.
        step = tile.shape[0] / TILE_HEIGHTS / (view.scale * radius / life.radius)
        cos, sin = math.cos(angle) * step, math.sin(angle) * step
        dx = columns.start - (x * view.scale + s.width / 2)
        dy = rows.start - (y * view.scale + s.height / 2)
        matrix = np.array([[cos, sin, cos * dx + sin * dy], [-sin, cos, -sin * dx + cos * dy]], np.float64)
        matrix[:, 2] += tile.shape[0] * 4
        self._warp(tile, matrix, patch)
        self._cv2.copyTo(patch, mask, image[rows, columns])
        return life, (rows, columns)

    def _life(self, slot: int, cycle: tuple[int, int]) -> Life:
        key = (slot, *cycle)
        if key not in self._lives:
            if len(self._lives) >= 16 * _TRACKS:
                self._lives.clear()
            self._lives[key] = draw_life(
                self.settings.seed, key, len(self._tiles), _VARIANTS, _FIRST_OBJECT_CLASS
            )
        return self._lives[key]

    def _fill(self, owners: np.ndarray, outline: np.ndarray, number: int) -> None:
        points = np.rint(outline * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        self._cv2.fillPoly(owners, [points], number, self._cv2.LINE_8, _SUBPIXEL_BITS)

    def _boxes(self, owners: np.ndarray, regions: list[tuple[int, int, tuple[slice, slice]]]) -> np.ndarray:
        """(N, 5) float32, tight around the visible pixels; an object wholly covered has none."""
        boxes: list[tuple[int, ...]] = []
        for number, class_id, (rows, columns) in regions:
            seen = (owners[rows, columns] == number).view(np.uint8)
            x, y, width, height = self._cv2.boundingRect(seen)
            if width and height:
                x, y = x + columns.start, y + rows.start
                boxes.append((x, y, x + width, y + height, class_id))
        return np.array(boxes, np.float32).reshape(-1, 5)

    def _expose(self, image: np.ndarray, index: int) -> np.ndarray:
        """Exposure drift, then sensor noise, both of the index alone."""
        s = self.settings
        rate, phase, depth = self._light
        gain = 1 + depth * math.sin(rate * index / s.fps * s.speed + phase)
        table = np.clip(np.rint(np.arange(256) * gain), 0, 255).astype(np.uint8)
        exposed = self._cv2.LUT(image, table)
        mixed = (index * 0x9E3779B1) & 0xFFFFFFFF
        y, x = (mixed >> 27) % _NOISE_SHIFTS, (mixed >> 17) % _NOISE_SHIFTS
        noise: Any = self._noise[y : y + s.height, x : x + s.width]
        return np.ascontiguousarray(self._cv2.add(exposed, noise, dtype=self._cv2.CV_8U))


class SyntheticSource(SceneSource[SyntheticScene]):
    """A :class:`SyntheticScene` as a stream; ``scene`` gives random access to its frames.

    Args:
        settings: the clip.
        selection: which frames to deliver.
        uri: how messages name the source.
    """

    def __init__(
        self,
        settings: SyntheticSettings | None = None,
        *,
        selection: Selection | None = None,
        uri: str = "synthetic:shapes",
    ) -> None:
        super().__init__(SyntheticScene(settings), selection, uri)
