"""How a bench's figures read in its report: cells, sentences and conditions."""

from __future__ import annotations

from collections.abc import Callable

from edge_sdk.bench.document import EVERY_FRAME, SUBJECT, BenchDocument, Machine, Row
from edge_sdk.bench.figures import Estimate, Figures, Memory, Span
from edge_sdk.evaluate.table import milliseconds
from edge_sdk.runtime.schedule import (
    AlwaysSchedule,
    ChangeSchedule,
    DriftSchedule,
    EverySchedule,
    SampleSchedule,
    ScheduleSettings,
)

GRADES = {
    "sound": "Sound: nothing that was watched speaks against relying on these figures.",
    "doubtful": "Doubtful: something speaks against relying on these figures.",
    "invalid": "Invalid: the machine was throttled, and these figures are of a machine held back.",
}
# Above it a hundredth of a megabyte says nothing.
_MUCH_GROWTH_BYTES = 100e6
_BASELINES = ("teacher", EVERY_FRAME, "copy", "flow", "rival")
_WHAT = {
    "teacher": "the teacher on every frame",
    EVERY_FRAME: "seeing every frame",
    "copy": "copying the keyframe's answer",
    "flow": "warping it with optical flow",
    "rival": "the per-frame rival",
}


def interval(estimate: Estimate | None, factor: float = 1.0, spec: str | None = None) -> str:
    """The 95 % interval of an estimate, such as ``"9.8 to 10.2"``; empty without one.

    Args:
        estimate: in the figure's own unit.
        factor: from it to the unit that is shown.
        spec: how numbers are written; None for milliseconds.
    """
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    low, high = estimate.low * factor, estimate.high * factor
    if spec is None:
        return f"{milliseconds(low)} to {milliseconds(high)}"
    return f"{low:{spec}} to {high:{spec}}"


def schedule_text(schedule: ScheduleSettings) -> str:
    """Which frames are keyframes, in a few words."""
    if isinstance(schedule, AlwaysSchedule):
        return "every frame"
    if isinstance(schedule, EverySchedule):
        return "every frame" if schedule.interval == 1 else f"every {schedule.interval} frames"
    if isinstance(schedule, SampleSchedule):
        when = f"every {schedule.length} frames" if schedule.restart else "at the start"
        return f"{when}, {schedule.samples} of each {schedule.length} frames seen"
    limit = "" if schedule.max_interval is None else f", at most {schedule.max_interval} frames apart"
    if isinstance(schedule, ChangeSchedule):
        skipped = ", frames between skipped" if schedule.between == "skip" else ""
        return f"on a change above {schedule.threshold:g} grey levels{limit}{skipped}"
    if isinstance(schedule, DriftSchedule):
        return f"where less than {schedule.below:.0%} of the last one holds{limit}"
    return f"on request{limit}"


def row_text(row: Row) -> str:
    """Engine and schedule of a row, as far as its name does not say them."""
    named = row.name.split()
    parts = [
        "" if row.engine in named else row.engine,
        ""
        if f"K={getattr(row.schedule, 'interval', None)}" in named
        else f"keyframes {schedule_text(row.schedule)}",
        "keyframes in the background" if row.background else "",
    ]
    return ", ".join(filter(None, parts))


def accuracy_of(document: BenchDocument) -> tuple[str, Callable[[Row], float | None]] | None:
    """What accuracy means in this run, and where a row has it; None where no row has any."""
    if any(row.labels is not None for row in document.rows):
        return "mIoU against labels", lambda row: row.labels
    if any(row.agreement is not None for row in document.rows):
        return "agreement with the teacher (mIoU)", lambda row: row.agreement
    return None


def gain(document: BenchDocument, figures: Figures) -> str:
    """What the subject gains and loses against each baseline, in one sentence."""
    found = figures.row(SUBJECT, "saturated")
    latency = None if found is None else found.latency()
    names = {row.name for row in document.rows}
    others = [name for name in _BASELINES if name in names and figures.row(name, "saturated") is not None]
    if found is None or latency is None:
        return "What is gained is not known: the subject was not measured saturated, beside its baselines."
    mean = f"A frame takes {milliseconds(latency.mean_ms.value)} ms on average"
    if not others:
        return f"{mean}; no baseline was measured beside it, so what is gained is not known."
    accuracy = accuracy_of(document)
    points = " Accuracy was not measured." if accuracy is None else f" Points are of {accuracy[0]}."
    return f"{mean}: {'; '.join(_against(name, document, figures) for name in others)}.{points}"


def _against(name: str, document: BenchDocument, figures: Figures) -> str:
    """How the subject compares with one baseline, such as ``"1.8 times the speed of ... for -1.0 points"``."""
    ours, theirs = figures.row(SUBJECT, "saturated"), figures.row(name, "saturated")
    mine = None if ours is None else ours.latency()
    other = None if theirs is None else theirs.latency()
    if mine is None or other is None or mine.mean_ms.value <= 0:
        return f"{_WHAT[name]} was not timed"
    speedup = ours.speedup if name == "teacher" and ours is not None else None
    ratio = other.mean_ms.value / mine.mean_ms.value if speedup is None else speedup.value
    between = interval(speedup, spec=".2f")
    times = f"{ratio:.2f} times as fast" if ratio >= 1 else f"{1 / ratio:.2f} times as slow"
    speed = f"{times} as {_WHAT[name]}{f' ({between})' if between else ''}"
    found = accuracy_of(document)
    scores = [None if found is None else found[1](document.row(row)) for row in (SUBJECT, name)]
    if found is None:
        return speed
    if scores[0] is None or scores[1] is None:
        return f"{speed}, accuracy not compared"
    return f"{speed}, {100 * (scores[0] - scores[1]):+.1f} points"


