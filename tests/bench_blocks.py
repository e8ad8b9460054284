"""Bench documents of a few frames on a simulated clock, so that every figure of them can be worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from edge_sdk.bench.document import SUBJECT, BenchDocument, Row
from edge_sdk.bench.figures import Estimate
from edge_sdk.bench.samples import Block, FrameColumns, Mode, Start
from edge_sdk.runtime.schedule import EverySchedule
from tests.bench_world import make_document

# Of one degree of freedom, as all tables have it.
T1 = 12.7062


def block(
    kinds: str,
    total_ms: list[float],
    *,
    round: int = 0,
    row: str = SUBJECT,
    mode: Mode = "saturated",
    due_ms: list[float] | None = None,
    from_ms: float = 0.0,
    gpu_ms: tuple[float, ...] = (),
    dropped: int = 0,
    energy_j: float | None = None,
    yardstick_ms: float | None = None,
) -> Block:
    """Frames that wait for each other; the step is all of their time."""
    due, called, free = [], [], from_ms
    for place, total in enumerate(total_ms):
        due.append(free if due_ms is None else due_ms[place])
        called.append(max(free, due[-1]))
        free = called[-1] + total
    none = (0.0,) * len(kinds)
    return Block(
        row=row,
        round=round,
        mode=mode,
        dropped=dropped,
        energy_j=energy_j,
        yardstick_ms=yardstick_ms,
        frames=FrameColumns(
            kinds=kinds,
            seq=tuple(range(len(kinds))),
            due_ms=tuple(due),
            called_ms=tuple(called),
            copy_in_ms=none,
            step_ms=tuple(total_ms),
            copy_out_ms=none,
            decode_ms=none,
            total_ms=tuple(total_ms),
            gpu_ms=gpu_ms,
            state_age=(0,) * len(kinds),
        ),
    )


def start(round: int, **times: Any) -> Start:
    usual: dict[str, Any] = {
        "check_ms": 1.0, "load_ms": 2.0, "bind_ms": 3.0,
        "first_ms": {"keyframe": 40.0}, "second_ms": {"keyframe": 20.0},
    }  # fmt: skip
    return Start(round=round, **(usual | times))


def document_of(
    *blocks: Block, fps: float = 100.0, rows: tuple[str, ...] = (SUBJECT,), **parts: Any
) -> BenchDocument:
    world = make_document(rounds=1, periods=1)
    variants = {SUBJECT: "pair", "teacher": "teacher"}
    return BenchDocument(
        recipe=world.recipe,
        conditions=world.conditions,
        machine=world.machine,
        bundles=world.bundles,
        source=world.source.model_copy(update={"fps": fps}),
        rows=tuple(
            Row.model_validate(
                {
                    "name": row,
                    "variant": variants[row],
                    "engine": "float32",
                    "schedule": EverySchedule(interval=2),
                }
            )
            for row in rows
        ),
        blocks=blocks,
        **({"starts": (start(0),)} | parts),
    )


def near(
    estimate: Estimate | None, value: float, low: float | None = None, high: float | None = None
) -> bool:
    assert estimate is not None
    assert (estimate.low is None) == (low is None)
    found = [estimate.value] if low is None else [estimate.value, estimate.low, estimate.high]
    return found == pytest.approx([value] if low is None else [value, low, high], rel=1e-5)
