"""``edge-sdk lint``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sdk.cli.options import JsonFlag

if TYPE_CHECKING:
    from rich.table import Table

    from edge_sdk.compile.lint import Finding, LintReport

# Of nodes that one line of the table names; --json has them all.
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
        show(*(_table(report) for report in reports if report.findings), *_clean(reports))
        show(f"{errors} error{'' if errors == 1 else 's'}, {warnings} warning{'' if warnings == 1 else 's'}.")
    if errors:
        raise typer.Exit(1)


def _clean(reports: list[LintReport]) -> list[str]:
    return [
        f"{report.where}: clean for {report.backend} in {report.precision}."
        for report in reports
        if not report.findings
    ]


def _table(report: LintReport) -> Table:
    """One line a rule and step: how often, the first nodes, what is wrong with the first and what to do."""
    from rich.table import Table
    from rich.text import Text

    title = f"{report.where}, for {report.backend} in {report.precision}"
    table = Table("rule", "severity", "where", "first", "repair", title=title, title_justify="left")
    grouped: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in report.findings:
        grouped.setdefault((finding.severity, finding.rule, finding.step), []).append(finding)
    for (severity, rule, _), group in grouped.items():
        names = [finding.node or finding.tensor for finding in group]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        style = "bold red" if severity == "error" else "yellow"
        # Text, because names of nodes may hold square brackets, which rich would read as markup.
        cells = (rule, ", ".join(names[:_SHOWN]) + more, group[0].message, group[0].repair)
        table.add_row(Text(cells[0]), Text(severity, style=style), *map(Text, cells[1:]))
    return table
