"""How a comparison reads: the rows that the terminal and the report share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge_sdk.parity.comparison import Comparison, EngineParity
from edge_sdk.parity.deviation import OutputDeviation

if TYPE_CHECKING:
    from rich.table import Table

NOTHING = "-"
BY_DISTANCE = "Share of answers as the reference's, by distance from the keyframe"
# Of the outputs of one engine, those that a terminal shows; the JSON has all.
WORST = 5


def title(comparison: Comparison) -> str:
    """One line: what was compared with what."""
    reference = comparison.reference
    labels = f"{reference.labelled} labelled" if reference.labelled else "no labels"
    return (
        f"{comparison.bundle} beside its float32 reference on {reference.source} "
        f"({reference.frames} frames, {labels}, a keyframe every {reference.interval})"
    )


HEADINGS = (
    "engine",
    "drop",
    "{metric}",
    "reference",
    "agreement",
    "same",
    "keyframe",
    "delta",
    "answers change",
)
MEANINGS = (
    "drop: points lost against the reference, of {metric} against the labels{unlabelled}. agreement: {metric} with the "
    "reference's answers as truth. same: share of the answers that are the reference's. keyframe, delta: largest "
    "error of an output of that step on the reference's own inputs, p99 over the output's largest value. answers "
    "change: first distance from the keyframe at which clearly more answers differ than at the keyframe."
)


def headings(comparison: Comparison) -> list[str]:
    """Headings of the main table."""
    return [heading.format(metric=comparison.metric) for heading in HEADINGS]


def meanings(comparison: Comparison) -> str:
    """What the headings mean."""
    unlabelled = "" if comparison.reference.labelled else " (there are none: what agreement lacks to 1)"
    return MEANINGS.format(metric=comparison.metric, unlabelled=unlabelled)


def cells(engine: EngineParity, comparison: Comparison) -> list[str]:
    """One row of the main table."""
    over = engine in comparison.over_budget
    return [
        engine.engine,
        f"{engine.drop_points:+.2f}{' !' if over else ''}",
        share(engine.labels),
        share(engine.reference_labels),
        share(engine.agreement),
        percent(engine.same),
        _worst(engine.worst("keyframe")),
        _worst(engine.worst("delta")),
        NOTHING if engine.answers_change_at is None else str(engine.answers_change_at),
    ]


def distances(comparison: Comparison) -> list[int]:
    """Every distance from the keyframe that occurs."""
    return sorted({row.distance for engine in comparison.engines for row in engine.by_distance})


def distance_cells(engine: EngineParity, shown: Sequence[int]) -> list[str]:
    """Share of the answers that are the reference's at each distance."""
    rows = {row.distance: row for row in engine.by_distance}
    return [percent(rows[distance].same) if distance in rows else NOTHING for distance in shown]


OUTPUT_HEADINGS = (
    "engine",
    "step",
    "at",
    "output",
    "max",
    "median",
    "p99",
    "largest value",
    "p99 relative",
    "SQNR dB",
)


def output_cells(engine: EngineParity, one: OutputDeviation) -> list[str]:
    """One output as a row."""
    numbers = (one.max, one.median, one.p99, one.largest)
    sqnr = NOTHING if one.sqnr_db is None else f"{one.sqnr_db:.1f}"
    figures = [NOTHING if number is None else f"{number:.3g}" for number in numbers]
    return [engine.engine, one.step, str(one.distance), one.output, *figures, relative(one), sqnr]


def worst_outputs(engine: EngineParity) -> list[OutputDeviation]:
    """Outputs of the steps on the reference's inputs with the largest relative errors; those without any left out."""
    ordered = sorted(engine.steps, key=lambda one: one.relative, reverse=True)
    return [one for one in ordered[:WORST] if one.relative > 0]


def growth(engine: EngineParity, grown: float) -> str:
    """Where the error first grows, in words."""
    places = (
        ("on the reference's inputs", engine.grows_in_steps),
        ("in the stream", engine.grows_in_stream),
    )
    parts = [
        f"{where} first at {one.step} +{one.distance}, {one.output} ({relative(one)})"
        for where, one in places
        if one is not None
    ]
    if not parts:
        return f"{engine.engine}: no output's error is above {grown:.0%} of its largest value"
    return f"{engine.engine}: error above {grown:.0%} {'; '.join(parts)}"


def relative(one: OutputDeviation) -> str:
    """Relative error of an output."""
    return percent(one.relative if math.isfinite(one.relative) else None)


def percent(value: float | None) -> str:
    """A share with two places; None is what is not finite."""
    return "not finite" if value is None else f"{value:.2%}"


def share(value: float | None) -> str:
    """A score in 0-1 with four places."""
    return NOTHING if value is None else f"{value:.4f}"


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know beside the tables, a line each."""
    lines = [growth(engine, comparison.grown) for engine in comparison.engines]
    for trace in comparison.traces:
        found = trace.grows_at
        where = "nowhere"
        if found is not None:
            where = f"first at {found.step} {found.operator} '{found.node}' ({percent(found.relative)})"
        lines.append(f"{trace.variant}, inside its graphs: error above {comparison.grown:.0%} {where}")
    lines += [f"not run: {one.engine}: {one.reason}" for one in comparison.not_run]
    if comparison.max_drop is not None:
        over = comparison.over_budget
        names = ", ".join(engine.engine for engine in over)
        lines.append(
            f"! over the budget of {comparison.max_drop:g} points: {names}"
            if over
            else f"every engine that ran is within the budget of {comparison.max_drop:g} points"
        )
    return lines


def rich_tables(comparison: Comparison) -> list[Table]:
    """The tables for a terminal: engines, answers by distance, and the outputs furthest from the reference."""
    engines, shown = comparison.engines, distances(comparison)
    tables = [
        _table(title(comparison), headings(comparison), [cells(engine, comparison) for engine in engines]),
        _table(
            BY_DISTANCE,
            ["engine", *map(str, shown)],
            [[engine.engine, *distance_cells(engine, shown)] for engine in engines],
        ),
        _table(
            "Outputs furthest from the reference, on the reference's own inputs",
            OUTPUT_HEADINGS,
            [output_cells(engine, one) for engine in engines for one in worst_outputs(engine)],
        ),
    ]
    return [table for table in tables if table.row_count]


def _worst(one: OutputDeviation | None) -> str:
    return NOTHING if one is None else relative(one)


def _table(heading: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    table = Table(
        title=Text(heading),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        # Full width even where a terminal is narrower or there is none: a wrapped line can be read, a cut one not.
        width=sum(widths) + 3 * len(widths),
    )
    for column in columns:
        left = column in ("engine", "step", "output")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table
