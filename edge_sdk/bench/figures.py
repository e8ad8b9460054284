"""The statistics of a bench run, computed from its raw samples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edge_sdk.bench.samples import Mode
from edge_sdk.settings import Settings

if TYPE_CHECKING:
    from edge_sdk.bench.document import BenchDocument

# Stages in the order in which a frame passes them; total is from call to result, age from camera to result.
STAGES = ("capture", "copy in", "step", "copy out", "decode", "total", "age")
ALL = "all"


class Estimate(Settings):
    """A figure and how far it can be relied on.

    Args:
        value: over all samples of all rounds.
        low, high: 95 % interval around it from the spread between rounds, see :mod:`edge_sdk.bench.intervals`; None
            where fewer than two rounds have the figure.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def half_width(self) -> float | None:
        """Half the interval as a share of the value; None without an interval."""
        if self.low is None or self.high is None or self.value == 0:
            return None
        return (self.high - self.low) / 2 / abs(self.value)


class Distribution(Settings):
    """Times of many frames, in milliseconds; percentiles by linear interpolation."""

    frames: int
    mean_ms: Estimate
    p50_ms: Estimate
    p90_ms: Estimate
    p99_ms: Estimate
    p999_ms: float
    max_ms: float


class Jitter(Settings):
    """How evenly answers come, from the n - 1 intervals between n answers of one block, pooled over blocks.

    Args:
        interval_ms: mean interval.
        deviation_ms: standard deviation of the intervals; 0 of one interval.
        p99_ms: 99th percentile of the distance of an interval from the camera's period.
    """

    interval_ms: float
    deviation_ms: float
    p99_ms: float


class Deadline(Settings):
    """Answers against the deadline; a dropped frame is a miss.

    Args:
        deadline_ms: age at delivery above which an answer is late.
        frames: answered and dropped.
        late: answered too late.
        dropped: never answered.
        miss_rate: (late + dropped) / frames, 0-1, with its interval.
    """

    deadline_ms: float
    frames: int
    late: int
    dropped: int
    miss_rate: Estimate


class RowFigures(Settings):
    """One row in one mode.

    Args:
        row: its name.
        mode: ``saturated`` or ``camera``.
        stages: by stage of ``STAGES``, then by ``"all"``, ``"keyframe"``, ``"delta"`` and ``"skip"``. A kind that did
            not come is missing, and so is a stage that no frame of a kind went through. Of ``"all"`` every frame
            counts, with 0 for a stage that it did not go through, so that the means of the stages can be added up.
            ``capture`` and ``age`` are there at camera pace alone.
        gpu: the GPU's own time of the step, by kind as above; empty where there is none.
        throughput_fps: answered frames a second, n - 1 intervals over the n answers of each block; None where no
            block has two.
        speedup: saturated, the teacher's mean time (row ``teacher``) over this row's, within each round, so that a
            slow spell that covers both cancels: the geometric mean over the rounds. None without such a row, and at
            camera pace, where an answer's age says little about the work.
        jitter, deadline: at camera pace; None saturated.
        energy_mj: millijoules of the whole machine for each frame answered; None where the machine does not tell.
    """

    row: str
    mode: Mode
    stages: dict[str, dict[str, Distribution]]
    gpu: dict[str, Distribution]
    throughput_fps: Estimate | None
    speedup: Estimate | None
    jitter: Jitter | None
    deadline: Deadline | None
    energy_mj: Estimate | None

    def latency(self, kind: str = ALL) -> Distribution | None:
        """What a user waits for: age at camera pace, total saturated; None where no such frame was answered."""
        return self.stages.get("age" if self.mode == "camera" else "total", {}).get(kind)

    @property
    def keyframe_share(self) -> float:
        """Share of the answered frames that were keyframes, 0-1; NaN where none was answered."""
        found = {kind: times.frames for kind, times in self.stages.get("total", {}).items()}
        return found.get("keyframe", 0) / found[ALL] if found.get(ALL) else math.nan


class Cost(Settings):
    """What the runner itself costs, from the pairs of :class:`edge_sdk.bench.samples.BareBlock`.

    Args:
        runner_ms, bare_ms: median of a frame through the runner, and of the bare engine.
        own_ms: median of the differences within pairs, with the interval from the rounds' medians.
        share: ``own_ms`` over ``bare_ms``.
        gpu_ms: median GPU time of the bare engine; None on a CPU.

    Of ``"all"`` each is the mean over the kinds, by how many pairs of each were run.
    """

    runner_ms: float
    bare_ms: float
    own_ms: Estimate
    share: float
    gpu_ms: float | None


