"""A run held against its budgets: what each figure is, and where it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge_sdk.bench.budget import Budget, Relative
from edge_sdk.bench.document import EVERY_FRAME, SUBJECT, BenchDocument
from edge_sdk.bench.figures import ALL, Distribution, Estimate, Figures, RowFigures, WorstFrame
from edge_sdk.bench.findings import Breach, Finding
from edge_sdk.bench.intervals import positive
from edge_sdk.bench.pooled import Pooled
from edge_sdk.bench.samples import KINDS, Block, FrameColumns, Mode
from edge_sdk.bench.surroundings import worst_frames
from edge_sdk.bench.verdict import Verdict
from edge_sdk.errors import RecipeError

if TYPE_CHECKING:
    from edge_sdk.bench.recipe import BenchRecipe

# Kind of frame and statistic of each budget of latencies.
_LATENCIES = {
    **{name: (ALL, name) for name in ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms", "mean_ms")},
    "keyframe_p99_ms": ("keyframe", "p99_ms"),
    "delta_p99_ms": ("delta", "p99_ms"),
}
# Those that have intervals; the mean is no percentile.
_PERCENTILES = {"mean_ms": None, "p50_ms": 50.0, "p90_ms": 90.0, "p99_ms": 99.0}
_AT_PACE = ("miss_rate", "dropped", "jitter_p99_ms")
_MEMORY = {
    "memory_bytes": "process",
    "memory_growth_bytes_per_hour": "process",
    "device_memory_bytes": "device",
}
_ACCURACY = {"min_miou": "labels", "min_agreement": "agreement"}
_BASELINES = ("teacher", "copy", "flow", "rival", EVERY_FRAME)


def judge(document: BenchDocument, figures: Figures, budget: Budget) -> tuple[Finding, ...]:
    """Every figure that ``budget`` limits, in its order.

    Args:
        document: the run.
        figures: its figures, which take a while to compute.
        budget: the limits.

    Raises:
        RecipeError: the run has no such figure, or no such row to compare with.
    """
    found = []
    for name, limit in budget.limits().items():
        if name in _LATENCIES:
            found.append(_latency(document, figures, name, limit))
        elif name in _ACCURACY:
            found.append(_accuracy(document, name, limit))
        elif name == "energy_mj":
            found.append(_energy(figures, document, limit))
        elif not isinstance(limit, Relative):  # the settings see to it
            estimate, mode = _plain(figures, name)
            found.append(Finding(budget=name, figure=estimate, limit=limit, mode=mode))
    return tuple(found)


def breaches(document: BenchDocument, figures: Figures, findings: tuple[Finding, ...]) -> tuple[Breach, ...]:
    """The verdict where it is ``invalid``, and those findings that are broken."""
    worst, verdict = figures.worst, Verdict.of(document, figures)
    found = []
    if verdict.grade == "invalid":
        reason = "the run is invalid: " + " ".join(verdict.reasons).rstrip(".")
        found.append(Breach(budget="verdict", reason=reason, worst=next(iter(worst), None)))
    for finding in findings:
        if finding.broken:
            frame = _slowest(document, finding, worst)
            found.append(Breach(budget=finding.budget, finding=finding, worst=frame))
    return tuple(found)


def _slowest(document: BenchDocument, finding: Finding, worst: tuple[WorstFrame, ...]) -> WorstFrame | None:
    """The slowest frame of the pace and, where the budget is of one kind, the kind that a finding is about."""
    kind, _ = _LATENCIES.get(finding.budget, (ALL, ""))
    if kind == ALL or finding.mode is None:
        return min(worst, key=lambda frame: frame.mode != finding.mode, default=None)  # slowest first
    blocks = [block for block in document.blocks if (block.row, block.mode) == (SUBJECT, finding.mode)]
    pool = Pooled.of(_of_kind(block, kind) for block in blocks)
    readings = sorted(document.readings, key=lambda reading: reading.at_ms)
    return next(iter(worst_frames({finding.mode: pool}, readings)), None)


def _of_kind(block: Block, kind: str) -> Block:
    """A block with its frames of one kind alone."""
    places = [place for place, letter in enumerate(block.frames.kinds) if KINDS[letter] == kind]
    columns = {name: getattr(block.frames, name) for name in FrameColumns.model_fields}
    kept: dict[str, Any] = {name: [column[i] for i in places] for name, column in columns.items() if column}
    frames = FrameColumns.model_validate({**kept, "kinds": "".join(kept.get("kinds", ""))})
    return block.model_copy(update={"frames": frames})


def refuse_early(recipe: BenchRecipe, budget: Budget) -> None:
    """See :func:`edge_sdk.bench.budget.check_recipe`."""
    for name, limit in budget.limits().items():
        if name in _ACCURACY and recipe.source is None:
            raise _missing(name, "a synthetic scene has no accuracy", "Give a clip with source=.")
        if name in _ACCURACY and not recipe.accuracy:
            raise _missing(name, "the recipe leaves out accuracy", "Give accuracy=True.")
        if name in _AT_PACE and recipe.camera_share == 0:
            raise _missing(name, "the recipe has no blocks at camera pace", "Give camera_share= above 0.")
        of = limit.of if isinstance(limit, Relative) else None
        if of in _BASELINES and not recipe.baselines:
            raise _missing(name, f"the recipe leaves out the row '{of}'", "Give baselines=True.")
        if of == "rival" and recipe.rival is None:
            raise _missing(name, "the recipe names no rival", "Give a per-frame bundle with rival=.")


def _missing(budget: str, why: str, hint: str) -> RecipeError:
    return RecipeError(f"budget {budget}: {why}.", hint=hint)


def _latency(document: BenchDocument, figures: Figures, name: str, limit: float | Relative) -> Finding:
    kind, statistic = _LATENCIES[name]
    if isinstance(limit, Relative):
        return _relative_latency(document, figures, name, limit)
    row = _subject(figures, name, "camera", "saturated")
    found = row.latency(kind)
    if found is None:
        raise _no_frames(name, kind, SUBJECT)
    return Finding(budget=name, figure=_estimate(getattr(found, statistic)), limit=limit, mode=row.mode)


def _relative_latency(document: BenchDocument, figures: Figures, name: str, limit: Relative) -> Finding:
    """Both saturated; the interval is the ratio's, whose rounds are free of what slows both rows alike."""
    kind, statistic = _LATENCIES[name]
    ours = _subject(figures, name, "saturated").latency(kind)
    if ours is None:
        raise _no_frames(name, kind, SUBJECT)
    other = _other(figures, document, name, limit.of)
    like = kind if other.latency(kind) is not None else ALL
    theirs = other.latency(like)
    if theirs is None:
        raise _no_frames(name, like, limit.of)
    figure, base = _value(ours, statistic), _value(theirs, statistic)
    return Finding(
        budget=name,
        figure=_of_ratio(document, (limit.of, like), kind, statistic, figure, base),
        limit=limit.factor * base + limit.offset,
        mode="saturated",
        basis=_basis(limit, f"{base:.2f} ms", "+"),
    )


