"""What verbs share: reading the recipe with the command line's changes, and checking for packages."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edge_sdk.cli.options import Device
from edge_sdk.errors import RecipeError
from edge_sdk.files import require_file
from edge_sdk.optional import require
from edge_sdk.settings import Settings, load_recipe, parse_settings, read_recipe

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


@dataclass(frozen=True)
class Kind:
    """One thing that a verb does, by the ``kind`` of its recipe; both as ``module:name``, loaded when it is asked for.

    Args:
        recipe: the settings model.
        stage: the function that takes the settings, ``progress`` and ``resume``, and returns a report.
    """

    recipe: str
    stage: str

    def load(self) -> tuple[type[Settings], Callable[..., Any]]:
        """Settings model and function."""
        recipe, stage = (
            getattr(importlib.import_module(module), name)
            for module, _, name in (text.partition(":") for text in (self.recipe, self.stage))
        )
        return recipe, stage


# By verb; the first is what a recipe without a kind is for.
TRAININGS: dict[str, dict[str, Kind]] = {
    "train": {
        "frames": Kind("edge_sdk.distill:TrainRecipe", "edge_sdk.distill:train_teacher"),
        "clips": Kind("edge_sdk.distill:ClipTrainRecipe", "edge_sdk.distill:train_clips"),
    },
    "distill": {
        "delta": Kind("edge_sdk.distill:DistillRecipe", "edge_sdk.distill:distill"),
        "clips": Kind("edge_sdk.distill:ClipDistillRecipe", "edge_sdk.distill:distill_clips"),
        "cross": Kind(
            "edge_sdk.distill.cross_recipe:CrossRecipe", "edge_sdk.distill.cross_training:distill_cross"
        ),
        "skip": Kind("edge_sdk.distill.skip:SkipRecipe", "edge_sdk.distill.skip.train:train_skip"),
    },
}


def kind_of(verb: str, path: Path) -> Kind:
    """What a recipe of ``verb`` (a key of ``TRAININGS``) is for.

    Raises:
        MissingFileError, FileFormatError: the recipe cannot be read.
        RecipeError: the verb does nothing of that kind.
    """
    kinds = TRAININGS[verb]
    kind = read_recipe(path).get("kind", next(iter(kinds)))
    if isinstance(kind, str) and kind in kinds:
        return kinds[kind]
    others = [other for other, theirs in TRAININGS.items() if kind in theirs] if isinstance(kind, str) else []
    raise RecipeError(
        f"recipe {path}: 'kind': edge-sdk {verb} knows {', '.join(kinds)}, got {kind!r}.",
        hint=f"Run: edge-sdk {others[0]} {path}" if others else f"Without a kind it is {next(iter(kinds))}.",
    )


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
    if changed.get("loop") is None:
        raise RecipeError(
            f"--device: recipe {path} has no 'loop': nothing in it is trained.", hint="Leave it out."
        )
    changed["loop"]["accelerator"] = device.value
    return parse_settings(changed, kind, f"recipe {path} with --device {device.value}")


def run_training(
    verb: str,
    title: str,
    recipe: Path,
    *,
    out: Path | None,
    device: Device | None,
    resume: bool,
    as_json: bool,
) -> None:
    """A verb that trains, from its recipe to what it prints."""
    from edge_sdk.cli.output import emit_json, figures_table, show
    from edge_sdk.cli.progress import RichProgress

    need(verb, "torch", "lightning_fabric", recipe=recipe)
    model, work = kind_of(verb, recipe).load()
    settings = read_training(recipe, model, out=out, device=device)
    with RichProgress() as progress:
        report = work(settings, progress=progress, resume=resume)
    if as_json:
        emit_json(report)
    else:
        show(figures_table(title, report.figures), f"checkpoint: {report.checkpoint}")


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
