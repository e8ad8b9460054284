"""Learning on a stream: lessons to the trainer's process, its answers made into engines, probed, and handed over.

Who does what:

- the thread that runs the frames calls what :class:`edge_sdk.runtime.learning.Learning` lists; none of it waits, unless
  learning is in turn;
- a worker thread waits for the trainer, prepares and probes engines;
- the trainer learns, in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.bundle import FLOAT32, Bundle
from edge_sdk.runtime.engine import Backend, EngineOptions
from edge_sdk.runtime.learning import Learning, NewEngines
from edge_sdk.runtime.schedule import Schedule
from edge_sdk.video.frame import Truth

if TYPE_CHECKING:
    from edge_sdk.adapt.journal import Event
    from edge_sdk.runtime.stream import Stream

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
        teacher_frames: of those, answered by the teacher.
        lessons: of those, learned from; the others came while a lesson was under way.
        updates: optimiser steps in all.
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


class Adaptation(Learning):
    """One stream's learner. Made by the runner; in an app it is ``runner.adaptation`` while the runner is open.

    Args:
        bundle: opened and checked; its manifest says what a trainer needs.
        backend: loads the new engines; the one that loaded those in use.
        options: how those in use were loaded.
        settings: of the adaptation.
        source_name: where frames come from, for the log and for where kept weights came from.
        engine: the engine set in use, ``"float32"`` for the exported graphs.
        on_event: called with every event that goes to the log; from the worker thread or the one that runs frames, so
            it must be quick. What it raises is logged.
        trainer: module that is run as the trainer's process.

    Attributes:
        schedule: decides about teacher frames.
        learning_cores: the CPU cores that learning stays on; empty where the machine cannot say.

    Raises:
        BundleError: the bundle cannot learn, it has no delta step, or nothing that ``swap`` asks for.
        RecipeError: there are not as many cores as learning is to have, or labels are missing.
        MissingFileError: the folder of recorded masks is not there.
        OutputError: the state folder cannot be written.
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
        trainer: str = "edge_sdk.adapt.trainer",
    ) -> None:
        self.schedule: Schedule
        self.learning_cores: tuple[int, ...] = ()
        raise NotImplementedError

    def attach(self, stream: Stream) -> None:
        """Start the trainer, and go on from the kept state where there is one; does not wait for the trainer.

        Raises:
            EngineError: the backend refuses the kept weights.
            FileFormatError, ChecksumError: the state is damaged.
            RecipeError: the state is another bundle's.
            EdgeSdkError: the trainer's process cannot be started.
        """
        raise NotImplementedError

    def collect(self) -> NewEngines | None:
        """New engines that have passed the probe, once; never waits, unless learning is in turn."""
        raise NotImplementedError

    def took(self, engines: NewEngines) -> None:
        """The stream uses ``engines`` from now on; those of before are closed, and the trainer may learn on."""
        raise NotImplementedError

    def label(self, seq: int, truth: Truth | None) -> np.ndarray | None:
        """The recorded teacher's answer, (H, W) uint8; None where the bundle's teacher is to be run.

        Raises:
            MissingFileError, FileFormatError, ShapeError: the recorded mask is not there, or is of another size.
            RecipeError: the source's labels are the teacher's, and this frame has none.
        """
        raise NotImplementedError

    def keyframe(self, seq: int, image: np.ndarray, mask: np.ndarray) -> bool:
        """Learn from a teacher frame, unless a lesson is under way; with ``pace="in_turn"`` it waits for the outcome.

        Args:
            seq: the frame's number.
            image: (H, W, 3) uint8 BGR.
            mask: (H, W) uint8, the teacher's.

        Returns:
            Whether the student is to answer this frame in the teacher's place.
        """
        raise NotImplementedError

    def reset(self) -> None:
        """A new stream begins: the stride is at its minimum again; weights stay as they are."""
        raise NotImplementedError

    def close(self) -> None:
        """End the trainer and the worker, and keep the state where one is kept; closing twice does nothing."""
        raise NotImplementedError

    def wait_idle(self, timeout_s: float | None = None) -> bool:
        """Wait until the trainer is ready and has no lesson under way, or learning has stopped; not from the frames'
        thread while a lesson's engines wait to be collected.

        Returns:
            Whether it came to that within ``timeout_s`` seconds.
        """
        raise NotImplementedError

    def status(self) -> AdaptStatus:
        """Where learning stands; any thread may ask."""
        raise NotImplementedError

    def keep(self, out: str | Path, sign_key: str | Path | None = None, release: int | None = None) -> Bundle:
        """Write a bundle with the weights in use, see :func:`edge_sdk.adapt.keep.keep_bundle`.

        Args:
            out: the folder to make.
            sign_key: file of the private key to sign with; None leaves it unsigned.
            release: number of the release that is signed; None for one more than the base bundle's.

        Raises:
            BundleError, OutputError, SignatureError: as :func:`edge_sdk.bundle.write_bundle` and
                :func:`edge_sdk.bundle.sign_bundle`.
            ClosedError: learning has ended.
        """
        raise NotImplementedError
