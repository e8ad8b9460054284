"""Lessons one after the other: to the trainer, back as engines, probed, kept. For the worker's thread alone."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from edge_sdk import errors
from edge_sdk.adapt.memory import Layout, unpack_weights
from edge_sdk.adapt.messages import OPEN_WEIGHTS, Failed, Keep, Kept, Learned, Ready, Start, Undo
from edge_sdk.adapt.prepare import Preparation, Prepared, thread_on
from edge_sdk.adapt.probe import Lesson, Probe, Student, Verdict, judge
from edge_sdk.adapt.process import TRAINER, TrainerProcess
from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.bundle import Bundle, StepName
from edge_sdk.errors import ChecksumError, ClosedError, EngineError, FileFormatError, ShapeError, TrainerError
from edge_sdk.files import require_file
from edge_sdk.manifest import FLOAT32
from edge_sdk.runtime.engine import Engine
from edge_sdk.runtime.learning import NewEngines
from edge_sdk.tensors import TensorSpec

Answer = TypeVar("Answer", Ready, Learned, Kept)
_OVER = "Start over with resume=False."
# A wait looks this often whether it is to end.
_SLICE_S = 0.25
# Of a weight; for the room that its shape takes.
_MOST_AXES = 6


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """New weights that have passed the probe.

    Args:
        version: their number.
        student: on the probe's buffers.
        engines: on the stream's.
        in_use: engine of each step from now on.
        prepare_ms: from the trainer's report on, in milliseconds.
    """

    version: int
    student: Student
    engines: NewEngines
    in_use: dict[StepName, Engine]
    prepare_ms: float


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What came of a lesson.

    Args:
        seq: its frame.
        kind: ``taken``: new weights are ready; ``unchanged``: the student was good enough; ``refused``: new weights, or
            already the label, are not to be used; ``lost``: the trainer is gone.
        report: the trainer's; None where there is none, and of weights that were kept earlier.
        verdict: the probe's; None where nothing was probed.
        taken: the new weights; None unless ``kind`` is ``taken``.
        reason: why they were refused or lost.
    """

    seq: int
    kind: Literal["taken", "unchanged", "refused", "lost"]
    report: Learned | None = None
    verdict: Verdict | None = None
    taken: Taken | None = None
    reason: str = ""

    @property
    def agreement(self) -> float | None:
        """Of the student that goes on, with the lesson's teacher; None where nobody knows."""
        if self.report is None:
            return None
        return self.report.before if self.kind == "refused" else self.report.after


class TrainerLostError(TrainerError):
    """The trainer is gone, or was killed because it did what it may not do: it has to be started again."""


class _UnfitError(TrainerError):
    """What the trainer was given is wrong, and would be so again."""


