"""EdgeRunner: frames in, typed results out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.bundle import Bundle
from edge_sdk.errors import BundleError, ClosedError, RecipeError
from edge_sdk.runtime.background import BackgroundKeyframes
from edge_sdk.runtime.engine import Backend, EngineOptions, backend_named
from edge_sdk.runtime.opening import Learn, Opening, StartTimes, check_learning, checked_schedule
from edge_sdk.runtime.recipe import RunRecipe
from edge_sdk.runtime.result import BareTime, Result, StepKind
from edge_sdk.runtime.schedule import EverySchedule, ScheduleSettings
from edge_sdk.runtime.stream import Stream
from edge_sdk.runtime.worker import Worker, WorkerCounts
from edge_sdk.settings import parse_settings
from edge_sdk.signing import Trust
from edge_sdk.update.device import open_to_run
from edge_sdk.video.frame import Frame

if TYPE_CHECKING:
    from edge_sdk.adapt.adaptation import Adaptation
    from edge_sdk.adapt.journal import Event
    from edge_sdk.runtime.cuda.device import CudaReport

T = TypeVar("T")


class EdgeRunner:
    """Runs a bundle over one stream of frames::

        with EdgeRunner("runs/demo/bundle") as runner:
            for frame, result in runner.stream(open_source("camera:0")):
                image = result.plot(frame.image)

    Entering the ``with`` block loads the engines, allocates every buffer and runs each step twice to warm it up;
    leaving it releases them. Calls may come from one thread at a time; with ``threaded`` everything runs on a thread
    that the runner owns, and every method may be called from any thread. Runners share nothing with each other.

    Args:
        bundle: an opened bundle, the folder of one, or a device folder, whose current slot is then run (see
            :mod:`edge_sdk.update`).
        backend: name of the runtime, or a backend object.
        engine: which engines: ``"float32"`` for the exported graphs, or the name of an engine set that
            ``edge-sdk build`` made, such as ``"onnxruntime-int8"``; None for the one that the bundle names as chosen
            for this backend, or the exported graphs where it names none.
        schedule: decides which frames are keyframes; None for the schedule in the bundle. Where it asks for no
            delta steps, the delta graph is not loaded.
        threads: CPU threads of one step, at least 1; None for the backend's own choice.
        background: run keyframes beside the frames: deltas go on with the older state until a keyframe is done, so no
            frame waits for the teacher. ``Result.state_age`` says how old the state is. Keyframes that cannot wait
            (the first frame, after a gap) are run in turn. None runs all in turn.
        threaded: run on a thread of the runner's own; None where the backend needs one.
        on_result: with ``threaded``, called on that thread with each answer to a submitted frame.
        trust: accept only bundles that this policy accepts; None asks for no signature.
        adapt: let the student learn from the teacher's keyframes while it runs, in a process beside this one; it
            decides about keyframes too. None learns nothing.
        on_adapt: called with every event of the learner's log, from a thread of the learner's; it must be quick.

    Raises:
        SignatureError: ``trust`` does not accept the bundle.
        MissingFileError, FileFormatError, BundleError: the bundle is not whole, see :meth:`Bundle.open`, it has no
            delta step and the schedule or ``background`` needs one, or it has no such engines.
        RecipeError: the backend is unknown, or an argument is of the wrong type or out of range.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        *,
        backend: str | Backend = "onnxruntime",
        engine: str | None = None,
        schedule: ScheduleSettings | None = None,
        threads: int | None = None,
        background: BackgroundKeyframes | None = None,
        threaded: bool | None = None,
        on_result: Callable[[Result], None] | None = None,
        trust: Trust | None = None,
        adapt: AdaptSettings | None = None,
        on_adapt: Callable[[Event], None] | None = None,
    ) -> None:
        self._options = parse_settings({"threads": threads}, EngineOptions, "EdgeRunner")
        self._backend = backend_named(backend) if isinstance(backend, str) else backend
        began_s = time.perf_counter()
        self.bundle = open_to_run(bundle, trust)
        self._check_ms = 0.0 if self.bundle is bundle else (time.perf_counter() - began_s) * 1e3
        self.engine = self.bundle.engine_for(self._backend.name, engine)
        if adapt is not None:
            check_learning(self.bundle, self._backend.name, self.engine, schedule, background, adapt)
            # Deltas are used whatever the bundle's own schedule says; the learner decides when.
            schedule = EverySchedule(interval=adapt.stride.minimum + 1)
        elif on_adapt is not None:
            raise RecipeError("on_adapt: nothing is learned, give adapt=AdaptSettings() too.")
        self.schedule = checked_schedule(self.bundle, schedule)
        self._adapt, self._on_adapt = adapt, on_adapt
        self.background = background
        if background is not None and not self.schedule.uses_delta:
            raise BundleError(
                f"background keyframes: schedule '{self.schedule.kind}' asks for no delta steps to go on with.",
                hint="Give a schedule that uses deltas, such as EverySchedule(interval=10).",
            )
        self._threaded = self._backend.owns_thread if threaded is None else threaded
        if on_result is not None and not self._threaded:
            raise RecipeError(
                "on_result: it is called with answers to submitted frames, give threaded=True too."
            )
        self._on_result = on_result
        self._worker: Worker | None = None
        self._opening: Opening | None = None

    @classmethod
    def from_recipe(
        cls,
        recipe: str | Path | RunRecipe,
        *,
        threaded: bool | None = None,
        on_result: Callable[[Result], None] | None = None,
    ) -> EdgeRunner:
        """A runner with the settings of a run recipe, such as ``edge-sdk tune`` writes; its source is the caller's.

        Args:
            recipe: a YAML file, or its content.
            threaded, on_result: as of the class.

        Raises:
            MissingFileError, FileFormatError, RecipeError: the recipe cannot be read, see :meth:`RunRecipe.load`.
            EdgeSdkError: as of the class.
        """
        found = recipe if isinstance(recipe, RunRecipe) else RunRecipe.load(recipe)
        return cls(found.bundle, threaded=threaded, on_result=on_result, **found.options())

    def open(self) -> EdgeRunner:
        """Load, allocate and warm up, where a ``with`` block does not fit; opening an open runner does nothing.

        Raises:
            DependencyError: the backend's package is not installed.
            EngineError: the backend refuses a graph.
            BundleError: a graph has other inputs or outputs than the manifest says.
        """
        if self._opening is None:
            adapt = self._adapt
            if self._threaded:
                told = self._on_result
                self._worker = Worker(
                    lambda _, frame: self._opened()(frame),
                    on_result=None if told is None else lambda _, result: told(result),
                )
            try:
                self._opening = self._on_thread(
                    lambda: Opening(
                        self.bundle,
                        self._backend,
                        self._options,
                        self.engine,
                        [self.schedule],
                        self.background,
                        None if adapt is None else Learn(adapt, self._on_adapt),
                    )
                )
            except BaseException:
                self._end_worker()
                raise
        return self

    def close(self) -> None:
        """Release engines and buffers; closing twice does nothing. Results already returned stay readable."""
        opening, self._opening = self._opening, None
        try:
            if opening is not None:
                self._on_thread(opening.close)
        finally:
            self._end_worker()

    def __enter__(self) -> EdgeRunner:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, frame: Frame | np.ndarray) -> Result:
        """Answer one frame.

        A keyframe is forced where the state cannot be used: at the first frame, where ``seq`` does not follow the
        last one's and the schedule does not bear the loss, after a failed step, and where :meth:`request_keyframe`
        asked for one.

        Args:
            frame: a :class:`Frame`, or its image alone, (H, W, 3) uint8 BGR of the bundle's size; ``seq`` then counts
                on from the last frame. The image is copied; it need not be contiguous.

        Returns:
            The result. Its arrays are valid until the next call; ``result.copy()`` keeps it.

        Raises:
            ClosedError: the runner is not open.
            ShapeError: the frame has another size or dtype than the bundle takes.
            FrameOrderError: ``seq`` is that of the last frame.
            EngineError: the runtime failed; the next frame will be a keyframe.
        """
        stream = self._opened()
        return self._on_thread(lambda: stream(frame)) if self._threaded else stream(frame)

    def submit(self, frame: Frame | np.ndarray) -> None:
        """Leave a frame to be answered on the runner's thread and return at once; any thread may do so.

        Of frames that wait only the newest is answered: see ``counts``. The frame must not be written to any more.

        Raises:
            ClosedError: the runner is not open.
            RecipeError: the runner has no thread of its own.
        """
        self._opened()
        self._own_worker().submit(frame)

    def latest(self, after: int | None = None, timeout_s: float | None = None) -> Result | None:
        """The newest answer to a submitted frame; any thread may ask.

        Args:
            after: wait for an answer to another frame than this ``seq``, such as -1 for any; None takes what is there.
            timeout_s: how long to wait at most; None waits until there is one.

        Returns:
            The result, the caller's own; None where there is none.

        Raises:
            EngineError: the newest frame's step failed; raised once, the next frame will be a keyframe.
            ClosedError: the runner is not open, or was closed while waiting.
            RecipeError: the runner has no thread of its own.
        """
        self._opened()
        return self._own_worker().latest(after, timeout_s)

    @property
    def counts(self) -> WorkerCounts:
        """What became of submitted frames; any thread may ask.

        Raises:
            ClosedError: the runner is not open.
            RecipeError: the runner has no thread of its own.
        """
        self._opened()
        return self._own_worker().counts()

    def stream(self, source: Iterable[Frame]) -> Iterator[tuple[Frame, Result]]:
        """Answer every frame of ``source``, as one new stream: the runner is reset first.

        The source stays the caller's to close. Each result is valid until the next one is asked for.
        """
        self.reset()
        for frame in source:
            yield frame, self(frame)

    def request_keyframe(self) -> None:
        """Make the next frame a keyframe; may be called from any thread.

        Raises:
            ClosedError: the runner is not open.
        """
        self._opened().request_keyframe()

    def reset(self) -> None:
        """Be as a freshly opened runner: no state, no frame seen, the schedule at its start.

        Raises:
            ClosedError: the runner is not open.
        """
        self._on_thread(self._opened().reset)

    def time_bare(self, kinds: Sequence[StepKind]) -> list[BareTime]:
        """Run the bound steps alone, one after another on the runner's own buffers: what a bare engine would take.

        For measurements, beside calls with frames: nothing is copied in or decoded. Each run reads the frame that was
        given last; outputs and state are what such runs leave, so results from here to the next :meth:`reset` are good
        for their times only. The schedule takes no notice: frames go on where they were, without a forced keyframe,
        and after a reset or a failure one is still forced. A keyframe that runs in the background is waited for first.

        Args:
            kinds: which step each run is of. Deltas need a state: that of a frame, or of a keyframe among ``kinds``.

        Returns:
            The time of each run.

        Raises:
            ClosedError: the runner is not open.
            RecipeError: of ``kinds`` one is no step, as SKIP, or a delta without delta step or without state; nothing
                was run.
            EngineError: the runtime failed; the next frame will be a keyframe.
        """
        stream = self._opened()
        return self._on_thread(lambda: stream.time_bare(kinds))

    @property
    def start_times(self) -> StartTimes:
        """What it took to open the runner.

        Raises:
            ClosedError: the runner is not open.
        """
        opening = self._opening
        if opening is None:
            raise _closed()
        stream = opening.streams[0]
        return StartTimes(self._check_ms, opening.load_ms, stream.bind_ms, stream.first_ms, stream.second_ms)

    @property
    def device_report(self) -> CudaReport | None:
        """What the backend chose on this machine, such as the kind of memory; None on a CPU or before it is opened."""
        return self._backend.report

    @property
    def adaptation(self) -> Adaptation:
        """The learner: its status, and what it has learned as a bundle.

        Raises:
            ClosedError: the runner is not open.
            RecipeError: nothing is learned.
        """
        self._opened()
        learning = None if self._opening is None else self._opening.learning
        if learning is None:
            raise RecipeError(
                "adaptation: nothing is learned.",
                hint="Make the runner with EdgeRunner(..., adapt=AdaptSettings()).",
            )
        return learning

    @property
    def state_bytes(self) -> int:
        """Bytes allocated for the state; what a delta step rewrites counts twice, and with background keyframes all.

        Raises:
            ClosedError: the runner is not open.
        """
        return self._opened().state_bytes

    @property
    def keyframe_failures(self) -> int:
        """Background keyframes that failed; each is logged, and the deltas went on with the older state.

        Raises:
            ClosedError: the runner is not open.
        """
        return self._opened().keyframe_failures

    def _opened(self) -> Stream:
        if self._opening is None:
            raise _closed()
        return self._opening.streams[0]

    def _own_worker(self) -> Worker:
        if self._worker is None:
            raise RecipeError(
                "runner: it has no thread of its own to submit frames to.",
                hint="Make it with EdgeRunner(..., threaded=True).",
            )
        return self._worker

    def _on_thread(self, work: Callable[[], T]) -> T:
        return work() if self._worker is None else self._worker.ask(work)

    def _end_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()


def _closed() -> ClosedError:
    return ClosedError(
        "runner: it is not open.", hint="Use it inside `with EdgeRunner(...) as runner:`, or call open()."
    )