class Memory(Settings):
    """One kind of memory over the run; growth from readings after the first round (all but the first quarter of the
    time where there is one long round), by the Theil-Sen slope of :func:`edge_sdk.bench.intervals.slope` between two
    openings of a runner: what opening one anew adds is no growth. The bench's own record is in it, about 100 bytes a
    frame.

    Args:
        first_bytes, last_bytes, peak_bytes: of all readings.
        growth_bytes_per_hour: slope with its 95 % interval; None with fewer than eight readings to take it from.
        growth_bytes_per_frame: the same by frames answered, of all rows and warm-up blocks.
    """

    first_bytes: int
    last_bytes: int
    peak_bytes: int
    growth_bytes_per_hour: Estimate | None
    growth_bytes_per_frame: Estimate | None


class Span(Settings):
    """Lowest, median and highest of a sensor."""

    low: float
    median: float
    high: float


class WorstFrame(Settings):
    """A slow answer of the subject and the conditions in which it came; ``reading`` is the nearest in time.

    Args:
        mode, round, seq, kind: which frame.
        at_ms: when it was delivered, since the beginning of the run.
        latency_ms: age at camera pace, total saturated.
        stages_ms: by stage that it went through, without total and age; ``capture`` at camera pace alone.
        preempted: as in ``FrameColumns``; None where the system does not say.
        conditions: of the nearest reading, as short phrases such as ``"cpu 1.20 GHz"`` (the slowest of them),
            ``"gpu 61 C"`` (the hottest), ``"VDD_IN 10.0 W"`` (the highest); empty where there are no readings.
    """

    mode: Mode
    round: int
    seq: int
    kind: str
    at_ms: float
    latency_ms: float
    stages_ms: dict[str, float]
    preempted: int | None
    conditions: tuple[str, ...]

    def line(self) -> str:
        """The frame in one line."""
        stages = ", ".join(f"{name} {value:.2f}" for name, value in self.stages_ms.items())
        preempted = (f"preempted {self.preempted} times",) if self.preempted else ()
        frame = f"frame {self.seq} of round {self.round}: {self.kind}, {self.latency_ms:.2f} ms ({stages})"
        return "; ".join((frame, *preempted, *self.conditions))


class Cold(Settings):
    """Starting, as medians over the rounds, in milliseconds; ``first_over_usual`` is a step's first run over its median
    time saturated, by step, without steps that were not run saturated."""

    check_ms: float
    load_ms: float
    bind_ms: float
    first_ms: dict[str, float]
    second_ms: dict[str, float]
    first_over_usual: dict[str, float]


class Figures(Settings):
    """Every statistic of one run.

    Args:
        rows: by row, in the order of the document, saturated before camera pace; warm-up blocks are in none, and
            a row without an answered frame in a mode is missing.
        cold: starting.
        cost: by ``"keyframe"``, ``"delta"`` and ``"all"`` (in the mix that was run); empty where nothing was run bare.
        memory: by ``"process"`` and ``"device"``; kinds that the machine does not tell are missing.
        clocks_mhz, temperatures_c, power_w: by sensor.
        stolen: share of the processors' time that a hypervisor gave to others; None where it is not told.
        yardstick_ms: median of the yardstick and its interval, which tells how evenly the machine itself ran; None
            where there was none.
        yardstick_by_round_ms: its median in each round.
        worst: the ten slowest answers of the subject in each mode, slowest first, camera pace before saturated.
    """

    rows: tuple[RowFigures, ...]
    cold: Cold
    cost: dict[str, Cost]
    memory: dict[str, Memory]
    clocks_mhz: dict[str, Span]
    temperatures_c: dict[str, Span]
    power_w: dict[str, Span]
    stolen: Span | None
    yardstick_ms: Estimate | None
    yardstick_by_round_ms: tuple[float, ...] = ()
    worst: tuple[WorstFrame, ...]

    @classmethod
    def of(cls, document: BenchDocument) -> Figures:
        """The figures of a document."""
        from edge_sdk.bench.statistics import compute

        return compute(document)

    def row(self, name: str, mode: Mode) -> RowFigures | None:
        """One row in one mode; None where it was not run so."""
        return next((row for row in self.rows if (row.row, row.mode) == (name, mode)), None)
