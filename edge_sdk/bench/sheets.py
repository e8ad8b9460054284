"""The tables of the bench report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_sdk.bench.comparison import Comparison
from edge_sdk.bench.document import SUBJECT, BenchDocument, Row
from edge_sdk.bench.figures import ALL, STAGES, Deadline, Distribution, Estimate, Figures, RowFigures
from edge_sdk.bench.samples import Mode
from edge_sdk.bench.wording import growth, interval, row_text, span_text
from edge_sdk.evaluate.table import NOTHING, milliseconds, share, size

_KINDS = (ALL, "keyframe", "delta", "skip")
_MS_PER_S = 1e3


@dataclass(frozen=True)
class Cell:
    """Text, and small text below it, such as its interval."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Line:
    """A line of a table: its cells, the colour of its mark or none, and whether it stands out."""

    cells: Sequence[Cell]
    colour: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Sheet:
    """A table; where nothing was measured it has no lines, and ``note`` says why.

    Args:
        title: above it.
        headings: each with what it means.
        lines: below the headings.
        note: below the table, or instead of it.
    """

    title: str
    headings: Sequence[tuple[str, str]]
    lines: Sequence[Line]
    note: str = ""


# Columns of words, which stand left; numbers stand right.
WORDS = frozenset(
    (
        "row",
        "frames of",
        "stage",
        "part",
        "memory",
        "sensor",
        "reading",
        "pace",
        "kind",
        "conditions",
        "figure",
        "answer",
    )
)


def _estimate(found: Estimate | None) -> Cell:
    return Cell(NOTHING) if found is None else Cell(milliseconds(found.value), interval(found))


def _scaled(found: Estimate | None, spec: str, factor: float = 1.0, unit: str = "") -> Cell:
    if found is None:
        return Cell(NOTHING)
    return Cell(f"{found.value * factor:{spec}}{unit}", interval(found, factor, spec))


_LATENCIES = (
    ("mean ms", "mean time of a frame; below it the 95 % interval from the spread between rounds"),
    ("p50", "half of the frames were at least as fast, ms"),
    ("p90", "nine of ten frames were at least as fast, ms"),
    ("p99", "99 of 100 frames were at least as fast, ms"),
    ("p99.9", "999 of 1000 frames were at least as fast, ms"),
    ("max", "the slowest frame, ms"),
)


def _latencies(found: Distribution, intervals: bool = True) -> list[Cell]:
    estimates = (found.mean_ms, found.p50_ms, found.p90_ms, found.p99_ms)
    return [
        *(_estimate(value) if intervals else Cell(milliseconds(value.value)) for value in estimates),
        Cell(milliseconds(found.p999_ms)),
        Cell(milliseconds(found.max_ms)),
    ]


def rows(document: BenchDocument, figures: Figures, mode: Mode, chosen: str | None = None) -> Sheet:
    """Every row in one mode."""
    camera = mode == "camera"
    own = _camera_columns(document.deadline_ms) if camera else _SATURATED
    lines = []
    for row in document.rows:
        found = figures.row(row.name, mode)
        latency = None if found is None else found.latency()
        if found is not None and latency is not None:
            name = Cell(row.name + (" (chosen)" if row.name == chosen else ""), row_text(row))
            rates = [column(found, row) for _, _, column in own]
            colour = "delta" if row.variant == "pair" else row.variant
            cells = [name, *_latencies(latency), *rates, Cell(str(latency.frames))]
            lines.append(Line(cells, colour, row.name == SUBJECT))
    headings = [
        ("row", "what answers the frames"),
        *_LATENCIES,
        *((heading, meaning) for heading, meaning, _ in own),
        ("frames", "answered, over all rounds"),
    ]
    notes = [f"{row.name}: {row.note}." for row in document.rows if row.note and not camera]
    if not camera and len(lines) > 1:
        notes.append("All rows ran by turns in the same run, on the same clip.")
    if not lines:
        notes = [f"Not measured: no row ran {'at camera pace' if camera else 'saturated'}."]
    return Sheet(_TITLES[mode], *_without_empty(headings, lines), " ".join(notes))


