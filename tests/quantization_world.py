"""What the tests of quantisation-aware fine-tuning share: a short training, and a pair whose ranges are observed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge_sdk.distill.convert import to_delta
from edge_sdk.distill.delta import DeltaNet
from edge_sdk.distill.delta_recipe import DeltaSettings, DistillRecipe, QuantizationSettings
from edge_sdk.distill.modules import save_checkpoint
from edge_sdk.distill.quantization import SimulatedInt8
from edge_sdk.distill.tape import Pass
from edge_sdk.settings import parse_settings
from tests import nets

HW = nets.SIZE_HW
CLIP = f"synthetic:shapes?height={HW[0]}&width={HW[1]}&frames=8"
CLASSES = list("abcdef")
INTERVAL = 4


def make(width: int = 8) -> nn.Module:
    """The factory of recipes."""
    torch.manual_seed(0)
    return nets.randomise(nets.tiny(len(CLASSES), width))


def recipe(out: Path, **changes: Any) -> DistillRecipe:
    """A short training on the CPU; mappings among ``changes`` are merged."""
    width = changes.pop("width", 8)
    teacher = out.parent / f"teacher{width}.pt"
    if not teacher.exists():
        save_checkpoint(teacher, make(width).state_dict())
    data: dict[str, Any] = {
        "out": out,
        "teacher": {"factory": f"{__name__}:make", "arguments": {"width": width}, "checkpoint": teacher},
        "task": {"classes": CLASSES},
        "data": {"video": [CLIP], "max_gap": INTERVAL - 1},
        "augment": {"scale": [1.0, 1.2]},
        "loss": {"task": {"source": "teacher"}},
        "optimiser": {"kind": "adamw", "lr": 0.003, "curve": "cosine"},
        "loop": {"steps": 6, "batch": 2, "workers": 0, "accelerator": "cpu", "checkpoint_every": 1},
    }
    for key, value in changes.items():
        data[key] = {**data.get(key, {}), **value} if isinstance(value, dict) else value
    return parse_settings(data, DistillRecipe, "test")


def simulated(
    network: nn.Module, delta: DeltaSettings | None = None, steps: int = 10, **changes: Any
) -> tuple[DeltaNet, SimulatedInt8]:
    net = to_delta(network, torch.zeros(1, 3, *HW), delta or DeltaSettings()).net
    chosen = QuantizationSettings(**{"start": 0.0, "momentum": 1.0, **changes})
    return net, SimulatedInt8(net, chosen, steps=steps, example=torch.zeros(1, 3, *HW))


def pair_of_frames() -> tuple[Tensor, Tensor]:
    first, other = nets.frames(2)
    return first, first + 0.3 * other


def observed(net: DeltaNet, simulation: SimulatedInt8, first: Tensor, later: Tensor) -> None:
    """One training step's look at the ranges of a pair."""
    state: dict[str, Tensor] = {}
    with simulation.training_step(0), torch.no_grad():
        net.train()
        net.run(Pass.KEYFRAME, first, state, "published")
        net.run(Pass.DELTA, later, state, "published")
        net.eval()