class Teaching:
    """The trainer, the engines in use, and the way from a lesson to new ones.

    Args:
        bundle: opened and checked.
        settings: of the adaptation.
        preparation: makes engines.
        engines: in use, by step.
        folder_of: where the weights of a version are kept.
        cores: that the trainer stays on.
        trainer: module that is run as the trainer's process.
        closing: whether the stream is at its end, so that nothing is waited for any more.

    Attributes:
        version: of the weights in use.
        in_use: engine of each step.

    Raises:
        BundleError, EngineError: engines that cannot be probed or refitted.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: AdaptSettings,
        preparation: Preparation,
        engines: dict[StepName, Engine],
        folder_of: Callable[[int], Path],
        cores: tuple[int, ...],
        trainer: str = TRAINER,
        closing: Callable[[], bool] = lambda: False,
    ) -> None:
        self._bundle, self._settings, self._preparation = bundle, settings, preparation
        self._folder_of, self._cores, self._closing = folder_of, cores, closing
        self.in_use = dict(engines)
        self.version = 0
        self._probe = Probe(preparation.pair, engines["delta"])
        self._student = self._probe.bind(engines["keyframe"], engines["delta"])
        self.process = TrainerProcess(
            self._layout(),
            module=trainer,
            restarts=settings.restarts,
            restart_window_s=settings.restart_window_s,
        )
        self._started = False
        # The lesson's frame before, and whether it is the one that the trainer has in mind.
        self._earlier: np.ndarray | None = None
        self._earlier_known = True

    def _layout(self) -> Layout:
        learns = {name: self.in_use[name] for name in self._preparation.learns}
        if self._settings.swap == "refit":
            places = {spec.name: spec for engine in learns.values() for spec in engine.refittable}
            return Layout.of(self._bundle.size_hw, {}, map(_as_sent, places.values()))
        return Layout.of(self._bundle.size_hw, {name: self._preparation.size_bytes(name) for name in learns})

    def start(self) -> None:
        """Start the trainer, or start it again, with the weights in use, and wait until it is ready.

        Raises:
            TrainerLostError: it ended, and may be started again.
            TrainerError: it may not.
            OutputError: no room for the shared memory.
            ClosedError: the stream is at its end.
        """
        start = Start(
            bundle=str(self._bundle.path.resolve()),
            settings=self._settings,
            resume=str(self._folder_of(self.version).resolve()) if self.version else None,
            version=self.version,
            threads=self._settings.cores,
            cores=self._cores,
            engine=self._preparation.engine,
        )
        self._earlier, self._earlier_known = None, self.version == 0
        first, before = not self._started, self.process.restarted
        self._started = True
        try:
            if first:
                self.process.start(start)
            else:
                self.process.restart(start)
            ready = self._answer(Ready)
        except _UnfitError:
            raise
        except TrainerError as error:
            if not first and self.process.restarted == before:
                raise TrainerError(str(error)) from error  # out of restarts
            raise TrainerLostError(str(error)) from error
        if ready.version != self.version:
            self.process.kill()
            raise TrainerLostError(
                f"the trainer began with version {ready.version}, expected {self.version}."
            )

    def teach(
        self, seq: int, image: np.ndarray, label: np.ndarray, bind: Callable[[Prepared], NewEngines]
    ) -> Outcome:
        """Give one lesson and wait for what comes of it. The engines in use stay what they are, see :meth:`take`.

        Args:
            seq: the teacher frame's number.
            image: (H, W, 3) uint8 BGR; must stay as it is until the next lesson is over.
            label: (H, W) uint8, the teacher's mask.
            bind: binds engines to the stream's buffers.

        Raises:
            TrainerLostError: there is no trainer any more.
            ClosedError: the stream is at its end.
        """
        if wrong := self._wrong(label):
            return Outcome(seq, "refused", reason=wrong)
        earlier = image if self._earlier is None else self._earlier
        lesson = Lesson(seq, image, label, earlier, self._earlier_known)
        try:
            self.process.lesson(lesson.seq, lesson.image, lesson.label)
            report = self._answer(Learned)
            self._earlier, self._earlier_known = image, True
            if not report.finite:
                return self._refused(lesson, report, "a weight or a loss is no finite number")
            if report.updates == 0:
                return Outcome(lesson.seq, "unchanged", report)
            if report.version <= self.version:  # its folder would be that of the weights in use
                self.process.kill()
                raise TrainerError(
                    f"the trainer calls new weights version {report.version}, in use is {self.version}."
                )
            return self._prepared(lesson, report, bind)
        except TrainerError as error:
            raise TrainerLostError(str(error)) from error

    def resume(self, version: int, bind: Callable[[Prepared], NewEngines]) -> Outcome:
        """Engines of weights that were kept earlier; before the trainer is started.

        Raises:
            MissingFileError, FileFormatError, ChecksumError: they are not whole.
            EngineError: the backend refuses them.
        """
        learns, folder = self._preparation.learns, self._folder_of(version)
        if self._settings.swap == "refit" and self._preparation.engine != FLOAT32:
            weights = unpack_weights(_kept_file(folder, OPEN_WEIGHTS))
            prepared = self._preparation.refit({name: self.in_use[name] for name in learns}, weights)
        else:
            names = {name: self._preparation.name_of(name) for name in learns}
            prepared = self._preparation.load(
                {step: _kept_file(folder, name) for step, name in names.items()}
            )
        # The trainer begins with them too, which may be before the stream has taken them.
        self.version = version
        student = self._probe.bind(prepared.keyframe or self.in_use["keyframe"], prepared.delta)
        nothing = np.zeros((*self._bundle.size_hw, 3), np.uint8)
        self._probe.mask(student, Lesson(-1, nothing, nothing[..., 0], nothing), warm=False)
        return Outcome(-1, "taken", taken=self._as_taken(version, student, prepared, bind(prepared), 0.0))

    def join_thread(self) -> None:
        """The calling thread gives the lessons from now on."""
        self._preparation.join_thread()

    def take(self, taken: Taken) -> list[Engine]:
        """The stream uses ``taken`` from now on.

        Returns:
            The engines that it replaces, to be closed.
        """
        old = [engine for name, engine in self.in_use.items() if taken.in_use[name] is not engine]
        self.in_use, self._student = dict(taken.in_use), taken.student
        self.version = taken.version
        return old

    def _prepared(self, lesson: Lesson, report: Learned, bind: Callable[[Prepared], NewEngines]) -> Outcome:
        began_s = time.perf_counter()
        prepared: Prepared | None = None
        folder = self._folder_of(report.version)
        try:
            prepared = self._engines(report)
            student, verdict = self._probed(prepared, lesson)
            if verdict.refused:
                prepared.close()
                return self._refused(lesson, report, verdict.refused, verdict)
            self.process.send(Keep(folder=str(folder)))
            kept = self._answer(Kept)
            if kept.version != report.version:
                raise TrainerError(f"the trainer kept version {kept.version}, expected {report.version}.")
            engines = bind(prepared)
        except (EngineError, ShapeError) as error:
            self._drop(prepared, folder)
            return self._refused(lesson, report, str(error))
        except BaseException:
            self._drop(prepared, folder)
            raise
        prepare_ms = (time.perf_counter() - began_s) * 1e3
        taken = self._as_taken(report.version, student, prepared, engines, prepare_ms)
        return Outcome(lesson.seq, "taken", report, verdict, taken)

    def _as_taken(
        self, version: int, student: Student, prepared: Prepared, engines: NewEngines, prepare_ms: float
    ) -> Taken:
        in_use = self.in_use | {"delta": prepared.delta}
        if prepared.keyframe is not None:
            in_use["keyframe"] = prepared.keyframe
        return Taken(version, student, engines, in_use, prepare_ms)

    def _engines(self, report: Learned) -> Prepared:
        if self._settings.swap == "refit":
            if not report.weights_bytes:
                raise EngineError("refit: the trainer sent no weights.")
            learns = {name: self.in_use[name] for name in self._preparation.learns}
            return self._preparation.refit(learns, self.process.weights(report))
        graphs = {
            name: self.process.graph(report, name)
            for name in self._preparation.learns
            if name in report.graphs
        }
        return self._preparation.load(graphs)

    def _probed(self, prepared: Prepared, lesson: Lesson) -> tuple[Student, Verdict]:
        student = self._probe.bind(prepared.keyframe or self.in_use["keyframe"], prepared.delta)
        with thread_on(self._cores):
            new = self._probe.mask(student, lesson, warm=False)
            used = self._probe.mask(self._student, lesson)
            claimed = self.process.mask() if lesson.comparable else new
            return student, judge(
                new, used, claimed, lesson.label, self._bundle.manifest.task, self._settings
            )

    def _wrong(self, label: np.ndarray) -> str:
        """What is wrong with a label; the trainer would end over it."""
        task = self._bundle.manifest.task
        values = np.flatnonzero(np.bincount(label.ravel(), minlength=256))
        odd = [value for value in values if value >= len(task.classes) and value != task.ignore_label]
        return f"the teacher's mask holds {odd[0]}, which is no class" if odd else ""

    def _refused(
        self, lesson: Lesson, report: Learned, reason: str, verdict: Verdict | None = None
    ) -> Outcome:
        self.process.send(Undo(version=self.version))
        return Outcome(lesson.seq, "refused", report, verdict, reason=reason)

    @staticmethod
    def _drop(prepared: Prepared | None, folder: Path) -> None:
        if prepared is not None:
            prepared.close()
        shutil.rmtree(folder, ignore_errors=True)

    def _answer(self, kind: type[Answer]) -> Answer:
        """The trainer's next message, which has to be of ``kind``."""
        while True:
            if self._closing():
                raise ClosedError("adapt: the stream is at its end.")
            message = self.process.receive(_SLICE_S)
            if isinstance(message, kind):
                return message
            if isinstance(message, Failed):
                self.process.kill()
                # Errors of ours are about files and settings; any other may be of the moment, such as no memory.
                kind_of = _UnfitError if hasattr(errors, message.error) else TrainerError
                raise kind_of(f"the trainer failed ({message.error}): {message.message}")
            if message is not None:
                self.process.kill()
                raise TrainerError(f"the trainer said '{message.kind}', expected '{kind.__name__}'.")


def _as_sent(place: TensorSpec) -> TensorSpec:
    """An open weight as the trainer sends it: in float32, and of a shape that a plan does not tell."""
    shape = place.shape if len(place.shape) > 1 else (1,) * _MOST_AXES + place.shape
    return place.model_copy(update={"dtype": "float32", "shape": shape})


def _kept_file(folder: Path, name: str) -> bytes:
    """A file of a kept version, as it was written.

    Raises:
        MissingFileError, FileFormatError, ChecksumError: it is not there, or damaged.
    """
    record = require_file(folder / "version.json", "kept weights", _OVER)
    try:
        wanted = str(json.loads(record.read_text(encoding="utf-8"))["files"][name]["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{record}: does not say what '{name}' is ({error!r}).", hint=_OVER) from error
    data = require_file(folder / name, "kept weights", _OVER).read_bytes()
    if hashlib.sha256(data).hexdigest() != wanted:
        raise ChecksumError(
            f"{folder / name}: its SHA-256 is not the one that {record.name} names.", hint=_OVER
        )
    return data