_TITLES = {
    "saturated": "Saturated: from call to answer, each frame given when the last is answered",
    "camera": "At camera pace: age of an answer when it is delivered",
}
_Column = tuple[str, str, Callable[[RowFigures, Row], Cell]]
_RATES: tuple[_Column, ...] = (
    ("key", "keyframes, of the frames answered", lambda found, _: Cell(f"{found.keyframe_share:.0%}")),
    ("frames/s", "answered", lambda found, _: _scaled(found.throughput_fps, ".1f")),
    (
        "mJ/frame",
        "millijoules of the whole machine for each frame",
        lambda found, _: _scaled(found.energy_mj, ".0f"),
    ),
)
_SATURATED: tuple[_Column, ...] = (
    (
        "speed-up",
        "the teacher's mean over this mean, within each round",
        lambda found, _: _scaled(found.speedup, ".2f", unit="×"),
    ),
    ("mIoU", "with the labels of the clip", lambda _, row: Cell(share(row.labels))),
    (
        "agreement",
        "mIoU with the float32 teacher's answers as truth",
        lambda _, row: Cell(share(row.agreement)),
    ),
    *_RATES,
)


def _camera_columns(deadline_ms: float) -> tuple[_Column, ...]:
    """What is told at camera pace alone."""

    def of_deadline(text: Callable[[Deadline], Cell]) -> Callable[[RowFigures, Row], Cell]:
        return lambda found, _: Cell(NOTHING) if found.deadline is None else text(found.deadline)

    return (
        (
            "late",
            f"answers older than the deadline of {deadline_ms:.3g} ms",
            of_deadline(lambda met: Cell(str(met.late))),
        ),
        ("dropped", "frames that were never answered", of_deadline(lambda met: Cell(str(met.dropped)))),
        (
            "misses",
            "late and dropped, of all frames",
            of_deadline(lambda met: _scaled(met.miss_rate, ".2f", 100, " %")),
        ),
        (
            "jitter p99",
            "99 of 100 intervals between answers are within this of the camera's period, ms",
            lambda found, _: Cell(milliseconds(None if found.jitter is None else found.jitter.p99_ms)),
        ),
        *_RATES,
    )


def _without_empty(
    headings: Sequence[tuple[str, str]], lines: Sequence[Line]
) -> tuple[list[tuple[str, str]], list[Line]]:
    """Without the columns that no line has anything in."""
    kept = [
        place
        for place in range(len(headings))
        if not lines or any(line.cells[place].text != NOTHING for line in lines)
    ]
    return [headings[place] for place in kept], [
        Line([line.cells[place] for place in kept], line.colour, line.strong) for line in lines
    ]


def stages(document: BenchDocument, figures: Figures, mode: Mode) -> Sheet:
    """The subject's stages by kind of frame."""
    found = figures.row(SUBJECT, mode)
    title = "Stages at camera pace, ms" if mode == "camera" else "Stages saturated, ms"
    headings = [
        ("stage", "in the order in which a frame passes them"),
        ("frames of", "which kind of step"),
        *_LATENCIES,
        ("frames", "answered"),
    ]
    if found is None:
        return Sheet(title, headings, (), "Not measured.")
    lines = [
        Line(
            [
                Cell(stage),
                Cell(kind),
                *_latencies(kinds[kind], intervals=stage in ("total", "age")),
                Cell(str(kinds[kind].frames)),
            ],
            strong=kind == ALL,
        )
        for stage, kinds in (
            *found.stages.items(),
            *((("step, on the GPU", found.gpu),) if found.gpu else ()),
        )
        for kind in _KINDS
        if kind in kinds
    ]
    waits = "'capture': from the camera to the call. " if mode == "camera" else ""
    own = "" if found.gpu else " The step's own time on a GPU: none was used, or the backend does not tell."
    return Sheet(title, headings, lines, f"{waits}'total': from call to answer.{own}")


def cost(figures: Figures) -> Sheet:
    """What the runner costs over its bare engines."""
    headings = [
        ("frames of", "which kind of step"),
        ("runner ms", "median of a frame through the runner"),
        ("bare engine ms", "median of the same step alone, on the runner's own buffers"),
        ("runner's own ms", "median of the differences within pairs"),
        ("share", "of the bare engine's time"),
        ("GPU ms", "the GPU's own time of the bare engine"),
    ]
    lines = [
        Line(
            [
                Cell(kind),
                Cell(milliseconds(found.runner_ms)),
                Cell(milliseconds(found.bare_ms)),
                _scaled(found.own_ms, ".3f"),
                Cell(f"{found.share:.2%}"),
                Cell(milliseconds(found.gpu_ms)),
            ],
            strong=kind == ALL,
        )
        for kind, found in figures.cost.items()
    ]
    note = "In pairs: a frame through the runner, then the same kind of step bare." if lines else ""
    return Sheet(
        "", *_without_empty(headings, lines), note or "Not measured: nothing was run bare in this run."
    )


