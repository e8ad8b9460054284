"""Untrained pairs whose convolution and block are each one kind of student, exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edge_sdk.bundle import Bundle
from edge_sdk.compile import ExportRecipe, export
from edge_sdk.distill.convert import to_delta
from edge_sdk.distill.delta_recipe import DistillRecipe
from edge_sdk.distill.modules import save_checkpoint
from edge_sdk.settings import parse_settings
from tests import nets, step_pairs

KINDS = ("full", "rank/4", "channels/2", "half", "half+rank/4", "half+channels/2", "kept")
# At the units 15 x 23, so that half resolution meets odd sizes.
FRAME_HW = (30, 46)
CONV, BLOCK = "conv", "block"


class Teacher(nn.Module):
    """A strided convolution, a convolution that is a unit, a strided block that is one, and an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, 2, 1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.block = nn.Sequential(
            nn.Conv2d(16, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
            nn.Conv2d(16, 16, 3, padding=1),
        )  # fmt: skip
        self.last = nn.Conv2d(16, nets.CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.first(image))
        y = torch.relu(self.conv(x) + x)
        return self.last(torch.relu(self.block(y)) + nn.functional.max_pool2d(y, 3, 2, 1))


def teacher() -> nn.Module:
    """The factory of recipes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nets.randomise(Teacher())


def bundle(folder: Path, delta: dict[str, Any], **settings: Any) -> Bundle:
    """The pair with these delta settings, its students moved away from where they start."""
    data: dict[str, Any] = {
        "out": folder,
        "teacher": {"factory": "tests.candidate_pairs:teacher"},
        "task": {"classes": [str(index) for index in range(nets.CLASSES)]},
        "delta": {"include": [], **delta},
        "data": {"video": ["none"]},
        "loop": {"steps": 1},
    }
    recipe = parse_settings(data, DistillRecipe, "test")
    net = to_delta(teacher(), torch.zeros(1, 3, *FRAME_HW), recipe.delta).net
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.student_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    meta = {"kind": "delta", "recipe": recipe.model_dump(mode="json"), "example_hw": list(FRAME_HW)}
    save_checkpoint(folder / "student.pt", {"state_dict": net.network.state_dict(), "meta": meta})
    path = folder / "student.pt"
    return export(ExportRecipe(out=folder / "bundle", checkpoint=path, frame_hw=FRAME_HW, **settings))


def of_kind(folder: Path, kind: str, **settings: Any) -> Bundle:
    """Both units of one kind."""
    return bundle(folder, {"units": {CONV: [kind], BLOCK: [kind]}}, **settings)


def frames(count: int, seed: int = 0) -> list[np.ndarray]:
    """Pictures (H, W, 3) uint8 of blocks that move to the right."""
    rng = np.random.default_rng(seed)
    scene = np.kron(rng.integers(0, 256, (10, 16, 3)), np.ones((3, 3, 1), np.int64))[:, : FRAME_HW[1]]
    return [np.roll(scene, 2 * index, axis=1).astype(np.uint8) for index in range(count)]


class Passes(step_pairs.Passes):
    """What a quantiser asks of a calibration set: one clip over the bundle's own schedule."""

    def __init__(self, bundle: Bundle) -> None:
        self.given = step_pairs.record(step_pairs.graphs_of(bundle), frames(10), bundle.manifest.schedule)
