"""docs/online.md names every setting and every event, and what it links to inside the repository is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from edge_sdk.adapt.journal import Event
from edge_sdk.adapt.settings import AdaptSettings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "online.md").read_text(encoding="utf-8")


def values(name: str) -> list[str]:
    """The words that a setting may be, where it is one of several words."""
    model, _, field = name.rpartition(".")
    owner: type[BaseModel] = AdaptSettings
    for part in filter(None, model.split(".")):
        owner = owner.model_fields[part].annotation  # type: ignore[assignment]  # a model, by its name here
    return [value for value in get_args(owner.model_fields[field].annotation) if isinstance(value, str)]


@pytest.mark.parametrize("name", [name for name in AdaptSettings.model_fields if name != "seed"])
def test_every_setting_is_named(name: str) -> None:
    assert re.search(rf"`{name}\b", TEXT)


@pytest.mark.parametrize(
    "name", ["order", "answer", "pace", "swap", "stride.due", "agreement.measure", "loss.kind"]
)
def test_every_variant_is_named(name: str) -> None:
    assert len(values(name)) == 2
    for value in values(name):
        assert re.search(rf"`(?:\w+: )?{value}\b", TEXT), value


def test_every_event_is_named() -> None:
    kinds = {model.model_fields["kind"].default for model in get_args(get_args(Event)[0])}
    assert len(kinds) == 9
    table = TEXT[TEXT.index("| `kind` |") : TEXT.index("```python")]
    assert kinds <= set(re.findall(r"`(\w+)`", table))


def test_defaults_are_those_of_the_settings() -> None:
    settings = AdaptSettings()
    for said in (
        f"| `threshold` | {settings.threshold} |",
        f"| `max_updates` | {settings.max_updates} |",
        f"| `stride.minimum`, `.maximum` | {settings.stride.minimum}, {settings.stride.maximum} |",
        f"| `loss.box_weight` | {settings.loss.box_weight:g} ",
        f"rate {settings.optimiser.lr}, momentum {settings.optimiser.momentum}, decay 4e-5",
        f"`drift.drop` ({settings.drift.drop})",
        f"`drift.mean_over` ({settings.drift.mean_over})",
        f"`drift.stuck_after` ({settings.drift.stuck_after})",
        f"({settings.probe.differing * 100:g} %:",
    ):
        assert said in TEXT, said


def test_sections_that_are_linked_are_there() -> None:
    headings = {
        re.sub(r"[^\w\- ]", "", line.strip("# ")).lower().replace(" ", "-")
        for line in TEXT.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", TEXT)) <= headings


def test_files_that_are_linked_are_there() -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
