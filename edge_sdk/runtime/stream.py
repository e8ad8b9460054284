"""One stream of frames through the steps of a bundle."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence

import numpy as np

from edge_sdk.bundle import FRAME, Bundle, state_output
from edge_sdk.errors import FrameOrderError, RecipeError, ShapeError
from edge_sdk.runtime.background import BackgroundKeyframe
from edge_sdk.runtime.drift import ToldSchedule
from edge_sdk.runtime.engine import BoundStep, Buffer, DeviceTimes, Engine, Lane
from edge_sdk.runtime.learning import Learning, NewEngines
from edge_sdk.runtime.result import BareTime, Result, StageTimes, StepKind
from edge_sdk.runtime.schedule import Schedule
from edge_sdk.runtime.state import StreamState, read_only
from edge_sdk.runtime.steps import StepEngines, check_beside, warmed_up
from edge_sdk.tasks import Prediction
from edge_sdk.video.frame import Frame, Truth

_MS_PER_NS = 1e-6
# What a teacher's answer is learned from: that of a segmentation.
MASK = "mask"


class Stream:
    """One stream's buffers, bound steps, state and schedule. For one thread at a time.

    Args:
        bundle: says what the tensors mean.
        engines: run the steps; they stay the caller's and other streams may use them too.
        schedule: a fresh one, this stream's own.
        lane: where keyframes run beside the frames; None runs them in turn with the deltas.
        learning: is shown the keyframes' answers and brings engines with new weights; None where nothing is learned.

    Attributes:
        engines: what it began with; new weights bring others, see :meth:`bind_new`.
        state: what the next delta step reads.
        bind_ms: time for buffers and binding, in milliseconds.
        first_ms, second_ms: first and second run of ``"keyframe"``, ``"delta"`` and ``"background keyframe"``, in
            milliseconds.

    Raises:
        BundleError: keyframes are to run beside deltas that rewrite the state, or something learns that rewrites it.
    """

    def __init__(
        self,
        bundle: Bundle,
        engines: StepEngines,
        schedule: Schedule,
        lane: Lane | None = None,
        learning: Learning | None = None,
    ) -> None:
        began_ns = time.perf_counter_ns()
        self.engines = engines
        pair, allocate = engines.pair, engines.keyframe.allocate
        written = {spec.name for spec in engines.delta.outputs} if engines.delta is not None else set()
        rewritten = [spec.name for spec in pair.state if state_output(spec.name) in written]
        check_beside(rewritten, background=lane is not None, learning=learning is not None)
        # With keyframes beside the frames there are two banks: deltas read one while the keyframe writes the other. New
        # weights come with a state of their own in the same way.
        two = lane is not None or (learning is not None and bool(pair.state))
        self._banks = tuple(
            StreamState(pair.state, rewritten, lambda spec: allocate(spec, host=False))
            for _ in range(2 if two else 1)
        )
        frame = allocate(bundle.manifest.frame)
        specs = {spec.name: spec for spec in pair.steps.keyframe.outputs}
        outputs = {name: allocate(specs[name]) for name in bundle.task.output_names}
        beside: tuple[BoundStep, ...] = ()
        self._background: BackgroundKeyframe | None = None
        if lane is not None:
            beside, beside_frame, beside_answers = self._bind_background(bundle, engines, lane)
            self._background = BackgroundKeyframe(beside, beside_frame)
            self._beside = beside_frame.host, {name: b.host for name, b in beside_answers.items()}
        self._shared: dict[str, Buffer] = {FRAME: frame, **outputs}
        trust = engines.pair.trust if engines.delta is not None else None
        self._heard_in: dict[str, Buffer] = {} if trust is None else {trust.name: allocate(trust)}
        self._bind(engines)
        self.bind_ms = (time.perf_counter_ns() - began_ns) * _MS_PER_NS

        self._task = bundle.task
        self._schedule, self._learning = schedule, learning
        self._trust = next((buffer.host for buffer in self._heard_in.values()), None)
        self._told = schedule.told if isinstance(schedule, ToldSchedule) else None
        self._epoch = 0
        self._standby = threading.Lock()  # who holds it writes the bank that is not in use
        self._frame = frame.host
        self._shape, self._dtype = self._frame.shape, self._frame.dtype
        self._answers = {name: buffer.host for name, buffer in outputs.items()}
        self._outputs = {name: read_only(answer) for name, answer in self._answers.items()}
        deltas = tuple(step for bank in self._deltas for step in bank)
        self.first_ms, self.second_ms = warmed_up(
            {"background keyframe": beside, "keyframe": self._keyframes, "delta": deltas}
        )
        self.reset()

    def _bind(self, engines: StepEngines) -> None:
        """Both steps read one frame buffer and write one set of outputs; one delta binding a slot of each bank."""
        self._keyframes = self._bound_keyframes(engines.keyframe)
        delta = engines.delta
        self._deltas = tuple(() for _ in self._banks) if delta is None else self._bound_deltas(delta)

    def _bound_keyframes(self, engine: Engine) -> tuple[BoundStep, ...]:
        return tuple(engine.bind(self._shared | bank.keyframe_buffers()) for bank in self._banks)

    def _bound_deltas(self, engine: Engine) -> tuple[tuple[BoundStep, ...], ...]:
        return tuple(
            tuple(
                engine.bind(self._shared | self._heard_in | bank.delta_buffers(slot)) for slot in bank.slots
            )
            for bank in self._banks
        )

    def bind_new(self, keyframe: Engine | None, delta: Engine, seq: int, image: np.ndarray) -> NewEngines:
        """Bind engines with new weights to this stream's buffers, beside the frames; a backend's thread may do so.

        Where there is a state, it depends on the weights too: the new keyframe step makes it anew from the last
        keyframe's frame, in the bank that is not in use.

        Args:
            keyframe: None where the keyframe step has none of the new weights.
            delta: has run before, on buffers of its own: the first run of an engine is slow.
            seq, image: the last keyframe's frame, (H, W, 3) uint8 BGR.

        Raises:
            EngineError: the runtime failed.
        """
        deltas = self._bound_deltas(delta)
        engines = (delta,) if keyframe is None else (keyframe, delta)
        if keyframe is None:
            return NewEngines(None, deltas, None, seq, self._epoch, engines)
        keyframes = self._bound_keyframes(keyframe)
        bank = None
        with self._standby:
            epoch = self._epoch
            if len(self._banks) > 1:
                bank = 1 - self._bank
                frame = keyframe.allocate(self._shared[FRAME].spec)
                np.copyto(frame.host, image)
                answers = {name: keyframe.allocate(self._shared[name].spec) for name in self._answers}
                keyframe.bind({FRAME: frame, **answers, **self._banks[bank].keyframe_buffers()}).run()
        return NewEngines(keyframes, deltas, bank, seq, epoch, engines)

    def _bind_background(
        self, bundle: Bundle, engines: StepEngines, lane: Lane
    ) -> tuple[tuple[BoundStep, ...], Buffer, dict[str, Buffer]]:
        """The keyframe step on its own lane, one binding a bank, with the frame that they read and their answers."""
        engine = engines.background or engines.keyframe
        frame = engine.allocate(bundle.manifest.frame)
        answers = {
            spec.name: engine.allocate(spec)
            for spec in engines.pair.steps.keyframe.outputs
            if spec.name in bundle.task.output_names
        }
        steps = tuple(
            engine.bind({FRAME: frame, **answers, **bank.keyframe_buffers()}, lane) for bank in self._banks
        )
        return steps, frame, answers

    @property
    def state_bytes(self) -> int:
        """Bytes allocated for the state."""
        return sum(bank.size_bytes for bank in self._banks)

    @property
    def keyframe_failures(self) -> int:
        """Keyframes that failed beside the stream."""
        return 0 if self._background is None else self._background.failures

    def reset(self) -> None:
        """Be as a fresh stream: no state, no frame seen, the schedule at its start."""
        if self._background is not None:
            self._background.forget()
        with self._standby:
            self._epoch += 1
            for bank in self._banks:
                bank.reset()
            self._bank, self.state = 0, self._banks[0]
        self._schedule.reset()
        if self._learning is not None:
            self._learning.reset()
        self._keyframe_seq = -1
        self._prediction: Prediction | None = None
        self._last_seq = -1
        self._requested = False
        self._start_due = False

    def close(self) -> None:
        """Wait for what runs beside the frames."""
        if self._background is not None:
            self._background.close()

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
            prediction, device = self._prediction, None
            self.state.skipped()
            copied_ns = stepped_ns = ended_ns = copying_ns
        else:
            np.copyto(self._frame, image)
            copied_ns = time.perf_counter_ns()
            device = self._answer(kind, seq, frame.truth if isinstance(frame, Frame) else None)
            stepped_ns = time.perf_counter_ns()
            prediction = self._prediction = self._task.decode(self._outputs)
            ended_ns = time.perf_counter_ns()
        self._last_seq = seq
        if self._start_due and self._background is not None:
            # Only now: this frame's answer does not share the machine with the teacher, and until the next frame
            # comes there is time that nobody uses.
            self._start_due = False
            self._background.start(image, seq, 1 - self._bank)
        copy_in_ms, step_ms = (copied_ns - copying_ns) * _MS_PER_NS, (stepped_ns - copied_ns) * _MS_PER_NS
        copy_out_ms, gpu_ms = 0.0, None
        if device is not None:
            copy_in_ms += device.upload_ms
            copy_out_ms, gpu_ms = device.download_ms, device.compute_ms
            step_ms -= device.upload_ms + copy_out_ms
        decode_ms, total_ms = (ended_ns - stepped_ns) * _MS_PER_NS, (ended_ns - started_ns) * _MS_PER_NS
        times = StageTimes(copy_in_ms, step_ms, copy_out_ms, decode_ms, total_ms, gpu_ms)
        trust = None if self._trust is None else self._heard(kind, self._trust)
        age = self.state.age
        return Result(prediction, kind, seq, captured_s, time.monotonic(), age, times, self._task, trust)

    def _heard(self, kind: StepKind, trust: np.ndarray) -> float | None:
        """What the delta step of this frame told of its keyframe; the schedule hears it too."""
        if kind is not StepKind.DELTA:
            return None
        if self._told is not None:
            self._told(float(trust), self.state.age)
        return float(trust)

    def _answer(self, kind: StepKind, seq: int, truth: Truth | None) -> DeviceTimes | None:
        """Run the step, or take a recorded teacher's answer; what is learned from it is the learner's to say."""
        learning = self._learning
        if kind is not StepKind.KEYFRAME or learning is None:
            return self._run(kind)
        label = learning.label(seq, truth)
        if label is None:
            device = self._run(kind)
        else:
            device = None
            np.copyto(self._answers[MASK], label)
            self.state.keyframe_done()
        self._keyframe_seq = seq
        if learning.keyframe(seq, self._frame, self._outputs[MASK]):
            self._take_weights(learning)
            step = self._deltas[self._bank][self.state.slot]
            step.run()
            device = step.device_times
        return device

    def _take_weights(self, learning: Learning) -> None:
        """Go on with engines that have new weights, where there are any."""
        new = learning.collect()
        if new is None:
            return
        self._deltas = new.deltas
        if new.keyframes is not None:
            self._keyframes = new.keyframes
            state = self.state
            fresh = (new.epoch, new.keyframe_seq) == (self._epoch, self._keyframe_seq)
            if new.bank is not None and fresh and state.valid:
                self._bank, self.state = new.bank, self._banks[new.bank]
                self.state.taken_over(state.age)
            elif new.bank is not None:
                state.reset()  # other weights made it: a keyframe has to follow
        learning.took(new)

    def time_bare(self, kinds: Sequence[StepKind]) -> list[BareTime]:
        """Run the bound steps alone; arguments, result and errors are those of ``EdgeRunner.time_bare``."""
        if self._background is not None:
            self._background.wait()
        state = self.state
        steps, slot = self._bare(kinds)
        times = []
        try:
            for kind, step in zip(kinds, steps, strict=True):
                began_ns = time.perf_counter_ns()
                step.run()
                ended_ns = time.perf_counter_ns()
                device = step.device_times
                gpu_ms = None if device is None else device.compute_ms
                times.append(BareTime(kind, (ended_ns - began_ns) * _MS_PER_NS, gpu_ms))
        except BaseException:
            state.reset()
            raise
        # Age and validity stay as the frames left them, so the schedule goes on as if nothing had been run.
        state.slot = slot
        return times

    def _bare(self, kinds: Iterable[StepKind]) -> tuple[list[BoundStep], int]:
        """The steps to run for ``kinds``, one after another, and the slot that they leave the state in."""
        deltas = self._deltas[self._bank]
        known, slot = self.state.valid, self.state.slot
        steps: list[BoundStep] = []
        for kind in kinds:
            if kind is StepKind.KEYFRAME:
                steps.append(self._keyframes[self._bank])
                known, slot = True, 0
                continue
            if kind is not StepKind.DELTA:
                raise RecipeError(f"time_bare: expected keyframe or delta steps, got {kind!r}.")
            if not deltas:
                raise RecipeError("time_bare: no delta step is loaded.", hint="Use a schedule with deltas.")
            if not known:
                raise RecipeError(
                    "time_bare: a delta step reads a keyframe's state, and there is none yet.",
                    hint="Give a frame first, or begin with StepKind.KEYFRAME.",
                )
            steps.append(deltas[slot])
            slot = (slot + 1) % len(deltas)
        return steps, slot

    def _decide(self, image: np.ndarray, seq: int) -> StepKind:
        if seq == self._last_seq:
            raise FrameOrderError(
                f"frame: its seq is {seq}, as the last frame's; every frame is answered once.",
                hint="Give each frame a seq of its own, or call reset() before a new stream.",
            )
        if self._learning is not None:
            self._take_weights(self._learning)
        missed = seq - self._last_seq - 1
        broken = not self.state.valid or (missed != 0 and not (missed > 0 and self._schedule.lost(missed)))
        if not broken:
            self.state.skipped(missed)
        background = self._background
        if background is not None:
            if broken:
                background.forget()
            self._take_over(background)
        needed = broken or (self._requested and background is None)
        age = None if needed or self._requested else self.state.age + 1
        kind = self._schedule.decide(image, age)
        if needed or background is None:
            self._requested = False
            return StepKind.KEYFRAME if needed else kind
        if (kind is StepKind.KEYFRAME or self._requested) and not background.running:
            self._requested = False
            if background.failed:
                return StepKind.KEYFRAME  # in turn, so that what is wrong reaches the caller
            self._start_due = True
        return kind if kind is StepKind.SKIP else StepKind.DELTA

    def _take_over(self, background: BackgroundKeyframe) -> None:
        """Go on with the state of a keyframe that has finished; it is as old as the frame it was taken from."""
        found = background.collect()
        if found is not None:
            self._bank, seq = found
            self.state = self._banks[self._bank]
            self.state.taken_over(self._last_seq - seq)
            if self._learning is not None:
                image, answers = self._beside
                self._keyframe_seq = seq
                self._learning.keyframe(seq, image, answers[MASK])

    def _run(self, kind: StepKind) -> DeviceTimes | None:
        state = self.state
        try:
            if kind is StepKind.KEYFRAME:
                step = self._keyframes[self._bank]
                step.run()
                state.keyframe_done()
            else:
                step = self._deltas[self._bank][state.slot]
                step.run()
                state.delta_done()
            return step.device_times
        except BaseException:
            state.reset()  # half written: only a keyframe can follow
            self._start_due = False
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
