"""One stream of frames through the steps of a bundle."""

from __future__ import annotations

import time

import numpy as np

from edge_sdk.bundle import FRAME, Bundle, state_output
from edge_sdk.errors import FrameOrderError, ShapeError
from edge_sdk.runtime.engine import BoundStep, Buffer
from edge_sdk.runtime.result import Result, StageTimes, StepKind
from edge_sdk.runtime.schedule import Schedule
from edge_sdk.runtime.state import StreamState
from edge_sdk.runtime.steps import StepEngines
from edge_sdk.tasks import Prediction
from edge_sdk.video.frame import Frame

# ONNX Runtime plans its memory in the first run and uses the plan from the second on.
_WARM_UP_RUNS = 2
_MS_PER_NS = 1e-6


class Stream:
    """One stream's buffers, bound steps, state and schedule. For one thread at a time.

    Args:
        bundle: says what the tensors mean.
        engines: run the steps; they stay the caller's and other streams may use them too.
        schedule: a fresh one, this stream's own.
    """

    def __init__(self, bundle: Bundle, engines: StepEngines, schedule: Schedule) -> None:
        pair, allocate = engines.pair, engines.keyframe.allocate
        written = {spec.name for spec in engines.delta.outputs} if engines.delta is not None else set()
        rewritten = [spec.name for spec in pair.state if state_output(spec.name) in written]
        self.state = StreamState(pair.state, rewritten, lambda spec: allocate(spec, host=False))
        frame = allocate(bundle.manifest.frame)
        specs = {spec.name: spec for spec in pair.steps.keyframe.outputs}
        outputs = {name: allocate(specs[name]) for name in bundle.task.output_names}
        self._bind(engines, {FRAME: frame, **outputs})

        self._task = bundle.task
        self._schedule = schedule
        self._frame = frame.host
        self._shape, self._dtype = self._frame.shape, self._frame.dtype
        self._outputs = {name: _read_only(buffer.host) for name, buffer in outputs.items()}
        for step in (self._keyframe, *self._deltas) * _WARM_UP_RUNS:
            step.run()
        self.reset()

    def _bind(self, engines: StepEngines, shared: dict[str, Buffer]) -> None:
        """Both steps read one frame buffer and write one set of outputs; one delta binding a slot of the state."""
        self._keyframe = engines.keyframe.bind(shared | self.state.keyframe_buffers())
        self._deltas: tuple[BoundStep, ...] = ()
        if (delta := engines.delta) is not None:
            self._deltas = tuple(
                delta.bind(shared | self.state.delta_buffers(slot)) for slot in self.state.slots
            )

    def reset(self) -> None:
        """Be as a fresh stream: no state, no frame seen, the schedule at its start."""
        self.state.reset()
        self._schedule.reset()
        self._prediction: Prediction | None = None
        self._last_seq = -1
        self._requested = False

    def request_keyframe(self) -> None:
        """Make the next frame a keyframe; any thread may ask."""
        self._requested = True

    def __call__(self, frame: Frame | np.ndarray) -> Result:
        """Answer one frame; arguments, result and errors are those of ``EdgeRunner.__call__``."""
        started_ns = time.perf_counter_ns()
        if isinstance(frame, Frame):
            image, seq, captured_s = frame.image, frame.seq, frame.captured_s
        else:
            image, seq, captured_s = frame, self._last_seq + 1, time.monotonic()
        if not isinstance(image, np.ndarray) or image.shape != self._shape or image.dtype != self._dtype:
            raise self._wrong_frame(image)
        kind = self._decide(image, seq)
        copying_ns = time.perf_counter_ns()
        if kind is StepKind.SKIP and self._prediction is not None:
            prediction = self._prediction
            self.state.skipped()
            copied_ns = stepped_ns = ended_ns = copying_ns
        else:
            np.copyto(self._frame, image)
            copied_ns = time.perf_counter_ns()
            self._run(kind)
            stepped_ns = time.perf_counter_ns()
            prediction = self._prediction = self._task.decode(self._outputs)
            ended_ns = time.perf_counter_ns()
        self._last_seq = seq
        times = StageTimes(
            copy_in_ms=(copied_ns - copying_ns) * _MS_PER_NS,
            step_ms=(stepped_ns - copied_ns) * _MS_PER_NS,
            decode_ms=(ended_ns - stepped_ns) * _MS_PER_NS,
            total_ms=(ended_ns - started_ns) * _MS_PER_NS,
        )
        age = self.state.age
        return Result(prediction, kind, seq, captured_s, time.monotonic(), age, times, self._task)

    def _decide(self, image: np.ndarray, seq: int) -> StepKind:
        if seq == self._last_seq:
            raise FrameOrderError(
                f"frame: its seq is {seq}, as the last frame's; every frame is answered once.",
                hint="Give each frame a seq of its own, or call reset() before a new stream.",
            )
        needed = self._requested or not self.state.valid or seq != self._last_seq + 1
        self._requested = False
        kind = self._schedule.decide(image, None if needed else self.state.age + 1)
        return StepKind.KEYFRAME if needed else kind

    def _run(self, kind: StepKind) -> None:
        state = self.state
        try:
            if kind is StepKind.KEYFRAME:
                self._keyframe.run()
                state.keyframe_done()
            else:
                self._deltas[state.slot].run()
                state.delta_done()
        except BaseException:
            state.reset()  # half written: only a keyframe can follow
            raise

    def _wrong_frame(self, image: object) -> ShapeError:
        expected = f"{self._shape} {self._dtype}"
        if not isinstance(image, np.ndarray):
            return ShapeError(f"frame: expected a numpy array {expected}, got {type(image).__name__}.")
        height, width, _ = self._shape
        return ShapeError(
            f"frame: expected {expected} (BGR), got {image.shape} {image.dtype}.",
            hint=f"Give frames of {height} x {width}, or export a bundle for the camera's size.",
        )


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
