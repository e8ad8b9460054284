"""``edge-sdk slots``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sdk.cli.options import JsonFlag
from edge_sdk.errors import RecipeError

if TYPE_CHECKING:
    from edge_sdk.update.journal import Journal, Update

_UNDER_WAY = ("staging", "staged", "probing")


def slots(
    device: Annotated[Path, typer.Argument(metavar="DEVICE", help="Folder made by 'edge-sdk install'.")],
    rollback: Annotated[bool, typer.Option("--rollback", help="Go back to the bundle before.")] = False,
    confirm: Annotated[bool, typer.Option("--confirm", help="Keep the bundle that is on trial.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Say which bundle runs on a device and how its last update went, or go back to the bundle before."""
    from edge_sdk.cli.output import emit_json, show
    from edge_sdk.update import Device

    if rollback and confirm:
        raise RecipeError("--rollback and --confirm: expected one of them, got both.", hint="Leave one out.")
    found = Device(device)
    if rollback:
        found.rollback()
    if confirm and not found.confirm():
        raise RecipeError("--confirm: no bundle is on trial.", hint=f"See: edge-sdk slots {device}")
    journal = found.journal()
    if as_json:
        emit_json(journal)
    else:
        show(*_lines(journal))


def _lines(journal: Journal) -> list[str]:
    lines = []
    for name, facts in sorted(journal.slots.items()):
        release = "" if facts.release is None else f", release {facts.release} by key {facts.key_id}"
        runs = ", runs" if name == journal.current else ""
        sound = ", ran healthy" if facts.confirmed else ""
        lines.append(f"slot {name}: {facts.bundle}{release}, installed {facts.installed}{sound}{runs}")
    if journal.current is None:
        lines.append("no installation is finished yet")
    if journal.update is not None:
        lines.append(_update_line(journal.update))
    if journal.signed_only:
        lines.append("only signed bundles are installed here")
    return lines


def _update_line(update: Update) -> str:
    words = update.state.replace("_", " ")
    if update.state == "trial":
        words = f"on trial, {update.starts} of {update.trial.max_starts} starts"
    if update.state in _UNDER_WAY:
        words += " (it is going on or was cut off; then install again)"
    reason = f": {update.reason}" if update.reason else ""
    return f"last update: slot {update.slot}, {words} since {update.changed}{reason}"
