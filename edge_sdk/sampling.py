"""Which frames of a clip are seen."""

from __future__ import annotations

from typing import Literal

import numpy as np

from edge_sdk.errors import RecipeError

Sampling = Literal["uniform", "random", "first", "middle", "last", "first_middle_last"]


def sampled(kind: Sampling, length: int, k: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Indices of the ``k`` frames of a clip of ``length`` frames that are seen.

    - ``uniform``: i * length // k, what the device does (:class:`~edge_sdk.runtime.schedule.SampleSchedule`).
    - ``random``: any ``k`` frames, each choice of them equally likely.
    - ``first``, ``middle``, ``last``: ``k`` frames in a row.
    - ``first_middle_last``: a third of them from each place, each third in a row; where ``k`` is no multiple of 3, the
      first third has one more, and then the middle one.

    Args:
        kind: the sampling, one of those compared in arXiv 1902.10640.
        length: frames of the clip.
        k: frames to see, at least 1 and at most ``length``.
        rng: draws the ``random`` ones; the others need none.

    Returns:
        (k,) int64, ascending, no frame twice.

    Raises:
        RecipeError: there is no such sampling, ``k`` is out of range, or ``random`` has no generator.
    """
    if not 1 <= k <= length:
        raise RecipeError(f"'samples': expected 1 to {length}, the frames of a clip, got {k}.")
    if kind == "uniform":
        return np.arange(k, dtype=np.int64) * length // k
    if kind == "random":
        if rng is None:
            raise RecipeError("'sampling': random frames need a generator, got none.")
        return np.sort(rng.choice(length, k, replace=False)).astype(np.int64)
    starts = {"first": 0, "middle": (length - k) // 2, "last": length - k}
    if kind in starts:
        return starts[kind] + np.arange(k, dtype=np.int64)
    if kind == "first_middle_last":
        return _thirds(length, k)
    raise RecipeError(f"'sampling': expected one of {', '.join(Sampling.__args__)}, got {kind!r}.")  # type: ignore[attr-defined]


def _thirds(length: int, k: int) -> np.ndarray:
    first, middle, last = ((k + 2 - place) // 3 for place in range(3))
    # In a clip that is hardly longer than what is seen of it, the middle ones make room for the others.
    begin = min(max((length - middle) // 2, first), length - last - middle)
    rows = ((0, first), (begin, middle), (length - last, last))
    return np.concatenate([start + np.arange(count, dtype=np.int64) for start, count in rows])
