"""``edge-sdk lint``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sdk.cli.options import JsonFlag

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.text import Text

    from edge_sdk.compile.lint import Finding, LintReport

# Of further nodes that are named for one rule; --json has them all.
_SHOWN = 4


class LintBackend(str, Enum):
    """The runtimes whose rules are known."""

    tensorrt = "tensorrt"
    onnxruntime = "onnxruntime"


class LintPrecision(str, Enum):
    """What the layers should compute in."""

    float32 = "float32"
    float16 = "float16"
    int8 = "int8"


def lint(
    graphs: Annotated[
        Path, typer.Argument(metavar="GRAPH_OR_BUNDLE", help="ONNX file, folder of two, or a bundle.")
    ],
    backend: Annotated[
        LintBackend | None,
        typer.Option("--backend", help="Runtime that will compute it.", show_default=False),
    ] = None,
    precision: Annotated[
        LintPrecision | None,
        typer.Option("--precision", help="What it should compute in.", show_default=False),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what a backend would refuse in a graph, or gain nothing from, before anything is built.

    Without options a bundle's every precision is looked at, each for its own backend. Exits with 1 if there are errors.
    """
    from edge_sdk.cli.output import emit_json, show
    from edge_sdk.cli.stage import need

    need("lint", "onnx")
    from edge_sdk.compile.lint import errors_of, lint_path

    reports = lint_path(
        graphs,
        backend=backend.value if backend is not None else None,
        precision=precision.value if precision is not None else None,
    )
    errors = sum(len(errors_of(report.findings)) for report in reports)
    warnings = sum(len(report.findings) for report in reports) - errors
    if as_json:
        emit_json({"graphs": reports, "errors": errors, "warnings": warnings})
    else:
        show(*(line for report in reports for line in _lines(report)))
        show(f"{errors} error{'' if errors == 1 else 's'}, {warnings} warning{'' if warnings == 1 else 's'}.")
    if errors:
        raise typer.Exit(1)


def _lines(report: LintReport) -> Iterator[Text]:
    """A title, and for each rule and step: what is wrong with the first node, which others, and what to do."""
    from rich.text import Text

    meant = f"for {report.backend} in {report.precision}"
    if not report.findings:
        yield Text(f"{report.where}: clean {meant}.")
        return
    yield Text(f"{report.where}, {meant}:", style="bold")
    grouped: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in report.findings:
        grouped.setdefault((finding.severity, finding.rule, finding.step), []).append(finding)
    for (severity, rule, _), group in grouped.items():
        # Text, because names of nodes may hold square brackets, which rich would read as markup.
        line = Text("  ").append(severity, style="bold red" if severity == "error" else "yellow")
        yield line.append(f" {rule}: {group[0].message}")
        others = [finding.node or finding.tensor for finding in group[1:]]
        if others:
            more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            yield Text(f"    also: {', '.join(others[:_SHOWN])}{more}")
        yield Text(f"    {group[0].repair}", style="italic")
