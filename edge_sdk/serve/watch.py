"""Everything that is shown of a run at one moment, gathered from the runner, the source, the record and the sensors."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edge_sdk
from edge_sdk.errors import ClosedError, RecipeError
from edge_sdk.runtime.schedule import SampleSchedule, ScheduleSettings
from edge_sdk.sensors import SensorReader, Sensors
from edge_sdk.serve.record import Record, Snapshot

if TYPE_CHECKING:
    from edge_sdk.runtime.runner import EdgeRunner
    from edge_sdk.runtime.worker import WorkerCounts
    from edge_sdk.video.base import VideoSource


@dataclasses.dataclass(frozen=True, slots=True)
class About:
    """What is being run.

    Attributes:
        bundle: the bundle's name.
        engine: the engine set, such as ``"onnxruntime-int8"``.
        source: where frames come from, without passwords.
        answers: what an answer covers, in words, where a few frames of each clip are seen; empty for other schedules.
        version: of edge_sdk.
    """

    bundle: str
    engine: str
    source: str
    answers: str = ""
    version: str = edge_sdk.__version__


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """A run at one moment.

    Attributes:
        about: what is run.
        record: its frames.
        source: the source's own counts by name (``received``, ``dropped`` and so on); None where it keeps none.
        submitted: what became of frames given to ``submit``; None for a runner without a thread of its own.
        keyframe_failures: background keyframes that failed.
        sensors: temperatures, power, clocks and what holds them down.
        last_frame_s: seconds since the last answer; None before the first.
        running_s: seconds since the start.
    """

    about: About
    record: Snapshot
    source: dict[str, float] | None
    submitted: WorkerCounts | None
    keyframe_failures: int
    sensors: Sensors
    last_frame_s: float | None
    running_s: float

    @property
    def dropped(self) -> int:
        """Frames that nobody answered: lost by the source, spoilt, or replaced by newer ones."""
        if self.source is None:  # a gap is all there is to see of a loss
            return self.record.missed
        lost = int(self.source.get("dropped", 0) + self.source.get("corrupt", 0))
        return lost + (self.submitted.replaced + self.submitted.failed if self.submitted else 0)


class Watch:
    """Gathers what is shown; safe from any thread.

    Args:
        runner: being watched.
        source: where its frames come from; its ``stats`` are shown where it has them.
        history: frames kept one by one.
        root: where ``sys`` is found; another folder only in tests.
    """

    def __init__(
        self, runner: EdgeRunner, source: VideoSource | None, history: int, root: Path = Path("/")
    ) -> None:
        self._runner, self._source = runner, source
        self.about = About(
            bundle=runner.bundle.manifest.name,
            engine=runner.engine,
            source=shown_uri(source.uri) if source is not None else "",
            answers=_answers(runner.schedule, source),
        )
        self.record = Record(history, live=bool(source is not None and source.live))
        self._sensors = SensorReader(root)
        self._began_s = time.monotonic()

    @property
    def last_frame_s(self) -> float | None:
        """Seconds since the last answer; None before the first."""
        last_s = self.record.last_s
        return None if last_s is None else max(0.0, time.monotonic() - last_s)

    @property
    def running_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began_s

    def look(self) -> Seen:
        """The run now."""
        return Seen(
            about=self.about,
            record=self.record.snapshot(),
            source=self._source_stats(),
            submitted=self._submitted(),
            keyframe_failures=self._keyframe_failures(),
            sensors=self._sensors.read(),
            last_frame_s=self.last_frame_s,
            running_s=self.running_s,
        )

    def _source_stats(self) -> dict[str, float] | None:
        stats: Any = getattr(self._source, "stats", None)
        if stats is None:
            return None
        return {name: value for name, value in dataclasses.asdict(stats).items() if value is not None}

    def _submitted(self) -> WorkerCounts | None:
        try:
            return self._runner.counts
        except (RecipeError, ClosedError):  # it has no thread of its own, or is closed
            return None

    def _keyframe_failures(self) -> int:
        try:
            return self._runner.keyframe_failures
        except ClosedError:
            return 0


def _answers(schedule: ScheduleSettings, source: VideoSource | None) -> str:
    if source is None or not isinstance(schedule, SampleSchedule):
        return ""
    return str(schedule.coverage(source.fps))


def shown_uri(uri: str) -> str:
    """``uri`` without user, password and, of a network address, its query, which may hold a key."""
    if not re.match(r"(?i)(rtsps?|https?|rtp|udp|srt)://", uri):
        return uri
    return re.sub(r"://[^/]*@", "://", re.split(r"[?#]", uri, maxsplit=1)[0])