def _of_ratio(
    document: BenchDocument, other: tuple[str, str], kind: str, statistic: str, figure: float, base: float
) -> Estimate:
    """``figure`` with the interval of its ratio to ``base``, of the row and the kind of frame ``other``."""
    if statistic not in _PERCENTILES or not base:
        return Estimate(value=figure)
    mine = _per_round(document, SUBJECT, kind, statistic)
    theirs = _per_round(document, *other, statistic)
    ratios = [mine[index] / theirs[index] for index in mine if theirs.get(index)]
    found = positive(figure / base, ratios)
    if found.low is None or found.high is None:
        return Estimate(value=figure)
    return Estimate(value=figure, low=found.low * base, high=found.high * base)


def _per_round(document: BenchDocument, row: str, kind: str, statistic: str) -> dict[int, float]:
    """The statistic of each round's saturated times from call to answer."""
    frames = Pooled.of(block for block in document.blocks if (block.row, block.mode) == (row, "saturated"))
    mask = dict(frames.kinds()).get(kind)
    if mask is None:
        return {}
    rounds, total = frames.round[mask], frames.stages["total"][mask]
    percentile = _PERCENTILES[statistic]
    return {
        int(index): float(np.mean(part) if percentile is None else np.percentile(part, percentile))
        for index in np.unique(rounds)
        if len(part := total[rounds == index])
    }


def _accuracy(document: BenchDocument, name: str, limit: float | Relative) -> Finding:
    field = _ACCURACY[name]

    def score(row: str) -> float:
        value: float | None = getattr(document.row(row), field)
        if value is not None:
            return value
        if field == "agreement":
            raise _missing(
                name, f"the row '{row}' was not compared with the teacher", "Give a clip with source=."
            )
        hint = "Give a folder of images/ and labels/ with source=, or budget min_agreement, which needs no labels."
        raise _missing(name, f"{document.source.uri} has no labels for the row '{row}'", hint)

    figure = Estimate(value=score(SUBJECT))
    if not isinstance(limit, Relative):
        return Finding(budget=name, figure=figure, limit=limit)
    _row_known(document, name, limit.of)
    base = score(limit.of)
    least = limit.factor * base - limit.offset
    return Finding(budget=name, figure=figure, limit=least, basis=_basis(limit, f"{base:.4f}", "-"))


