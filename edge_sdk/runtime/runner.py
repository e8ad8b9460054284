"""EdgeRunner: frames in, typed results out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from edge_sdk.bundle import Bundle
from edge_sdk.errors import BundleError, ClosedError, RecipeError
from edge_sdk.runtime.engine import Backend, EngineOptions, backend_named
from edge_sdk.runtime.result import Result
from edge_sdk.runtime.schedule import SCHEDULES, ScheduleSettings
from edge_sdk.runtime.steps import StepEngines
from edge_sdk.runtime.stream import Stream
from edge_sdk.settings import parse_settings
from edge_sdk.video.frame import Frame


class EdgeRunner:
    """Runs a bundle over one stream of frames::

        with EdgeRunner("runs/demo/bundle") as runner:
            for frame, result in runner.stream(open_source("camera:0")):
                image = result.plot(frame.image)

    Entering the ``with`` block loads the engines, allocates every buffer and runs each step twice to warm it up;
    leaving it releases them. A runner is for one thread at a time and shares nothing with other runners.

    Args:
        bundle: an opened bundle, or the folder of one.
        backend: name of the runtime, or a backend object.
        engine: which engines: ``"float32"`` for the exported graphs, or the name of an engine set that
            ``edge-sdk build`` made, such as ``"onnxruntime-int8"``; None for the one that the bundle names as chosen
            for this backend, or the exported graphs where it names none.
        schedule: decides which frames are keyframes; None for the schedule in the bundle. Where it asks for no
            delta steps, the delta graph is not loaded.
        threads: CPU threads of one step, at least 1; None for the backend's own choice.

    Raises:
        MissingFileError, FileFormatError, BundleError: the bundle is not whole, see :meth:`Bundle.open`, it has no
            delta step and the schedule needs one, or it has no such engines.
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
    ) -> None:
        self._options = parse_settings({"threads": threads}, EngineOptions, "EdgeRunner")
        self._backend = backend_named(backend) if isinstance(backend, str) else backend
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.engine = self.bundle.engine_for(self._backend.name, engine)
        self.schedule = self.bundle.manifest.schedule if schedule is None else schedule
        if not isinstance(self.schedule, SCHEDULES):
            names = ", ".join(kind.__name__ for kind in SCHEDULES)
            raise RecipeError(f"schedule: expected one of {names}, got {self.schedule!r}.")
        if self.schedule.uses_delta and self.bundle.manifest.steps.delta is None:
            raise BundleError(
                f"schedule '{self.schedule.kind}': it asks for delta steps, "
                f"bundle {self.bundle.path} has a keyframe step only.",
                hint="Use AlwaysSchedule(), or EverySchedule with between='skip'.",
            )
        self._engines: StepEngines | None = None
        self._stream: Stream | None = None

    def open(self) -> EdgeRunner:
        """Load, allocate and warm up, where a ``with`` block does not fit; opening an open runner does nothing.

        Raises:
            DependencyError: the backend's package is not installed.
            EngineError: the backend refuses a graph.
            BundleError: a graph has other inputs or outputs than the manifest says.
        """
        if self._stream is None:
            uses_delta = self.schedule.uses_delta
            engines = StepEngines.load(
                self.bundle, self._backend, self._options, engine=self.engine, with_delta=uses_delta
            )
            try:
                self._stream = Stream(self.bundle, engines, self.schedule.start())
            except BaseException:
                engines.close()
                raise
            self._engines = engines
        return self

    def close(self) -> None:
        """Release engines and buffers; closing twice does nothing. Results already returned stay readable."""
        engines, self._engines, self._stream = self._engines, None, None
        if engines is not None:
            engines.close()

    def __enter__(self) -> EdgeRunner:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, frame: Frame | np.ndarray) -> Result:
        """Answer one frame.

        A keyframe is forced where the state cannot be used: at the first frame, where ``seq`` does not follow the
        last one's, after a failed step, and where :meth:`request_keyframe` asked for one.

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
        return self._opened()(frame)

    def stream(self, source: Iterable[Frame]) -> Iterator[tuple[Frame, Result]]:
        """Answer every frame of ``source``, as one new stream: the runner is reset first.

        The source stays the caller's to close. Each result is valid until the next one is asked for.
        """
        stream = self._opened()
        stream.reset()
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
        self._opened().reset()

    @property
    def state_bytes(self) -> int:
        """Bytes allocated for the state; what a delta step rewrites counts twice.

        Raises:
            ClosedError: the runner is not open.
        """
        return self._opened().state.size_bytes

    def _opened(self) -> Stream:
        if self._stream is None:
            raise ClosedError(
                "runner: it is not open.",
                hint="Use it inside `with EdgeRunner(...) as runner:`, or call open().",
            )
        return self._stream
