"""What tests of the live page share: answers without engines, and as much of a runner and a camera as is looked at."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from edge_sdk.errors import RecipeError
from edge_sdk.runtime.result import Result, StageTimes, StepKind
from edge_sdk.serve.watch import Watch
from edge_sdk.tasks import TaskSpec, task_from_spec
from edge_sdk.tasks.base import Segmentation

TOKEN = "0123456789abcdef"
TASK = task_from_spec(TaskSpec(classes=("dull", "blue")))


def answer(seq=0, ms=10.0, kind=StepKind.DELTA, age=1, at_s=100.0, captured_s=99.95):
    times = StageTimes(copy_in_ms=0.1, step_ms=ms - 0.2, decode_ms=0.1, total_ms=ms)
    mask = np.zeros((48, 64), np.uint8)
    return Result(Segmentation(mask), kind, seq, captured_s, at_s, age, times, TASK)


class FakeRunner:
    """As much of a runner as the page looks at."""

    def __init__(self, counts=None, failures=0):
        self.bundle = SimpleNamespace(manifest=SimpleNamespace(name='a "pair"'))
        self.engine = "onnxruntime-int8"
        self.keyframe_failures = failures
        self._counts = counts

    @property
    def counts(self):
        if self._counts is None:
            raise RecipeError("runner: it has no thread of its own to submit frames to.")
        return self._counts


def watch(source=None, runner=None, root=Path("/nowhere")):
    return Watch(runner or FakeRunner(), source, history=240, root=root)


def camera(stats=None, uri="rtsp://user:secret@10.0.0.9:554/live?key=secret#latency=200"):
    return SimpleNamespace(uri=uri, live=True, stats=stats)
