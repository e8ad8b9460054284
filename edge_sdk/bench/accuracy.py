"""How accurate each row of a bench is over a clip: against its labels, and against the float32 teacher's answers.

Rows with a keyframe every K frames are counted over every alignment of the keyframes, as ``edge-sdk evaluate`` counts
them: each frame is seen at each distance from its keyframe. An answer rests on its keyframe and on what came between,
so one pass over all distances gives the score of every interval. How late keyframes beside the frames come is measured
at the camera's rate; their answers are then computed in turn, so that the score does not hang on this run's clock. A
schedule that looks at the pictures, or is told what the delta steps find, decides over the clip in order, from several
first frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge_sdk.bench.document import Row
from edge_sdk.bundle import FLOAT32, Bundle, set_name
from edge_sdk.errors import BundleError, RecipeError
from edge_sdk.evaluate.accuracy import Judge, per_frame_masks
from edge_sdk.evaluate.baselines import copied, flowed
from edge_sdk.evaluate.clip import Clip, Tick
from edge_sdk.evaluate.metrics import Planned, StreamScores
from edge_sdk.evaluate.replay import mean_interval, replay
from edge_sdk.progress import Progress, Silent
from edge_sdk.runtime.background import BackgroundKeyframes
from edge_sdk.runtime.engine import Backend, backend_available, backend_named
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import AlwaysSchedule, DriftSchedule, EverySchedule
from edge_sdk.settings import Settings
from edge_sdk.tasks import Segmentation

if TYPE_CHECKING:
    from edge_sdk.bench.lineup import Lineup
    from edge_sdk.bench.recipe import BenchRecipe

# First frames from which a schedule that looks at the pictures is followed, spread over its mean interval: with one
# alone the score would hang on where the clip happens to begin.
_MOST_STARTS = 5
# Keyframes beside the frames that are watched to see how late they come.
_WATCHED = 6


class Score(Settings):
    """How accurate a row is.

    Args:
        labels: mean intersection over union with the labels, 0-1; None without labels.
        agreement: the same with the float32 teacher's answers as truth.
        interval: frames a keyframe over the clip.
        note: what a reader must know about the two; empty for keyframes on a fixed grid.
    """

    labels: float | None
    agreement: float | None
    interval: float
    note: str = ""


def scores_of(
    rows: Sequence[Row],
    lineup: Lineup,
    clip: Clip,
    *,
    backend: str | Backend = "onnxruntime",
    threads: int | None = None,
    background: BackgroundKeyframes | None = None,
    fps: float | None = None,
    lags: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> dict[str, Score]:
    """The scores of ``rows`` over ``clip``.

    Args:
        rows: of one bench; rows that share an engine share the work.
        lineup: their bundles.
        clip: the frames, with or without labels.
        backend: runs the rows.
        threads: CPU threads of one step.
        background: how keyframes run beside the frames, for the rows that do so.
        fps: rate of the camera, frames a second; None for the clip's.
        lags: frames by which such a row's keyframes come late, by name; those that are missing are measured by running
            the row at the camera's rate for a few keyframes.
        progress: told how far each pass is.

    Returns:
        Scores by name of the row.

    Raises:
        RecipeError: the clip is shorter than an interval, or the task is none whose answers can be compared.
        BundleError: the float32 teacher cannot be run here; or the teacher's own bundle and the subject disagree.
    """
    require_scored(lineup)
    found = backend_named(backend) if isinstance(backend, str) else backend
    tick = (progress or Silent()).update
    scorer = _Scorer(lineup, clip, found, threads, background or BackgroundKeyframes(), fps or clip.fps, tick)
    demands = [scorer.demand(row, (lags or {}).get(row.name)) for row in rows]
    # The subject's own steps go first: they find a teacher that does not fit before time is spent on the rest.
    for demand in sorted(demands, key=lambda demand: demand.way != "delta"):
        scorer.prepare(demand, demands)
    return {row.name: scorer.score(demand) for row, demand in zip(rows, demands, strict=True)}


def require_scored(lineup: Lineup) -> None:
    """Refuse a task that is not scored here.

    Raises:
        RecipeError: it is no segmentation.
    """
    task = lineup.subject.manifest.task.kind
    if task != "segmentation":
        raise RecipeError(
            f"accuracy: a {task} is not scored beside its times, bundle {lineup.subject.path} is one.",
            hint="Leave accuracy out here, and score it over labelled clips with: edge-sdk evaluate BUNDLE CLIPS",
        )


def score(
    rows: Sequence[Row],
    lineup: Lineup,
    clip: Clip,
    recipe: BenchRecipe,
    progress: Progress | None = None,
    *,
    backend: Backend | None = None,
) -> tuple[Row, ...]:
    """``rows`` with their scores and notes filled in; those that have scores keep them.

    Errors are those of :func:`scores_of`; ``backend`` is an object instead of the recipe's named one.
    """
    missing = [row for row in rows if row.agreement is None]
    if not missing:
        return tuple(rows)
    found = scores_of(
        missing, lineup, clip, backend=backend or recipe.backend, threads=recipe.threads,
        background=recipe.background, fps=recipe.fps, progress=progress,
    )  # fmt: skip
    return tuple(with_score(row, found[row.name]) if row.name in found else row for row in rows)


def with_score(row: Row, score: Score) -> Row:
    """``row`` with its score, and the score's note beside its own."""
    note = "; ".join(filter(None, (row.note, score.note)))
    return row.model_copy(update={"labels": score.labels, "agreement": score.agreement, "note": note})


