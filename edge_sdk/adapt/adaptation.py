"""Learning on a stream: lessons to the trainer's process, its answers made into engines, probed, and handed over.

Who does what:

- the thread that runs the frames calls what :class:`edge_sdk.runtime.learning.Learning` lists; none of it waits, unless
  learning is in turn;
- a worker thread waits for the trainer, and prepares and probes engines, see :mod:`edge_sdk.adapt.teaching`;
- the trainer learns, in a process of its own;
- one more thread writes the log and the state, see :mod:`edge_sdk.adapt.ledger`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_sdk.adapt.given import FrameCopies, Given
from edge_sdk.adapt.journal import Event
from edge_sdk.adapt.keep import Learnt, keep_bundle, now
from edge_sdk.adapt.ledger import AdaptStatus, Ledger, TrainerState
from edge_sdk.adapt.prepare import Preparation, Prepared, learning_cores
from edge_sdk.adapt.process import TRAINER
from edge_sdk.adapt.recorded import RecordedMasks
from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.adapt.stride import StrideSchedule
from edge_sdk.adapt.teaching import Outcome, Teaching
from edge_sdk.adapt.worker import Worker
from edge_sdk.bundle import FLOAT32, Bundle
from edge_sdk.errors import BundleError, ClosedError, RecipeError, TrainerError
from edge_sdk.runtime.engine import Backend, Engine, EngineOptions
from edge_sdk.runtime.learning import Learning, NewEngines
from edge_sdk.video.frame import Truth

if TYPE_CHECKING:
    from edge_sdk.runtime.stream import Stream

__all__ = ["AdaptStatus", "Adaptation"]


class Adaptation(Learning):
    """One stream's learner. Made by the runner; in an app it is ``runner.adaptation`` while the runner is open.

    Args:
        bundle: opened and checked; its manifest says what a trainer needs.
        backend: loads the new engines; the one that loaded those in use.
        options: how those in use were loaded.
        settings: of the adaptation.
        source_name: where frames come from, for the log and for where kept weights came from.
        engine: the engine set in use, ``"float32"`` for the exported graphs.
        on_event: called with every event that goes to the log, on a thread of the learner's; it must be quick. What it
            raises is logged.
        trainer: module that is run as the trainer's process.

    Attributes:
        schedule: decides about teacher frames.
        learning_cores: the CPU cores that learning stays on; empty where the machine cannot say.

    Raises:
        BundleError: the bundle cannot learn.
        RecipeError: the process has fewer cores than learning is to have, or the state is another bundle's.
        MissingFileError, VideoError: the folder of recorded masks is not there, or holds none.
        FileFormatError: the state is damaged.
        OutputError: the state folder cannot be written, or another process holds it.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        options: EngineOptions,
        settings: AdaptSettings,
        source_name: str = "",
        *,
        engine: str = FLOAT32,
        on_event: Callable[[Event], None] | None = None,
        trainer: str = TRAINER,
    ) -> None:
        self.bundle, self.settings, self.source_name = bundle, settings, source_name
        self._in_turn, self._trainer = settings.pace == "in_turn", trainer
        self.learning_cores = learning_cores(settings)
        self._preparation = Preparation(bundle, backend, options, engine, self.learning_cores)
        masks, values = settings.teacher, settings.teacher_labels
        self._recorded = None if masks is None else RecordedMasks(masks, bundle.size_hw, values)
        self.schedule = StrideSchedule(settings.stride, settings.threshold, self._is_busy)
        self._copies = FrameCopies(bundle.size_hw, bool(self._preparation.pair.state))
        self._teaching: Teaching | None = None
        self._stream: Stream | None = None
        # Where learning stands for the stream's thread, the only one that changes it. Whatever happens beside, it
        # changes in collect and keyframe alone: never between a decision and the keyframe that follows from it.
        self._is_ready = self._is_learning = self._closed = False
        self._given: Given | None = None
        self._taking: Outcome | None = None
        self._epoch, self._began = 0, now()
        self._ledger = Ledger(bundle, settings, source_name, on_event)
        self._worker = Worker(self._ledger)

    def attach(self, stream: Stream) -> None:
        """Start the trainer, and go on from the kept state where there is one; does not wait for the trainer.

        Raises:
            BundleError: nothing in the engines in use is left open, and ``swap`` is ``refit``; or there is no delta
                step.
            EngineError: the backend refuses the kept weights.
            MissingFileError: they are not whole.
        """
        engines, worker = stream.engines, self._worker
        if engines.delta is None:
            raise BundleError("adapt: the stream runs without the delta step, there is no student to learn.")
        self._stream = stream
        self._teaching = teaching = Teaching(
            self.bundle, self.settings, self._preparation, {"keyframe": engines.keyframe, "delta": engines.delta},
            self._ledger.folder_of, self.learning_cores, self._trainer, lambda: worker.closing,
        )  # fmt: skip
        session = self._ledger.session
        if session is not None:
            self.schedule.restore(session.stride)
            if session.version:
                worker.offer(teaching.resume(session.version, self._bind))
        self._ledger.began()
        worker.run(teaching, self._bind)

    # What the stream calls.

    def collect(self) -> NewEngines | None:
        """New engines that have passed the probe, once; never waits."""
        outcome, self._taking = self._taking or self._worker.outcome(), None
        if outcome is None:
            if not self._is_learning:
                self._is_ready = self._worker.ready
            return None
        if outcome.taken is None:
            self._settle(outcome)
            return None
        self._taking = outcome
        return outcome.taken.engines

    def took(self, engines: NewEngines) -> None:
        """The stream uses ``engines`` from now on; those of before are closed, and the trainer may learn on."""
        outcome, self._taking = self._taking, None
        if outcome is None or outcome.taken is None or self._teaching is None:
            raise RuntimeError("engines were taken that nobody gave")
        old = self._teaching.take(outcome.taken)
        self._worker.retire(old)
        self._settle(outcome)

    def _settle(self, outcome: Outcome) -> None:
        """A lesson is over; there may be another."""
        given = self._given
        if outcome.agreement is not None and given is not None and given.epoch == self._epoch:
            self.schedule.observe(outcome.agreement)
        self._ledger.lesson_over(outcome, given, self.schedule.state, self._version)
        self._is_learning, self._is_ready = False, self._worker.ready
        self._worker.woken()

    def label(self, seq: int, truth: Truth | None) -> np.ndarray | None:
        """The recorded teacher's answer, (H, W) uint8; None where the bundle's teacher is to be run.

        Raises:
            MissingFileError, VideoError: the recorded mask is not there, or is of another size.
            RecipeError: the source's labels are the teacher's, and this frame has none.
        """
        if self._recorded is not None:
            return self._recorded.mask(seq)
        if not self.settings.truth:
            return None
        if truth is None or truth.mask is None:
            raise RecipeError(
                f"adapt: 'truth' asks for the source's labels, and frame {seq} has none.",
                hint="Give a source with labels, or a folder of masks as 'teacher'.",
            )
        return truth.mask

    def keyframe(self, seq: int, image: np.ndarray, mask: np.ndarray) -> bool:
        """Learn from a teacher frame, unless a lesson is under way; with ``pace="in_turn"`` it waits for the outcome.

        Args:
            seq: the frame's number.
            image: (H, W, 3) uint8 BGR.
            mask: (H, W) uint8, the teacher's.

        Returns:
            Whether the student is to answer this frame in the teacher's place.

        Raises:
            TrainerError: learning is in turn, and has stopped.
        """
        if self._in_turn and not self._closed:
            self._worker.wait_ready()
            self._check_going()
            self._is_ready = True
        self._copies.keyframe(seq, image)
        learns = self._trainer_state == "idle"
        state = self.schedule.state
        self._ledger.teacher_frame(seq, state.stride, self._version, lesson=learns)
        if learns:
            self._is_learning = True
            self._given = given = self._copies.give(seq, image, mask, state.frame, self._epoch)
            self._worker.give(given)
            if self._in_turn:
                self._worker.wait_outcome()
                self._check_going()
                self._taking = self._worker.outcome()
                if self._taking is not None and self._taking.taken is None:
                    self._settle(self._taking)
                    self._taking = None
        return self.settings.answer == "student"

    def _check_going(self) -> None:
        if self._worker.stopped:
            raise TrainerError(
                f"adapt: learning in turn has stopped: {self._worker.stopped}",
                hint="Repair that, or learn with pace 'beside', where the stream goes on.",
            )

    def reset(self) -> None:
        """A new stream begins: the stride is at its minimum again; weights stay as they are.

        Before the first frame after a resume the kept stride stays: it is that stream that goes on.
        """
        self._epoch += 1
        session = self._ledger.session
        if session is not None and self._given is None and not self._copies.any_keyframe:
            self.schedule.restore(session.stride)

    def close(self) -> None:
        """End the trainer and the worker, and keep the state where one is kept; closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        teaching, replaced = self._teaching, list[Engine]()
        if teaching is not None and teaching.process.learning:
            self._worker.closing = True
            teaching.process.kill()  # its lesson is of no use any more
        self._worker.close()
        if teaching is not None:
            teaching.process.close()
            outcome = self._taking or self._worker.outcome()
            if outcome is not None:  # too late for a frame, but a restart goes on from there
                if outcome.taken is not None:
                    replaced += teaching.take(outcome.taken)
                self._settle(outcome)
            self._ledger.save(self.schedule.state, teaching.version)
            for engine in (*replaced, *teaching.in_use.values()):
                engine.close()
        self._ledger.close()

    # What anybody may call.

    def wait_idle(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is under way beside the stream; what came of a lesson is taken with the next frame.

        Returns:
            Whether it came to that within ``timeout_s`` seconds.
        """
        return self._worker.wait_idle(lambda: self._is_learning and self._taking is None, timeout_s)

    def status(self) -> AdaptStatus:
        """Where learning stands; any thread may ask."""
        state = self.schedule.state
        return replace(
            self._ledger.counts, trainer=self._trainer_state, version=self._version, stride=state.stride,
            frames=state.frame,
        )  # fmt: skip

    def keep(self, out: str | Path, sign_key: str | Path | None = None, release: int | None = None) -> Bundle:
        """Write a bundle with the weights in use, see :func:`edge_sdk.adapt.keep.keep_bundle`; any thread may.

        Args:
            out: the folder to make.
            sign_key: file of the private key to sign with; None leaves it unsigned.
            release: number of the release that is signed; None for one more than the base bundle's.

        Raises:
            ClosedError: learning has ended.
            EdgeSdkError: as :func:`edge_sdk.adapt.keep.keep_bundle`.
        """
        if self._closed or self._teaching is None:
            raise ClosedError("adapt: learning has ended.", hint="Keep a bundle while the runner is open.")
        status = self.status()
        with tempfile.TemporaryDirectory(prefix="edge-sdk-keep-") as scratch:
            copied = Path(scratch) / "version"
            version = self._ledger.copy_version(lambda: self._version, copied)
            return keep_bundle(
                self.bundle, copied if version else None, self._learnt(replace(status, version=version)), out,
                sign_key=sign_key, release=release,
            )  # fmt: skip

    def _learnt(self, status: AdaptStatus) -> Learnt:
        return Learnt(
            base=self.bundle.manifest.name, base_manifest_sha256=self.bundle.manifest_sha256,
            version=status.version, source=self.source_name, frames=status.frames,
            teacher_frames=status.teacher_frames, lessons=status.lessons, updates=status.updates,
            agreement=status.agreement, settings=self.settings, began=self._began, kept=now(),
        )  # fmt: skip

    @property
    def _version(self) -> int:
        return 0 if self._teaching is None else self._teaching.version

    @property
    def _trainer_state(self) -> TrainerState:
        if self._closed:
            return "closed"
        if self._worker.stopped:
            return "stopped"
        if self._is_learning:
            return "learning"
        return "idle" if self._is_ready else "starting"

    def _is_busy(self) -> bool:
        return not self._in_turn and self._trainer_state in ("starting", "learning")

    def _bind(self, prepared: Prepared) -> NewEngines:
        """Engines on the stream's buffers; on the worker's thread."""
        if self._stream is None:
            raise ClosedError("adapt: there is no stream.")
        seq, image = self._copies.last_keyframe()
        return self._stream.bind_new(prepared.keyframe, prepared.delta, seq, image)