def growth(memory: Memory) -> str:
    """How memory grew, with its interval."""
    slope = memory.growth_bytes_per_hour
    if slope is None:
        return "growth not known, too few readings"
    spec = "+.0f" if abs(slope.value) >= _MUCH_GROWTH_BYTES else "+.2f"
    between = interval(slope, 1e-6, spec)
    return f"{slope.value / 1e6:{spec}} MB an hour" + (f" ({between})" if between else "")


def span_text(span: Span, unit: str, factor: float = 1.0, digits: int = 1) -> str:
    """Lowest, median and highest of a sensor."""
    if span.low == span.high:
        return f"{span.median * factor:.{digits}f} {unit} throughout"
    low, middle, high = (f"{value * factor:.{digits}f}" for value in (span.low, span.median, span.high))
    return f"{low} to {high} {unit}, median {middle}"


def _covered(document: BenchDocument) -> list[tuple[str, str]]:
    """What the subject's answers cover, where a few frames of each clip are seen."""
    schedule = document.row(SUBJECT).schedule
    if not isinstance(schedule, SampleSchedule):
        return []
    return [("answers", str(schedule.coverage(document.source.fps)).removeprefix("answers "))]


def conditions(document: BenchDocument, figures: Figures) -> list[tuple[str, str]]:
    """Under which conditions the figures hold: names and texts; what the machine did not tell says so."""
    known, machine, recipe = document.conditions, document.machine, document.recipe
    locked = {True: "locked", False: "not locked", None: "not known whether locked"}[machine.clocks_locked]
    governors = f", governor {', '.join(machine.governors)}" if machine.governors else ""
    events = {name: count for name, count in machine.throttle_events.items() if count}
    seen = sorted({cause for reading in document.readings for cause in reading.throttled})
    throttling = [*seen, *(f"{name}: {count} times" for name, count in events.items())]
    watched = machine.telemetry or document.readings
    packages = ", ".join(f"{name} {version}" for name, version in known.packages.items())
    commit = f" ({known.commit})" if known.commit else ""
    load = "not known" if known.load is None else f"{known.load:g} running processes in the minute before"
    return [
        ("date", known.date),
        ("machine", known.machine),
        ("processor", f"{known.cpu}, {known.cores} cores usable"),
        ("accelerator", machine.accelerator or "none used"),
        ("power mode", machine.power_mode or "none told"),
        ("clocks", locked + governors),
        *_covered(document),
        ("throttling", "; ".join(throttling) or ("none seen" if watched else "not watched")),
        ("load before", load),
        ("threads", str(known.threads or "chosen by the libraries")),
        ("backend", recipe.backend + "".join(f"; {k}: {v}" for k, v in machine.engine_report.items())),
        ("software", f"edge_sdk {known.sdk_version}{commit}, Python {known.python}, {packages}"),
        ("telemetry", _telemetry(machine)),
        ("yardstick", _yardstick(figures)),
        ("time taken by others", _stolen(figures)),
    ]


def _telemetry(machine: Machine) -> str:
    """Where readings came from, and how far they were out of the way."""
    told, cost = ", ".join(machine.telemetry) or "no sensors", machine.telemetry_cost
    if cost is None or not cost.readings:
        return told
    return (
        f"{told}; {cost.readings} readings of {milliseconds(cost.median_ms)} ms, at most "
        f"{milliseconds(cost.worst_ms)} ms; {milliseconds(cost.cpu_ms / cost.readings)} ms of processor time each"
    )


def _yardstick(figures: Figures) -> str:
    found = figures.yardstick_ms
    if found is None:
        return "none for this backend"
    between = interval(found)
    spread = figures.yardstick_by_round_ms
    rounds = (
        f"; by round {', '.join(milliseconds(value) for value in spread)} ms" if 1 < len(spread) <= 12 else ""
    )
    return f"{milliseconds(found.value)} ms{f' ({between})' if between else ''}{rounds}"


def _stolen(figures: Figures) -> str:
    if figures.stolen is None:
        return "not told"
    return f"{figures.stolen.median:.2%} of the processors' time, at most {figures.stolen.high:.2%}"


def source_text(document: BenchDocument) -> str:
    """The frames, and how they came."""
    source, recipe = document.source, document.recipe
    size = f"{source.width} × {source.height}"
    if source.live:
        frames = f"frames of {size}, as they come, {source.fps:g} frames/s told"
    else:
        labels = f"{source.labelled} labelled" if source.labelled else "none labelled"
        frames = f"{source.frames} frames of {size}, {labels}, {source.fps:g} frames/s"
    drops = source.live or recipe.late == "drop"
    late = "late frames are dropped for newer ones" if drops else "late frames wait"
    rounds = len({block.round for block in document.blocks})
    return f"{source.uri}: {frames}, {late}. {rounds} rounds, {recipe.length_s:g} s asked for."
