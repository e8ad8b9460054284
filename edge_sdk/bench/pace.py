"""The loops that give frames to what is measured: one after another, or at a camera's pace."""

from __future__ import annotations

import resource
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from edge_sdk.bench.clock import Clock
from edge_sdk.bench.samples import LETTERS, FrameColumns
from edge_sdk.runtime.result import BareTime, StepKind
from edge_sdk.video.frame import Frame

if TYPE_CHECKING:
    from edge_sdk.evaluate.measure import Contender

# A backlog at the end of a block is answered for so long; what then still waits counts as dropped.
GRACE_MS = 1000.0
# 0.1 microseconds: finer is noise and makes the file longer.
_PLACES = 4


class Reel:
    """Frames in memory, shown forwards and backwards for ever, so that there is no cut where they begin anew.

    Args:
        frames: at least one.
    """

    def __init__(self, frames: Sequence[Frame]) -> None:
        self._frames = frames
        self._period = max(1, 2 * len(frames) - 2)

    def frame(self, index: int, captured_s: float) -> Frame:
        """Frame ``index`` of the endless stream, captured at ``captured_s``."""
        place = index % self._period
        image = self._frames[min(place, self._period - place)].image
        return Frame(image, index, captured_s)


_TIMES = ("copy_in_ms", "step_ms", "copy_out_ms", "decode_ms", "total_ms")


def _doubles() -> array[float]:
    return array("d")


def _counts() -> array[int]:
    return array("q")


