"""How much of the way from a smaller network to the teacher a pair goes, at its own mean latency. Pure numbers.

recovered share = (mIoU of the pair - mIoU of the rival) / (mIoU of the teacher - mIoU of the rival)

The rival is the per-frame network of the same mean latency. Networks have few widths, so it is interpolated between
those that no faster one beats, and the teacher, which is the widest of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from edge_sdk.bench.series import front
from edge_sdk.settings import Settings

# Scores are shown with three places: where teacher and rival are nearer than half of the last, a share is noise.
LEAST_GAP = 0.0005


@dataclass(frozen=True)
class Point:
    """One row's mean time of a frame, milliseconds, and its mIoU, 0-1."""

    name: str
    ms: float
    accuracy: float


class Recovered(Settings):
    """What a pair gains over the per-frame networks.

    Args:
        share: 0 as good as the rival, 1 as good as the teacher; below 0 the rival is better, above 1 the pair is better
            than the teacher. None where there is no rival of that latency, or nothing to recover.
        rival: mIoU of the rival at the pair's mean latency; where the pair is faster than every network, the fastest's.
        between: rows that the rival is interpolated between; one where it is that row's own accuracy.
        beside_fastest: where the pair is faster than every network: the share with the fastest of them, which takes
            more time than the pair, as the rival.
        reason: why ``share`` is None.
    """

    share: float | None
    rival: float | None
    between: tuple[str, ...] = ()
    beside_fastest: float | None = None
    reason: str = ""


def envelope(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points that no other beats: mIoU rises from each to the next, as the time does.

    A network that is no more accurate than a faster one is left out: it cannot make the rival look weaker. Names must
    differ.
    """
    by_name = {point.name: point for point in points}
    return tuple(
        by_name[name] for name in front({point.name: (point.ms, point.accuracy) for point in points})
    )


def rival_at(line: Sequence[Point], ms: float) -> tuple[float, tuple[str, ...]]:
    """mIoU of the rival that takes ``ms`` a frame, and the rows that it lies between.

    Args:
        line: of :func:`envelope`; beyond its last point the rival is that point.
        ms: milliseconds, not below the first point's.
    """
    for before, after in pairwise(line):
        if before.ms < ms < after.ms:
            part = (ms - before.ms) / (after.ms - before.ms)
            risen = before.accuracy + part * (after.accuracy - before.accuracy)
            return min(risen, after.accuracy), (before.name, after.name)
    at = [point for point in line if point.ms <= ms][-1]
    return at.accuracy, (at.name,)


def recovered(pair: Point, nets: Sequence[Point], teacher: Point) -> Recovered:
    """What ``pair`` gains over ``nets``.

    Args:
        pair: at its mean over keyframes and the frames between.
        nets: per-frame networks, at least one, in the same precision.
        teacher: in the same precision.
    """
    if pair.ms >= teacher.ms:
        reason = f"not faster than the teacher: {pair.ms:.2f} ms against {teacher.ms:.2f} ms"
        return Recovered(share=None, rival=None, reason=reason)
    fastest = min(nets, key=lambda net: (net.ms, -net.accuracy))
    if pair.ms < fastest.ms:
        beside = _share(pair.accuracy, fastest.accuracy, teacher.accuracy)
        reason = f"faster than every network: {pair.ms:.2f} ms against {fastest.ms:.2f} ms of {fastest.name}"
        if beside is not None:
            reason += f"; beside that one, which takes more time, {beside:.2f}"
        return Recovered(
            share=None, rival=fastest.accuracy, between=(fastest.name,), beside_fastest=beside, reason=reason
        )
    rival, between = rival_at(envelope([*nets, teacher]), pair.ms)
    share = _share(pair.accuracy, rival, teacher.accuracy)
    reason = ""
    if share is None:
        reason = f"nothing to recover: a network of that latency has {rival:.4f}, the teacher {teacher.accuracy:.4f}"
    return Recovered(share=share, rival=rival, between=between, reason=reason)


def _share(pair: float, rival: float, teacher: float) -> float | None:
    gap = teacher - rival
    return (pair - rival) / gap if gap >= LEAST_GAP else None
