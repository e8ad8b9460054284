"""The whole stream of an engine set, beside the reference's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_sdk.bundle import Bundle
from edge_sdk.errors import EngineError
from edge_sdk.manifest import StepName
from edge_sdk.parity.comparison import AtDistance
from edge_sdk.parity.deviation import Deviations
from edge_sdk.parity.forms import StateForms
from edge_sdk.parity.reference import Reference, WholePass
from edge_sdk.recording import Content, RecordingBackend
from edge_sdk.runtime.engine import Backend
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.tasks import Prediction, Score, Task

# Between two distances as many answers may differ by chance; a pixel on a border goes either way.
_CHANGE_FACTOR = 1.5
_CHANGE_LEAST = 0.001


@dataclass(frozen=True)
class StreamParity:
    """Answers and outputs of one stream; meanings as in :class:`edge_sdk.parity.comparison.EngineParity`."""

    labels: float | None
    reference_labels: float | None
    agreement: float | None
    same: float
    by_distance: tuple[AtDistance, ...]
    deviations: Deviations


def compare_stream(
    bundle: Bundle,
    backend: Backend,
    engine: str,
    reference: Reference,
    threads: int | None,
    tick: Callable[[int, int], None],
) -> StreamParity:
    """Run the reference's frames through the runner, as the device does, and compare answers and state.

    Raises:
        EngineError: the engine set cannot be loaded or run here, or the runner did not keep to the schedule.
    """
    watching = RecordingBackend(backend, bundle, engine)
    observer = _Observer(reference, StateForms(bundle.pair(engine)), bundle.task)
    scores = _Scores(bundle.task, reference.header.interval)
    with EdgeRunner(
        bundle, backend=watching, engine=engine, schedule=reference.schedule, threads=threads
    ) as runner:
        watching.observer = observer
        for moment in reference.stream(bundle.task):
            result = runner(moment.image)
            if result.state_age != moment.distance:
                raise EngineError(
                    f"runner: frame {moment.index} has age {result.state_age}, not {moment.distance}."
                )
            expected = bundle.task.decode(moment.answers)
            scores.add(moment.distance, result.prediction, expected, moment.truth)
            tick(moment.index + 1, reference.header.frames)
    return scores.result(observer.deviations)


class _Observer:
    """Compares every output of the runs that the reference keeps whole."""

    def __init__(self, reference: Reference, forms: StateForms, task: Task) -> None:
        self.deviations = Deviations(task.output_names)
        self._forms = forms
        self._frame = -1
        self._passes = iter(reference.passes())
        self._next: WholePass | None = next(self._passes, None)

    def before(self, step: StepName, inputs: Mapping[str, Content]) -> None:
        self._frame += 1

    def after(self, step: StepName, outputs: Mapping[str, Content]) -> None:
        expected = self._next
        if expected is None or expected.frame != self._frame:
            return
        arrays = {name: content.array for name, content in outputs.items()}
        self.deviations.add_pass(expected, arrays, self._forms)
        self._next = next(self._passes, None)


class _Scores:
    """Adds up answers by distance from the keyframe."""

    def __init__(self, task: Task, interval: int) -> None:
        self._task = task
        self._labels = [task.score() for _ in range(interval)]
        self._reference = [task.score() for _ in range(interval)]
        self._agreement = [task.score() for _ in range(interval)]
        self._frames = [0] * interval
        self._same = np.zeros(interval, np.int64)
        self._values = np.zeros(interval, np.int64)

    def add(self, distance: int, found: Prediction, expected: Prediction, truth: Prediction | None) -> None:
        self._frames[distance] += 1
        self._agreement[distance].update(found, expected)
        same, values = self._task.agreeing(found, expected)
        self._same[distance] += same
        self._values[distance] += values
        if truth is not None:
            self._labels[distance].update(found, truth)
            self._reference[distance].update(expected, truth)

    def result(self, deviations: Deviations) -> StreamParity:
        rows = tuple(
            AtDistance(
                distance=distance,
                frames=frames,
                labels=_headline(self._labels[distance]),
                reference_labels=_headline(self._reference[distance]),
                agreement=_headline(self._agreement[distance]),
                same=float(self._same[distance] / self._values[distance]),
            )
            for distance, frames in enumerate(self._frames)
            if frames
        )
        return StreamParity(
            self._whole(self._labels),
            self._whole(self._reference),
            self._whole(self._agreement),
            float(self._same.sum() / self._values.sum()),
            rows,
            deviations,
        )

    def _whole(self, scores: Iterable[Score]) -> float | None:
        merged = self._task.score()
        for score in scores:
            merged.merge(score)
        return _headline(merged)


def answers_change_at(rows: Sequence[AtDistance]) -> int | None:
    """First distance at which clearly more answers differ from the reference's than at the keyframe.

    Clearly: half as many again, and a thousandth of all answers more. None where there is no such distance.
    """
    if not rows:
        return None
    least = (1 - rows[0].same) * _CHANGE_FACTOR + _CHANGE_LEAST
    return next((row.distance for row in rows[1:] if 1 - row.same > least), None)


def _headline(score: Score) -> float | None:
    _, value = score.headline()
    return None if math.isnan(value) else value
