"""``edge-sdk build``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_sdk.cli.options import JsonFlag, OutFolder, Recipe

if TYPE_CHECKING:
    from rich.table import Table

    from edge_sdk.build.choose import Choice
    from edge_sdk.build.pipeline import BuildReport


def build(
    recipe: Recipe,
    out: OutFolder = None,
    graphs_only: Annotated[
        bool,
        typer.Option(
            "--graphs-only", help="Make the graphs and stop, for a device without the onnx package."
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Build a bundle's engines for this machine, and choose the fastest within the accuracy budget."""
    from edge_sdk.build.pipeline import build as run
    from edge_sdk.build.recipe import BuildRecipe
    from edge_sdk.cli.output import emit_json, show
    from edge_sdk.cli.progress import RichProgress
    from edge_sdk.cli.report import say
    from edge_sdk.settings import load_recipe

    settings = load_recipe(recipe, BuildRecipe, out=None if out is None else str(out))
    with RichProgress() as progress:
        report = run(settings, graphs_only=graphs_only, progress=progress)
    if report.signature_dropped:
        place = report.bundle.path
        say(
            f"{place} is unsigned now: its signature did not cover what was built. Sign it again with: "
            f"edge-sdk sign {place} --key KEY --release NUMBER"
        )
    if as_json:
        emit_json(summary(report))
        return
    lines = [f"note: {note}" for note in report.notes]
    lines += [f"chosen for {backend}: {choice.why}" for backend, choice in report.choices.items()]
    tables = [engines_table(report)] if report.engines else []
    tables += [choice_table(backend, choice) for backend, choice in report.choices.items()]
    show(*tables, *lines, f"bundle: {report.bundle.path}")


def summary(report: BuildReport) -> dict[str, Any]:
    """Everything about a build, as JSON."""
    return {
        "bundle": str(report.bundle.path),
        "engines": [
            {
                "name": engine.name,
                "path": str(engine.path),
                "reused": engine.reused,
                **engine.identity.model_dump(mode="json"),
            }
            for engine in report.engines
        ],
        "notes": list(report.notes),
        "signature_dropped": report.signature_dropped,
        "chosen": {
            backend: {"name": choice.name, "why": choice.why, "measured": choice.measured()}
            for backend, choice in report.choices.items()
        },
    }


def engines_table(report: BuildReport) -> Table:
    """Path, size, precision shares and time of each engine."""
    from rich.table import Table

    table = Table(title="Engines")
    for heading in ("engine", "step", "size MB", "precision of the work", "seconds", "file"):
        table.add_column(heading, overflow="fold")
    for engine in report.engines:
        identity = engine.identity
        table.add_row(
            engine.name,
            identity.step,
            f"{identity.engine_bytes / 1e6:.2f}",
            shares_text(identity.shares, identity.shares_unknown),
            "there already" if engine.reused else f"{identity.build_s:.1f}",
            _relative(engine.path),
        )
    return table


def shares_text(shares: dict[str, float] | None, unknown: str) -> str:
    """Such as ``int8 98 %, float32 2 %``."""
    if shares is None:
        return f"not read back: {unknown}"
    return ", ".join(f"{name} {share:.0%}" for name, share in sorted(shares.items(), key=lambda s: -s[1]))


def choice_table(backend: str, choice: Choice) -> Table:
    """Accuracy and time of every candidate, side by side."""
    from rich.table import Table

    table = Table(title=f"On this machine, {backend}")
    for heading in (
        "engine",
        "score",
        "points lost",
        "mean ms (IQR)",
        "keyframe ms",
        "delta ms",
        "speed-up (IQR)",
    ):
        table.add_column(heading)
    for candidate in choice.candidates:
        timing = candidate.timing
        table.add_row(
            candidate.name + (" *" if candidate.name == choice.name else ""),
            f"{candidate.score:.4f}",
            f"{candidate.lost_points:.2f}",
            f"{timing.mean_ms.median:.2f} ({timing.mean_ms.iqr:.2f})",
            _ms(timing.keyframe_ms),
            _ms(timing.between_ms),
            f"{timing.speedup.median:.2f} ({timing.speedup.iqr:.2f})",
        )
    return table


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _relative(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
