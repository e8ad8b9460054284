"""What the workstation verbs share: reading the recipe with the command line's changes, and checking for packages."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from edge_sdk.cli.options import Device
from edge_sdk.files import require_file
from edge_sdk.optional import require
from edge_sdk.settings import Settings, load_recipe, parse_settings

S = TypeVar("S", bound=Settings)


def need(verb: str, *packages: str, recipe: Path | None = None) -> None:
    """Refuse, before seconds go into loading them, a missing recipe or a package that this machine lacks.

    Raises:
        MissingFileError: no recipe there.
        DependencyError: naming the package and what to install.
    """
    if recipe is not None:
        require_file(recipe, "recipe")
    for package in packages:
        require(package, f"edge-sdk {verb}")


def read_training(path: Path, kind: type[S], *, out: Path | None, device: Device | None) -> S:
    """The recipe of a training stage with ``--out`` and ``--device`` in place of its own values.

    Raises:
        MissingFileError: no recipe there.
        RecipeError: a key or value is wrong, before or after the changes.
    """
    settings = load_recipe(path, kind, out=None if out is None else str(out))
    if device is None:
        return settings
    changed = settings.model_dump(mode="json")
    changed["loop"]["accelerator"] = device.value
    return parse_settings(changed, kind, f"recipe {path} with --device {device.value}")
