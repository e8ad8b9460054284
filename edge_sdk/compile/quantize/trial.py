"""Running step graphs that are not in a bundle yet, to find out what a change to them costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from edge_sdk.evaluate.clip import Clip
from edge_sdk.manifest import FRAME, is_state, state_input, state_name
from edge_sdk.optional import require
from edge_sdk.runtime.onnxruntime import session_settings
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.schedule import ScheduleSettings
from edge_sdk.tasks import Prediction, Task


def session_of(model: onnx.ModelProto) -> Any:
    """An ONNX Runtime session on the CPU for a graph in memory."""
    ort = require("onnxruntime", "trying out quantised graphs")
    return ort.InferenceSession(
        model.SerializeToString(), session_settings(ort), providers=["CPUExecutionProvider"]
    )


class PairTrial:
    """A pair's graphs run frame after frame.

    Args:
        graphs: by step, in any precision.
    """

    def __init__(self, graphs: Mapping[str, onnx.ModelProto]) -> None:
        self._sessions = {step: session_of(model) for step, model in graphs.items()}
        self._outputs = {step: [node.name for node in s.get_outputs()] for step, s in self._sessions.items()}

    def stream(
        self, images: Sequence[np.ndarray], schedule: ScheduleSettings
    ) -> Iterator[dict[str, np.ndarray]]:
        """The task outputs for each image, (H, W, 3) uint8 BGR; a skipped one has those before it."""
        state: dict[str, np.ndarray] = {}
        answer: dict[str, np.ndarray] = {}
        running = schedule.start()
        age: int | None = None
        for image in images:
            age = None if age is None else age + 1
            kind = running.decide(image, age)
            if kind is not StepKind.SKIP:
                step = kind.value
                feeds = {FRAME: np.ascontiguousarray(image), **(state if step == "delta" else {})}
                found = self._sessions[step].run(None, feeds)
                given = dict(zip(self._outputs[step], found, strict=True))
                state |= {state_input(state_name(k)): value for k, value in given.items() if is_state(k)}
                answer = {name: value for name, value in given.items() if not is_state(name)}
            age = 0 if kind is StepKind.KEYFRAME else age
            yield answer


def score_of(
    graphs: Mapping[str, onnx.ModelProto],
    clip: Clip,
    truths: Sequence[Prediction | None],
    task: Task,
    schedule: ScheduleSettings,
) -> float:
    """The task's score, 0-1, of a pair over a clip.

    Args:
        graphs: by step.
        clip: frames.
        truths: what is right for each frame; None where nobody knows.
        task: reads and scores the outputs.
        schedule: which frames are keyframes, deltas or skipped.
    """
    score = task.score()
    for outputs, truth in zip(PairTrial(graphs).stream(clip.images, schedule), truths, strict=True):
        if truth is not None:
            score.update(task.decode(outputs), truth)
    return score.headline()[1]


def answers_of(
    graphs: Mapping[str, onnx.ModelProto], clip: Clip, task: Task, schedule: ScheduleSettings
) -> list[Prediction]:
    """The pair's own predictions over a clip."""
    return [task.decode(outputs).copy() for outputs in PairTrial(graphs).stream(clip.images, schedule)]