@dataclass(frozen=True)
class _Demand:
    """What a row needs.

    Args:
        row: which.
        way: how frames between keyframes are answered; ``own`` where every frame is a keyframe.
        distances: from keyframe to frame, on a fixed grid; None where the schedule looks at the pictures or the steps.
        lag: frames that keyframes beside the frames come late.
    """

    row: Row
    way: str
    distances: range | None
    lag: int | None = None

    @property
    def source(self) -> tuple[str, str, str]:
        """Rows of the same source are scored from the same passes."""
        return (self.way, "pair" if self.row.variant == "pair" else "teacher", self.row.engine)


@dataclass
class _Scorer:
    """Passes over the clip, each made once."""

    lineup: Lineup
    clip: Clip
    backend: Backend
    threads: int | None
    background: BackgroundKeyframes
    fps: float
    tick: Tick
    _masks: dict[tuple[str, str], Sequence[Segmentation]] = field(default_factory=dict)
    _passes: dict[tuple[str, str, str], StreamScores] = field(default_factory=dict)

    def __post_init__(self) -> None:
        teacher, count = self.lineup.keyframes, len(self.clip)
        backend, engine = reference(teacher, self.backend)
        self._teacher = per_frame_masks(
            teacher, self.clip, self.threads, lambda done: self.tick("teacher", done, count), engine, backend
        )
        self._reference_engine = engine if backend.name == self.backend.name else ""
        self._judge = Judge(
            self.clip, self._teacher, self.lineup.subject, threads=self.threads, phases_of=range,
            own_teacher=self.lineup.teacher is not None, tick=self.tick, backend=self.backend, consistency=False,
        )  # fmt: skip

    def demand(self, row: Row, lag: int | None) -> _Demand:
        """What ``row`` needs; how late its keyframes come is measured where it is not given."""
        schedule, way = row.schedule, _way(row)
        if isinstance(schedule, DriftSchedule) and way != "delta":
            raise RecipeError(
                f"row {row.name}: schedule 'drift' hears from delta steps, and '{row.variant}' runs none.",
                hint="Give that row a schedule of kind 'every'.",
            )
        if row.background and lag is None:
            lag = self._measured_lag(row)
        if isinstance(schedule, AlwaysSchedule):
            return _Demand(row, "own", range(1))
        if not isinstance(schedule, EverySchedule):
            return _Demand(row, way, None, lag)
        first, interval = lag or 0, schedule.interval
        if lag is not None:  # a keyframe that is due while one is running is left out
            interval *= -(-lag // interval)
        if first + interval > len(self.clip):
            raise RecipeError(
                f"row {row.name}: a keyframe every {schedule.interval} frames needs {first + interval} frames, "
                f"source {self.clip.uri} gave {len(self.clip)}.",
                hint="Name a longer source or a smaller interval.",
            )
        return _Demand(row, way, range(first, first + interval), lag)

    def prepare(self, demand: _Demand, demands: Sequence[_Demand]) -> None:
        """Make the passes over all distances that the rows of ``demand``'s source ask for."""
        if demand.distances is None or demand.way == "own" or demand.source in self._passes:
            return
        farthest = max(d.distances.stop for d in demands if d.distances and d.source == demand.source)
        self._passes[demand.source] = self._passed(demand, farthest)

    def score(self, demand: _Demand) -> Score:
        """The score of a row whose passes have been made."""
        if demand.way == "own":
            accuracy = self._judge.every_frame(self._masks_of(demand.row))
            return Score(labels=accuracy.labels, agreement=accuracy.agreement, interval=1.0)
        late = "" if demand.lag is None else f"keyframes come {demand.lag} frames late at {self.fps:g} fps"
        if demand.distances is not None:
            scores, distances = self._passes[demand.source], demand.distances
            return Score(
                labels=scores.labels(distances),
                agreement=scores.agreement(distances),
                interval=float(len(distances)),
                note=late,
            )
        scores, interval = self._followed(demand)
        note = f"a keyframe every {interval:.1f} frames on this clip ({1 / interval:.1%} of them)"
        return Score(
            labels=scores.labels(),
            agreement=scores.agreement(),
            interval=interval,
            note=f"{note}; {late}" if late else note,
        )

    def _passed(self, demand: _Demand, farthest: int) -> StreamScores:
        if demand.way == "delta":
            return self._judge.deltas(farthest, engine=demand.row.engine)
        masks = self._masks_of(demand.row)
        return (self._judge.copied if demand.way == "copy" else self._judge.flowed)(farthest, masks)

    def _followed(self, demand: _Demand) -> tuple[StreamScores, float]:
        """Scores of a schedule that looks at the pictures or is told what the steps find, and its mean interval."""
        schedule, images = demand.row.schedule, self.clip.images

        def starts_of(interval: float) -> list[int]:
            reach = min(round(interval), len(images) // 2)
            return sorted({reach * part // _MOST_STARTS for part in range(_MOST_STARTS)})

        if isinstance(schedule, DriftSchedule):
            return self._judge.told(schedule, starts_of, lag=demand.lag, engine=demand.row.engine)
        interval = mean_interval(replay(schedule, images, lag=demand.lag))
        plans = [replay(schedule, images, start=start, lag=demand.lag) for start in starts_of(interval)]
        if demand.way == "delta":
            return self._judge.replayed(plans, demand.row.engine), interval
        masks = self._masks_of(demand.row)

        def masks_of(planned: Sequence[Planned]):  # type: ignore[no-untyped-def]
            return copied(planned, masks) if demand.way == "copy" else flowed(planned, masks, images)

        return self._judge.replayed_masks(plans, masks_of), interval

    def _masks_of(self, row: Row) -> Sequence[Segmentation]:
        """The keyframe step's answer to every frame, of the row's bundle in its engine."""
        bundle = self.lineup.bundle_of(row)
        if bundle is self.lineup.keyframes and row.engine == self._reference_engine:
            return self._teacher
        place = (str(bundle.path), row.engine)
        if place not in self._masks:
            count = len(self.clip)
            self._masks[place] = per_frame_masks(
                bundle, self.clip, self.threads, lambda done: self.tick(row.name, done, count),
                row.engine, self.backend,
            )  # fmt: skip
        return self._masks[place]

    def _measured_lag(self, row: Row) -> int:
        with EdgeRunner(
            self.lineup.bundle_of(row), backend=self.backend, engine=row.engine, schedule=EverySchedule(interval=2),
            threads=self.threads, background=self.background,
        ) as runner:  # fmt: skip
            return measured_lag(runner, self.clip, self.fps)


def _way(row: Row) -> str:
    if row.variant in ("copy", "flow"):
        return row.variant
    skips = isinstance(row.schedule, EverySchedule) and row.schedule.between == "skip"
    return "copy" if skips else "delta"


def reference(bundle: Bundle, backend: Backend) -> tuple[Backend, str]:
    """How the float32 teacher is run here: a backend, and the name of the engines.

    Raises:
        BundleError: the bundle has no float32 engines for ``backend`` and ONNX Runtime is not installed.
    """
    if backend.name == "onnxruntime":
        return backend, FLOAT32
    built = set_name(backend.name, FLOAT32)
    if built in bundle.manifest.engines:
        return backend, built
    if backend_available("onnxruntime"):
        return backend_named("onnxruntime"), FLOAT32
    raise BundleError(
        f"accuracy: the float32 teacher cannot be run here, bundle {bundle.path} has no engines '{built}'.",
        hint="Add float32 to `precisions` of the build recipe and build again, or install onnxruntime.",
    )


def measured_lag(
    runner: EdgeRunner,
    clip: Clip,
    fps: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Frames by which keyframes beside the frames come late: the median over a few keyframes.

    Args:
        runner: open, with keyframes beside the frames.
        clip: its frames are given in order, again from its beginning where it is short.
        fps: rate at which they are given, frames a second.
    """
    runner.reset()
    begin, found, before = clock(), [], 0
    # A keyframe that needs more than twenty frames is as good as never.
    for index in range(20 * _WATCHED):
        sleep(max(0.0, begin + index / fps - clock()))
        age = runner(clip.frames[index % len(clip)].image).state_age
        if index and age <= before:
            found.append(age)
        before = age
        if len(found) == _WATCHED:
            break
    return sorted(found)[len(found) // 2] if found else 20
