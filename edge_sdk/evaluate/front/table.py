"""The table of a front: which columns there are and how a row reads in each; the terminal and the report share them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_sdk.evaluate.front.document import Front, FrontRow
from edge_sdk.evaluate.table import NOTHING, empty_table, macs, milliseconds, share, size

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class FrontColumn:
    """One column: heading, how a row's cell reads, and what the heading means."""

    heading: str
    text: Callable[[FrontRow], str]
    meaning: str


def recovered_text(row: FrontRow) -> str:
    """A row's recovered share; in brackets that beside the fastest network, where the pair is faster than all."""
    found = row.recovered
    if found is None:
        return NOTHING
    if found.share is not None:
        return f"{found.share:.2f}"
    return NOTHING if found.beside_fastest is None else f"({found.beside_fastest:.2f})"


def runs_text(row: FrontRow) -> str:
    """Lowest and highest share by the times of single runs."""
    shares = [value for value in row.recovered_runs if value is not None]
    if not shares:
        return NOTHING
    missing = len(row.recovered_runs) - len(shares)
    return f"{min(shares):.2f} to {max(shares):.2f}" + (f", {missing} none" if missing else "")


def _mean(row: FrontRow) -> str:
    mean = row.times.mean_ms
    return f"{milliseconds(mean.median)} ±{milliseconds(mean.iqr / 2)}{'!' if row.times.noisy else ''}"


COLUMNS = (
    FrontColumn("row", lambda row: row.name, "what answers the frames; K: frames from keyframe to keyframe"),
    FrontColumn("mIoU", lambda row: share(row.labels), "against the labels"),
    FrontColumn("teacher", lambda row: share(row.teacher), "its mIoU over the frames that this row counts"),
    FrontColumn(
        "agreement", lambda row: share(row.agreement), "mIoU with the float32 teacher's masks as truth"
    ),
    FrontColumn("mean ms", _mean, "a frame; median over runs, ± half the distance between the quartiles"),
    FrontColumn("p99 ms", lambda row: milliseconds(row.times.p99_ms.median), "median over runs"),
    FrontColumn("keyframe ms", lambda row: milliseconds(row.times.keyframe_ms), "median of the keyframes"),
    FrontColumn("between ms", lambda row: milliseconds(row.times.between_ms), "median of the other frames"),
    FrontColumn(
        "speed-up",
        lambda row: f"{row.times.speedup.median:.2f}x",
        "mean of the teacher in the same precision / this mean, within each run",
    ),
    FrontColumn(
        "rival",
        lambda row: share(None if row.recovered is None else row.recovered.rival),
        "mIoU of a per-frame network of this mean latency, interpolated between the measured ones",
    ),
    FrontColumn(
        "share",
        recovered_text,
        "recovered share: 0 as good as the rival, 1 as good as the teacher; in brackets beside the fastest network, "
        "where the pair is faster than all",
    ),
    FrontColumn("over runs", runs_text, "the share by the times of each run alone, lowest to highest"),
    FrontColumn(
        "MACs", lambda row: macs(row.macs), "a frame, averaged over K frames; flow's own not counted"
    ),
    FrontColumn("state", lambda row: size(row.state_bytes), "kept from frame to frame"),
)


def title(front: Front) -> str:
    """One line: what was compared on what."""
    frames, labelled = (
        sum(getattr(source, key) for source in front.sources) for key in ("frames", "labelled")
    )
    where = front.sources[0].uri if len(front.sources) == 1 else f"{len(front.sources)} clips"
    nets, pairs = (sum(bundle.role == role for bundle in front.bundles) for role in ("rival", "pair"))
    count = f"{pairs} pair{'s' if pairs > 1 else ''} beside {nets} networks"
    return f"{count} of teacher {front.bundles[0].name} on {where} ({frames} frames, {labelled} labelled)"


def notes(front: Front) -> list[str]:
    """What a reader must know, row by row."""
    found = [f"{row.name}: {row.note}" for row in front.rows if row.note]
    pairs = [(row.name, row.recovered.reason) for row in front.rows if row.recovered is not None]
    return found + [f"{name}: no share: {reason}" for name, reason in pairs if reason]


def rich_table(front: Front) -> Table:
    """The rows for a terminal, with warnings and notes below them."""
    caption = "\n".join([*notes(front), *(f"! {warning}" for warning in front.warnings)])
    cells = [[column.text(row) for column in COLUMNS] for row in front.rows]
    table = empty_table(title(front), caption, [column.heading for column in COLUMNS], cells)
    for place, (row, line) in enumerate(zip(front.rows, cells, strict=True)):
        before = front.rows[place - 1]
        if place and (row.interval, row.engine) != (before.interval, before.engine):
            table.add_section()
        table.add_row(*line, style="bold" if row.kind == "pair" else "")
    return table
