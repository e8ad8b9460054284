"""What is counted, told, logged and kept while a student learns."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edge_sdk.adapt.drift import DriftWatch
from edge_sdk.adapt.given import Given
from edge_sdk.adapt.journal import (
    AlarmRaised,
    Event,
    LearningStopped,
    LessonLearned,
    Resumed,
    Started,
    TeacherFrame,
    TrainerRestarted,
    WeightsRefused,
    WeightsTaken,
)
from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.adapt.state import Session, StateFolder
from edge_sdk.adapt.stride import StrideState
from edge_sdk.adapt.teaching import Outcome
from edge_sdk.adapt.telling import Teller
from edge_sdk.bundle import Bundle

_log = logging.getLogger(__name__)

TrainerState = Literal["starting", "idle", "learning", "stopped", "closed"]


@dataclass(frozen=True, slots=True)
class AdaptStatus:
    """Where learning stands.

    Attributes:
        trainer: ``starting`` until it is ready, also after a restart; ``idle``; ``learning`` from a lesson until the
            stream has taken what came of it or it was refused; ``stopped`` after too many restarts, the stream goes on
            with the weights that it has; ``closed``.
        version: of the weights that answer frames; 0 for the bundle's own.
        stride: frames from teacher frame to teacher frame.
        frames: of the stream, since its beginning or, where learning was resumed, that of the kept one.
        teacher_frames: answered by the teacher, in all.
        lessons: of those, learned from; the others came while a lesson was under way.
        updates: optimiser steps, in all, that are in the weights.
        agreement: of the student with the newest lesson's teacher after it; None before the first.
        agreement_before: of the student with that teacher before the lesson.
        refused: how often new weights were not taken.
        restarts: how often the trainer was started again.
        alarms: how many were raised.
        last_error: what went wrong last, for people; empty where nothing has.
    """

    trainer: TrainerState = "starting"
    version: int = 0
    stride: int = 0
    frames: int = 0
    teacher_frames: int = 0
    lessons: int = 0
    updates: int = 0
    agreement: float | None = None
    agreement_before: float | None = None
    refused: int = 0
    restarts: int = 0
    alarms: int = 0
    last_error: str = ""


# What a session keeps of a status; the rest is of the moment.
_KEPT = (
    "teacher_frames", "lessons", "updates", "refused", "restarts", "alarms", "agreement", "agreement_before"
)  # fmt: skip


class Ledger:
    """Counts, alarms, log and state of one learner; any thread may write.

    Args:
        bundle: that learning began with.
        settings: of the adaptation.
        source_name: where frames come from.
        on_event: called with every event, on a thread of the ledger's.

    Attributes:
        session: what was kept, to go on from; None to begin with the bundle's weights.

    Raises:
        RecipeError: the state is another bundle's.
        FileFormatError: it is damaged.
        OutputError: the state folder cannot be written, or another process holds it.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: AdaptSettings,
        source_name: str,
        on_event: Callable[[Event], None] | None,
    ) -> None:
        self._base, self._threshold, self._source = bundle.manifest_sha256, settings.threshold, source_name
        self._lock, self._folders = threading.Lock(), threading.Lock()
        with ExitStack() as opened:
            folder = settings.state
            if folder is None:  # versions are kept for a trainer that has to be started again
                scratch = tempfile.TemporaryDirectory(prefix="edge-sdk-adapt-")
                folder = Path(opened.enter_context(scratch))
            resume = settings.state is not None and settings.resume
            self._state = opened.enter_context(StateFolder(folder, self._base, resume=resume))
            self.session: Session | None = self._state.session
            session = self.session
            self._drift = DriftWatch(settings.drift, None if session is None else session.drift)
            counts = {} if session is None else {name: getattr(session, name) for name in _KEPT}
            self._counts = AdaptStatus(**counts)
            journal = self._state.journal if settings.state is not None else None
            self._teller = Teller(journal, on_event, self.noted)
            opened.callback(self._teller.close)
            self._held = opened.pop_all()

    @property
    def counts(self) -> AdaptStatus:
        """What was counted; trainer, version, stride and frames are for others to say."""
        return self._counts

    def began(self) -> None:
        """Learning begins, or goes on."""
        session = self.session
        if session is None:
            self._teller.tell(Started(source=self._source))
        else:
            stride = session.stride.stride
            self._teller.tell(Resumed(source=self._source, version=session.version, stride=stride))

    def teacher_frame(self, seq: int, stride: int, version: int, *, lesson: bool) -> None:
        """The teacher answered a frame."""
        with self._lock:
            self._counts = replace(self._counts, teacher_frames=self._counts.teacher_frames + 1)
        self._teller.tell(TeacherFrame(seq=seq, stride=stride, version=version, lesson=lesson))

    def lesson_over(self, outcome: Outcome, given: Given | None, state: StrideState, version: int) -> None:
        """A lesson is over, or kept weights were taken.

        Args:
            outcome: what came of it.
            given: the lesson.
            state: of the schedule from now on.
            version: of the weights in use from now on.
        """
        report, agreement = outcome.report, outcome.agreement
        with self._lock:
            counts = replace(self._counts, refused=self._counts.refused + (outcome.kind == "refused"))
            if report is not None:
                counts = replace(
                    counts, lessons=counts.lessons + 1, agreement=agreement, agreement_before=report.before,
                    updates=counts.updates + (report.updates if outcome.kind == "taken" else 0),
                )  # fmt: skip
            self._counts = replace(counts, last_error=outcome.reason or counts.last_error)
        if report is not None:
            self._teller.tell(
                LessonLearned(
                    seq=outcome.seq, before=report.before, after=report.after, updates=report.updates,
                    losses=report.losses, took_ms=report.took_ms, stride=state.stride, version=report.version,
                )
            )  # fmt: skip
        self._tell_weights(outcome, given, state, version)
        if report is not None and agreement is not None:
            self._watch(outcome.seq, report.before, agreement)
        self.save(state, version)

    def _tell_weights(self, outcome: Outcome, given: Given | None, state: StrideState, version: int) -> None:
        taken, verdict = outcome.taken, outcome.verdict
        if taken is not None and given is not None:
            self._teller.tell(
                WeightsTaken(
                    seq=given.seq_of(state.frame), lesson=outcome.seq, version=taken.version,
                    prepare_ms=taken.prepare_ms, agreement=None if verdict is None else verdict.agreement,
                    replaced=None if verdict is None else verdict.in_use,
                )
            )  # fmt: skip
        elif outcome.kind == "refused":
            _log.warning("adapt: refused what was learned from frame %d: %s", outcome.seq, outcome.reason)
            new = version if outcome.report is None else outcome.report.version
            self._teller.tell(
                WeightsRefused(seq=outcome.seq, version=new, kept=version, reason=outcome.reason)
            )

    def _watch(self, seq: int, before: float, after: float) -> None:
        for alarm in self._drift.see(before, after, self._threshold):
            with self._lock:
                self._counts = replace(self._counts, alarms=self._counts.alarms + 1)
            _log.warning("adapt: frame %d: %s", seq, alarm.message)
            self._teller.tell(AlarmRaised(seq=seq, alarm=alarm))

    def restarted(self, reason: str, version: int) -> None:
        """The trainer was started again."""
        with self._lock:
            restarts = self._counts.restarts + 1
            self._counts = replace(self._counts, restarts=restarts, last_error=reason)
        _log.warning("adapt: the trainer was started again: %s", reason)
        self._teller.tell(TrainerRestarted(version=version, restarts=restarts, reason=reason))

    def stopped(self, reason: str) -> None:
        """No more is learned."""
        self.noted(reason)
        _log.error("adapt: learning has stopped, the stream goes on: %s", reason)
        self._teller.tell(LearningStopped(reason=reason))

    def noted(self, error: str) -> None:
        """Something went wrong that changes nothing else."""
        with self._lock:
            self._counts = replace(self._counts, last_error=error)

    def save(self, state: StrideState, version: int) -> None:
        """Have it kept where learning stands; returns at once."""
        with self._lock:
            kept = {name: getattr(self._counts, name) for name in _KEPT}
        session = Session(
            base=self._base,
            version=version,
            stride=state,
            frames=state.frame,
            drift=self._drift.state,
            **kept,
        )

        def work() -> None:
            with self._folders:
                self._state.save(session)

        self._teller.do(work)

    def folder_of(self, version: int) -> Path:
        """Where the weights of ``version`` are kept."""
        return self._state.version_folder(version)

    def copy_version(self, version: Callable[[], int], target: Path) -> int:
        """Copy the weights in use, which are not removed meanwhile.

        Args:
            version: says which they are; 0 copies nothing.
            target: folder to make.

        Returns:
            The version that was copied.
        """
        with self._folders:
            found = version()
            if found:
                shutil.copytree(self.folder_of(found), target)
            return found

    def close(self) -> None:
        """Write down what is to be written, and let go of the state; closing twice does nothing."""
        self._held.close()
