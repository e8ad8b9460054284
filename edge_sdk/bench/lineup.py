"""Who is measured: the bundles of a bench run, its rows, and how each row's runner is opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.bench.document import EVERY_FRAME, SUBJECT, Row, Variant
from edge_sdk.bench.recipe import BenchRecipe
from edge_sdk.bundle import Bundle
from edge_sdk.evaluate.baselines import FlowRunner
from edge_sdk.evaluate.facts import BundleFacts
from edge_sdk.evaluate.lineup import open_per_frame
from edge_sdk.evaluate.measure import Contender, flow_contender, runner_contender
from edge_sdk.manifest import FLOAT32
from edge_sdk.runtime.background import BackgroundKeyframes
from edge_sdk.runtime.engine import Backend
from edge_sdk.runtime.opening import checked_schedule
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import AlwaysSchedule, EverySchedule, SampleSchedule, ScheduleSettings
from edge_sdk.update.device import open_to_run
from edge_sdk.video.frame import Frame

# Where a schedule has no interval of its own to give the baselines.
_INTERVAL = 10


@dataclass(frozen=True)
class Lineup:
    """The bundles of a run.

    Args:
        subject: what the run is about.
        teacher: per-frame bundle of the same teacher, or None; of a classifier of clips one that sees its own frames.
        rival: another per-frame bundle, or None; as the teacher.
    """

    subject: Bundle
    teacher: Bundle | None
    rival: Bundle | None

    @classmethod
    def open(cls, recipe: BenchRecipe) -> Lineup:
        """Open and check the bundles of a recipe.

        Raises:
            MissingFileError, FileFormatError, BundleError: a bundle is not whole, is of the wrong kind for its part, or
                takes other frames or has other classes than the subject.
        """
        subject = open_to_run(recipe.bundle)
        return cls(
            subject,
            open_per_frame(recipe.teacher, "teacher", subject),
            open_per_frame(recipe.rival, "rival", subject),
        )

    @property
    def keyframes(self) -> Bundle:
        """The bundle whose keyframe step is the teacher: the plain one where there is one."""
        return self.subject if self.teacher is None else self.teacher

    def bundle_of(self, row: Row) -> Bundle:
        """What a row runs."""
        if row.variant == "pair":
            return self.subject
        return self.rival if row.variant == "rival" and self.rival is not None else self.keyframes

    def facts(self) -> tuple[BundleFacts, ...]:
        """Identity of each bundle, the subject first."""
        roles = (("subject", self.subject), ("teacher", self.teacher), ("rival", self.rival))
        return tuple(BundleFacts.of(role, bundle) for role, bundle in roles if bundle is not None)


def default_rows(recipe: BenchRecipe, lineup: Lineup, backend: str) -> tuple[Row, ...]:
    """The subject, its baselines, and the engines and intervals that the recipe names.

    Raises:
        BundleError: the bundle has no such engines, or no delta step for the schedule.
    """
    engine = lineup.subject.engine_for(backend, recipe.engine)
    schedule = checked_schedule(lineup.subject, recipe.schedule)
    clips = lineup.subject.manifest.task.kind == "classification"
    rows = [
        Row(
            name=SUBJECT,
            variant="pair",
            engine=engine,
            schedule=schedule,
            background=recipe.background is not None,
            note="how often it is right is told by edge-sdk evaluate" if clips else "",
        )
    ]
    if recipe.baselines:
        find = _clip_baselines if clips else _baselines
        rows += find(lineup, schedule, backend, engine)
    for name in recipe.engines or ((engine,) if recipe.intervals else ()):
        lineup.subject.engine_for(backend, name)
        kept = interval_of(schedule)
        for interval in recipe.intervals or (kept,):
            every = EverySchedule(interval=interval)
            checked_schedule(lineup.subject, every)
            if (name, every) != (engine, schedule):
                rows.append(Row(name=f"K={interval} {name}", variant="pair", engine=name, schedule=every))
    return tuple(rows)


def _baselines(lineup: Lineup, schedule: ScheduleSettings, backend: str, engine: str) -> list[Row]:
    keyframes = lineup.keyframes
    own = "" if lineup.teacher is not None else "the bundle's keyframe step, which also writes the state"
    teacher, note = _engine_of(keyframes, backend, engine)
    interval = interval_of(schedule)
    if interval == 1 and lineup.teacher is None:
        return []  # the subject is what they would run
    rows = [
        Row(
            name="teacher", variant="teacher", engine=teacher, schedule=AlwaysSchedule(),
            note="; ".join(filter(None, (own, note))),
        )
    ]  # fmt: skip
    if interval > 1:
        skip = EverySchedule(interval=interval, between="skip")
        rows += [
            Row(name="copy", variant="copy", engine=teacher, schedule=skip),
            Row(name="flow", variant="flow", engine=teacher, schedule=skip),
        ]
    if lineup.rival is not None:
        found, note = _engine_of(lineup.rival, backend, engine)
        rows.append(Row(name="rival", variant="rival", engine=found, schedule=AlwaysSchedule(), note=note))
    return rows


def _clip_baselines(lineup: Lineup, schedule: ScheduleSettings, backend: str, engine: str) -> list[Row]:
    """Other classifiers of the same clips under their own schedules, and the subject with every frame seen.

    Nothing is copied or warped: the frames between repeat the answer already.
    """
    rows = []
    others: tuple[tuple[Variant, Bundle | None], ...] = (("teacher", lineup.teacher), ("rival", lineup.rival))
    for variant, bundle in others:
        if bundle is not None:
            found, note = _engine_of(bundle, backend, engine)
            own = checked_schedule(bundle, None)
            rows.append(Row(name=variant, variant=variant, engine=found, schedule=own, note=note))
    if isinstance(schedule, SampleSchedule) and schedule.samples < schedule.length:
        every = schedule.model_copy(update={"samples": schedule.length})
        if every.uses_delta and lineup.subject.manifest.steps.delta is not None:
            rows.append(Row(name=EVERY_FRAME, variant="pair", engine=engine, schedule=every))
    return rows


def _engine_of(bundle: Bundle, backend: str, engine: str) -> tuple[str, str]:
    """The engines to compare with: the subject's where the bundle has them too, else its chosen ones and a note."""
    if engine == FLOAT32 or engine in bundle.manifest.engines:
        return engine, ""
    found = bundle.engine_for(backend, None)
    return found, f"runs as {found}: it has no {engine}"


