"""What verbs share: reading the recipe with the command line's changes, and checking for packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from edge_sdk.cli.options import Device
from edge_sdk.errors import RecipeError
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


def read_options(
    kind: type[S], verb: str, recipe: Path | None, given: dict[str, Any], needed: tuple[str, ...]
) -> S:
    """A verb's settings: the recipe, or defaults, with the options that were given in place of its values.

    Args:
        kind: the settings.
        verb: whose they are, such as ``"evaluate"``.
        recipe: YAML file; None where options are all there is.
        given: by key; None where an option was not given.
        needed: keys that must come from one of the two, arguments of the command in this order.

    Raises:
        MissingFileError, FileFormatError: the recipe cannot be read.
        RecipeError: a key or value is wrong, or a needed one is named nowhere.
    """
    options = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    found = {key: value for key, value in options.items() if value is not None}
    if recipe is not None:
        settings = load_recipe(recipe, kind, **found)
        missing = [name for name in needed if getattr(settings, name) is None]
    else:
        missing = [name for name in needed if name not in found]
    if missing:
        usage = " ".join(name.upper() for name in needed)
        raise RecipeError(
            f"{' and '.join(name.upper() for name in missing)}: expected on the command line or in a recipe.",
            hint=f"Run: edge-sdk {verb} {usage}, or: edge-sdk {verb} --recipe RECIPE.",
        )
    return settings if recipe is not None else parse_settings(found, kind, f"edge-sdk {verb}")
