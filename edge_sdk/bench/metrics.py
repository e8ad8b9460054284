"""What two runs are compared by: a figure of the subject in each round of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edge_sdk.bench.document import SUBJECT, BenchDocument
from edge_sdk.bench.effects import Prior
from edge_sdk.bench.pooled import Pooled, frame_energy_mj, round_parts
from edge_sdk.bench.samples import BareBlock, Block, Mode

# A run of few rounds tells its spread badly; see effects.effect for what these are for. A median or mean of hundreds of
# frames differs by 1 to 2 % from one opening of a runner to the next, on any machine that is left alone: where memory
# lies decides which lines of a cache collide. A p99 rests on a few frames of a round.
_STEADY = Prior(0.015)
_TAIL = Prior(0.05)


@dataclass(frozen=True)
class Rounds:
    """One figure of a run.

    Args:
        value: over all rounds, as it was measured.
        by_round: (rounds,) float64, to be compared: times as they would be on a machine as fast as ``reference_ms`` of
            :class:`Run` says, where the run is adjusted.
        cases: frames that a share is of; 0 for other figures.
    """

    value: float
    by_round: np.ndarray
    cases: int = 0


@dataclass(frozen=True)
class Metric:
    """A figure that two runs are compared by; of each, less is better.

    Args:
        name: as the table shows it.
        unit: of its value.
        mode: of the blocks that it rests on.
        of: the figure of a run; None where the run does not have it.
        weight: share of the family's level, relative to the others'. The steps get most: a change of the bundle is in
            them, undiluted, and with few rounds nothing is found at a small level. The others' margins are wide.
        margins: changes up to so many central margins count as none; see ``METRICS`` for why each.
        prior: what is known of its spread between rounds.
        timed: a time, which a slower machine makes longer.
        is_share: a share in 0-1, compared by differences instead of ratios.
    """

    name: str
    unit: str
    mode: Mode
    of: Callable[[Run], Rounds | None]
    weight: float
    margins: float
    prior: Prior | None
    timed: bool = True
    is_share: bool = False


class Run:
    """The subject's samples in one document.

    Args:
        document: the run.
        reference_ms: times are told as on a machine whose yardstick takes so long; None leaves them as they are.
        with_bare: a step's figure is the geometric mean of its medians through the runner and bare. Both run the same
            engine, at two times of the round, so that a spell that the yardstick has missed weighs half.
    """

    def __init__(
        self, document: BenchDocument, reference_ms: float | None = None, with_bare: bool = False
    ) -> None:
        self.document = document
        self.reference_ms = reference_ms
        self.with_bare = with_bare
        self._pools: dict[Mode, Pooled] = {}

    def pool(self, mode: Mode) -> Pooled:
        """Its frames in one mode, perhaps none."""
        if mode not in self._pools:
            blocks = subject_blocks(self.document, mode)
            self._pools[mode] = Pooled.of(block for block in blocks if len(block.frames))
        return self._pools[mode]

    def scales(self, pool: Pooled) -> np.ndarray:
        """(frames,) float64: factor from each frame's time to that on the reference machine."""
        factors = [self._scale(block) for block in pool.blocks]
        return np.repeat(np.array(factors, np.float64), [len(block.frames) for block in pool.blocks])

    def bare(self, letter: str) -> dict[int, float]:
        """Median time of one kind of step bare, by round, on the reference machine."""
        found: dict[int, list[float]] = {}
        for block in self.document.bare:
            times = np.array(block.wall_ms)[np.array(list(block.kinds), "U1") == letter]
            found.setdefault(block.round, []).extend((times * self._scale(block)).tolist())
        return {number: float(np.median(times)) for number, times in found.items() if times}

    def _scale(self, block: Block | BareBlock) -> float:
        if self.reference_ms is None or block.yardstick_ms is None:
            return 1.0
        return self.reference_ms / block.yardstick_ms

    def ages(self) -> np.ndarray:
        """(frames,) float64: age of each answer at camera pace, on the reference machine.

        Work scales with the machine, the grid of the camera does not: frames are queued anew with the scaled times, so
        that waiting behind a slow frame grows and shrinks as it would. Without a reference these are the ages that
        were measured.
        """
        pool = self.pool("camera")
        if self.reference_ms is None or not len(pool):
            return pool.stages["age"]
        parts = (
            pool.block_parts(values)
            for values in (pool.due_ms, pool.called_ms, pool.stages["total"], self.scales(pool))
        )
        return np.concatenate([queued_again(*block) for block in zip(*parts, strict=True)])


