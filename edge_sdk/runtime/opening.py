"""What a runner holds while it is open: engines, lanes and the streams that share them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.bundle import FLOAT32, Bundle
from edge_sdk.errors import BundleError, RecipeError
from edge_sdk.manifest import TRUST
from edge_sdk.runtime.background import BackgroundKeyframes
from edge_sdk.runtime.engine import Backend, EngineOptions
from edge_sdk.runtime.schedule import SCHEDULES, DriftSchedule, ScheduleSettings
from edge_sdk.runtime.steps import StepEngines
from edge_sdk.runtime.stream import Stream

if TYPE_CHECKING:
    from edge_sdk.adapt.adaptation import Adaptation
    from edge_sdk.adapt.journal import Event


def checked_schedule(bundle: Bundle, schedule: ScheduleSettings | None) -> ScheduleSettings:
    """The schedule to follow: ``schedule``, or the bundle's own.

    Raises:
        RecipeError: it is no schedule.
        BundleError: it asks for delta steps and the bundle has none, or for trust and the delta step tells none.
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
    if isinstance(found, DriftSchedule) and bundle.manifest.pair.trust is None:
        raise BundleError(
            f"schedule 'drift': it needs a delta step that tells how much of its keyframe still holds, that of bundle "
            f"{bundle.path} has no output '{TRUST}'.",
            hint="Use schedule 'every' or 'change', or distil a pair with a confidence (kind: cross), then export it.",
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


@dataclass(frozen=True, slots=True)
class Learn:
    """How the student of a stream learns.

    Args:
        settings: of the adaptation.
        on_event: called with every event of its log.
        source_name: where the frames come from, for the log.
    """

    settings: AdaptSettings
    on_event: Callable[[Event], None] | None = None
    source_name: str = ""

    def leave_cores(self, options: EngineOptions) -> EngineOptions:
        """``options`` with threads that leave learning its cores.

        Raises:
            RecipeError: learning would take every core.
        """
        left = available_cores() - self.settings.cores if options.threads is None else options.threads
        if left < 1:
            cores = available_cores()
            raise RecipeError(
                f"adapt: {self.settings.cores} cores for learning leave none of the {cores} for the frames.",
                hint="Give AdaptSettings(cores=...) fewer, or run on a machine with more.",
            )
        return options.model_copy(update={"threads": left})

    def start(self, bundle: Bundle, backend: Backend, options: EngineOptions, engine: str) -> Adaptation:
        """The learner; see :class:`edge_sdk.adapt.adaptation.Adaptation` for arguments and errors."""
        from edge_sdk.adapt.adaptation import Adaptation

        return Adaptation(
            bundle, backend, options, self.settings, self.source_name, engine=engine, on_event=self.on_event
        )


def check_learning(
    bundle: Bundle, backend: str, engine: str, schedule: object, background: BackgroundKeyframes | None,
    settings: AdaptSettings,
) -> None:  # fmt: skip
    """Check that a bundle can learn as it is asked to.

    Raises:
        BundleError: it has no student that can learn, or no delta step; or its plans cannot be built or refitted with
            other weights, see :func:`edge_sdk.build.tensorrt.again.plan_recipes`.
        DependencyError: new plans are wanted, and what builds them is not installed.
        RecipeError: the engines are not the exported graphs, or arguments contradict each other.
    """
    manifest = bundle.manifest
    if manifest.online is None or manifest.steps.delta is None:
        raise BundleError(
            f"adapt: bundle {bundle.path} has no student that can learn on a stream.",
            hint="Export one with an 'online' recipe: see docs/online.md.",
        )
    if schedule is not None:
        raise RecipeError("schedule: with 'adapt' the measured agreement decides, expected none.")
    if backend == "onnxruntime" and engine != FLOAT32:
        raise RecipeError(
            f"engine: a student that learns runs as exported, expected '{FLOAT32}', got '{engine}'.",
            hint="Give engine='float32'.",
        )
    if backend == "tensorrt":
        from edge_sdk.build.tensorrt.again import plan_recipes

        plan_recipes(bundle, engine, refit=settings.swap == "refit")
    if background is not None and (manifest.state or settings.recorded or settings.pace == "in_turn"):
        raise RecipeError(
            "background: with 'adapt' it needs a student without state, the bundle's own teacher and pace 'beside'.",
            hint="Run keyframes in turn, or export with join: replace.",
        )
    if settings.recorded and manifest.state:
        raise RecipeError(
            "adapt: recorded labels write no state, and this bundle's student reads one.",
            hint="Export with join: replace, or let the bundle's teacher run.",
        )


class Opening:
    """Engines loaded once, and a stream a schedule, each with buffers and state of its own.

    Args:
        bundle: what is run.
        backend: what runs it.
        options: how engines are loaded.
        engine: which engines.
        schedules: one a stream.
        background: keyframes beside the frames; each stream then has a lane of its own.
        learn: the one stream's student learns; its schedule is then that of the learner.

    Attributes:
        load_ms: time for the engines, in milliseconds.
        learning: the learner; None where nothing is learned.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        options: EngineOptions,
        engine: str,
        schedules: Sequence[ScheduleSettings],
        background: BackgroundKeyframes | None,
        learn: Learn | None = None,
    ) -> None:
        own_cores = not backend.owns_thread
        if learn is not None and own_cores:
            options = learn.leave_cores(options)
        foreground, beside = _shares(options, background, own_cores=own_cores)
        self.learning: Adaptation | None = None
        began_s = time.perf_counter()
        with ExitStack() as opened:
            engines = StepEngines.load(
                bundle, backend, foreground, engine=engine, background=beside,
                with_delta=any(schedule.uses_delta for schedule in schedules),
            )  # fmt: skip
            opened.callback(engines.close)
            self.load_ms = (time.perf_counter() - began_s) * 1e3
            if learn is not None:
                self.learning = learn.start(bundle, backend, foreground, engine)
                opened.callback(self.learning.close)
            self.streams: list[Stream] = []
            for schedule in schedules:
                lane = None
                if background is not None:
                    lane = backend.open_lane()
                    opened.callback(lane.close)
                learning = self.learning
                following = schedule.start() if learning is None else learning.schedule
                stream = Stream(bundle, engines, following, lane, learning)
                opened.callback(stream.close)
                self.streams.append(stream)
                if learning is not None:
                    learning.attach(stream)
            # In reverse: what runs beside the frames ends before its lane, and lanes before the engines.
            self._closing = opened.pop_all()

    def close(self) -> None:
        """Release everything, in fixed order; closing twice does nothing. The first error is raised at the end."""
        self._closing.close()


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _shares(
    options: EngineOptions, background: BackgroundKeyframes | None, *, own_cores: bool
) -> tuple[EngineOptions, EngineOptions | None]:
    """How the steps are loaded, and how the keyframe step beside them: on a CPU each has its share of the cores.

    Raises:
        RecipeError: the keyframes would take every core.
    """
    if background is None or not own_cores:
        return options, None
    cores = available_cores()
    left = cores - background.threads if options.threads is None else options.threads
    if left < 1:
        raise RecipeError(
            f"background: {background.threads} threads leave none of the {cores} cores for the frames.",
            hint="Give BackgroundKeyframes(threads=...) fewer, or run keyframes in turn.",
        )
    return options.model_copy(update={"threads": left}), options.model_copy(
        update={"threads": background.threads}
    )
