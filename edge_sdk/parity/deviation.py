"""How far a graph output lies from the reference, added up over passes without keeping them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from edge_sdk.manifest import StepName
from edge_sdk.parity.forms import StateForms
from edge_sdk.parity.reference import WholePass
from edge_sdk.settings import Settings

# Values of one output in one pass that median and p99 are taken over; the largest is always taken over all.
SAMPLE = 1 << 14


class OutputDeviation(Settings):
    """One output of a step at one distance from the keyframe, over all passes there.

    Of class ids and the like only ``differing`` means something; the errors of such an output are None.

    Args:
        step: which step.
        distance: frames since the keyframe.
        output: graph output.
        passes: how many were compared.
        max, median, p99: of the absolute errors; median and p99 over at most 16384 values a pass, drawn evenly.
        largest: largest absolute value of the reference, which the errors are to be seen against.
        sqnr_db: energy of the reference over that of the error, in decibels; None without error.
        differing: share of the values that are not the reference's, 0-1.
        not_finite: values that are NaN or infinite.
    """

    step: StepName
    distance: int
    output: str
    passes: int
    max: float | None
    median: float | None
    p99: float | None
    largest: float | None
    sqnr_db: float | None
    differing: float
    not_finite: int

    @property
    def relative(self) -> float:
        """p99 of the error against the largest value of the reference; of class ids the share that differs.

        Infinite where the output holds NaN or infinity, or an error where the reference is zero throughout.
        """
        if self.not_finite:
            return math.inf
        if self.p99 is None or self.largest is None:
            return self.differing
        if self.largest == 0:
            return math.inf if self.p99 else 0.0
        return self.p99 / self.largest


class Deviation:
    """Adds up one output's passes.

    Args:
        step, distance, output: which it is.
    """

    def __init__(self, step: StepName, distance: int, output: str) -> None:
        self._place = (step, distance, output)
        self._passes = self._values = self._differing = self._not_finite = 0
        self._floats = False
        self._max = self._largest = 0.0
        self._signal = self._noise = 0.0
        self._samples: list[np.ndarray] = []

    def add(self, found: np.ndarray, expected: np.ndarray) -> None:
        """Count one pass; both in the float32 pair's terms and of one shape."""
        self._passes += 1
        self._values += expected.size
        if expected.dtype.kind != "f":
            self._differing += int(np.count_nonzero(found != expected))
            return
        self._floats = True
        found, expected = found.ravel(), expected.ravel()
        finite = np.isfinite(found)
        self._not_finite += found.size - int(np.count_nonzero(finite))
        error = np.abs(found - expected, dtype=np.float32)
        error[~finite] = np.float32(np.inf)
        self._differing += int(np.count_nonzero(error))
        self._max = max(self._max, float(error.max(initial=0)))
        self._largest = max(self._largest, float(np.abs(expected).max(initial=0)))
        self._signal += float(np.square(expected, dtype=np.float64).sum())
        self._noise += float(np.square(error, dtype=np.float64).sum())
        # A fixed draw, so that two comparisons of the same files agree to the last digit.
        if error.size > SAMPLE:
            error = error[np.random.default_rng(error.size).integers(0, error.size, SAMPLE)]
        self._samples.append(error)

    def result(self) -> OutputDeviation:
        """What was added up."""
        step, distance, output = self._place
        errors = np.concatenate(self._samples) if self._samples else np.zeros(0, np.float32)
        floats = self._floats
        return OutputDeviation(
            step=step,
            distance=distance,
            output=output,
            passes=self._passes,
            max=_finite(self._max) if floats else None,
            median=_finite(float(np.quantile(errors, 0.5, method="lower"))) if floats else None,
            p99=_finite(float(np.quantile(errors, 0.99, method="higher"))) if floats else None,
            largest=self._largest if floats else None,
            sqnr_db=self._sqnr_db(),
            differing=self._differing / max(self._values, 1),
            not_finite=self._not_finite,
        )

    def _sqnr_db(self) -> float | None:
        if not self._floats or self._noise == 0 or self._signal == 0 or not math.isfinite(self._noise):
            return None
        return 10 * math.log10(self._signal / self._noise)


class Deviations:
    """All outputs of all steps.

    Args:
        answers: the task's outputs; each graph makes them last, of everything else.
    """

    def __init__(self, answers: Collection[str]) -> None:
        self._answers = frozenset(answers)
        self._found: dict[tuple[StepName, int, str], Deviation] = {}

    def add_pass(self, one: WholePass, outputs: Mapping[str, np.ndarray], forms: StateForms) -> None:
        """Count one pass.

        Args:
            one: what the float32 graph received and made of it.
            outputs: what the engine made of it, by graph output, in its own terms.
            forms: those terms.
        """
        for name, expected in sorted(one.outputs.items(), key=lambda item: item[0] in self._answers):
            place = (one.step, one.distance, name)
            self._deviation(place).add(forms.restored(name, outputs[name]), expected)

    def _deviation(self, place: tuple[StepName, int, str]) -> Deviation:
        if place not in self._found:
            self._found[place] = Deviation(*place)
        return self._found[place]

    def results(self) -> tuple[OutputDeviation, ...]:
        """Every output at every distance in the order of the run: nearest to the keyframe first, answers last."""
        ordered = sorted(self._found.items(), key=lambda item: item[0][1])
        return tuple(deviation.result() for _, deviation in ordered)


def first_grown(deviations: tuple[OutputDeviation, ...], grown: float) -> OutputDeviation | None:
    """The first output, in the order of the run, whose relative error is above ``grown``; None where none is."""
    return next((one for one in deviations if one.relative > grown), None)


def _finite(value: float) -> float | None:
    """None for infinity, which JSON has no word for; ``not_finite`` says that there was some."""
    return value if math.isfinite(value) else None
