"""What a runner holds while it is open: engines, lanes and the streams that share them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from edge_sdk.bundle import Bundle
from edge_sdk.errors import BundleError, RecipeError
from edge_sdk.runtime.background import BackgroundKeyframes
from edge_sdk.runtime.engine import Backend, EngineOptions
from edge_sdk.runtime.schedule import SCHEDULES, ScheduleSettings
from edge_sdk.runtime.steps import StepEngines
from edge_sdk.runtime.stream import Stream


def checked_schedule(bundle: Bundle, schedule: ScheduleSettings | None) -> ScheduleSettings:
    """The schedule to follow: ``schedule``, or the bundle's own.

    Raises:
        RecipeError: it is no schedule.
        BundleError: it asks for delta steps and the bundle has none.
    """
    found = bundle.manifest.schedule if schedule is None else schedule
    if not isinstance(found, SCHEDULES):
        names = ", ".join(kind.__name__ for kind in SCHEDULES)
        raise RecipeError(f"schedule: expected one of {names}, got {found!r}.")
    if found.uses_delta and bundle.manifest.steps.delta is None:
        raise BundleError(
            f"schedule '{found.kind}': it asks for delta steps, bundle {bundle.path} has a keyframe step only.",
            hint="Use AlwaysSchedule(), or EverySchedule with between='skip'.",
        )
    return found


@dataclass(frozen=True, slots=True)
class StartTimes:
    """What it took to open a runner, in milliseconds.

    Args:
        check_ms: the bundle's manifest, files and checksums; 0 where an opened bundle was given.
        load_ms: engines loaded.
        bind_ms: buffers allocated, and steps bound to them.
        first_ms: first run of each step, cold: by ``"keyframe"``, ``"delta"`` where it is loaded, and
            ``"background keyframe"`` where keyframes run beside the frames.
        second_ms: second run of each.
    """

    check_ms: float
    load_ms: float
    bind_ms: float
    first_ms: Mapping[str, float]
    second_ms: Mapping[str, float]


class Opening:
    """Engines loaded once, and a stream a schedule, each with buffers and state of its own.

    Args:
        bundle: what is run.
        backend: what runs it.
        options: how engines are loaded.
        engine: which engines.
        schedules: one a stream.
        background: keyframes beside the frames; each stream then has a lane of its own.

    Attributes:
        load_ms: time for the engines, in milliseconds.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        options: EngineOptions,
        engine: str,
        schedules: Sequence[ScheduleSettings],
        background: BackgroundKeyframes | None,
    ) -> None:
        foreground, beside = _shares(options, background, own_cores=not backend.owns_thread)
        began_s = time.perf_counter()
        with ExitStack() as opened:
            engines = StepEngines.load(
                bundle, backend, foreground, engine=engine, background=beside,
                with_delta=any(schedule.uses_delta for schedule in schedules),
            )  # fmt: skip
            opened.callback(engines.close)
            self.load_ms = (time.perf_counter() - began_s) * 1e3
            self.streams: list[Stream] = []
            for schedule in schedules:
                lane = None
                if background is not None:
                    lane = backend.open_lane()
                    opened.callback(lane.close)
                stream = Stream(bundle, engines, schedule.start(), lane)
                opened.callback(stream.close)
                self.streams.append(stream)
            # In reverse: what runs beside the frames ends before its lane, and lanes before the engines.
            self._closing = opened.pop_all()

    def close(self) -> None:
        """Release everything, in fixed order; closing twice does nothing. The first error is raised at the end."""
        self._closing.close()


def _shares(
    options: EngineOptions, background: BackgroundKeyframes | None, *, own_cores: bool
) -> tuple[EngineOptions, EngineOptions | None]:
    """How the steps are loaded, and how the keyframe step beside them: on a CPU each has its share of the cores.

    Raises:
        RecipeError: the keyframes would take every core.
    """
    if background is None or not own_cores:
        return options, None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    left = cores - background.threads if options.threads is None else options.threads
    if left < 1:
        raise RecipeError(
            f"background: {background.threads} threads leave none of the {cores} cores for the frames.",
            hint="Give BackgroundKeyframes(threads=...) fewer, or run keyframes in turn.",
        )
    return options.model_copy(update={"threads": left}), options.model_copy(
        update={"threads": background.threads}
    )
