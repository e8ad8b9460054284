"""What a run over a video comes to: counts, times by kind of step, one JSON line a frame."""

from __future__ import annotations

import json
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_sdk.cli.output import plain
from edge_sdk.files import atomic_file
from edge_sdk.runtime.result import StepKind
from edge_sdk.tasks.base import Classification, Segmentation
from edge_sdk.video.live import LiveSource

if TYPE_CHECKING:
    from rich.table import Table

    from edge_sdk.runtime.cuda.device import CudaReport
    from edge_sdk.runtime.result import Result
    from edge_sdk.runtime.schedule import Coverage
    from edge_sdk.video import VideoSource

# Values kept for percentiles, since a camera may run for months: ten minutes at 60 frames a second.
_RECENT = 36_000
# Classes of a clip that a line names.
_BEST = 20


class Values:
    """A time in milliseconds, or a trust, of any number of frames: count and mean of all, percentiles of the last
    ``_RECENT``.

    Args:
        percents: which percentiles.
    """

    def __init__(self, *percents: int) -> None:
        self.count, self.sum = 0, 0.0
        self._percents = percents
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def add(self, value: float) -> None:
        """Count one frame."""
        self.count += 1
        self.sum += value
        self._recent.append(value)

    def figures(self) -> dict[str, float]:
        """Frames, mean, percentiles and how many frames these are of; there is at least one."""
        found = np.percentile(np.asarray(self._recent), self._percents)
        return {
            "frames": self.count,
            "mean": self.sum / self.count,
            **{f"p{percent}": float(value) for percent, value in zip(self._percents, found, strict=True)},
            "percentile_frames": len(self._recent),
        }


def _times() -> Values:
    return Values(50, 99)


class RunSummary:
    """Collects the times of a run.

    Args:
        bundle, source, output, results: what was named on the command line; ``None`` where nothing is written.

    Attributes:
        device: what the backend chose on this machine; None on a CPU.
        coverage: what an answer covers, where a few frames of each clip are seen; None for other schedules.
    """

    def __init__(self, *, bundle: Path, source: str, output: str | None, results: Path | None) -> None:
        self.bundle, self.source, self.output, self.results = bundle, source, output, results
        self.frames = self.keyframes = 0
        self.recent_ms = 0.0
        self.device: CudaReport | None = None
        self.coverage: Coverage | None = None
        self._all, self._answer_age, self._gpu = _times(), _times(), _times()
        self._trust = Values(1, 10, 50)  # of a trust the low ones matter: they ask for keyframes
        self._kinds: dict[StepKind, Values] = defaultdict(_times)
        self._stage_ms: dict[str, float] = defaultdict(float)
        self._began_s = self._wall_s = 0.0
        self._live: LiveSource | None = None

    def start(self, source: VideoSource | None = None) -> None:
        """The first frame of ``source`` is about to be read."""
        self._live = source if isinstance(source, LiveSource) else None
        self._began_s = time.perf_counter()

    def stop(self) -> None:
        """The last frame has been written."""
        self._wall_s = time.perf_counter() - self._began_s

    def add(self, result: Result, *, draw_ms: float, write_ms: float) -> None:
        """Count one frame."""
        times = result.times
        self.frames += 1
        self.keyframes += result.kind is StepKind.KEYFRAME
        # Smoothed over about ten frames: what the progress line shows should not flicker.
        self.recent_ms += (times.total_ms - self.recent_ms) * (0.1 if self.frames > 1 else 1.0)
        for collected in (self._all, self._kinds[result.kind]):
            collected.add(times.total_ms)
        if times.gpu_ms is not None:
            self._gpu.add(times.gpu_ms)
        if result.trust is not None:
            self._trust.add(result.trust)
        if self._live is not None:
            self._answer_age.add((result.delivered_s - result.captured_s) * 1e3)
        for stage, value in (
            ("copy in", times.copy_in_ms),
            ("step", times.step_ms),
            ("copy out", times.copy_out_ms),
            ("decode", times.decode_ms),
            ("draw", draw_ms),
            ("write", write_ms),
        ):
            self._stage_ms[stage] += value
        self.stop()

    def figures(self) -> dict[str, Any]:
        """Everything as plain values; times in milliseconds unless the name says otherwise."""
        kinds = {kind.value: times for kind, times in self._kinds.items()}
        collected = {"all": self._all, **kinds} if self.frames else {}
        counts = {kind: self._kinds[kind].count if kind in self._kinds else 0 for kind in StepKind}
        runner_s = self._all.sum / 1e3
        return {
            "bundle": plain(self.bundle),
            "source": self.source,
            "output": self.output,
            "results": plain(self.results),
            "frames": self.frames,
            "keyframes": self.keyframes,
            "deltas": counts[StepKind.DELTA],
            "skips": counts[StepKind.SKIP],
            "keyframe_share": self.keyframes / max(self.frames, 1),
            "trust": self._trust.figures() if self._trust.count else None,
            "wall_s": self._wall_s,
            "wall_frames_per_second": self.frames / self._wall_s if self._wall_s else 0.0,
            "runner_frames_per_second": self.frames / runner_s if runner_s else 0.0,
            "latency_ms": {name: times.figures() for name, times in collected.items()},
            "stages_ms": {name: value / max(self.frames, 1) for name, value in self._stage_ms.items()},
            "gpu_ms": self._gpu.figures() if self._gpu.count else None,
            "device": plain(self.device),
            "live": self._live_figures(),
            "coverage": plain(self.coverage),
        }

    def _live_figures(self) -> dict[str, Any] | None:
        """Of a live source, what became of its frames, and how old the answers were; None for a file."""
        if self._live is None:
            return None
        figures = dict(plain(self._live.stats))
        if self._answer_age.count:
            figures["answer_age_ms"] = self._answer_age.figures()
        return figures

    def renderables(self) -> list[Any]:
        """The figures for people: counts, a table by kind of step, one line of stages, what was written."""
        figures = self.figures()
        table = _table(figures["latency_ms"])
        gpu = figures["gpu_ms"]
        stages = "  ".join(
            f"{name} {value:.2f}"
            for name, value in figures["stages_ms"].items()
            if name != "copy out" or gpu is not None
        )
        lines = [
            f"{self.frames} frames: {self.keyframes} keyframes ({figures['keyframe_share']:.1%}), "
            f"{figures['deltas']} deltas, {figures['skips']} skips; "
            f"{figures['runner_frames_per_second']:.1f} frames/s in the runner, "
            f"{figures['wall_frames_per_second']:.1f} with reading, drawing and writing",
            f"ms a frame: {stages}",
        ]
        if (trust := figures["trust"]) is not None:
            lines.append(
                f"what still held of the keyframe: mean {trust['mean']:.3f}, p50 {trust['p50']:.3f}, "
                f"p10 {trust['p10']:.3f}, p1 {trust['p1']:.3f} of the deltas"
            )
        if gpu is not None:
            lines.append(
                f"GPU time of a step: mean {gpu['mean']:.2f} ms, p50 {gpu['p50']:.2f} ms, p99 {gpu['p99']:.2f} ms"
            )
        if self.device is not None:
            lines.append(_device_line(self.device))
        if (live := figures["live"]) is not None:
            lines.append(_live_line(live))
        if self.coverage is not None:
            lines.append(str(self.coverage))
        lines += [
            f"{what}: {path}" for what, path in (("output", self.output), ("results", self.results)) if path
        ]
        return [table, "\n".join(lines)]


