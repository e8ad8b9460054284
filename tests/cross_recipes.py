"""Recipes of tiny whole-network pairs, with networks that are on disk but not trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edge_sdk.distill.cross_recipe import CrossRecipe
from edge_sdk.distill.modules import save_checkpoint
from edge_sdk.settings import parse_settings
from edge_sdk.tasks.base import TaskSpec
from edge_sdk.video.synthetic import SYNTHETIC_CLASSES
from tests import nets

CLIP = "synthetic:shapes?height=32&width=48&frames=6"
SIZE_HW = (32, 48)
CLASSES = len(SYNTHETIC_CLASSES)
TASK = TaskSpec(classes=SYNTHETIC_CLASSES)


def module(folder: Path, name: str, seed: int, **arguments: Any) -> dict[str, Any]:
    made = {"factory": "tests.nets:tiny", "arguments": {"classes": CLASSES, **arguments}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nets.randomise(nets.tiny(**made["arguments"]), seed)  # type: ignore[arg-type]
    path = folder / f"{name}.pt"
    save_checkpoint(path, network.state_dict())
    return {**made, "checkpoint": path}


def recipe(folder: Path, **changes: Any) -> CrossRecipe:
    data: dict[str, Any] = {
        "kind": "cross",
        "out": folder / "out",
        "teacher": module(folder, "teacher", 1),
        "task": TASK.model_dump(),
        "multiple": 4,
        "confidence": 4,
        "data": {"video": [CLIP], "max_gap": 3},
        "loss": {"features": 1.0, "feature_at": "7"},
        "optimiser": {"lr": 0.05, "clip_norm": 5.0},
        "loop": {"steps": 4, "batch": 2, "workers": 0, "checkpoint_every": 2, "accelerator": "cpu"},
    }
    for key, value in changes.items():
        data[key] = {**data.get(key, {}), **value} if isinstance(value, dict) else value
    return parse_settings(data, CrossRecipe, "test")
