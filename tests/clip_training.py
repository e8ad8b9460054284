"""Tiny labelled clips in memory and a network that learns them, for tests of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_sdk.distill.clips import distil, train
from edge_sdk.distill.clips.data import ClipSet
from edge_sdk.distill.clips.network import ClipNetwork, Seen
from edge_sdk.distill.clips.recipes import ClipDistillRecipe, ClipTrainRecipe
from edge_sdk.settings import parse_settings
from edge_sdk.tasks.base import TaskSpec

CLASSES = ("dark", "middling", "bright")
LENGTH, SIZE_HW = 6, (8, 8)
TASK: dict[str, Any] = {"kind": "classification", "classes": CLASSES}


class Tiny(ClipNetwork):
    """One convolution with batch norm and dropout; the mean over places and frames is classified."""

    def __init__(self, classes: int, width: int, maps: bool, places: bool, dropout: float) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width)
        self.head, self.drop = nn.Linear(width, classes), nn.Dropout(dropout)
        self.with_maps, self.places = maps, places

    def forward(self, clip: Tensor) -> Seen:
        """All frames at once."""
        maps = self.norm(self.conv(clip.flatten(0, 1))).relu().unflatten(0, clip.shape[:2])
        mean = maps.mean((1, 3, 4))
        return Seen(self.head(self.drop(mean)), mean, maps if self.with_maps else None)

    def classify(self, map_: Tensor) -> Tensor:
        """At every place."""
        if not self.places:
            return super().classify(map_)
        return self.head(map_.movedim(1, -1)).movedim(-1, 1)


class Vectors(ClipNetwork):
    """The mean of feature vectors, classified."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, classes)

    def forward(self, clip: Tensor) -> Seen:
        """All frames at once."""
        return Seen(self.head(clip.mean(1)), clip.mean(1), None)


def tiny(
    classes: int, width: int = 4, maps: bool = True, places: bool = True, dropout: float = 0.0
) -> ClipNetwork:
    """A factory for recipes."""
    return Tiny(classes, width, maps, places, dropout)


def vectors(classes: int, dim: int) -> ClipNetwork:
    """A factory for recipes."""
    return Vectors(classes, dim)


def clips(count: int = 12, seed: int = 0) -> ClipSet:
    """Clips whose classes are how bright they are; every frame's first pixel is its number."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(CLASSES)
    levels = np.array((40, 120, 200))[labels][:, None, None, None, None]
    pictures = levels + rng.integers(-30, 30, (count, LENGTH, *SIZE_HW, 3))
    pictures[:, :, 0, 0] = np.arange(LENGTH)[None, :, None]
    names = tuple(f"clip {number}" for number in range(count))
    return ClipSet(pictures.astype(np.uint8), np.eye(len(CLASSES), dtype=np.float32)[labels], names)


def in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings read ``memory:SEED`` as :func:`clips`."""

    def read(
        uris: tuple[str, ...], data: Any, task: TaskSpec, *, labelled: bool = True, progress: Any = None
    ) -> ClipSet:
        (uri,) = uris
        found = clips(seed=int(uri.removeprefix("memory:")))
        return found if labelled else replace(found, targets=np.full_like(found.targets, np.nan))

    for stage in (train, distil):
        monkeypatch.setattr(stage, "read_clips", read)


def model(samples: int = 4, checkpoint: Path | None = None, **changes: Any) -> dict[str, Any]:
    """A :class:`ClipModel` as plain values; ``arguments`` are added to the factory's."""
    arguments = {"classes": len(CLASSES), **changes.pop("arguments", {})}
    module = {"factory": "tests.clip_training:tiny", "arguments": arguments, "checkpoint": checkpoint}
    return {"module": {**module, **changes.pop("module", {})}, "samples": samples, **changes}


def _common(out: Path, loop: dict[str, Any]) -> dict[str, Any]:
    steps = {
        "steps": 4,
        "batch": 4,
        "workers": 0,
        "checkpoint_every": 2,
        "validate_every": 2,
        "accelerator": "cpu",
    }
    return {
        "kind": "clips", "out": out, "task": TASK, "loop": {**steps, **loop},
        "data": {"train": ["memory:0"], "validation": ["memory:1"], "length": LENGTH},
        "optimiser": {"kind": "adamw", "lr": 0.01, "clip_norm": 0.1, "curve": "constant"},
    }  # fmt: skip


def train_recipe(out: Path, loop: dict[str, Any] | None = None, **changes: Any) -> ClipTrainRecipe:
    """Four steps with labels; ``changes`` replace top keys."""
    data = {**_common(out, loop or {}), "model": model(), **changes}
    return parse_settings(data, ClipTrainRecipe, "test")


def distil_recipe(out: Path, loop: dict[str, Any] | None = None, **changes: Any) -> ClipDistillRecipe:
    """Four steps of parallel training; ``changes`` replace top keys."""
    common = _common(out, loop or {})
    data = {**common, "teacher": model(), "student": model(2), "loss": {"representation": 1}, **changes}
    return parse_settings(data, ClipDistillRecipe, "test")


def weights(network: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights and statistics."""
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two state dicts are the same bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
