"""The objects of a synthetic scene: where each is at any time, and what it looks like.

A track is one endless straight path on a torus larger than the picture. Each time it goes round it is
another object: a life, drawn from the seed, the track and the number of the round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_RADIUS = (0.12, 0.26)
_PULSE = 0.25
MAX_RADIUS = _RADIUS[1] * (1 + _PULSE)


@dataclass(frozen=True, slots=True)
class Track:
    """A path: lengths in frame heights from the picture's centre, speeds in heights a second.

    ``nearness`` orders objects from back to front and scales how far they move when the camera does.
    """

    slot: int
    reach: tuple[float, float]
    start: tuple[float, float]
    velocity: tuple[float, float]
    nearness: float
    bob: tuple[float, float, float]

    def at(self, time_s: float, camera_x: float, camera_y: float) -> tuple[float, float, tuple[int, int]]:
        """Place at ``time_s`` seen from a camera at ``camera_x``, ``camera_y``, and the round it is in."""
        height, rate, phase = self.bob
        x = self.start[0] + self.velocity[0] * time_s - self.nearness * camera_x
        y = self.start[1] + self.velocity[1] * time_s - self.nearness * camera_y
        y += height * math.sin(rate * time_s + phase)
        round_x, x = divmod(x + self.reach[0], 2 * self.reach[0])
        round_y, y = divmod(y + self.reach[1], 2 * self.reach[1])
        return x - self.reach[0], y - self.reach[1], (int(round_x), int(round_y))


@dataclass(frozen=True, slots=True)
class Life:
    """What an object looks like. ``outline`` is (N, 2) float64 within the unit circle."""

    outline: np.ndarray
    class_id: int
    variant: int
    radius: float
    angle: float
    spin: float
    pulse: tuple[float, float, float]

    def pose(self, time_s: float) -> tuple[float, float]:
        """Radius in frame heights and angle in radians at ``time_s``."""
        depth, rate, phase = self.pulse
        return self.radius * (1 + depth * math.sin(rate * time_s + phase)), self.angle + self.spin * time_s

    def outline_at(self, radius_px: float, angle: float) -> np.ndarray:
        """The outline turned by ``angle`` and of ``radius_px``, around the origin, (N, 2) float64 pixels."""
        cos, sin = math.cos(angle) * radius_px, math.sin(angle) * radius_px
        turned: np.ndarray = self.outline @ np.array([[cos, sin], [-sin, cos]])
        return turned


def draw_track(rng: np.random.Generator, reach: tuple[float, float], slot: int) -> Track:
    """A path on a torus that extends ``reach`` to either side of the centre."""
    # Mostly sideways, as things seen by a camera that stands on the ground.
    angle = rng.choice((0.0, math.pi)) + rng.normal(0, 0.45)
    speed = rng.uniform(0.12, 0.4)
    return Track(
        slot=slot,
        reach=reach,
        start=(rng.uniform(-reach[0], reach[0]), rng.uniform(-reach[1], reach[1])),
        velocity=(speed * math.cos(angle), speed * math.sin(angle)),
        nearness=rng.uniform(0.7, 1.4),
        bob=(rng.uniform(0.0, 0.06), rng.uniform(1.5, 4.0), rng.uniform(0, 2 * math.pi)),
    )


def draw_life(seed: int, key: tuple[int, int, int], classes: int, variants: int, first_class: int) -> Life:
    """The object of track ``key[0]`` in round ``key[1:]``."""
    slot, round_x, round_y = key
    # Rounds count down below zero too, and seeds must not be negative.
    rng = np.random.default_rng((seed, 1, slot, round_x % 2**32, round_y % 2**32))
    return Life(
        outline=_OUTLINES[int(rng.integers(len(_OUTLINES)))](rng),
        class_id=first_class + int(rng.integers(classes)),
        variant=int(rng.integers(variants)),
        radius=rng.uniform(*_RADIUS),
        angle=rng.uniform(0, 2 * math.pi),
        spin=rng.uniform(-1.0, 1.0),
        pulse=(rng.uniform(0.05, _PULSE), rng.uniform(0.8, 2.2), rng.uniform(0, 2 * math.pi)),
    )


def _polygon(radii: np.ndarray) -> np.ndarray:
    angles = np.arange(len(radii)) * (2 * np.pi / len(radii))
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _disc(rng: np.random.Generator) -> np.ndarray:
    return _polygon(np.ones(40)) * (1.0, rng.uniform(0.6, 1.0))


def _box(rng: np.random.Generator) -> np.ndarray:
    half = rng.uniform(0.55, 0.8)
    other = math.sqrt(1 - half * half)
    return np.array([(half, other), (-half, other), (-half, -other), (half, -other)])


def _regular(rng: np.random.Generator) -> np.ndarray:
    return _polygon(np.ones(int(rng.choice((3, 5, 6)))))


def _star(rng: np.random.Generator) -> np.ndarray:
    return _polygon(np.tile((1.0, rng.uniform(0.5, 0.7)), int(rng.integers(5, 8))))


def _blob(rng: np.random.Generator) -> np.ndarray:
    angles = np.arange(48) * (2 * np.pi / 48)
    radii = 1 + sum(
        rng.uniform(0.05, 0.2) * np.cos(k * angles + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5)
    )
    return _polygon(radii / radii.max())


_OUTLINES = (_disc, _box, _regular, _star, _blob)
