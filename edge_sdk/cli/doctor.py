"""``edge-sdk doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from edge_sdk.cli.options import JsonFlag

if TYPE_CHECKING:
    from rich.table import Table

    from edge_sdk.doctor import Check


def doctor(as_json: JsonFlag = False) -> None:
    """Exercise every backend of this machine and say how to repair what is wrong.

    TensorRT and ONNX Runtime compute a layer in float32 and one in INT8. Exits with 1 if something is broken; a
    part that is merely not installed is no problem.
    """
    from edge_sdk.cli.output import emit_json, show
    from edge_sdk.doctor import diagnose

    checks = diagnose()
    problems = sum(check.status == "problem" for check in checks)
    if as_json:
        emit_json({"checks": checks, "problems": problems})
    else:
        show(_table(checks), f"{problems} problem{'' if problems == 1 else 's'} found.")
    if problems:
        raise typer.Exit(1)


def _table(checks: list[Check]) -> Table:
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "caution": "bold yellow", "absent": "yellow", "problem": "bold red"}
    table = Table("item", "found", "status", "repair", title="edge-sdk doctor", title_justify="left")
    for check in checks:
        # Text, because what was found may hold square brackets, which rich would read as markup.
        status = Text(check.status, style=colours[check.status])
        table.add_row(check.item, Text(check.found), status, Text(check.repair))
    return table
