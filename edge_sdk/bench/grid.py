"""The rows that ``edge-sdk tune`` measures: precision x keyframe interval x schedule, and what they compete with."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from edge_sdk.bench.document import SUBJECT, Row
from edge_sdk.bench.drifts import drift_schedule
from edge_sdk.bundle import Bundle, set_name
from edge_sdk.errors import RecipeError
from edge_sdk.evaluate.replay import mean_interval, replay
from edge_sdk.manifest import FLOAT32, state_output
from edge_sdk.runtime.background import BackgroundKeyframes
from edge_sdk.runtime.engine import Backend
from edge_sdk.runtime.opening import checked_schedule
from edge_sdk.runtime.schedule import AlwaysSchedule, ChangeSchedule, DriftSchedule, EverySchedule

if TYPE_CHECKING:
    from edge_sdk.bench.lineup import Lineup

ScheduleName = Literal["every", "change", "drift", "background"]
# A schedule on change or drift refreshes the state after so many times its mean interval, however quiet the scene.
_LONGEST = 4
# Halvings of the range of thresholds; finer than the grey levels of a frame can tell.
_HALVINGS = 16
# A mean interval this many times too long or too short is another interval.
_NEAR = 1.5


# Schedules by the mean interval that they make on the clip.
ByInterval = Mapping[int, ChangeSchedule | DriftSchedule]


def engines_for(bundle: Bundle, backend: str, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The engines to measure, float32 first.

    Args:
        bundle: where they are.
        backend: whose.
        wanted: names; None for one of each precision: every engine set of the backend, and the exported graphs where no
            float32 engines were built for ONNX Runtime, which can run those.

    Raises:
        BundleError: the bundle has no such engines, or they are another backend's.
        RecipeError: the bundle has none for this backend.
    """
    if wanted is not None:
        return tuple(bundle.engine_for(backend, name) for name in wanted)
    found = [name for name, built in bundle.manifest.engines.items() if built.backend == backend]
    if backend == "onnxruntime" and set_name(backend, FLOAT32) not in found:
        found.insert(0, FLOAT32)
    if not found:
        raise RecipeError(
            f"bundle {bundle.path}: it has no engines for {backend}.",
            hint="Build them on this machine with: edge-sdk build RECIPE",
        )
    return tuple(sorted(found, key=lambda name: not name.endswith(FLOAT32)))


