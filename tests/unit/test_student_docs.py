"""docs/students.md: its recipes can be read, and it names every candidate and every setting of the search."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

torch = pytest.importorskip("torch", reason="distillation needs torch")

from edge_sdk.distill.delta_recipe import DeltaSettings, SearchSettings  # noqa: E402
from edge_sdk.distill.kinds import Kind  # noqa: E402
from edge_sdk.distill.recipes import PairData  # noqa: E402
from edge_sdk.profile.prepare.recipe import ProfileRecipe  # noqa: E402
from edge_sdk.settings import parse_settings  # noqa: E402

TEXT = (Path(__file__).parents[2] / "docs" / "students.md").read_text(encoding="utf-8")


def test_its_recipes_can_be_read() -> None:
    blocks = [yaml.safe_load(re.sub(r"^   ", "", found, flags=re.M) if found.startswith("   ") else found)
              for found in re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.S)]  # fmt: skip
    assert len(blocks) == 4
    units = [parse_settings(block["delta"], DeltaSettings, "docs").units for block in blocks[:2]]
    assert all(units)
    assert parse_settings(blocks[2], ProfileRecipe, "docs").delta.units
    parse_settings(blocks[3]["search"], SearchSettings, "docs")
    parse_settings(blocks[3]["data"], PairData, "docs")


def test_every_candidate_and_setting_is_named() -> None:
    for name in ("full", "rank/4", "channels/2", "half", "half+rank/4", "half+channels/2", "kept"):
        assert str(Kind.parse(name)) == name
        assert f"`{name}`" in TEXT
    for name, setting in SearchSettings.model_fields.items():
        row = re.search(rf"^\| `{name}` \| (\S*) ?\|", TEXT, flags=re.M)
        assert row is not None, name
        assert not row[1] or float(row[1]) == setting.default