def cold(document: BenchDocument, figures: Figures) -> Sheet:
    """Starting, part by part."""
    found = figures.cold
    starts = document.starts
    parts: list[tuple[str, float, list[float], str]] = [
        ("check of the files", found.check_ms, [start.check_ms for start in starts], ""),
        ("engines loaded", found.load_ms, [start.load_ms for start in starts], ""),
        ("buffers bound", found.bind_ms, [start.bind_ms for start in starts], ""),
    ]
    for step, value in found.first_ms.items():
        ratio = found.first_over_usual.get(step)
        times = f"{ratio:.1f} times the usual" if ratio is not None else ""
        parts.append(
            (f"first {step}", value, [s.first_ms[step] for s in starts if step in s.first_ms], times)
        )
    for step, value in found.second_ms.items():
        parts.append(
            (f"second {step}", value, [s.second_ms[step] for s in starts if step in s.second_ms], "")
        )
    lines = [
        Line([Cell(name), Cell(milliseconds(value)), Cell(_reach(all_ms)), Cell(note)])
        for name, value, all_ms, note in parts
    ]
    headings = [
        ("part", ""),
        ("median ms", "over the rounds"),
        ("lowest to highest", "of the rounds, ms"),
        ("", ""),
    ]
    return Sheet("", headings, lines, f"From {len(starts)} starts, outside all other figures.")


def _reach(values: Sequence[float]) -> str:
    return f"{milliseconds(min(values))} to {milliseconds(max(values))}" if len(values) > 1 else NOTHING


def memory(figures: Figures) -> Sheet:
    """Memory by kind."""
    headings = [
        ("memory", "of the process, or in use on the GPU"),
        ("first", ""),
        ("last", ""),
        ("peak", ""),
        ("growth", "Theil-Sen slope after the first round, with its 95 % interval"),
        ("bytes a frame", "growth by frames answered"),
    ]
    lines = [
        Line(
            [
                Cell(kind),
                *(Cell(size(value)) for value in (found.first_bytes, found.last_bytes, found.peak_bytes)),
                Cell(growth(found)),
                _scaled(found.growth_bytes_per_frame, "+.1f"),
            ]
        )
        for kind, found in figures.memory.items()
    ]
    return Sheet("", headings, lines)


def sensors(figures: Figures) -> Sheet:
    """Clocks, temperatures and power over the run."""
    groups = (
        (figures.clocks_mhz, "GHz", 1e-3, 2),
        (figures.temperatures_c, "°C", 1.0, 1),
        (figures.power_w, "W", 1.0, 2),
    )
    lines = [
        Line([Cell(name), Cell(span_text(span, unit, factor, digits))])
        for spans, unit, factor, digits in groups
        for name, span in spans.items()
    ]
    untold = [name for name, (spans, *_) in zip(("clocks", "temperatures", "power"), groups) if not spans]
    note = f"Not told by this machine: {', '.join(untold)}." if untold else ""
    return Sheet("Sensors over the run", [("sensor", ""), ("reading", "")], lines, note)


def worst(document: BenchDocument, figures: Figures) -> Sheet:
    """The slowest answers, each with what is known of its moment."""
    stages_seen = [stage for stage in STAGES if any(stage in frame.stages_ms for frame in figures.worst)]
    headings = [
        ("pace", "how frames came"),
        ("frame", "its number at the camera, and its round"),
        ("kind", ""),
        ("at s", "delivered, since the beginning of the run"),
        ("latency ms", "age at camera pace, from call to answer saturated"),
        *((stage, "ms") for stage in stages_seen),
        ("preempted", "times that the process was taken off a processor"),
        ("conditions", "of the nearest reading"),
    ]
    lines = [
        Line(
            [
                Cell(frame.mode),
                Cell(f"{frame.seq}, round {frame.round}"),
                Cell(frame.kind),
                Cell(f"{frame.at_ms / _MS_PER_S:.2f}"),
                Cell(milliseconds(frame.latency_ms)),
                *(Cell(milliseconds(frame.stages_ms.get(stage))) for stage in stages_seen),
                Cell(NOTHING if frame.preempted is None else str(frame.preempted)),
                Cell(", ".join(frame.conditions) or NOTHING),
            ],
            frame.kind,
        )
        for frame in figures.worst
    ]
    note = "" if lines else "The subject answered no frame."
    return Sheet("", *_without_empty(headings, lines), note)


def comparison(found: Comparison) -> Sheet:
    """What has changed since an older run."""
    headings = [
        ("figure", "of the subject"),
        ("old", ""),
        ("new", ""),
        ("answer", "change with its 95 % interval"),
    ]
    lines = [
        Line([Cell(text) for text in texts], strong=change.answer == "changed")
        for change, texts in zip(found.changes, found.rows())
    ]
    return Sheet("", headings, lines)
