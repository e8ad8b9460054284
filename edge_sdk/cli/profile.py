"""``edge-sdk profile``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_sdk.cli.options import JsonFlag, OutFolder
from edge_sdk.errors import MissingFileError, RecipeError

if TYPE_CHECKING:
    from rich.table import Table

    from edge_sdk.profile import CostTable


def profile(
    what: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="YAML file of settings, or a folder that was prepared.")
    ],
    out: OutFolder = None,
    prepare_only: Annotated[
        bool,
        typer.Option(
            "--prepare-only", help="Write the tiny bundles and stop, for a device without torch to measure."
        ),
    ] = False,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="How often each engine is timed.")
    ] = None,
    check: Annotated[
        int | None, typer.Option("--check", min=0, help="Random students to build and time whole as well.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure what every candidate of every unit costs on this device, for a search under a budget.

    Given a recipe it prepares tiny bundles and measures them here. With --prepare-only it leaves them in the recipe's
    folder; copied to a device, 'edge-sdk profile FOLDER' builds and measures them there, without torch.
    """
    from edge_sdk.cli.output import emit_json, show
    from edge_sdk.cli.progress import RichProgress

    stage = _measured if what.is_dir() else _from_recipe
    with RichProgress() as progress:
        place, found = stage(what, out, prepare_only, check, rounds, progress)
    if found is None:
        show(f"prepared: {place}", f"On the device run: edge-sdk profile {place.name}")
    elif as_json:
        emit_json(found)
    else:
        from edge_sdk.profile.prepared import TABLE

        show(*tables(found), *lines(found), f"cost table: {place / TABLE}")


def _measured(
    folder: Path, out: Path | None, prepare_only: bool, check: int | None, rounds: int | None, progress: Any
) -> tuple[Path, CostTable | None]:
    """The folder and its table."""
    from edge_sdk.profile.measure import measure

    given = {"--out": out is not None, "--prepare-only": prepare_only, "--check": check is not None}
    for option, was_given in given.items():
        if was_given:
            raise RecipeError(
                f"{option}: {folder} is prepared already.", hint="Give it with a recipe, or leave it out."
            )
    return folder, measure(folder, rounds=rounds, progress=progress)


def _from_recipe(
    recipe: Path, out: Path | None, prepare_only: bool, check: int | None, rounds: int | None, progress: Any
) -> tuple[Path, CostTable | None]:
    """The folder, and the table unless nothing was to be measured."""
    from edge_sdk.cli.stage import need
    from edge_sdk.settings import load_recipe

    if not recipe.exists():
        raise MissingFileError(f"RECIPE: expected a file, or a prepared folder, at {recipe}, found none.")
    need("profile", "torch", "onnx", "onnxscript", "onnxruntime", recipe=recipe)
    from edge_sdk.profile import prepare as stage

    settings = load_recipe(
        recipe, stage.ProfileRecipe, out=None if out is None else str(out), check=check, rounds=rounds
    )
    if prepare_only:
        stage.prepare(settings, progress=progress)
        return settings.out, None
    return settings.out, stage.profile(settings, progress=progress)


def tables(table: CostTable) -> list[Table]:
    """Costs by unit and candidate, and the students that were checked."""
    from rich.table import Table

    where = f"{table.machine.device}, {table.backend} {table.precision}"
    names = list(dict.fromkeys(name for found in table.units.values() for name in found))
    costs = Table(title=f"Milliseconds above keeping the unit, {where}")
    for heading in ("unit", *names):
        costs.add_column(heading, justify="left" if heading == "unit" else "right", overflow="fold")
    for unit, found in table.units.items():
        chosen = table.reference.choice[unit]
        cells = [_cell(found.get(name), name == chosen) for name in names]
        costs.add_row(unit, *cells)
    if not table.checked:
        return [costs]
    checked = Table(title="Random students: what the table predicts and what was measured")
    for heading in ("student", "predicted ms", "measured ms (IQR)", "off"):
        checked.add_column(heading, justify="right")
    for number, student in enumerate(table.checked):
        measured = f"{student.ms.median:.2f} ({student.ms.iqr:.2f})"
        checked.add_row(str(number), f"{student.predicted_ms:.2f}", measured, f"{student.off:+.1%}")
    return [costs, checked]


def lines(table: CostTable) -> list[str]:
    """The reference, and how many predictions hold."""
    from edge_sdk.evaluate.timing import NOISY_SHARE
    from edge_sdk.profile.table import TOLERANCE

    reference = table.reference.ms
    found = [f"reference student (*): {reference.median:.2f} ms (IQR {reference.iqr:.2f})"]
    if table.clock == "processor":
        found.append(
            "times are those of the step's own thread on a processor, without what others took of it"
        )
    if reference.iqr > NOISY_SHARE * reference.median:
        advice = (
            "repeat it on a quiet machine"
            if table.clock == "processor"
            else "repeat it on a quiet one, or see 'clock' in the recipe"
        )
        found.append(
            f"note: times spread by more than {NOISY_SHARE:.0%}, the machine was not quiet; {advice}"
        )
    if table.within is not None:
        count = round(table.within * len(table.checked))
        found.append(f"within {TOLERANCE:.0%}: {count} of {len(table.checked)} students")
    return found


def _cell(cost: float | None, chosen: bool) -> str:
    return "" if cost is None else f"{cost:.3f}{' *' if chosen else ''}"
