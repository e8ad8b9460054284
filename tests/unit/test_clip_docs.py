"""The recipes in docs/clips.md are ones that their stages take, and every setting of a loss is explained there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("torch", reason="recipes of clips need torch")
pytest.importorskip("lightning_fabric", reason="training needs lightning-fabric")

from edge_sdk.distill.clips.checkpoints import make_clip_network
from edge_sdk.distill.clips.recipes import ClipDistillRecipe, ClipLoss, ClipTrainRecipe
from edge_sdk.settings import parse_settings

TEXT = (Path(__file__).parents[2] / "docs/clips.md").read_text(encoding="utf-8")


def recipes() -> list[dict[str, Any]]:
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]


def test_the_recipes_are_taken_and_hang_together() -> None:
    training, distilling = recipes()
    teacher = parse_settings(training, ClipTrainRecipe, "teacher.yaml")
    whole = {**{key: value for key, value in training.items() if key != "model"}, **distilling}
    student = parse_settings(whole, ClipDistillRecipe, "student.yaml")
    assert student.teacher.module.checkpoint == teacher.out / "model.pt"
    assert student.teacher.module.arguments == teacher.model.module.arguments
    for model in (teacher.model, student.teacher, student.student):
        assert model.module.arguments["samples"] == model.samples
        assert model.module.arguments["classes"] == len(teacher.task.classes)
        make_clip_network(model.module)


def test_every_loss_is_in_the_table() -> None:
    for name in ClipLoss.model_fields:
        assert name == "temperature" or f"| `{name}` |" in TEXT
