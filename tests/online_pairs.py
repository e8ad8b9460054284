"""Online pairs of tiny networks that learn, and bundles of them, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edge_sdk.bundle import Bundle
from edge_sdk.compile import ExportRecipe, export
from edge_sdk.distill.modules import make_module, save_checkpoint
from edge_sdk.distill.recipes import ModuleSettings
from edge_sdk.settings import parse_settings
from tests import nets

TINY = "tests.nets:tiny"
CLASSES = ("background", "a", "b")
TEACHER_CLASSES = ("w", "x", "y", "z")
GROUPS = {"a": ("x", "z"), "b": ("y",)}


def data(folder: Path, **changes: Any) -> dict[str, Any]:
    """An :class:`~edge_sdk.distill.online.OnlineRecipe` as plain data; its checkpoints are written to ``folder``.

    Student and teacher are :func:`tests.nets.tiny`, of 3 classes and of 4 that are grouped.
    """
    given: dict[str, Any] = {
        "student": module(folder, "student", len(CLASSES), 1),
        "teacher": module(folder, "teacher", len(TEACHER_CLASSES), 2),
        "teacher_classes": TEACHER_CLASSES,
        "groups": GROUPS,
        "task": {"classes": CLASSES},
    }
    return {**given, **changes}


def module(folder: Path, name: str, classes: int, seed: int) -> dict[str, Any]:
    """A tiny network with random weights in a checkpoint, as a recipe names it."""
    made = {"factory": TINY, "arguments": {"classes": classes}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nets.randomise(make_module(ModuleSettings.model_validate(made)), seed)
    save_checkpoint(folder / f"{name}.pt", network.state_dict())
    return {**made, "checkpoint": folder / f"{name}.pt"}


def bundle(folder: Path, frame_hw: tuple[int, int] = (24, 40), **changes: Any) -> Bundle:
    """A bundle of such a pair in ``folder / "bundle"``; ``changes`` are the online recipe's."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {"out": folder / "bundle", "frame_hw": frame_hw, "online": data(folder, **changes)}
    return export(parse_settings(given, ExportRecipe, "test"))
