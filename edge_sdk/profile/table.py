"""The cost table: milliseconds of every candidate of every unit on one device, and the sum over a whole student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from edge_sdk.errors import RecipeError
from edge_sdk.evaluate.timing import Spread
from edge_sdk.machine import MachineFacts
from edge_sdk.manifest import BackendName, Precision
from edge_sdk.profile.structure import KEPT, Choice, Structure
from edge_sdk.settings import Result, Settings

# What times are read from: the wall's clock, or what the step's own thread took of a processor.
Clock = Literal["wall", "processor"]

# A prediction that is off by less than this share of the measured time counts as right.
TOLERANCE = 0.15
MEASURE = "Measure it with: edge-sdk profile RECIPE"


class WholeStudent(Settings):
    """A student that was built whole and timed.

    Args:
        choice: a candidate for every unit.
        ms: median and quartile distance of its delta step over the rounds, in milliseconds.
    """

    choice: Choice
    ms: Spread


class CheckedStudent(WholeStudent):
    """A random student beside what the table predicts for it.

    Args:
        predicted_ms: the table's sum, in milliseconds.
    """

    predicted_ms: float

    @property
    def off(self) -> float:
        """The prediction's error as a share of the measured time; positive where it is too high."""
        return self.predicted_ms / self.ms.median - 1.0


class CostTable(Result):
    """What every candidate of every unit costs.

    A cost is the time of a tiny pair of steps around the candidate less the time of the same pair with the unit kept,
    both measured in the same rounds; so it is 0 for ``kept``. A whole student takes the time of the reference student,
    which was measured whole, and the differences of the costs.

    Args:
        machine: the device.
        runtime: module and version that ran the engines, such as ``"onnxruntime 1.31.1"``.
        backend, precision: what the engines were built for.
        threads: CPU threads of a step; None for the backend's own choice.
        frame_hw: height and width of the camera's frames, in pixels.
        clock: what every time here was read from.
        units: by unit and candidate, milliseconds a delta step.
        fixed: by layer outside all units, milliseconds that it costs where something reads it.
        spread_ms: by part, and for a unit by candidate, quartile distance of the cost over the rounds.
        structure: which parts feed which.
        reference: the student that predictions start from.
        rounds: how often each engine was timed.
        checked: random students, for the error of the predictions.
        created: ISO 8601 time, UTC.
        sdk_version, commit: the edge_sdk that measured it.
    """

    _what: ClassVar[str] = "cost table"

    format: Literal[1] = 1
    machine: MachineFacts
    runtime: str
    backend: BackendName
    precision: Precision
    threads: int | None
    frame_hw: tuple[int, int]
    clock: Clock = "wall"
    units: dict[str, dict[str, float]]
    fixed: dict[str, float] = Field(default_factory=dict)
    spread_ms: dict[str, dict[str, float]] = Field(default_factory=dict)
    structure: Structure
    reference: WholeStudent
    rounds: int
    checked: tuple[CheckedStudent, ...] = ()
    created: str = ""
    sdk_version: str = ""
    commit: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> CostTable:
        parts = set(self.units) | set(self.fixed)
        if parts != set(self.structure.reads):
            odd = sorted(parts ^ set(self.structure.reads))
            raise ValueError(f"expected costs and structure of the same parts, '{odd[0]}' is in one alone")
        self.structure.in_order()
        self.check_choice(self.reference.choice, "reference")
        return self

    def cost(self, unit: str, candidate: str) -> float:
        """Milliseconds of a candidate above keeping the unit.

        Raises:
            RecipeError: the table has no such unit, or not this candidate of it.
        """
        if unit not in self.units:
            raise RecipeError(
                f"cost table: expected one of the units {', '.join(self.units)}, got '{unit}'.", hint=MEASURE
            )
        found = self.units[unit]
        if candidate not in found:
            raise RecipeError(
                f"cost table: unit '{unit}' was measured as {', '.join(found)}, got '{candidate}'.",
                hint="Add it to delta.units of the profile's recipe and measure again: edge-sdk profile RECIPE",
            )
        return found[candidate]

    def check_choice(self, choice: Mapping[str, str], where: str = "choice") -> None:
        """Refuse a choice that is not one measured candidate for every unit.

        Raises:
            RecipeError: naming the unit.
        """
        for unit, candidate in choice.items():
            self.cost(unit, candidate)
        if missing := [unit for unit in self.units if unit not in choice]:
            raise RecipeError(f"{where}: expected a candidate for every unit, got none for '{missing[0]}'.")

    @property
    def offset_ms(self) -> float:
        """Milliseconds of a delta step that no part accounts for: the rest of the reference student."""
        return self.reference.ms.median - float(self._parts_ms(_sure(self.reference.choice)))

    def predict(self, choice: Mapping[str, str]) -> float:
        """Milliseconds of a whole student's delta step.

        Units and layers that feed only kept units cost nothing.

        Args:
            choice: a candidate for every unit.

        Raises:
            RecipeError: the choice is not of this table's units and candidates.
        """
        self.check_choice(choice)
        return float(self.expected(_sure(choice)))

    def expected(self, shares: Mapping[str, Mapping[str, Any]]) -> Any:
        """Expected milliseconds of a student whose candidates are drawn at random.

        Args:
            shares: by unit and candidate the probability, 0 to 1: numbers, or tensors, whose gradients then pass.

        Returns:
            a number, or a tensor of no axes; what :meth:`predict` gives where every probability is 0 or 1.

        Raises:
            RecipeError: a unit or candidate is not in the table, or a unit has no probabilities.
        """
        for unit, candidates in shares.items():
            for candidate in candidates:
                self.cost(unit, candidate)
        if missing := [unit for unit in self.units if unit not in shares]:
            raise RecipeError(f"shares: expected probabilities for every unit, got none for '{missing[0]}'.")
        return self.offset_ms + self._parts_ms(shares)

    def _parts_ms(self, shares: Mapping[str, Mapping[str, Any]]) -> Any:
        alive = self.structure.alive({unit: found.get(KEPT, 0.0) for unit, found in shares.items()})
        total: Any = 0.0
        for unit, found in shares.items():
            drawn: Any = 0.0
            for candidate, share in found.items():
                drawn = drawn + share * self.units[unit][candidate]
            total = total + alive[unit] * drawn
        for layer, cost in self.fixed.items():
            total = total + alive[layer] * cost
        return total

    @property
    def within(self) -> float | None:
        """Share of the checked students whose prediction is within 15 %; None where none was checked."""
        if not self.checked:
            return None
        return sum(abs(student.off) <= TOLERANCE for student in self.checked) / len(self.checked)


def _sure(choice: Mapping[str, str]) -> dict[str, dict[str, float]]:
    return {unit: {candidate: 1.0} for unit, candidate in choice.items()}
