"""Untrained clip networks as a training would leave them on disk, tiny, and the pictures that they look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edge_sdk.distill.clips.checkpoints import make_clip_network
from edge_sdk.distill.clips.network import ClipNetwork, Seen
from edge_sdk.distill.clips.recipes import ClipModel
from edge_sdk.distill.modules import save_checkpoint
from edge_sdk.distill.steps import State
from edge_sdk.settings import parse_settings
from tests import nets

FRAME_HW = (24, 32)
# What the networks see of a frame; they draw it down themselves.
SEEN_HW = (16, 16)
CLASSES = ("left", "right", "up", "down")
LENGTH, SAMPLES = 12, 4

_MODELS = "edge_sdk.distill.models.clips"
_SMALL = {"width": 8, "features": 8}
# Factory and arguments by name.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "tally": ("tests.clip_nets:tally", {}),
    "hrnn": (f"{_MODELS}:clip_network", {"family": "hrnn", "samples": SAMPLES, "segments": 2, "hidden": 6, **_SMALL}),
    "netvlad": (f"{_MODELS}:clip_network", {"family": "netvlad", "clusters": 3, "hidden": 6, **_SMALL}),
    "nextvlad": (
        f"{_MODELS}:clip_network",
        {"family": "nextvlad", "clusters": 3, "groups": 2, "hidden": 6, "order": True, "samples": SAMPLES, **_SMALL},
    ),
    "mean": (f"{_MODELS}:clip_network", {"family": "mean", **_SMALL}),
    "tsm": (f"{_MODELS}:tsm_network", {"width": 8, "strides": [2, 2, 1]}),
    "causal3d": (f"{_MODELS}:causal3d_network", {"width": 8, "strides": [2, 2, 1]}),
}  # fmt: skip


class Tally(ClipNetwork):
    """The mean of what a convolution sees in each frame, and the largest of it: nothing that others wrote."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.second = nn.Conv2d(8, 8, 3, 2, 1)
        self.head = nn.Linear(16, classes)

    def _features(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()).relu().mean((2, 3))

    def forward(self, clip: Tensor) -> Seen:
        """All frames at once."""
        features = self._features(clip.flatten(0, 1)).unflatten(0, clip.shape[:2])
        both = torch.cat([features.mean(1), features.amax(1)], 1)
        return Seen(self.head(both), both, None)

    def begin(self, x: Tensor) -> tuple[Tensor, State]:
        """The first frame."""
        return self._answer(self._features(x), self._features(x), torch.ones(1, 1))

    def follow(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Another frame."""
        features = self._features(x)
        return self._answer(
            state["total"] + features, torch.maximum(state["most"], features), state["seen"] + 1
        )

    def _answer(self, total: Tensor, most: Tensor, seen: Tensor) -> tuple[Tensor, State]:
        both = torch.cat([total / seen, most], 1)
        return self.head(both), {"total": total, "most": most, "seen": seen}


def tally(classes: int) -> ClipNetwork:
    """The factory of recipes."""
    return Tally(classes)


def checkpoint(folder: Path, name: str, *, multi_label: bool = False, **model: Any) -> Path:
    """A ``model.pt`` of the named family with random weights, as ``edge-sdk train`` writes it.

    Args:
        model: other settings of its :class:`ClipModel`.
    """
    factory, arguments = FAMILIES[name]
    data = {
        "module": {"factory": factory, "arguments": {"classes": len(CLASSES), **arguments}},
        "samples": SAMPLES,
        "preprocess": {"size_hw": SEEN_HW},
        **model,
    }
    settings = parse_settings(data, ClipModel, "test")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nets.randomise(make_clip_network(settings.module))
    task = {"kind": "classification", "classes": list(CLASSES), "multi_label": multi_label}
    meta = {
        "kind": "clips", "model": settings.model_dump(mode="json"), "length": LENGTH, "features": None,
        "frame_hw": list(FRAME_HW), "task": task,
        "figures": {"top1": 0.25},
    }  # fmt: skip
    path = folder / "model.pt"
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_checkpoint(path, {"state_dict": weights, "meta": meta})
    return path


def frames(count: int, seed: int = 0) -> list[np.ndarray]:
    """Pictures (H, W, 3) uint8 of blocks that move to the right."""
    rng = np.random.default_rng(seed)
    scene = np.kron(
        rng.integers(0, 256, (FRAME_HW[0] // 4, FRAME_HW[1] // 4, 3)), np.ones((4, 4, 1), np.int64)
    )
    return [np.roll(scene, 2 * index, axis=1).astype(np.uint8) for index in range(count)]


def spread(network: ClipNetwork, images: list[np.ndarray], to_input: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits (classes,) of a clip of these pictures, all at once."""
    clip = torch.stack([to_input(torch.from_numpy(image)[None])[0] for image in images])[None]
    with torch.no_grad():
        return network(clip).logits[0]
