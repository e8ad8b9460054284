"""Pairs of neighbouring frames: from video, or from stills under random camera motion."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from edge_sdk.distill.frames import FrameSet, View
from edge_sdk.distill.loop import Batch
from edge_sdk.distill.recipes import Augment, Motion, PairData
from edge_sdk.errors import RecipeError
from edge_sdk.tasks.base import TaskSpec


class PairSampler:
    """Draws batches of pairs: the earlier frame, the later frame and the later frame's label, and frames between.

    Args:
        data: sources and largest gap.
        augment: one crop, mirror and colour for both frames of a pair.
        task: its ignore label marks pixels without a label.
        batch: pairs a batch.
        labelled: refuse frames without a label.

    Raises:
        RecipeError: a video source with fewer than two frames, or what :meth:`FrameSet.read` refuses.
    """

    def __init__(
        self, data: PairData, augment: Augment, task: TaskSpec, batch: int, *, labelled: bool
    ) -> None:
        self.data, self.augment, self.task, self.batch = data, augment, task, batch
        read = (*data.video, *data.stills)
        self.frames = FrameSet.read(read, labelled=labelled, task=task)
        clips = self.frames.clips[: len(data.video)]
        for uri, (start, stop) in zip(data.video, clips, strict=True):
            if stop - start < 2 + data.between:
                raise RecipeError(
                    f"'data.video': expected at least {2 + data.between} consecutive frames, {uri} has {stop - start}.",
                    hint="Single frames belong under data.stills.",
                )
        # Later frames of pairs: in a clip every frame with enough before it, and every still.
        self._clip_start = {i: start for start, stop in clips for i in range(start + 1 + data.between, stop)}
        stills = range(clips[-1][1] if clips else 0, len(self.frames))
        self._later = np.array([*self._clip_start, *stills])
        self._chance = None
        if data.video_share is not None and self._clip_start and len(stills):
            self._chance = np.full(len(self._later), (1 - data.video_share) / len(stills))
            self._chance[: len(self._clip_start)] = data.video_share / len(self._clip_start)

    def __call__(self, rng: np.random.Generator) -> Batch:
        """One batch: ``first`` and ``frame`` (N, H, W, 3) uint8 BGR, ``mask`` (N, H, W) uint8, ``gap`` (N,) int64.

        Where there are frames between them, these are ``between`` (N, S, H, W, 3), from the earliest on.
        """
        rows = [self._pair(rng, int(index)) for index in rng.choice(self._later, self.batch, p=self._chance)]
        frames, mask = (torch.from_numpy(np.stack([row[i] for row in rows])) for i in range(2))
        batch = {"first": frames[:, 0], "frame": frames[:, -1], "mask": mask}
        if self.data.between:
            batch["between"] = frames[:, 1:-1]
        return {**batch, "gap": torch.tensor([row[2] for row in rows])}

    def _pair(self, rng: np.random.Generator, index: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Frames (2 + S, H, W, 3) from the first to the later one, its mask, and their distance."""
        later, least = self.frames.images[index], 1 + self.data.between
        # How far before the later frame each one is, in shares of the distance.
        shares = [1 - i / least for i in range(least)]
        if index in self._clip_start:
            gap = int(rng.integers(least, min(self.data.max_gap, index - self._clip_start[index]) + 1))
            earlier = [self.frames.images[index - round(gap * share)] for share in shares]
        else:
            gap = int(rng.integers(1, self.data.motion.max_gap + 1))
            seed = rng.integers(2**63) if self.data.between else None
            earlier = [
                # Of one camera: the same motion, part of the way.
                moved(
                    later, rng if seed is None else np.random.default_rng(seed), self.data.motion, gap * share
                )
                for share in shares
            ]
        view = View(rng, self.augment, self.frames.size_hw)
        mask = self.frames.masks[index]
        ignore = self.task.ignore_label
        known = mask if mask is not None else np.full(self.frames.size_hw, ignore, np.uint8)
        return np.stack([view.image(image) for image in (*earlier, later)]), view.mask(known, ignore), gap


def moved(image: np.ndarray, rng: np.random.Generator, motion: Motion, gap: float) -> np.ndarray:
    """The frame (H, W, 3) uint8 that a moving camera would have seen ``gap`` frames before or after ``image``."""
    height, width = image.shape[:2]
    shift = rng.normal(0, motion.shift * gap, 2) * (width, height)
    # Cameras travel forward more often than back: the earlier frame sees the scene smaller.
    zoom = np.exp(rng.normal(0.5, 1.0) * motion.zoom * gap)
    turn = np.deg2rad(rng.normal(0, motion.turn * gap))
    focus = np.array([width, height]) * rng.uniform(0.3, 0.7, 2)
    turned = zoom * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    offset = np.stack([x, y], -1) - focus
    flow = offset @ (turned - np.eye(2)).T + shift
    depth = cv2.resize(
        rng.uniform(-1, 1, (4, 5)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    flow *= 1 + motion.parallax * np.clip(depth, -1, 1)[..., None]
    where_x, where_y = (x + flow[..., 0]).astype(np.float32), (y + flow[..., 1]).astype(np.float32)
    out = cv2.remap(image, where_x, where_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    gain = 1 + rng.normal(0, motion.light * gap)
    return cv2.convertScaleAbs(out, alpha=gain)
