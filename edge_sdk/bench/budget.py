"""Budgets: what a run may cost and must be worth, and which of them a run has broken."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from edge_sdk.settings import Settings

if TYPE_CHECKING:
    from edge_sdk.bench.document import BenchDocument
    from edge_sdk.bench.findings import Breach
    from edge_sdk.bench.recipe import BenchRecipe


class Relative(Settings):
    """A limit that hangs on the same figure of another row of the same run.

    The limit is ``factor`` times the other row's figure, and ``offset`` beyond that on the side that allows more.

    Args:
        of: name of the row.
        factor: share of its figure.
        offset: in the unit of the figure.
    """

    of: str = Field(min_length=1)
    factor: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    offset: float = Field(default=0.0, ge=0, allow_inf_nan=False)


def times(factor: float, of: str = "teacher") -> Relative:
    """At most (of accuracy: at least) ``factor`` times the figure of the row ``of`` in the same run."""
    return Relative(factor=factor, of=of)


def within(offset: float, of: str = "teacher") -> Relative:
    """At most ``offset`` worse than the figure of the row ``of`` in the same run, in the figure's own unit."""
    return Relative(offset=offset, of=of)


def _number(value: Any) -> Any:
    """Refuse here whatever is no number, with one sentence instead of one for each type that it could have been."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise ValueError("expected a number of at least 0")
    return value


def _share(value: Any) -> Any:
    if _number(value) > 1:
        raise ValueError("expected a share of 0 to 1")
    return value


def _either(value: Any) -> Any:
    if isinstance(value, Relative | dict):
        return value
    try:
        return _number(value)
    except ValueError as error:
        raise ValueError(
            f'{error}, or one relative to a row of the run, such as times(0.6, "teacher")'
        ) from None


def _share_or_relative(value: Any) -> Any:
    return value if isinstance(value, Relative | dict) else _share(value)


_Absolute = Annotated[float | None, BeforeValidator(_number)]
_Limit = Annotated[Relative | float | None, BeforeValidator(_either)]
_Share = Annotated[float | None, BeforeValidator(_share)]
_Accuracy = Annotated[Relative | float | None, BeforeValidator(_share_or_relative)]


class Budget(Settings):
    """Limits of one run; None where there is none. All are of the row ``"subject"``.

    A number is a limit by itself; ``times(0.6, "teacher")`` and ``within(0.01, "teacher")`` are limits relative to
    another row of the same run, which hold on machines that are now fast and now slow.

    Where a figure comes from:

    - Latency against a number is what a user waits for: the age at delivery, at camera pace, where the run has blocks
      at camera pace, else the time from call to answer, saturated.
    - Latency against another row is the time from call to answer of both, **saturated**, because only saturated are
      all rows run by turns. Its interval is that of the ratio within rounds, in which slow spells of the machine
      cancel.
    - Energy is taken at camera pace where it was measured there; relative to another row, saturated.

    Args:
        p50_ms, p90_ms, p99_ms, p999_ms, max_ms, mean_ms: latency of all frames, in milliseconds.
        keyframe_p99_ms, delta_p99_ms: 99th percentile of one kind of frame, in milliseconds; relative to a row that
            has no such frames (the teacher has no deltas), all frames of that row count.
        jitter_p99_ms: 99th percentile of the distance of the interval between two answers from the camera's period.
        miss_rate: share of frames at camera pace answered after their deadline or never, 0-1.
        dropped: frames at camera pace that were never answered, over the whole run.
        memory_bytes: most resident memory of this process during the run: baselines, the frames of the clip and
            whatever else this process holds (a test session, torch) are in it.
        memory_growth_bytes_per_hour: slope of the same.
        device_memory_bytes: most memory in use on the GPU, of all processes where the driver does not tell them apart.
        own_cost_ms: what the runner adds to the bare engine, median of a frame.
        energy_mj: millijoules a frame.
        min_fps: answered frames a second, saturated.
        min_miou: mean intersection over union with the labels, 0-1.
        min_agreement: the same with the float32 teacher's answers as truth.
    """

    p50_ms: _Limit = None
    p90_ms: _Limit = None
    p99_ms: _Limit = None
    p999_ms: _Limit = None
    max_ms: _Limit = None
    mean_ms: _Limit = None
    keyframe_p99_ms: _Limit = None
    delta_p99_ms: _Limit = None
    jitter_p99_ms: _Absolute = None
    miss_rate: _Share = None
    dropped: _Absolute = None
    memory_bytes: _Absolute = None
    memory_growth_bytes_per_hour: _Absolute = None
    device_memory_bytes: _Absolute = None
    own_cost_ms: _Absolute = None
    energy_mj: _Limit = None
    min_fps: _Absolute = None
    min_miou: _Accuracy = None
    min_agreement: _Accuracy = None

    def limits(self) -> dict[str, float | Relative]:
        """Those that are set, by name, in the order of the class."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in values.items() if value is not None}


def check(document: BenchDocument, budget: Budget) -> tuple[Breach, ...]:
    """What of ``budget`` a run has broken, in the order of :class:`Budget`; empty where it holds.

    The figure itself decides, not its interval; a breach says whether the interval reaches within the limit. A run
    whose verdict is ``invalid`` is a breach by itself, the first, with the verdict's reason.

    Raises:
        RecipeError: the run has no figure for a budget; the message says why, and how to get it.
    """
    from edge_sdk.bench.judge import breaches, judge

    figures = document.figures
    return breaches(document, figures, judge(document, figures, budget))


def check_recipe(recipe: BenchRecipe, budget: Budget) -> None:
    """Refuse before a run what it could not tell after it.

    Raises:
        RecipeError: a budget needs a baseline or a clip that ``recipe`` leaves out.
    """
    from edge_sdk.bench.judge import refuse_early

    refuse_early(recipe, budget)
