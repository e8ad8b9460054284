"""Periodic textures of the synthetic scenes: one family a class, in colours that overlap between classes."""

from __future__ import annotations

from types import ModuleType

import numpy as np

# World side of one texture period of an object, in frame heights.
TILE_HEIGHTS = 0.5

# Centre of each family's range of hues in OpenCV's 0..180, and the half width: neighbours overlap by half,
# so that hue is a hint and only the pattern tells the class.
_HUES = {"striped": 0.0, "checked": 45.0, "dotted": 90.0, "blotched": 135.0}
_HUE_SPREAD = 45.0


def object_tile(cv2: ModuleType, rng: np.random.Generator, family: str, side: int) -> np.ndarray:
    """One period of an object's texture, (side, side, 3) uint8 BGR.

    Args:
        cv2: the OpenCV module.
        rng: draws pattern scale and colours.
        family: ``striped``, ``checked``, ``dotted`` or ``blotched``.
        side: pixels.
    """
    hue = _HUES[family] + rng.uniform(-_HUE_SPREAD, _HUE_SPREAD)
    light = (hue, rng.uniform(60, 190), rng.uniform(175, 245))
    dark = (hue + rng.uniform(-15, 15), rng.uniform(90, 220), rng.uniform(50, 115))
    share = _PATTERNS[family](rng, side)
    if rng.random() < 0.5:
        share = 1.0 - share
    shade = 0.85 + 0.3 * periodic_noise(rng, side, 1, 4)
    return _blend(cv2, light, dark, share, shade)


def sky_tile(cv2: ModuleType, rng: np.random.Generator, side: int) -> np.ndarray:
    """One period of the sky, soft clouds, (side, side, 3) uint8 BGR."""
    hue = rng.uniform(85, 130)
    clear = (hue, rng.uniform(60, 150), rng.uniform(140, 210))
    cloud = (hue + rng.uniform(-8, 8), rng.uniform(5, 45), rng.uniform(190, 245))
    share = np.clip(1.5 * periodic_noise(rng, side, 1, 6) - 0.25, 0, 1)
    return _blend(cv2, clear, cloud, share, np.ones_like(share))


def ground_tile(cv2: ModuleType, rng: np.random.Generator, side: int) -> np.ndarray:
    """One period of the ground, grain over large patches, (side, side, 3) uint8 BGR."""
    hue = rng.uniform(10, 70)
    first = (hue, rng.uniform(50, 150), rng.uniform(70, 120))
    second = (hue + rng.uniform(-15, 15), rng.uniform(50, 150), rng.uniform(110, 170))
    share = periodic_noise(rng, side, 1, 5)
    grain = 0.7 + 0.6 * periodic_noise(rng, side, 12, 60)
    return _blend(cv2, first, second, share, grain)


def periodic_noise(rng: np.random.Generator, side: int, low: float, high: float) -> np.ndarray:
    """Noise that tiles, with ``low`` to ``high`` cycles a period, (side, side) float32 in 0..1."""
    frequency = np.hypot(np.fft.fftfreq(side, 1 / side)[:, None], np.fft.rfftfreq(side, 1 / side)[None, :])
    band = (frequency >= low) & (frequency <= high)
    phase = np.exp(2j * np.pi * rng.random(band.shape))
    noise = np.fft.irfft2(np.where(band, phase / np.maximum(frequency, 1), 0), s=(side, side))
    # Three deviations to either side fill the range; the few beyond are cut.
    return np.clip(0.5 + noise / (6 * noise.std() + 1e-12), 0, 1).astype(np.float32)


def _striped(rng: np.random.Generator, side: int) -> np.ndarray:
    cycles = int(rng.integers(5, 9))
    wave = np.sin(2 * np.pi * cycles * (np.arange(side) + 0.5) / side)
    return _step(np.broadcast_to(wave, (side, side)), cycles, side)


def _checked(rng: np.random.Generator, side: int) -> np.ndarray:
    cycles = int(rng.integers(3, 6))
    wave = np.sin(2 * np.pi * cycles * (np.arange(side) + 0.5) / side)
    return _step(wave[:, None] * wave[None, :], cycles, side)


def _dotted(rng: np.random.Generator, side: int) -> np.ndarray:
    cycles = int(rng.integers(4, 7))
    cell = np.mod(cycles * (np.arange(side) + 0.5) / side, 1) - 0.5
    return _step(4 * (0.3 - np.hypot(cell[:, None], cell[None, :])), cycles, side)


def _blotched(rng: np.random.Generator, side: int) -> np.ndarray:
    noise = periodic_noise(rng, side, 3, 7)
    return _step(8 * (noise - 0.5), 5, side)


_PATTERNS = {"striped": _striped, "checked": _checked, "dotted": _dotted, "blotched": _blotched}


def _step(wave: np.ndarray, cycles: int, side: int) -> np.ndarray:
    """A wave of slope about 2 pi ``cycles`` a period as 0 or 1, with edges about a pixel wide."""
    return np.clip(0.5 + wave * side / (2 * np.pi * cycles), 0, 1).astype(np.float32)


def _blend(
    cv2: ModuleType,
    first: tuple[float, float, float],
    second: tuple[float, float, float],
    share: np.ndarray,
    shade: np.ndarray,
) -> np.ndarray:
    hsv = np.array([[(h % 180, s, v) for h, s, v in (first, second)]], np.uint8)
    one, two = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0].astype(np.float32)
    mixed = (one * share[..., None] + two * (1 - share[..., None])) * shade[..., None]
    return np.ascontiguousarray(np.clip(np.rint(mixed), 0, 255).astype(np.uint8))
