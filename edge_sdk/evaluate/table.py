"""The headline table: which columns there are and how a row reads in each; the terminal and the report share them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_sdk.evaluate.evaluation import Evaluation, Row

if TYPE_CHECKING:
    from rich.table import Table

NOTHING = "-"


@dataclass(frozen=True)
class Column:
    """One column: heading, how a row's cell reads, and what the heading means."""

    heading: str
    text: Callable[[Row], str]
    meaning: str


def share(value: float | None) -> str:
    """A score in 0-1 with three places."""
    return NOTHING if value is None else f"{value:.3f}"


def milliseconds(value: float | None) -> str:
    """Three significant digits, at most three places."""
    if value is None:
        return NOTHING
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def macs(value: int | None) -> str:
    """In billions, or millions where that reads better."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    return f"{value / 1e9:.2f} G" if value >= 1e8 else f"{value / 1e6:.2f} M"


def size(value: int) -> str:
    """Bytes in a readable unit, powers of 1000."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value} B"


def _mean(row: Row) -> str:
    mean = row.timing.mean_ms
    return f"{milliseconds(mean.median)} ±{milliseconds(mean.iqr / 2)}{'!' if row.timing.noisy else ''}"


def columns(evaluation: Evaluation) -> list[Column]:
    """Columns of this evaluation; without labels the column for them is left out."""
    found = [
        Column("variant", lambda row: row.name, "what makes the frames between keyframes"),
        Column("mIoU", lambda row: share(row.labels), "against the labels"),
        Column("agreement", lambda row: share(row.agreement), "mIoU with the teacher's masks as truth"),
        Column("consistency", lambda row: share(row.consistency), "temporal consistency"),
        Column("mean ms", _mean, "a frame; median over runs, ± half the distance between the quartiles"),
        Column("p99 ms", lambda row: milliseconds(row.timing.p99_ms.median), "median over runs"),
        Column("fps", lambda row: f"{row.timing.fps:.1f}", "1000 / mean ms"),
        Column(
            "speed-up",
            lambda row: f"{row.timing.speedup.median:.2f}x",
            "teacher's mean / this mean, within each run",
        ),
        Column("runner ms", lambda row: milliseconds(row.timing.runner_ms), "mean time outside the graph"),
        Column("MACs", lambda row: macs(row.macs), "a frame, averaged over K frames; flow's own not counted"),
        Column("state", lambda row: size(row.state_bytes), "kept from frame to frame"),
    ]
    return found if evaluation.source.labelled else [column for column in found if column.heading != "mIoU"]


def title(evaluation: Evaluation) -> str:
    """One line: what was evaluated on what."""
    source = evaluation.source
    labels = f"{source.labelled} labelled" if source.labelled else "no labels"
    return f"{evaluation.bundles[0].name} on {source.uri} ({source.frames} frames, {labels})"


def rich_table(evaluation: Evaluation) -> Table:
    """The headline table for a terminal, with warnings and notes below it."""
    shown = columns(evaluation)
    notes = [f"{row.name}: {row.note}" for row in evaluation.rows if row.note]
    own = evaluation.source.label_consistency
    yardstick = [] if own is None else [f"temporal consistency of the labels themselves: {share(own)}"]
    caption = "\n".join([*yardstick, *notes, *(f"! {warning}" for warning in evaluation.warnings)])
    cells = [[column.text(row) for column in shown] for row in evaluation.rows]
    table = empty_table(title(evaluation), caption, [column.heading for column in shown], cells)
    for place, (row, line) in enumerate(zip(evaluation.rows, cells, strict=True)):
        if place and row.interval != evaluation.rows[place - 1].interval:
            table.add_section()
        table.add_row(*line, style="bold" if row.variant == "delta" else "")
    return table


def empty_table(title: str, caption: str, headings: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    """A rich table with its columns, wide enough for ``cells``, which the caller adds row by row."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    widths = [
        max(len(heading), *(len(line[place]) for line in cells)) for place, heading in enumerate(headings)
    ]
    table = Table(
        title=Text(title),
        title_justify="left",
        caption=Text(caption) if caption else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        # Full width even where a terminal is narrower or there is none: a wrapped line can be read, a cut one not.
        width=sum(widths) + 3 * len(widths),
    )
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left", no_wrap=True)
    return table
