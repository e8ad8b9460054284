"""Whether the figures of a run can be relied on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from edge_sdk.bench.document import SUBJECT, BenchDocument
from edge_sdk.bench.figures import ALL, Distribution, Figures, RowFigures
from edge_sdk.bench.surroundings import settled_from
from edge_sdk.runtime.result import StepKind
from edge_sdk.settings import Settings

Grade = Literal["sound", "doubtful", "invalid"]

# Half an interval, as a share of its figure. Two runs of one bundle may then differ by a seventh (10 % times the
# square root of 2) without any reason, which is more than most changes that anybody looks for.
WIDE_SHARE = 0.10
# Slowest round of the yardstick over the fastest, less one. Above it the machine was not one machine: the yardstick
# and the bundle slow down alike only roughly, so that no figure can be put right by it.
UNEVEN_SHARE = 0.25
# Of the processors' time, on average: what others took is missing in every hundredth frame, and so in the p99.
STOLEN_SHARE = 0.01
# Running processes for each processor in the minute before the run. On two processors one other busy process takes
# half a processor when both steps' threads run.
LOAD_SHARE = 0.25
# From its lowest to its highest in the run: above it a clock that is not locked has shown in the times.
CLOCK_SHARE = 0.10
# A percentile needs three answers beyond it to be more than the one slowest that happened to come.
P99_FRAMES = 300
P999_FRAMES = 3000
# Answers over frames at camera pace; the ends of short blocks cost a frame of some hundred.
SUSTAINED_SHARE = 0.98
# Of a period of the camera: growth of the wait within a block from its first to its last quarter.
GROWN_WAIT_SHARE = 0.5
# Over the readings that growth is taken from. Less is an allocator that keeps a little more than it did.
GROWN_BYTES = 1e6
# Half a minute: in the few seconds of a quick run openings of the runner are most of what memory does.
GROWN_HOURS = 30 / 3600
# A first run over the usual one.
COLD_FACTOR = 2.0


# A desktop GPU under full load works at its power limit: that is its ordinary speed, on a cool day too.
_ORDINARY = {"gpu: power cap"}


class Verdict(Settings):
    """What a reader must know before using a figure.

    Args:
        grade: ``invalid`` where the run was throttled; ``doubtful`` where something speaks against relying on the
            figures; else ``sound``.
        reasons: one sentence each, the gravest first, each with the figure it rests on.
        remarks: what is worth knowing and speaks against nothing, such as a rate that is not sustained.
    """

    grade: Grade
    reasons: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, document: BenchDocument, figures: Figures | None = None) -> Verdict:
        """The verdict on a document.

        Args:
            document: the run.
            figures: its figures where they are computed already.
        """
        found = document.figures if figures is None else figures
        invalid = tuple(_throttling(document))
        clocks = _floating_clocks(document, found)
        doubts = (
            *_missing_rounds(document, found),
            *_wide_intervals(found),
            *_uneven_machine(found),
            *_others(document),
            *filter(None, (clocks if document.machine.clocks_locked is False else "",)),
            *_short_tails(found),
        )
        remarks = (
            *_not_sustained(document, found),
            *_growing_memory(document, found),
            *_cold(found),
            *_rare_tails(found),
            *filter(None, (clocks if document.machine.clocks_locked is None else "",)),
            *_untold(found),
            *_at_its_limit(document),
        )
        grade: Grade = "invalid" if invalid else "doubtful" if doubts else "sound"
        return cls(grade=grade, reasons=(*invalid, *doubts), remarks=remarks)


def _throttling(document: BenchDocument) -> Iterator[str]:
    causes = [set(reading.throttled) - _ORDINARY for reading in document.readings]
    held = [phrases for phrases in causes if phrases]
    if held:
        why = ", ".join(sorted(set[str]().union(*held)))
        yield f"Clocks were held down in {len(held)} of {len(causes)} readings ({why})."
    events = {name: count for name, count in document.machine.throttle_events.items() if count > 0}
    if events:
        told = ", ".join(f"{name} {count}" for name, count in sorted(events.items()))
        yield f"The hardware counted {sum(events.values())} throttle events during the run ({told})."


def _at_its_limit(document: BenchDocument) -> Iterator[str]:
    for what in sorted(_ORDINARY):
        count = sum(what in reading.throttled for reading in document.readings)
        if count:
            yield f"{what} in {count} of {len(document.readings)} readings: its clocks are what that power allows."


def _subject(figures: Figures) -> Iterator[tuple[RowFigures, dict[str, Distribution]]]:
    """The subject in each mode, with its latency by kind."""
    for row in figures.rows:
        if row.row == SUBJECT:
            yield row, row.stages["age" if row.mode == "camera" else "total"]


def _where(row: RowFigures) -> str:
    return "at camera pace" if row.mode == "camera" else "saturated"


def _missing_rounds(document: BenchDocument, figures: Figures) -> Iterator[str]:
    wanted = document.recipe.round_count
    if not any(row.row == SUBJECT for row in figures.rows):
        yield f"The bundle itself answered no frame in {wanted} rounds."
    for row, _ in _subject(figures):
        there = {b.round for b in document.blocks if (b.row, b.mode) == (SUBJECT, row.mode) and len(b.frames)}
        if len(there) < wanted:
            yield f"Only {len(there)} of {wanted} rounds were measured {_where(row)}."


def _wide_intervals(figures: Figures) -> Iterator[str]:
    """Of the mean over all frames, and of the median of each step: over all frames the median lies between the kinds,
    and where there are as many of one as of the other it jumps from one to the other without meaning anything. The
    widest of each mode is told."""
    for row, latency in _subject(figures):
        found = {
            "mean" if kind == ALL else f"p50 of a {kind}": of.mean_ms if kind == ALL else of.p50_ms
            for kind, of in latency.items()
            if kind != StepKind.SKIP.value
        }
        widest = max(found, key=lambda name: found[name].half_width or 0.0)
        half = found[widest].half_width or 0.0
        if half > WIDE_SHARE:
            yield (
                f"The {widest} {_where(row)}, {found[widest].value:.2f} ms, is known to ±{half:.0%} only: above "
                f"±{WIDE_SHARE:.0%} its rounds differ too much to tell two runs apart."
            )


def _uneven_machine(figures: Figures) -> Iterator[str]:
    yardstick = figures.yardstick_by_round_ms
    if len(yardstick) > 1 and max(yardstick) > (1 + UNEVEN_SHARE) * min(yardstick):
        yield (
            f"The machine itself was uneven: the yardstick took {min(yardstick):.2f} ms in its fastest round and "
            f"{max(yardstick):.2f} ms in its slowest."
        )


def _others(document: BenchDocument) -> Iterator[str]:
    stolen = [reading.stolen for reading in document.readings if reading.stolen is not None]
    if stolen and float(np.mean(stolen)) > STOLEN_SHARE:
        yield (
            f"Other machines on the same host took {np.mean(stolen):.1%} of the processors' time, "
            f"at worst {max(stolen):.0%} between two readings."
        )
    load, cores = document.conditions.load, document.conditions.cores
    if load is not None and load > LOAD_SHARE * cores:
        yield f"Other work was running when the run began: {load:.2f} processes on {cores} processors."


def _floating_clocks(document: BenchDocument, figures: Figures) -> str:
    """The clock that moved most; empty where none did, or where clocks are locked."""
    moved = {name: of for name, of in figures.clocks_mhz.items() if of.low < (1 - CLOCK_SHARE) * of.high}
    if document.machine.clocks_locked or not moved:
        return ""
    name = min(moved, key=lambda key: moved[key].low / moved[key].high)
    said = "Nothing says whether clocks are" if document.machine.clocks_locked is None else "Clocks are not"
    return f"{said} locked, and {name} ran between {moved[name].low:.0f} and {moved[name].high:.0f} MHz."


def _short_tails(figures: Figures) -> Iterator[str]:
    for row, latency in _subject(figures):
        frames = latency[ALL].frames
        if frames < P99_FRAMES:
            yield (
                f"The p99 {_where(row)} rests on {frames} frames; below {P99_FRAMES} it is little more than "
                f"the slowest of them."
            )


def _not_sustained(document: BenchDocument, figures: Figures) -> Iterator[str]:
    fps = document.source.fps
    for row, _ in _subject(figures):
        if row.mode != "camera":
            continue
        rate = row.throughput_fps
        if rate is not None and rate.value < SUSTAINED_SHARE * fps:
            dropped = 0 if row.deadline is None else row.deadline.dropped
            lost = f", {dropped} frames dropped" if dropped else ""
            yield f"The rate is not sustained: {rate.value:.1f} of {fps:.1f} frames a second{lost}."
        elif (grown := _grown_wait_ms(document)) > GROWN_WAIT_SHARE * 1e3 / fps:
            yield f"The rate is not sustained: frames waited {grown:.1f} ms longer at the end of a block."


def _grown_wait_ms(document: BenchDocument) -> float:
    """Median over the subject's blocks at camera pace: mean wait of the last quarter less that of the first."""
    grown = []
    for block in document.blocks:
        quarter = len(block.frames) // 4
        if (block.row, block.mode) == (SUBJECT, "camera") and quarter:
            wait = np.array(block.frames.called_ms) - np.array(block.frames.due_ms)
            grown.append(float(wait[-quarter:].mean() - wait[:quarter].mean()))
    return float(np.median(grown)) if grown else 0.0