def interval_of(schedule: ScheduleSettings) -> int:
    """Frames from keyframe to keyframe, for whoever needs a number where the schedule has none."""
    if isinstance(schedule, EverySchedule):
        return schedule.interval
    if isinstance(schedule, AlwaysSchedule):
        return 1
    if isinstance(schedule, SampleSchedule):
        return schedule.length
    return schedule.max_interval or _INTERVAL


@dataclass(frozen=True)
class Entrant:
    """An open row: what answers, and the runner behind it."""

    contender: Contender
    runner: EdgeRunner


@contextmanager
def opened(row: Row, lineup: Lineup, recipe: BenchRecipe, backend: Backend, warm: Frame) -> Iterator[Entrant]:
    """A row's runner, open; engines are loaded anew.

    Args:
        row: which.
        lineup: where its bundle is.
        recipe: threads and background keyframes.
        backend: what runs it.
        warm: a frame for what warms up outside the runner.
    """
    background = None
    if row.background:
        background = recipe.background or BackgroundKeyframes()
    flow = row.variant == "flow"
    bundle: Bundle | Path = lineup.bundle_of(row)
    runner = EdgeRunner(
        # The subject is opened from its folder, so that the check of its files is part of its start.
        recipe.bundle if row.name == SUBJECT else bundle,
        backend=backend,
        engine=row.engine,
        schedule=AlwaysSchedule() if flow else row.schedule,
        threads=recipe.threads,
        background=background,
    )
    with runner:
        if flow:
            baseline = FlowRunner(runner, interval_of(row.schedule))
            baseline.warm_up(warm)
            yield Entrant(flow_contender(baseline), runner)
        else:
            yield Entrant(runner_contender(runner), runner)