@dataclass
class Recorder:
    """Collects samples while a loop runs: about 100 bytes a frame, so that what a run keeps does not look like memory
    that the runner loses. The columns of its JSON are made when the run is over."""

    kinds: bytearray = field(default_factory=bytearray)
    seq: array[int] = field(default_factory=_counts)
    due_ms: array[float] = field(default_factory=_doubles)
    called_ms: array[float] = field(default_factory=_doubles)
    times: array[float] = field(default_factory=_doubles)
    gpu_ms: array[float] = field(default_factory=_doubles)
    state_age: array[int] = field(default_factory=_counts)
    preempted: array[int] = field(default_factory=_counts)

    def answer(self, contender: Contender, frame: Frame, due_ms: float, called_ms: float) -> None:
        """Let ``contender`` answer a frame, and keep how it went."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        sample = contender.step(frame)
        self.preempted.append(resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - before)
        found = sample.times
        self.kinds += LETTERS[sample.kind].encode()
        self.seq.append(frame.seq)
        self.due_ms.append(due_ms)
        self.called_ms.append(called_ms)
        self.times.extend(
            (found.copy_in_ms, found.step_ms, found.copy_out_ms, found.decode_ms, found.total_ms)
        )
        if found.gpu_ms is not None:
            self.gpu_ms.extend([0.0] * (len(self.seq) - 1 - len(self.gpu_ms)))  # of frames without a step
            self.gpu_ms.append(found.gpu_ms)
        self.state_age.append(sample.state_age)

    def __len__(self) -> int:
        return len(self.kinds)

    def columns(self) -> FrameColumns:
        """What was collected."""
        times = {name: self.times[place :: len(_TIMES)] for place, name in enumerate(_TIMES)}
        if self.gpu_ms:
            self.gpu_ms.extend([0.0] * (len(self) - len(self.gpu_ms)))
        return FrameColumns(
            kinds=self.kinds.decode(),
            seq=tuple(self.seq),
            due_ms=_rounded(self.due_ms),
            called_ms=_rounded(self.called_ms),
            gpu_ms=_rounded(self.gpu_ms),
            state_age=tuple(self.state_age),
            preempted=tuple(self.preempted),
            **{name: _rounded(column) for name, column in times.items()},
        )


def saturated(contender: Contender, reel: Reel, clock: Clock, length_ms: float, chunk: int) -> Recorder:
    """Give each frame as soon as the last one is answered, for ``length_ms`` and to the end of a chunk.

    Args:
        contender: what answers; it is reset first.
        reel: the frames.
        clock: the run's.
        length_ms: how long; at least one chunk is run.
        chunk: frames of one keyframe period, so that the mix of steps is that of the schedule.
    """
    contender.reset()
    recorder = Recorder()
    index, end_ms = 0, clock.now_ms() + length_ms
    while index == 0 or index % chunk or clock.now_ms() < end_ms:
        called_ms = clock.now_ms()
        recorder.answer(contender, reel.frame(index, clock.origin_s + called_ms / 1e3), called_ms, called_ms)
        index += 1
    return recorder


def camera(
    contender: Contender,
    reel: Reel,
    clock: Clock,
    length_ms: float,
    fps: float,
    late: Literal["queue", "drop"],
) -> tuple[Recorder, int]:
    """Give frames on the grid of a camera's rate.

    The grid does not wait for answers: a frame that is due while an older one is being answered waits
    (``queue``) or is dropped for a newer one (``drop``). So a stall delays what comes behind it, and is seen in the
    age of each of those frames, not of one alone.

    Returns:
        The samples, and how many frames that were due were never answered.
    """
    contender.reset()
    recorder = Recorder()
    period_ms = 1e3 / fps
    begin_ms = clock.now_ms()
    count = max(1, int(length_ms / period_ms))
    index = dropped = 0
    while index < count:
        due_ms = begin_ms + index * period_ms
        clock.sleep_until_ms(due_ms)
        called_ms = clock.now_ms()
        if called_ms > begin_ms + length_ms + GRACE_MS:
            dropped += count - index
            break
        newest = min(count - 1, int((called_ms - begin_ms) / period_ms))
        if late == "drop" and newest > index:
            dropped += newest - index
            index = newest
            due_ms = begin_ms + index * period_ms
        recorder.answer(contender, reel.frame(index, clock.origin_s + due_ms / 1e3), due_ms, called_ms)
        index += 1
    return recorder, dropped


class Paired(NamedTuple):
    """Columns of a :class:`edge_sdk.bench.samples.BareBlock`."""

    kinds: str
    runner_ms: tuple[float, ...]
    wall_ms: tuple[float, ...]
    gpu_ms: tuple[float, ...]


def paired(
    contender: Contender,
    time_bare: Callable[[Sequence[StepKind]], Sequence[BareTime]],
    reel: Reel,
    clock: Clock,
    length_ms: float,
    chunk: int,
) -> Paired:
    """By turns a keyframe period through the runner and the same steps bare, for ``length_ms``; at least once each.

    Args:
        contender: the runner; it is reset first.
        time_bare: runs steps bare on the runner's own buffers.
        reel, clock, length_ms, chunk: as for :func:`saturated`.
    """
    contender.reset()
    kinds: list[StepKind] = []
    through: list[float] = []
    bare: list[BareTime] = []
    index, end_ms = 0, clock.now_ms() + length_ms
    while index == 0 or clock.now_ms() < end_ms:
        ran = []
        for _ in range(chunk):
            sample = contender.step(reel.frame(index, clock.origin_s + clock.now_ms() / 1e3))
            index += 1
            if sample.kind is not StepKind.SKIP:
                ran.append(sample)
        kinds += [sample.kind for sample in ran]
        through += [sample.times.total_ms for sample in ran]
        bare += time_bare([sample.kind for sample in ran])
    return Paired(
        "".join(LETTERS[kind] for kind in kinds),
        _rounded(through),
        _rounded(found.wall_ms for found in bare),
        _rounded(found.gpu_ms for found in bare if found.gpu_ms is not None),
    )


def live(
    contender: Contender, source: Iterable[Frame], clock: Clock, length_ms: float
) -> tuple[Recorder, int]:
    """Answer a live source at its own pace for ``length_ms``.

    A frame that was captured before the block began is left out: it waited for that, and not for an older frame.

    Returns:
        The samples, and how many frames are missing in ``seq``.
    """
    contender.reset()
    recorder = Recorder()
    begin_ms, last, dropped = clock.now_ms(), None, 0
    for frame in source:
        called_ms = clock.now_ms()
        due_ms = (frame.captured_s - clock.origin_s) * 1e3
        if due_ms < begin_ms:
            continue
        recorder.answer(contender, frame, due_ms, called_ms)
        if last is not None:
            dropped += max(0, frame.seq - last - 1)
        last = frame.seq
        if called_ms >= begin_ms + length_ms:
            break
    return recorder, dropped


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(float(value), _PLACES) for value in values)
