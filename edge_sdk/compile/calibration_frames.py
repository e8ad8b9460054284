"""Whether frames are pictures of something that moves: what a calibration set must be made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from edge_sdk.errors import RecipeError

# Pixels next to each other: 0.85 to 0.99 in each of 409 frames of CamVid, DAVIS and two surveillance videos, and about
# 0 where each pixel is drawn alone.
MIN_CORRELATION = 0.3
# Standard deviation in grey levels below which a frame shows nothing.
MIN_CONTRAST = 0.5
# A covered lens or a dropped signal in some of the frames does no harm.
MAX_BAD_SHARE = 0.5

_DRAW = "Draw clips from recordings of the device's camera: python calibration/draw_clips.py RECIPE"


@dataclass(frozen=True)
class FrameFacts:
    """What is looked at in one frame.

    Args:
        contrast: standard deviation of the green channel, in grey levels.
        correlation: of each green pixel with its right and its lower neighbour, the mean of the two; 0 in a frame
            without contrast.
        digest: of its pixels.
    """

    contrast: float
    correlation: float
    digest: bytes

    @classmethod
    def of(cls, image: np.ndarray) -> FrameFacts:
        """Facts of an image (H, W, 3) uint8, H and W at least 2."""
        green = image[..., 1].astype(np.float32)
        contrast = float(green.std())
        across = _correlation(green[:, :-1], green[:, 1:])
        down = _correlation(green[:-1], green[1:])
        digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        return cls(contrast, (across + down) / 2, digest)


def check_frames(clips: Iterable[Iterable[FrameFacts]], where: str, *, delta: bool) -> None:
    """Refuse frames that say nothing of how a pair is used.

    Args:
        clips: the facts of every frame, by clip.
        where: begins the message, such as the clips' folder.
        delta: whether there is a delta step, which needs frames that follow a keyframe and differ from it.

    Raises:
        RecipeError: no frames; frames that are constant or noise, more than half of them; all the same; or, for a
            delta step, no clip with a second frame, or none in which anything changes.
    """
    frames = constant = noise = longest = 0
    changing = False
    digests: set[bytes] = set()
    for clip in clips:
        first: bytes | None = None
        length = 0
        for facts in clip:
            length += 1
            constant += facts.contrast < MIN_CONTRAST
            noise += facts.contrast >= MIN_CONTRAST and facts.correlation < MIN_CORRELATION
            first = facts.digest if first is None else first
            changing |= facts.digest != first
            digests.add(facts.digest)
        frames, longest = frames + length, max(longest, length)
    if not frames:
        raise RecipeError(f"{where}: expected clips of frames, found none.", hint=_DRAW)
    for count, what in (
        (constant, "of one colour"),
        (noise, "noise, in which neighbouring pixels have nothing in common"),
    ):
        if count > MAX_BAD_SHARE * frames:
            raise RecipeError(
                f"{where}: expected pictures, {count} of {frames} frames are {what}.", hint=_DRAW
            )
    if len(digests) == 1:
        raise RecipeError(f"{where}: expected different frames, all {frames} are the same.", hint=_DRAW)
    if delta and longest < 2:
        raise RecipeError(
            f"{where}: expected clips of at least 2 frames for the delta step, each has one.",
            hint="Draw clips as long as the keyframe interval: set 'frames' in the recipe of the clips.",
        )
    if delta and not changing:
        raise RecipeError(
            f"{where}: expected frames that differ from their keyframe, in no clip does anything change.",
            hint="Draw clips from video in which something moves.",
        )


def _correlation(left: np.ndarray, right: np.ndarray) -> float:
    left, right = left - left.mean(), right - right.mean()
    scale = float(np.sqrt((left * left).mean() * (right * right).mean()))
    return float((left * right).mean()) / scale if scale > 0 else 0.0
