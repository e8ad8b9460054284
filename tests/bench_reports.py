"""Bench documents that are hard to draw."""

from __future__ import annotations

import numpy as np

from edge_sdk.bench.document import SUBJECT, BenchDocument, Row
from edge_sdk.bench.samples import FrameColumns
from edge_sdk.runtime.schedule import EverySchedule
from tests.bench_world import make_document

ENGINES = {"float32": 1.0, "tensorrt-float16": 0.7, "tensorrt-int8": 0.45}
INTERVALS = (2, 3, 5, 8, 10, 15, 20, 30)


def many_rows() -> BenchDocument:
    """Three precisions in eight intervals beside the baselines."""
    document = make_document(periods=6)
    rng = np.random.default_rng(1)
    rows, blocks = list(document.rows), list(document.blocks)
    subject = [block for block in blocks if (block.row, block.mode) == (SUBJECT, "saturated")]
    for engine, factor in ENGINES.items():
        for interval in INTERVALS:
            name = f"K={interval} {engine}"
            score = 0.58 - 0.004 * interval**0.8 - (0.01 if "int8" in engine else 0)
            rows.append(
                Row(
                    name=name,
                    variant="pair",
                    engine=engine,
                    schedule=EverySchedule(interval=interval),
                    labels=score,
                    agreement=score + 0.3,
                )
            )
            for block in subject:
                mean = factor * (20 + 8 * (interval - 1)) / interval
                times = mean * np.exp(rng.normal(0, 0.05, len(block.frames)))
                frames = block.frames.model_copy(update={"total_ms": tuple(times.tolist())})
                blocks.append(block.model_copy(update={"row": name, "frames": frames}))
    return document.model_copy(update={"rows": tuple(rows), "blocks": tuple(blocks)})


def long_run(periods: int = 400, rounds: int = 3) -> BenchDocument:
    """Rare stalls that others wait behind, dropped frames, many sensors, heat, throttling and growing memory."""
    document = make_document(rounds=rounds, periods=periods, rows=(SUBJECT, "teacher"), seed=3)
    rng = np.random.default_rng(2)
    blocks = tuple(_stalled(block, rng) if block.mode == "camera" else block for block in document.blocks)
    last_ms = document.readings[-1].at_ms
    readings = tuple(
        reading.model_copy(
            update={
                "clock_mhz": {f"cpu{core}": 1800.0 - 900 * (rng.random() < 0.2) for core in range(6)}
                | {"gpu": 900.0},
                "temperature_c": {
                    "cpu-thermal": 50 + 8 * share + float(rng.normal(0, 0.3)),
                    "gpu-thermal": 48 + 7 * share,
                    "soc0-thermal": 51.0,
                    "soc1-thermal": 50.5,
                    "tj": 58 + share,
                    "board": 30.0,
                },
                "throttled": ("gpu: thermal",) if 0.5 < share < 0.55 else (),
                "rss_bytes": int(100e6 + share * 3e6 + rng.normal(0, 1e5)),
                "device_bytes": 1_500_000_000,
            }
        )
        for reading in document.readings
        for share in (reading.at_ms / last_ms,)
    )
    return document.model_copy(update={"blocks": blocks, "readings": readings})


def _stalled(block, rng):
    """One frame in 200 stalls, one in 300 is dropped."""
    frames = block.frames
    stall = np.where(rng.random(len(frames)) < 1 / 200, rng.exponential(60, len(frames)), 0.0)
    total = np.array(frames.total_ms) + stall
    called, free_ms = [], 0.0
    for due, spent in zip(frames.due_ms, total):
        called.append(max(free_ms, due))
        free_ms = called[-1] + float(spent)
    kept = rng.random(len(frames)) > 1 / 300
    kept[0] = kept[-1] = True
    columns = {name: np.array(getattr(frames, name)) for name in type(frames).model_fields if name != "kinds"}
    columns |= {"called_ms": np.array(called), "total_ms": total, "step_ms": columns["step_ms"] + stall}
    cut = {name: tuple(column[kept].tolist()) if len(column) else () for name, column in columns.items()}
    kinds = "".join(kind for kind, keep in zip(frames.kinds, kept) if keep)
    return block.model_copy(
        update={"frames": FrameColumns(kinds=kinds, **cut), "dropped": int((~kept).sum())}
    )
