"""What ``edge-sdk run`` keeps of a run that may last for months, and what it says of a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.cli import run_summary
from edge_sdk.cli.output import plain
from edge_sdk.cli.run_summary import RunSummary, line_of
from edge_sdk.runtime.cuda.device import CudaReport
from edge_sdk.runtime.result import Result, StageTimes, StepKind
from edge_sdk.runtime.schedule import SampleSchedule
from edge_sdk.tasks import Classification, Segmentation, TaskSpec, task_from_spec

K, D, S = StepKind.KEYFRAME, StepKind.DELTA, StepKind.SKIP
TASK = task_from_spec(TaskSpec(classes=("low", "high")))


def result(kind: StepKind, ms: float, **times: Any) -> Result:
    stages = StageTimes(
        **{"copy_in_ms": 0.0, "copy_out_ms": 0.0, "decode_ms": 0.0, "step_ms": ms, **times}, total_ms=ms
    )
    return Result(Segmentation(np.zeros((2, 2), np.uint8)), kind, 0, 0.0, 0.0, 0, stages, TASK)


def summary_of(*results: Result) -> RunSummary:
    summary = RunSummary(bundle=Path("b"), source="camera:0", output=None, results=None)
    summary.start()
    for one in results:
        summary.add(one, draw_ms=0.0, write_ms=0.0)
    return summary


def text(summary: RunSummary) -> str:
    table, lines = summary.renderables()
    return f"{table.title}\n{lines}"


def test_a_clips_line_names_its_best_classes() -> None:
    task = task_from_spec(TaskSpec(kind="classification", classes=tuple(f"c{i}" for i in range(30))))
    scores = np.linspace(0, 1, 30, dtype=np.float32)
    scores[29] = np.nan
    line = line_of(replace(result(S, 0.0), prediction=Classification(scores), task=task))
    assert list(line["scores"])[:2] == ["c28", "c27"]
    assert line["scores"]["c28"] == pytest.approx(28 / 29, abs=1e-6)
    assert len(line["scores"]) == 20
    assert "share" not in line
    worst = Classification(np.full(30, np.nan, np.float32))
    line = line_of(replace(result(S, 0.0), prediction=worst, task=task))
    assert set(line["scores"].values()) == {None}  # JSON has no word for what is no number


def test_the_latency_of_clips_is_stated() -> None:
    summary = summary_of(result(K, 1.0), result(S, 0.0))
    assert summary.figures()["coverage"] is None
    assert "answers cover" not in text(summary)
    summary.coverage = SampleSchedule(length=60, samples=6).coverage(30.0)
    assert summary.figures()["coverage"] == {
        "frames": 60, "seconds": 2.0, "every_frames": 10, "every_s": pytest.approx(1 / 3), "from_start": True
    }  # fmt: skip
    assert "answers cover the clip so far, at most 60 frames (2 s), a new one every 10 frames" in text(
        summary
    )


def test_of_a_long_run_the_percentiles_are_of_its_last_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_summary, "_RECENT", 4)
    summary = summary_of(
        result(K, 1000.0),
        *(result(D, 100.0) for _ in range(96)),
        *(result(D, float(ms)) for ms in (1, 2, 3, 4)),
    )
    figures = summary.figures()
    assert figures["latency_ms"] == {
        "all": {
            "frames": 101,
            "mean": 10_610 / 101,
            "p50": 2.5,
            "p99": pytest.approx(3.97),
            "percentile_frames": 4,
        },
        # Of its own kind a rare step keeps its percentiles, however long ago it was.
        "keyframe": {"frames": 1, "mean": 1000.0, "p50": 1000.0, "p99": 1000.0, "percentile_frames": 1},
        "delta": {
            "frames": 100,
            "mean": 96.1,
            "p50": 2.5,
            "p99": pytest.approx(3.97),
            "percentile_frames": 4,
        },
    }
    assert (figures["frames"], figures["keyframes"], figures["deltas"], figures["skips"]) == (101, 1, 100, 0)
    assert figures["runner_frames_per_second"] == pytest.approx(101 / 10.61)
    assert figures["stages_ms"]["step"] == pytest.approx(10_610 / 101)
    assert "Latency of the runner; percentiles of the last 4 frames of each row" in text(summary)


def test_a_run_keeps_no_more_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_summary, "_RECENT", 8)
    summary = summary_of()
    one = result(D, 1.0)

    def held() -> int:
        times = [summary._all, summary._gpu, summary._answer_age, *summary._kinds.values()]
        return sum(len(kept._recent) for kept in times)

    for count in range(1, 1000):
        summary.add(one, draw_ms=0.0, write_ms=0.0)
        assert held() == 2 * min(count, 8)


def test_a_short_run_says_nothing_of_windows() -> None:
    summary = summary_of(result(K, 4.0), result(D, 2.0), result(S, 0.1))
    assert "percentiles of" not in text(summary)
    assert summary.figures()["latency_ms"]["all"] == {
        "frames": 3, "mean": pytest.approx(6.1 / 3), "p50": 2.0, "p99": pytest.approx(3.96), "percentile_frames": 3,
    }  # fmt: skip


def test_the_share_of_keyframes_and_what_held_of_them_are_told() -> None:
    quiet = summary_of(result(K, 4.0), result(D, 2.0), result(D, 2.0), result(S, 0.1))
    assert (quiet.figures()["keyframe_share"], quiet.figures()["trust"]) == (0.25, None)
    assert "4 frames: 1 keyframes (25.0%), 2 deltas, 1 skips" in text(quiet)
    assert "held of the keyframe" not in text(quiet)
    told = summary_of(
        result(K, 4.0), *(replace(result(D, 2.0), trust=trust) for trust in (1.0, 0.5, 0.75, 0.75))
    )
    assert told.figures()["trust"] == {
        "frames": 4, "mean": 0.75, "p1": pytest.approx(0.5075), "p10": pytest.approx(0.575), "p50": 0.75,
        "percentile_frames": 4,
    }  # fmt: skip
    assert (
        "what still held of the keyframe: mean 0.750, p50 0.750, p10 0.575, p1 0.507 of the deltas"
        in text(told)
    )
    assert line_of(replace(result(D, 2.0), trust=0.25))["trust"] == 0.25
    assert line_of(replace(result(D, 2.0), trust=float("nan")))["trust"] is None
    assert "trust" not in line_of(result(D, 2.0))


def test_before_the_first_frame_there_are_no_latencies() -> None:
    figures = summary_of().figures()
    assert (figures["latency_ms"], figures["gpu_ms"], figures["frames"]) == ({}, None, 0)


def test_on_a_cpu_nothing_is_said_of_a_gpu() -> None:
    summary = summary_of(result(K, 4.0), result(D, 2.0))
    figures = summary.figures()
    assert (figures["gpu_ms"], figures["device"]) == (None, None)
    assert figures["stages_ms"]["copy out"] == 0.0
    assert "copy out" not in text(summary)
    assert "GPU" not in text(summary)


def test_of_a_gpu_its_time_and_what_was_chosen_is_shown() -> None:
    gpu = {"copy_in_ms": 0.5, "step_ms": 3.0, "copy_out_ms": 0.25}
    summary = summary_of(
        result(K, 4.0, gpu_ms=3.0, **gpu), result(D, 4.0, gpu_ms=1.0, **gpu), result(S, 0.0, step_ms=0.0)
    )
    summary.device = CudaReport("Orin", "8.7", integrated=True)
    summary.device.memory, summary.device.memory_reason = "mapped", "the fastest for one frame in and out"
    summary.device.memory_ms = {"pinned": 0.4, "mapped": 0.2}
    summary.device.graphs = {"keyframe": "captured", "delta": "turned off"}
    figures = plain(summary.figures())
    assert figures["stages_ms"]["copy out"] == pytest.approx(0.5 / 3)
    # A skipped frame has no time on the GPU.
    assert figures["gpu_ms"] == {
        "frames": 2, "mean": 2.0, "p50": 2.0, "p99": pytest.approx(2.98), "percentile_frames": 2,
    }  # fmt: skip
    assert figures["device"]["memory"] == "mapped"
    assert figures["device"]["graphs"] == {"keyframe": "captured", "delta": "turned off"}
    shown = text(summary)
    assert "copy out 0.17" in shown
    assert "GPU time of a step: mean 2.00 ms, p50 2.00 ms, p99 2.98 ms" in shown
    assert (
        "GPU: Orin (8.7); memory: mapped (the fastest for one frame in and out); "
        "CUDA graphs: keyframe captured, delta turned off; priorities of streams: on"
    ) in shown
