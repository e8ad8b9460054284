"""The drift schedule that gives a keyframe about every K frames on a clip: its trust is found by running the pair."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_sdk.bundle import Bundle
from edge_sdk.evaluate.replay import Replay, mean_interval
from edge_sdk.runtime.engine import Backend
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import DriftSchedule, ExternalSchedule

# Halvings of the range of trusts that the clip shows; each is a pass over it.
_HALVINGS = 7
# ``below`` is written with so many digits.
_DIGITS = 5


def drift_schedule(
    bundle: Bundle,
    images: Sequence[np.ndarray],
    interval: int,
    longest: int,
    *,
    backend: Backend,
    engine: str,
    threads: int | None = None,
) -> tuple[DriftSchedule, float]:
    """The drift schedule that gives a keyframe about every ``interval`` frames on a clip, and its mean interval.

    Args:
        bundle: whose delta step tells how much of its keyframe holds.
        images: (H, W, 3) uint8 BGR frames of the clip, in order.
        interval: mean frames from keyframe to keyframe.
        longest: frames from keyframe to keyframe at most.
        backend, engine, threads: what runs the pair.

    Raises:
        EdgeSdkError: as :class:`edge_sdk.EdgeRunner`.
    """
    with EdgeRunner(
        bundle, backend=backend, engine=engine, schedule=ExternalSchedule(), threads=threads
    ) as runner:

        def tried(below: float) -> tuple[DriftSchedule, float, list[float]]:
            schedule = DriftSchedule(below=round(below, _DIGITS), max_interval=longest)
            plan, trusts = Replay(schedule, images), []
            runner.reset()
            for where in plan:
                if where.distance == 0:
                    runner.request_keyframe()
                trust = runner(images[where.index]).trust
                plan.told(trust)
                if trust is not None:
                    trusts.append(trust)
            return schedule, mean_interval(plan.planned), trusts

        # The least that can be asked for shows the trusts of states as old as they get.
        results = [tried(10**-_DIGITS)]
        low, high = min(results[0][2], default=0.0), 1.0
        for _ in range(_HALVINGS):
            middle = max((low + high) / 2, 10**-_DIGITS)
            results.append(tried(middle))
            low, high = (low, middle) if results[-1][1] < interval else (middle, high)
    schedule, mean, _ = min(results, key=lambda result: abs(result[1] - interval))
    return schedule, mean