def _table(latency_ms: Mapping[str, Mapping[str, float]]) -> Table:
    from rich.table import Table

    table = Table(
        "step", "frames", "mean ms", "p50 ms", "p99 ms", title=_title(latency_ms), title_justify="left"
    )
    for name, values in latency_ms.items():
        table.add_row(name, str(values["frames"]), *(f"{values[key]:.2f}" for key in ("mean", "p50", "p99")))
    return table


def _live_line(live: Mapping[str, Any]) -> str:
    age = live.get("answer_age_ms")
    return (
        f"live source: {live['received']} frames received, {live['dropped']} dropped for newer ones, "
        f"{live['corrupt']} corrupt; {live['stalls']} stalls, {live['reconnects']} reconnections"
        + (f"; age of an answer p50 {age['p50']:.1f} ms, p99 {age['p99']:.1f} ms" if age else "")
    )


class ResultLines:
    """A file with one JSON line a frame; it takes its place when the run is over, or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()
        self._file: Any = None

    def __enter__(self) -> ResultLines:
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_file(self._path))
            self._file = stack.enter_context(temporary.open("w", encoding="utf-8"))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, result: Result) -> None:
        """Add the line of one frame."""
        self._file.write(json.dumps(line_of(result), ensure_ascii=False) + "\n")


def line_of(result: Result) -> dict[str, Any]:
    """One frame's result as plain values.

    Of a segmentation, ``share`` is that of the frame that each class takes; of a classification, ``scores`` are those
    of its best classes, best first. ``trust`` is there where the delta step tells it.
    """
    line: dict[str, Any] = {
        "seq": result.seq,
        "captured_s": result.captured_s,
        "kind": result.kind.value,
        "state_age": result.state_age,
        "times": plain(result.times),
    }
    if result.trust is not None:
        # JSON has no word for what is no number.
        line["trust"] = round(result.trust, 6) if np.isfinite(result.trust) else None
    if isinstance(result.prediction, Segmentation):
        mask, classes = result.prediction.mask, result.task.spec.classes
        counts = np.bincount(mask.reshape(-1), minlength=len(classes))
        line["share"] = {
            name: round(int(n) / mask.size, 6) for name, n in zip(classes, counts, strict=False) if n
        }
    if isinstance(result.prediction, Classification):
        scores, classes = result.prediction.scores, result.task.spec.classes
        best = np.argsort(-np.nan_to_num(scores), kind="stable")[:_BEST]
        line["scores"] = {
            classes[index]: round(float(scores[index]), 6) if np.isfinite(scores[index]) else None
            for index in best
        }
    return line


def _title(latency: Mapping[str, Mapping[str, float]]) -> str:
    title = "Latency of the runner"
    if any(values["percentile_frames"] < values["frames"] for values in latency.values()):
        return f"{title}; percentiles of the last {_RECENT} frames of each row"
    return title


def _device_line(device: CudaReport) -> str:
    graphs = ", ".join(f"{step} {state}" for step, state in device.graphs.items())
    return (
        f"GPU: {device.device} ({device.compute_capability}); memory: {device.memory} ({device.memory_reason}); "
        f"CUDA graphs: {graphs}; priorities of streams: {device.priorities}"
    )
