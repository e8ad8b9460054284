"""A folder of tiny pairs that a workstation prepared: which of them are measured for what.

FOLDER/profile.json     the index
FOLDER/tiny/ID/         a bundle: one candidate in its surroundings
FOLDER/whole/NAME/      a bundle: a whole student
FOLDER/table.json       the cost table, once it is measured
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from edge_sdk.build.tensorrt.settings import TensorRTSettings
from edge_sdk.errors import MissingFileError
from edge_sdk.manifest import BackendName, Precision
from edge_sdk.profile.structure import Choice, Structure
from edge_sdk.profile.table import Clock
from edge_sdk.settings import Result, Settings

INDEX = "profile.json"
TABLE = "table.json"
REFERENCE = "reference"
PREPARE = "On the workstation run: edge-sdk profile RECIPE --prepare-only, and copy the folder here again."


class TinyRef(Settings):
    """Which two tiny pairs tell the cost of one call of a candidate.

    Args:
        bundle: ID of the candidate's.
        kept: ID of the one with the unit kept.
    """

    bundle: str
    kept: str


class ProfileIndex(Result):
    """What is in the folder.

    Args:
        backend, precision: what is built.
        threads: CPU threads of a step.
        frame_hw: height and width of the camera's frames.
        rounds: how often each engine is timed.
        clock: what times are read from.
        tensorrt: how TensorRT builds.
        units: by unit and candidate, the tiny pairs of each call of the unit; none where it is kept.
        fixed: by layer outside all units, those of each of its calls.
        structure: which parts feed which.
        reference: choice of the student ``whole/reference``.
        students: by name, the choices of the random students ``whole/NAME``.
        created, sdk_version, commit: when and by which edge_sdk it was prepared.
    """

    _what: ClassVar[str] = "profile index"

    format: Literal[1] = 1
    backend: BackendName
    precision: Precision
    threads: int | None
    frame_hw: tuple[int, int]
    rounds: int = Field(ge=1)
    clock: Clock = "wall"
    tensorrt: TensorRTSettings = TensorRTSettings()
    units: dict[str, dict[str, tuple[TinyRef, ...]]]
    fixed: dict[str, tuple[TinyRef, ...]] = Field(default_factory=dict)
    structure: Structure
    reference: Choice
    students: dict[str, Choice] = Field(default_factory=dict)
    created: str = ""
    sdk_version: str = ""
    commit: str | None = None

    @model_validator(mode="after")
    def _plain_names(self) -> ProfileIndex:
        for name in self.bundles():
            parts = Path(name).parts
            if len(parts) != 2 or ".." in parts or Path(name).is_absolute():
                raise ValueError(f"expected the name of a bundle in the folder, got '{name}'")
        return self

    def tinies(self) -> list[TinyRef]:
        """Every call of every candidate and layer."""
        calls = [call for found in self.units.values() for calls in found.values() for call in calls]
        return calls + [call for calls in self.fixed.values() for call in calls]

    def bundles(self) -> list[str]:
        """Every bundle once, relative to the folder."""
        tiny = [f"tiny/{name}" for ref in self.tinies() for name in (ref.bundle, ref.kept)]
        whole = [f"whole/{name}" for name in (REFERENCE, *self.students)]
        return list(dict.fromkeys(tiny + whole))


def open_prepared(folder: str | Path) -> ProfileIndex:
    """The index of a prepared folder.

    Raises:
        MissingFileError: there is no such folder, or it was not prepared.
        FileFormatError: the index cannot be read.
    """
    place = Path(folder)
    if not (place / INDEX).is_file():
        what = f"it holds no {INDEX}" if place.is_dir() else "found nothing there"
        raise MissingFileError(f"profile {place}: expected a prepared folder, {what}.", hint=PREPARE)
    return ProfileIndex.load(place / INDEX)