def queued_again(
    due_ms: np.ndarray, called_ms: np.ndarray, total_ms: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Ages of the answers of one block, had each call taken ``scale`` times as long.

    What passed between a frame's being ready, with the one before answered, and its call is kept as it was.

    Args:
        due_ms, called_ms, total_ms, scale: (frames,) float64.
    """
    free_ms = np.concatenate([due_ms[:1], (called_ms + total_ms)[:-1]])
    spent = np.maximum(called_ms - np.maximum(due_ms, free_ms), 0) + total_ms * scale
    done = np.cumsum(spent)
    # Frame i ends with the work since some frame j <= i that had not to wait: the latest of these ends.
    finished = done + np.maximum.accumulate(due_ms - (done - spent))
    return finished - due_ms


def subject_blocks(document: BenchDocument, mode: Mode) -> list[Block]:
    """The subject's blocks in one mode."""
    return [block for block in document.blocks if (block.row, block.mode) == (SUBJECT, mode)]


def _percentile(values: np.ndarray, raw: np.ndarray, rounds: np.ndarray, percent: float) -> Rounds | None:
    if not len(values):
        return None
    by_round = np.array([np.percentile(part, percent) for part in round_parts(values, rounds)])
    # A step that takes no time has no ratio.
    return Rounds(float(np.percentile(raw, percent)), by_round) if by_round.min() > 0 else None


def _step(letter: str) -> Callable[[Run], Rounds | None]:
    def of(run: Run) -> Rounds | None:
        pool = run.pool("saturated")
        mask = pool.letters == letter
        raw = pool.stages["step"]
        found = _percentile((raw * run.scales(pool))[mask], raw[mask], pool.round[mask], 50)
        if found is None or not run.with_bare:
            return found
        bare = run.bare(letter)
        numbers = np.unique(pool.round[mask]).tolist()
        both = [math.sqrt(ms * bare[n]) for n, ms in zip(numbers, found.by_round, strict=True) if bare.get(n)]
        return Rounds(found.value, np.array(both))

    return of


def _mean(run: Run) -> Rounds | None:
    pool = run.pool("saturated")
    if not len(pool):
        return None
    raw = pool.stages["total"]
    by_round = [float(part.mean()) for part in round_parts(raw * run.scales(pool), pool.round)]
    return Rounds(float(raw.mean()), np.array(by_round))


def _usual_age(run: Run) -> Rounds | None:
    """Of the most frequent kind: over all frames, the median of as many keyframes as deltas lies anywhere between."""
    pool = run.pool("camera")
    usual = max("dks", key=lambda letter: int((pool.letters == letter).sum()))
    mask = pool.letters == usual
    return _percentile(run.ages()[mask], pool.stages["age"][mask], pool.round[mask], 50)


def _age_tail(run: Run) -> Rounds | None:
    pool = run.pool("camera")
    return _percentile(run.ages(), pool.stages["age"], pool.round, 99)


def _misses(run: Run) -> Rounds | None:
    pool, limit_ms = run.pool("camera"), run.document.deadline_ms
    if not len(pool):
        return None
    late = run.ages() > limit_ms

    def rate(blocks: list[Block], mask: np.ndarray) -> float:
        dropped = sum(block.dropped for block in blocks)
        return (int(late[mask].sum()) + dropped) / (int(mask.sum()) + dropped)

    dropped = sum(block.dropped for block in pool.blocks)
    cases = len(pool) + dropped
    value = (int((pool.stages["age"] > limit_ms).sum()) + dropped) / cases
    return Rounds(value, np.array(pool.by_round(rate)), cases)


def _memory(run: Run) -> Rounds | None:
    """Median of the process's memory in each round, without the first of three or more, in which it is still rising."""
    medians = []
    for number in sorted({block.round for block in run.document.blocks}):
        called = [b.frames.called_ms for b in run.document.blocks if b.round == number and len(b.frames)]
        begin, end = min((c[0] for c in called), default=0.0), max((c[-1] for c in called), default=0.0)
        told = [
            r.rss_bytes for r in run.document.readings if r.rss_bytes is not None and begin <= r.at_ms <= end
        ]
        if told:
            medians.append(float(np.median(told)))
    kept = np.array(medians[1:] if len(medians) > 2 else medians)
    return Rounds(math.exp(float(np.log(kept).mean())), kept) if len(kept) and kept.min() > 0 else None


def _energy(run: Run) -> Rounds | None:
    """Millijoules a frame at camera pace, where a device spends its life."""
    pool = run.pool("camera")
    value = frame_energy_mj(pool.blocks)
    by_round = pool.by_round(lambda blocks, _: frame_energy_mj(blocks))
    return Rounds(value, np.array(by_round)) if value else None


METRICS = (
    Metric("keyframe step p50", "ms", "saturated", _step("k"), 8.0, 1.0, _STEADY),
    Metric("delta step p50", "ms", "saturated", _step("d"), 8.0, 1.0, _STEADY),
    Metric("mean saturated", "ms", "saturated", _mean, 2.0, 1.0, _STEADY),
    # 5 % for a central margin of 3 %: between frames a processor falls asleep, and wakes up as it likes.
    Metric("age p50 of the usual frame", "ms", "camera", _usual_age, 0.5, 5 / 3, _STEADY),
    # 10 %: a p99 moves with the few frames during which something else ran.
    Metric("age p99", "ms", "camera", _age_tail, 0.5, 10 / 3, _TAIL),
    # One point, which is one frame in a hundred: below it the p99 is in time in both runs, or in neither.
    Metric("deadline misses", "share", "camera", _misses, 0.5, 1 / 3, None, is_share=True),
    # 5 %: allocators and thread pools come out a few percent apart from one start to the next.
    Metric("memory of the process", "bytes", "saturated", _memory, 0.5, 5 / 3, Prior(0.01), timed=False),
    # 5 %: sensors tell power to a few percent, and it rises with temperature.
    Metric("energy a frame", "mJ", "camera", _energy, 0.5, 5 / 3, Prior(0.02), timed=False),
)
