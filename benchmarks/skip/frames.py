"""A gate for whole frames: a quiet frame keeps the last answer. Accuracy and time through EdgeRunner."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from cases import RUNS, Case, Stream, task_of, teacher_of
from layers import scored

from edge_sdk.bundle import Bundle
from edge_sdk.compile import ExportRecipe, export
from edge_sdk.distill.skip import SkipRecipe, SkipSettings
from edge_sdk.distill.skip.train import train_skip
from edge_sdk.evaluate.baselines import FlowRunner, flowed
from edge_sdk.evaluate.measure import Contender, flow_contender, measure, runner_contender
from edge_sdk.evaluate.metrics import plan
from edge_sdk.evaluate.replay import mean_interval, replay
from edge_sdk.evaluate.timing import Timing
from edge_sdk.progress import Progress
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import AlwaysSchedule, ChangeSchedule, EverySchedule, ScheduleSettings
from edge_sdk.tasks import Segmentation

Row = dict[str, Any]
REPEATS = 5
STRIDE = 8  # pixels from sample to sample of the change
THREADS = 1


def frame_rows(case: Case, stream: Stream, progress: Progress) -> list[Row]:
    """The teacher on every frame; per threshold the gate, and copy and flow with as many keyframes, evenly spread."""
    bundle = _teacher(case, stream, progress)
    gates = {t: ChangeSchedule(threshold=t, stride=STRIDE, between="skip") for t in case.changes}
    schedules: dict[str, ScheduleSettings] = {"teacher": AlwaysSchedule()}
    flows: dict[str, int] = {}
    for threshold, gate in gates.items():
        interval = max(round(mean_interval(replay(gate, stream.images))), 1)
        schedules[f"gate {threshold:g}"] = gate
        if interval > 1:
            schedules[f"copy K={interval}"] = EverySchedule(interval=interval, between="skip")
            flows[f"flow K={interval}"] = interval
    runners = {name: EdgeRunner(bundle, schedule=found, threads=THREADS) for name, found in schedules.items()}
    try:
        for runner in runners.values():
            runner.open()
        masks = {name: _masks(runner, stream) for name, runner in runners.items()}
        teacher = [Segmentation(mask) for mask in masks["teacher"]]
        for name, interval in flows.items():
            masks[name] = [m for _, m in flowed(plan(len(teacher), interval, 0), teacher, stream.images)]
        contenders: dict[str, Contender] = {n: runner_contender(r) for n, r in runners.items()}
        contenders |= {n: flow_contender(FlowRunner(runners["teacher"], k)) for n, k in flows.items()}
        tick = functools.partial(_told, progress, case.name)
        timings = measure(contenders, "teacher", stream.frames, REPEATS, tick)
    finally:
        for runner in runners.values():
            runner.close()
    return [
        {"name": name, **scored(stream, teacher, masks[name]), **_times(timings[name])} for name in timings
    ]


def pair_rows(case: Case, stream: Stream, progress: Progress) -> list[Row]:
    """Gated layers as they are exported, on a backend that computes closed pixels too, and the teacher beside them."""
    recipe = SkipRecipe.model_validate(
        {"out": RUNS / "input", "teacher": teacher_of(case), "task": task_of(), "skip": SkipSettings(eps=0.1)}
    )
    train_skip(recipe)
    height, width = stream.images[0].shape[:2]
    pair = export(
        ExportRecipe(
            out=RUNS / "input_bundle", checkpoint=RUNS / "input/student.pt", frame_hw=(height, width)
        ),
        progress=progress,
    )
    with (
        EdgeRunner(_teacher(case, stream, progress), schedule=AlwaysSchedule(), threads=THREADS) as alone,
        EdgeRunner(pair, schedule=EverySchedule(interval=10), threads=THREADS) as gated,
    ):
        teacher = [Segmentation(mask) for mask in _masks(alone, stream)]
        masks = {"teacher": [t.mask for t in teacher], "input norm, eps 0.1, K=10": _masks(gated, stream)}
        contenders = dict(zip(masks, (runner_contender(alone), runner_contender(gated)), strict=True))
        tick = functools.partial(_told, progress, case.name)
        timings = measure(contenders, "teacher", stream.frames, REPEATS, tick)
        state = {"state_mb": gated.state_bytes / 1e6}
    return [{"name": n, **scored(stream, teacher, masks[n]), **_times(timings[n]), **state} for n in timings]


def _teacher(case: Case, stream: Stream, progress: Progress) -> Bundle:
    height, width = stream.images[0].shape[:2]
    out = RUNS / f"{case.name.replace('/', '_')}_bundle"
    return export(ExportRecipe(out=out, checkpoint=case.teacher, frame_hw=(height, width)), progress=progress)


def _masks(runner: EdgeRunner, stream: Stream) -> list[np.ndarray]:
    runner.reset()
    # Copies: an answer is a view of memory that the next keyframe writes.
    return [runner(frame).mask.copy() for frame in stream.frames]


def _told(progress: Progress, name: str, stage: str, done: int, total: int) -> None:
    progress.update(f"{stage} {name}", done, total)


def _times(timing: Timing) -> Row:
    keyframes = sum(timing.keyframes)
    return {
        "keyframes": keyframes,
        "mean_ms": timing.mean_ms.median, "mean_ms_iqr": timing.mean_ms.iqr,
        "speedup": timing.speedup.median, "speedup_iqr": timing.speedup.iqr,
        "keyframe_ms": timing.keyframe_ms, "between_ms": timing.between_ms,
    }  # fmt: skip
