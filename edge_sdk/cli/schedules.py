"""``--interval`` and ``--schedule``: which frames are keyframes."""

from __future__ import annotations

from pathlib import Path

from edge_sdk.errors import RecipeError
from edge_sdk.runtime.schedule import ScheduleSettings
from edge_sdk.settings import Settings, load_recipe, parse_settings


class ScheduleRecipe(Settings):
    """A YAML file with the single key ``schedule``."""

    schedule: ScheduleSettings


def schedule_from(interval: int | None, recipe: Path | None) -> ScheduleSettings | None:
    """The schedule asked for on the command line; ``None`` leaves the bundle's own.

    Raises:
        RecipeError: both are given, or the recipe does not describe a schedule.
    """
    if interval is not None and recipe is not None:
        raise RecipeError("--interval and --schedule: expected one of them, got both.", hint="Leave one out.")
    if recipe is not None:
        return load_recipe(recipe, ScheduleRecipe).schedule
    if interval is None:
        return None
    data = {"schedule": {"kind": "every", "interval": interval}}
    return parse_settings(data, ScheduleRecipe, f"--interval {interval}").schedule