def _energy(figures: Figures, document: BenchDocument, limit: float | Relative) -> Finding:
    name = "energy_mj"

    def energy(row: RowFigures) -> Estimate:
        if row.energy_mj is None:
            why = f"the machine did not tell what the row '{row.row}' drew"
            hint = (
                "It is told by a Jetson's power rails, by NVIDIA's driver, and by Linux's powercap to root."
            )
            raise _missing(name, why, hint)
        return row.energy_mj

    if not isinstance(limit, Relative):
        row = _subject(figures, name, "camera", "saturated")
        return Finding(budget=name, figure=energy(row), limit=limit, mode=row.mode)
    ours = energy(_subject(figures, name, "saturated"))
    base = energy(_other(figures, document, name, limit.of)).value
    most = limit.factor * base + limit.offset
    basis = _basis(limit, f"{base:.2f} mJ", "+")
    return Finding(budget=name, figure=ours, limit=most, mode="saturated", basis=basis)


def _plain(figures: Figures, name: str) -> tuple[Estimate, Mode | None]:
    """Figures that are limited by numbers alone."""
    if name in _AT_PACE:
        return _at_pace(_subject(figures, name, "camera"), name), "camera"
    if name == "min_fps":
        fps = _subject(figures, name, "saturated").throughput_fps
        if fps is None:
            raise _no_frames(name, ALL, SUBJECT)
        return fps, "saturated"
    if name == "own_cost_ms":
        if ALL not in figures.cost:
            why = "the bare engine was not run beside the runner"
            raise _missing(
                name, why, "It is run between saturated blocks: measure a file or a scene, not a live source."
            )
        return figures.cost[ALL].own_ms, "saturated"
    kind = _MEMORY[name]
    if kind not in figures.memory:
        where = "memory of this process" if kind == "process" else "memory of a GPU"
        hint = "It is read from Linux's /proc." if kind == "process" else "It is read from NVIDIA's driver."
        raise _missing(name, f"no {where} could be read", hint)
    memory = figures.memory[kind]
    if name != "memory_growth_bytes_per_hour":
        return Estimate(value=memory.peak_bytes), None
    if memory.growth_bytes_per_hour is None:
        raise _missing(name, "the run is too short to tell growth", 'Measure longer: preset="soak".')
    return memory.growth_bytes_per_hour, None


def _at_pace(row: RowFigures, name: str) -> Estimate:
    if row.deadline is None or row.jitter is None:
        raise _missing(
            name, "too few frames came at camera pace", "Measure longer, or at a higher rate with fps=."
        )
    if name == "jitter_p99_ms":
        return Estimate(value=row.jitter.p99_ms)
    return row.deadline.miss_rate if name == "miss_rate" else Estimate(value=row.deadline.dropped)


def _subject(figures: Figures, name: str, *modes: Mode) -> RowFigures:
    """The subject in the first of ``modes`` that it was run in."""
    rows = (figures.row(SUBJECT, mode) for mode in modes)
    found = next((row for row in rows if row is not None), None)
    if found is not None:
        return found
    if modes == ("camera",):
        raise _missing(name, "the run has no blocks at camera pace", "Measure with camera_share= above 0.")
    hint = "Measure a file or a scene: a live source gives its frames at its own pace alone."
    raise _missing(name, "the run has no saturated blocks", hint)


def _other(figures: Figures, document: BenchDocument, name: str, of: str) -> RowFigures:
    _row_known(document, name, of)
    found = figures.row(of, "saturated")
    if found is None:
        hint = "Measure a file or a scene: a live source gives its frames at its own pace alone."
        raise _missing(name, f"the row '{of}' was not run saturated", hint)
    return found


def _row_known(document: BenchDocument, name: str, of: str) -> None:
    if of not in (known := [row.name for row in document.rows]):
        hint = "Rows come with baselines=True, rival=, engines= and intervals=."
        raise _missing(name, f"no row '{of}' in this run, only {', '.join(known)}", hint)


def _no_frames(name: str, kind: str, row: str) -> RecipeError:
    what = "frame" if kind == ALL else f"{kind} frame"
    return _missing(name, f"the row '{row}' answered no {what}", "Measure longer, or with another schedule=.")


def _basis(limit: Relative, theirs: str, sign: str) -> str:
    share = f"{limit.factor:g} x " if limit.factor != 1 else ""
    beyond = f" {sign} {limit.offset:g}" if limit.offset else ""
    return f"{share}{theirs} of the row '{limit.of}'{beyond}"


def _estimate(value: Estimate | float) -> Estimate:
    return value if isinstance(value, Estimate) else Estimate(value=value)


def _value(distribution: Distribution, statistic: str) -> float:
    return _estimate(getattr(distribution, statistic)).value
