"""A pair whose delta step tells how much of its keyframe still holds, by hand: for export, quantising and building."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge_sdk.bundle import Bundle
from edge_sdk.compile.export import export_origin
from edge_sdk.compile.origins import Origin
from edge_sdk.compile.recipes import ExportRecipe
from edge_sdk.distill.frames import Preprocess
from edge_sdk.distill.steps import TRUST, State, StepPair
from edge_sdk.tasks import TaskSpec
from tests import nets

HW = nets.SIZE_HW
TASK = TaskSpec(classes=tuple(f"class{index}" for index in range(nets.CLASSES)))


class TrustPair(StepPair):
    """z_t = s(x_t) + m (z_0 - s(x_0)) with m = sigmoid(h(|s(x_t) - s(x_0)|)); the mean of m is the trust."""

    method = "trust"
    has_delta = True

    def __init__(self, *, tells: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.teacher, self.student = nets.foreign("nested"), nets.foreign("nested")
            self.h = nn.Conv2d(nets.CLASSES, 2, 3, padding=1)
        self.tells = tells

    def keyframe(self, x: Tensor) -> tuple[Tensor, State]:
        """The teacher's logits; the student's own, and what they lack."""
        full, own = self.teacher(x), self.student(x)
        return full, {"own": own, "residual": full - own}

    def delta(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The student's logits, corrected where they changed little."""
        own = self.student(x)
        confidence = torch.sigmoid(2 + self.h((own - state["own"]).abs()).sum(1, keepdim=True))
        told = {TRUST: self.trust(confidence)} if self.tells else {}
        return own + confidence * state["residual"], told

    def trust(self, confidence: Tensor) -> Tensor:
        """What is told of the keyframe, shape ()."""
        return confidence.mean()


class OwnHead(TrustPair):
    """A convolution of its own makes the trust, after the one that the answer is decided by."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, 2, 3)

    def trust(self, confidence: Tensor) -> Tensor:
        """The mean of the head's answer, shape ()."""
        return torch.sigmoid(self.head(confidence)).mean()


def bundle(folder: Path, pair: StepPair | None = None, **settings: Any) -> Bundle:
    """The pair, exported."""
    origin = Origin((pair or TrustPair()).eval(), TASK, Preprocess(), {})
    recipe = ExportRecipe.model_validate(
        {"out": folder / "bundle", "checkpoint": "none.pt", "frame_hw": HW, **settings}
    )
    return export_origin(recipe, origin)
