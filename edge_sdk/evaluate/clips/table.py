"""The headline table of clip classifiers; the terminal and the report share its columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_sdk.evaluate.clips.evaluation import Answers, ClipEvaluation, ClipRow
from edge_sdk.evaluate.table import NOTHING, empty_table, macs, milliseconds, share, size
from edge_sdk.runtime.schedule import SampleSchedule

if TYPE_CHECKING:
    from rich.table import Table

METRICS = {
    "top1": ("top-1", "share of the clips whose best class is one of theirs"),
    "map": ("mAP", "average precision of each class over all clips, mean over classes"),
    "gap": ("GAP@20", "average precision over the 20 best classes of every clip in one list"),
}


@dataclass(frozen=True)
class ClipColumn:
    """One column: heading, how a row's cell reads, and what the heading means."""

    heading: str
    text: Callable[[ClipRow], str]
    meaning: str


def _milliseconds(row: ClipRow) -> str:
    spent = row.timing.clip_ms
    return f"{milliseconds(spent.median)} ±{milliseconds(spent.iqr / 2)}{'!' if row.timing.noisy else ''}"


def _settled(answers: Answers | None) -> str:
    if answers is None or answers.settled is None:
        return NOTHING
    return f"{answers.settled:g}"


def _metric(name: str) -> ClipColumn:
    heading, meaning = METRICS.get(name, (name, f"the task's metric '{name}'"))
    return ClipColumn(heading, lambda row: share(row.scores.get(name)), f"{meaning}; of the last answer")


def columns(evaluation: ClipEvaluation) -> list[ClipColumn]:
    """Columns of this evaluation; without the run over a stream its columns are left out."""
    rows = evaluation.rows
    found = [
        ClipColumn("row", lambda row: row.name, "bundle, and its engines where they are not the exported graphs"),
        *(_metric(name) for name in rows[0].scores),
        ClipColumn(
            "agreement", lambda row: share(row.agreement), f"clips with the best class that {rows[0].name} names"
        ),
        ClipColumn("seen", lambda row: f"{row.seen:g}", f"of a clip's {evaluation.source.length} frames"),
        ClipColumn("right by", lambda row: _settled(row.answers), "frame of a clip, median, after which its answer "
                   "is right and stays so"),
        ClipColumn("MACs", lambda row: macs(row.macs), "a clip"),
        ClipColumn("ms a clip", _milliseconds, "median over runs, ± half the distance between the quartiles"),
        ClipColumn("speed-up", lambda row: f"{row.timing.speedup.median:.2f}x", f"time of {rows[0].name} / this time, "
                   "within each run"),
        ClipColumn("ms seen", lambda row: milliseconds(row.timing.seen_ms), "a frame that a step is run for, median"),
        ClipColumn("ms skipped", lambda row: _skipped(row.timing.skipped_ms), "a frame that is skipped, median"),
        ClipColumn("state", lambda row: size(row.state_bytes), "kept from frame to frame"),
    ]  # fmt: skip
    if any(row.streamed is not None for row in rows):
        streamed = ClipColumn(
            "in a stream",
            lambda row: NOTHING if row.streamed is None else share(row.streamed.right),
            "share of the frames of one stream of clips whose answer names what is shown",
        )
        found.insert([column.heading for column in found].index("MACs"), streamed)
    return found


def _skipped(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def latency(row: ClipRow, fps: float) -> str:
    """In words: what an answer of a row covers, and how often there is a new one."""
    schedule = row.schedule
    if not isinstance(schedule, SampleSchedule):
        return f"{row.name}: follows the schedule '{schedule.kind}'"
    length, samples = schedule.length, schedule.samples
    covered = f"{length} frames ({length / fps:.2g} s)" if fps > 0 else f"{length} frames"
    every = "each frame" if samples == length else f"about every {length / samples:g} frames"
    after = "begins anew after that" if schedule.restart else "goes on as a sliding window"
    return f"{row.name}: an answer covers up to {covered}, sees {samples} of them, and {after}; a new one {every}"


def title(evaluation: ClipEvaluation) -> str:
    """One line: what was evaluated on what."""
    source = evaluation.source
    name = evaluation.bundles[0].name
    return f"{name} on {source.uri} ({source.clips} clips of {source.length} frames)"


def notes(evaluation: ClipEvaluation) -> list[str]:
    """What an answer covers, row by row; one line where rows share a bundle."""
    return [latency(row, evaluation.source.fps) for row in evaluation.rows if row.engine == "float32"]


def rich_table(evaluation: ClipEvaluation) -> Table:
    """The headline table for a terminal, with warnings and notes below it."""
    shown = columns(evaluation)
    caption = "\n".join([*notes(evaluation), *(f"! {warning}" for warning in evaluation.warnings)])
    cells = [[column.text(row) for column in shown] for row in evaluation.rows]
    table = empty_table(title(evaluation), caption, [column.heading for column in shown], cells)
    for row, line in zip(evaluation.rows, cells, strict=True):
        table.add_row(*line, style="bold" if row.role == "student" else "")
    return table
