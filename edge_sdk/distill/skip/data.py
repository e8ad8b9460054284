"""Short clips for the training of gates: from video, or from stills under random camera motion."""

from __future__ import annotations

import numpy as np
import torch

from edge_sdk.distill.frames import FrameSet, View
from edge_sdk.distill.loop import Batch
from edge_sdk.distill.pairs import moved
from edge_sdk.distill.recipes import Augment
from edge_sdk.distill.skip.recipes import SkipData
from edge_sdk.errors import RecipeError
from edge_sdk.tasks.base import TaskSpec


class ClipSampler:
    """Draws batches of short clips and the label of each clip's last frame.

    Args:
        data: sources and lengths.
        augment: one crop, mirror and colour for all frames of a clip.
        task: its ignore label marks pixels without a label.
        batch: clips a batch.
        labelled: refuse frames without a label.

    Raises:
        RecipeError: a video source that is shorter than a clip, or what :meth:`FrameSet.read` refuses.
    """

    def __init__(
        self, data: SkipData, augment: Augment, task: TaskSpec, batch: int, *, labelled: bool
    ) -> None:
        self.data, self.augment, self.task, self.batch = data, augment, task, batch
        self.frames = FrameSet.read((*data.video, *data.stills), labelled=labelled, task=task)
        clips = self.frames.clips[: len(data.video)]
        for uri, (start, stop) in zip(data.video, clips, strict=True):
            if stop - start < data.frames:
                raise RecipeError(
                    f"'data.video': expected at least {data.frames} consecutive frames, {uri} has {stop - start}.",
                    hint="Give longer videos, or lower data.frames.",
                )
        # Last frames of clips, with the first frame of their source; a still has none before it.
        self._source = {i: start for start, stop in clips for i in range(start + data.frames - 1, stop)}
        stills = range(clips[-1][1] if clips else 0, len(self.frames))
        self._last = np.array([*self._source, *stills])
        self._chance = None
        if data.video_share is not None and self._source and len(stills):
            self._chance = np.full(len(self._last), (1 - data.video_share) / len(stills))
            self._chance[: len(self._source)] = data.video_share / len(self._source)

    def __call__(self, rng: np.random.Generator) -> Batch:
        """One batch: ``frames`` (N, T, H, W, 3) uint8 BGR, ``mask`` (N, H, W) uint8."""
        rows = [self._clip(rng, int(index)) for index in rng.choice(self._last, self.batch, p=self._chance)]
        frames, mask = (torch.from_numpy(np.stack([row[i] for row in rows])) for i in range(2))
        return {"frames": frames, "mask": mask}

    def _clip(self, rng: np.random.Generator, last: int) -> tuple[np.ndarray, np.ndarray]:
        count = self.data.frames
        if last in self._source:
            room = (last - self._source[last]) // (count - 1)
            gap = int(rng.integers(1, min(self.data.gap, room) + 1))
            images = [self.frames.images[last - gap * (count - 1 - t)] for t in range(count)]
        else:
            images = [self.frames.images[last]]
            while len(images) < count:
                images.insert(0, moved(images[0], rng, self.data.motion, 1))
        view = View(rng, self.augment, self.frames.size_hw)
        ignore = self.task.ignore_label
        mask = self.frames.masks[last]
        known = mask if mask is not None else np.full(self.frames.size_hw, ignore, np.uint8)
        return np.stack([view.image(image) for image in images]), view.mask(known, ignore)
