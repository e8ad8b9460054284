"""Several cameras on one device: one pair of engines, a state and a schedule a stream, keyframes kept apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
from pydantic import Field

from edge_sdk.bundle import Bundle
from edge_sdk.errors import ClosedError
from edge_sdk.runtime.engine import Backend, EngineOptions, backend_named
from edge_sdk.runtime.opening import Opening, checked_schedule
from edge_sdk.runtime.result import Result
from edge_sdk.runtime.schedule import EverySchedule, ScheduleSettings
from edge_sdk.runtime.worker import Worker, WorkerCounts
from edge_sdk.settings import Settings, parse_settings
from edge_sdk.signing import Trust
from edge_sdk.update.device import open_to_run
from edge_sdk.video.frame import Frame

T = TypeVar("T")


class _Streams(Settings):
    streams: int = Field(ge=1, le=256, strict=True)


class MultiRunner:
    """Runs a bundle over several streams at once::

        with MultiRunner("runs/demo/bundle", streams=2) as runner:
            runner.submit(0, left_frame)
            runner.submit(1, right_frame)
            result = runner.latest(0, after=-1)

    Engines are loaded once and everything runs on one thread that the runner owns; any thread may call. Of each stream
    the newest waiting frame is answered, streams take turns, and one that fails or falls silent does not stop the
    others. Each stream's answers are those of an :class:`EdgeRunner` alone with the same schedule.

    Args:
        bundle, backend, engine, threads, trust: as for :class:`EdgeRunner`.
        streams: how many.
        schedule: of every stream; None for the bundle's. Under an :class:`EverySchedule` the streams get phases that
            lie as far apart as the interval allows, so that their keyframes do not coincide: see ``schedules``.
        on_result: called on the runner's thread with stream and answer.

    Raises:
        MissingFileError, FileFormatError, BundleError, RecipeError, SignatureError: as for :class:`EdgeRunner`.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        *,
        streams: int,
        backend: str | Backend = "onnxruntime",
        engine: str | None = None,
        schedule: ScheduleSettings | None = None,
        threads: int | None = None,
        on_result: Callable[[int, Result], None] | None = None,
        trust: Trust | None = None,
    ) -> None:
        count = parse_settings({"streams": streams}, _Streams, "MultiRunner").streams
        self._options = parse_settings({"threads": threads}, EngineOptions, "MultiRunner")
        self._backend = backend_named(backend) if isinstance(backend, str) else backend
        self.bundle = open_to_run(bundle, trust)
        self.engine = self.bundle.engine_for(self._backend.name, engine)
        self.schedules = staggered(checked_schedule(self.bundle, schedule), count)
        self._on_result = on_result
        self._worker: Worker | None = None
        self._opening: Opening | None = None

    def open(self) -> MultiRunner:
        """Load, allocate and warm up; opening an open runner does nothing.

        Raises:
            DependencyError, EngineError, BundleError: as for :meth:`EdgeRunner.open`.
        """
        if self._worker is None:
            worker = Worker(
                lambda stream, frame: self._opened().streams[stream](frame),
                len(self.schedules),
                self._on_result,
            )
            try:
                self._opening = worker.ask(
                    lambda: Opening(
                        self.bundle, self._backend, self._options, self.engine, self.schedules, None
                    )
                )
            except BaseException:
                worker.close()
                raise
            self._worker = worker
        return self

    def close(self) -> None:
        """Release engines and buffers; closing twice does nothing."""
        opening, self._opening = self._opening, None
        worker, self._worker = self._worker, None
        if worker is not None:
            try:
                if opening is not None:
                    worker.ask(opening.close)
            finally:
                worker.close()

    def __enter__(self) -> MultiRunner:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, stream: int, frame: Frame | np.ndarray) -> Result:
        """Answer one frame of a stream and wait for it; see :meth:`EdgeRunner.__call__`. The result is the caller's."""
        self._check(stream)
        return self._thread().ask(lambda: self._opened().streams[stream](frame).copy())

    def submit(self, stream: int, frame: Frame | np.ndarray) -> None:
        """Leave a frame to be answered and return at once; one of the stream that still waits is replaced.

        Raises:
            ClosedError: the runner is not open.
            IndexError: there is no such stream.
        """
        self._check(stream)
        self._thread().submit(frame, stream)

    def latest(self, stream: int, after: int | None = None, timeout_s: float | None = None) -> Result | None:
        """The newest answer of a stream; see :meth:`EdgeRunner.latest`."""
        self._check(stream)
        return self._thread().latest(after, timeout_s, stream)

    def counts(self, stream: int) -> WorkerCounts:
        """What became of a stream's submitted frames."""
        self._check(stream)
        return self._thread().counts(stream)

    def request_keyframe(self, stream: int) -> None:
        """Make the next frame of a stream a keyframe."""
        self._check(stream)
        self._opened().streams[stream].request_keyframe()

    def reset(self, stream: int) -> None:
        """Let a stream be as a fresh one, as when its camera was replaced."""
        self._check(stream)
        self._thread().ask(lambda: self._opened().streams[stream].reset())

    def _check(self, stream: int) -> None:
        if not 0 <= stream < len(self.schedules):
            raise IndexError(f"stream: expected 0 to {len(self.schedules) - 1}, got {stream}")

    def _opened(self) -> Opening:
        if self._opening is None:
            raise ClosedError(
                "runner: it is not open.", hint="Use it inside `with MultiRunner(...) as runner:`."
            )
        return self._opening

    def _thread(self) -> Worker:
        self._opened()
        if self._worker is None:
            raise ClosedError("runner: it is not open.")
        return self._worker


def staggered(schedule: ScheduleSettings, count: int) -> list[ScheduleSettings]:
    """One schedule a stream; those with a fixed interval with phases spread over it."""
    if not isinstance(schedule, EverySchedule):
        return [schedule] * count
    return [
        schedule.model_copy(
            update={"phase": (schedule.phase + index * schedule.interval // count) % schedule.interval}
        )
        for index in range(count)
    ]