def _growing_memory(document: BenchDocument, figures: Figures) -> Iterator[str]:
    readings = settled_from(document.blocks, sorted(document.readings, key=lambda reading: reading.at_ms))
    for kind, found in figures.memory.items():
        growth = found.growth_bytes_per_hour
        if growth is None or growth.low is None or growth.low <= 0:
            continue
        hours = (readings[-1].at_ms - readings[0].at_ms) / 3.6e6
        if growth.value * hours < GROWN_BYTES or hours < GROWN_HOURS:
            continue
        by_frame = found.growth_bytes_per_frame
        a_frame = "" if by_frame is None else f", {by_frame.value:.0f} bytes a frame"
        yield (
            f"Memory of the {kind} grew by {growth.value * hours / 1e6:.1f} MB in {hours * 60:.1f} minutes after the "
            f"first round{a_frame}: {growth.value / 1e6:.0f} MB an hour."
        )


def _cold(figures: Figures) -> Iterator[str]:
    for step, factor in figures.cold.first_over_usual.items():
        if factor >= COLD_FACTOR:
            yield (
                f"The first {step} step took {figures.cold.first_ms[step]:.1f} ms, {factor:.1f} times its usual "
                f"time: warm the runner up before frames count."
            )


def _rare_tails(figures: Figures) -> Iterator[str]:
    for row, latency in _subject(figures):
        frames = latency[ALL].frames
        if P99_FRAMES <= frames < P999_FRAMES:
            yield f"The p99.9 {_where(row)} rests on {frames} frames; below {P999_FRAMES} read it as the maximum."


def _untold(figures: Figures) -> Iterator[str]:
    if not figures.clocks_mhz and not figures.temperatures_c:
        yield "The machine tells neither clocks nor temperatures: nobody can say whether it was throttled."