def grid(
    lineup: Lineup,
    backend: Backend,
    engines: Sequence[str],
    intervals: Sequence[int],
    schedules: Sequence[ScheduleName],
    images: Sequence[np.ndarray],
    background: BackgroundKeyframes,
    threads: int | None = None,
) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The rows, the bundle as it stands first, and notes on what was left out.

    Args:
        lineup: the bundles.
        backend: runs them.
        engines: names of engines of the subject.
        intervals: mean frames from keyframe to keyframe.
        schedules: ``every`` K frames; on ``change`` and on ``drift``, with the threshold at which this clip has a
            keyframe about every K frames; and every K frames in the ``background``.
        images: (H, W, 3) uint8 BGR frames of the clip, in order.
        background: how keyframes run beside the frames.
        threads: CPU threads of the other steps; None for all that are left.
    """
    subject = lineup.subject
    rows = [
        Row(
            name=SUBJECT,
            variant="pair",
            engine=subject.engine_for(backend.name, None),
            schedule=checked_schedule(subject, None),
            note="the bundle as it runs unless told otherwise",
        )
    ]
    rows += _per_frame(lineup, backend.name, engines)
    rows += _baselines(lineup, backend.name, engines, intervals)
    notes: list[str] = []
    if subject.manifest.steps.delta is None:
        notes.append("the bundle has no delta step, so only its precision is tuned")
        return _each_once(rows), tuple(notes)
    found = _found_on_clip(subject, backend, engines, intervals, schedules, images, threads, notes)
    refusal = _refusal(subject, engines, backend, background, threads) if "background" in schedules else ""
    if refusal:
        notes.append(f"no keyframes in the background: {refusal}")
    possible = [name for name in schedules if name != "background" or not refusal]
    rows += _pairs(engines, intervals, possible, found)
    return _each_once(rows), tuple(notes)


def _found_on_clip(
    subject: Bundle, backend: Backend, engines: Sequence[str], intervals: Sequence[int],
    schedules: Sequence[ScheduleName], images: Sequence[np.ndarray], threads: int | None, notes: list[str],
) -> dict[str, ByInterval]:  # fmt: skip
    """By kind, the schedules whose threshold is found on the clip; notes on what was left out."""
    found: dict[str, ByInterval] = {}
    if "change" in schedules:
        found["change"] = _near(intervals, lambda mean: change_schedule(images, mean), "change", notes)
    if "drift" not in schedules:
        return found
    if subject.manifest.pair.trust is None:
        notes.append("no keyframes on drift: the delta step does not tell how much of its keyframe holds")
        return found

    def on_drift(mean: int) -> tuple[DriftSchedule, float]:
        longest = _LONGEST * mean
        return drift_schedule(
            subject, images, mean, longest, backend=backend, engine=engines[0], threads=threads
        )

    return {**found, "drift": _near(intervals, on_drift, "drift", notes)}


def _pairs(
    engines: Sequence[str],
    intervals: Sequence[int],
    schedules: Sequence[ScheduleName],
    found: Mapping[str, ByInterval],
) -> list[Row]:
    """The subject in every precision at every interval, by each schedule; those ``found`` on the clip, by kind."""
    rows = []
    for engine in engines:
        for interval in intervals:
            every = EverySchedule(interval=interval)
            if "every" in schedules:
                rows.append(_pair(f"K={interval} {engine}", engine, every))
            for kind, schedule_at in found.items():
                if interval in schedule_at:
                    rows.append(_pair(f"{kind} K~{interval} {engine}", engine, schedule_at[interval]))
            if "background" in schedules:
                rows.append(_pair(f"background K={interval} {engine}", engine, every, background=True))
    return rows


def _pair(
    name: str,
    engine: str,
    schedule: EverySchedule | ChangeSchedule | DriftSchedule | AlwaysSchedule,
    *,
    background: bool = False,
) -> Row:
    return Row(name=name, variant="pair", engine=engine, schedule=schedule, background=background)


def _per_frame(lineup: Lineup, backend: str, engines: Sequence[str]) -> list[Row]:
    """One network on every frame: the teacher in each precision, and the rival in each that it has."""
    rows = []
    own = "" if lineup.teacher is not None else "the bundle's keyframe step, which also writes the state"
    for engine in engines:
        name = "teacher" if engine == engines[0] else f"teacher {engine}"
        if _has(lineup.keyframes, engine):
            rows.append(Row(name=name, variant="teacher", engine=engine, schedule=AlwaysSchedule(), note=own))
        else:
            rows.append(_pair(f"keyframes {engine}", engine, AlwaysSchedule()))
    rival = lineup.rival
    if rival is not None:
        found = [engine for engine in engines if _has(rival, engine)] or [rival.engine_for(backend, None)]
        for engine in found:
            name = "rival" if engine == found[0] else f"rival {engine}"
            rows.append(Row(name=name, variant="rival", engine=engine, schedule=AlwaysSchedule()))
    return rows


def _baselines(lineup: Lineup, backend: str, engines: Sequence[str], intervals: Sequence[int]) -> list[Row]:
    """Copying in every precision that the teacher has; flow in one, because the runner cannot run it."""
    there = [engine for engine in engines if _has(lineup.keyframes, engine)]
    there = there or [lineup.keyframes.engine_for(backend, None)]
    rows = []
    for interval in intervals:
        skip = EverySchedule(interval=interval, between="skip")
        for engine in there:
            name = f"copy K={interval}" + ("" if engine == there[0] else f" {engine}")
            rows.append(Row(name=name, variant="copy", engine=engine, schedule=skip))
        rows.append(Row(name=f"flow K={interval}", variant="flow", engine=there[0], schedule=skip))
    return rows


def _has(bundle: Bundle, engine: str) -> bool:
    return engine == FLOAT32 or engine in bundle.manifest.engines


def _each_once(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows without those that run what one before them runs."""
    seen: dict[tuple[object, ...], Row] = {}
    for row in rows:
        seen.setdefault((row.variant, row.engine, row.schedule, row.background), row)
    return tuple(seen.values())


def _near(
    intervals: Sequence[int],
    search: Callable[[int], tuple[ChangeSchedule | DriftSchedule, float]],
    kind: str,
    notes: list[str],
) -> ByInterval:
    """What ``search`` finds for each interval, where its mean on the clip is near it; notes on the others."""
    found = {}
    for interval in intervals:
        schedule, mean = search(interval)
        if max(mean / interval, interval / mean) <= _NEAR:
            found[interval] = schedule
        else:
            limit = schedule.threshold if isinstance(schedule, ChangeSchedule) else schedule.below
            notes.append(
                f"no keyframes on {kind} about every {interval} frames: this clip does not change so "
                f"(the nearest threshold, {limit:.3g}, gives one every {mean:.1f} frames)"
            )
    return found


def change_schedule(images: Sequence[np.ndarray], interval: int) -> tuple[ChangeSchedule, float]:
    """The change schedule that gives a keyframe about every ``interval`` frames on a clip, and its mean interval.

    The threshold is found by halving the range of grey levels while the schedule decides over the clip; how often a
    picture changes is a property of the scene, so a threshold holds for scenes like this one.
    """

    def tried(threshold: float) -> tuple[ChangeSchedule, float]:
        schedule = ChangeSchedule(threshold=round(threshold, 4), max_interval=_LONGEST * interval)
        return schedule, mean_interval(replay(schedule, images))

    low, high = 0.0, 255.0
    results = []
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        results.append(tried(middle))
        low, high = (middle, high) if results[-1][1] < interval else (low, middle)
    return min(results, key=lambda result: abs(result[1] - interval))


def _refusal(
    subject: Bundle,
    engines: Sequence[str],
    backend: Backend,
    background: BackgroundKeyframes,
    threads: int | None,
) -> str:
    """Why keyframes cannot run beside the frames; empty where they can."""
    for engine in engines:
        pair = subject.pair(engine)
        outputs = set() if pair.steps.delta is None else {spec.name for spec in pair.steps.delta.outputs}
        if any(state_output(spec.name) in outputs for spec in pair.state):
            return "the delta step rewrites the state"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not backend.owns_thread and threads is None and cores <= background.threads:
        return f"{background.threads} of {cores} cores for them would leave none for the frames"
    return ""
