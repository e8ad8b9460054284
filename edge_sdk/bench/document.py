"""What a bench run found: raw samples, the conditions they hold under, and the figures computed from them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edge_sdk.bench.recipe import BenchRecipe
from edge_sdk.bench.samples import BareBlock, Block, Reading, Start
from edge_sdk.conditions import Conditions
from edge_sdk.evaluate.facts import BundleFacts, ClipFacts
from edge_sdk.runtime.schedule import ScheduleSettings
from edge_sdk.settings import Result, Settings

if TYPE_CHECKING:
    from edge_sdk.bench.figures import Figures
    from edge_sdk.bench.verdict import Verdict

SUBJECT = "subject"
# The baseline of a bundle that sees a few frames of each clip.
EVERY_FRAME = "every frame"
JSON_NAME = "bench.json"
REPORT_NAME = "bench.html"

Variant = Literal["pair", "teacher", "copy", "flow", "rival"]


class Row(Settings):
    """One way of answering every frame, measured in the same run as all others.

    Args:
        name: unique in its document; the subject's is ``"subject"``.
        variant: what answers the frames.
        engine: ``"float32"`` for the exported graphs, or the name of an engine set.
        schedule: which frames are keyframes.
        background: keyframes beside the frames.
        labels: mean intersection over union with the labels over the clip, 0-1; None without labels.
        agreement: the same with the float32 teacher's answers as truth; None where no clip was given.
        note: what a reader must know about this row.
    """

    name: str
    variant: Variant
    engine: str
    schedule: ScheduleSettings
    background: bool = False
    labels: float | None = None
    agreement: float | None = None
    note: str = ""


class SourceFacts(ClipFacts):
    """The frames, which are repeated; ``fps`` is the camera's rate, ``live`` says whether it is a real one: then
    ``frames`` is 1, which warmed up, and those that were answered are in the blocks alone."""

    live: bool


class TelemetryCost(Settings):
    """What the readings of the machine themselves took, beside what was measured.

    Args:
        readings: how many.
        median_ms, worst_ms: start to end of one.
        cpu_ms: processor time of all.
    """

    readings: int
    median_ms: float
    worst_ms: float
    cpu_ms: float


class Machine(Settings):
    """How the machine was set during the run; what it does not tell is None or missing.

    Args:
        accelerator: name of the GPU; None where none is used.
        power_mode: a Jetson's, such as ``"MAXN"``.
        clocks_locked: whether clocks are fixed; None where nobody can tell.
        governors: of the processors and the GPU.
        limits: clocks whose upper limit was set below what the hardware can, as phrases such as
            ``"cpu0 at most 1510 of 1984 MHz"``; a power mode does that.
        engine_report: what the backend chose, such as its kind of memory and CUDA graphs.
        throttle_events: times that the hardware throttled during the run, by counter.
        telemetry: where readings came from, such as ``"sysfs"`` and ``"NVML"``.
        telemetry_cost: what they took.
    """

    accelerator: str | None = None
    power_mode: str | None = None
    clocks_locked: bool | None = None
    governors: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    engine_report: dict[str, str] = Field(default_factory=dict)
    throttle_events: dict[str, int] = Field(default_factory=dict)
    telemetry: tuple[str, ...] = ()
    telemetry_cost: TelemetryCost | None = None


class BenchDocument(Result):
    """One run of ``edge-sdk bench``.

    Figures and verdict are functions of what is kept here: :attr:`figures` and :attr:`verdict` compute them.
    """

    _what: ClassVar[str] = "bench document"
    # For those who read the JSON without edge_sdk; computed anew when it is read.
    _computed: ClassVar[frozenset[str]] = frozenset(("figures", "verdict"))

    schema_version: Literal[1] = 1
    recipe: BenchRecipe
    conditions: Conditions
    machine: Machine
    bundles: tuple[BundleFacts, ...]
    source: SourceFacts
    rows: tuple[Row, ...] = Field(min_length=1)
    starts: tuple[Start, ...] = Field(min_length=1)
    blocks: tuple[Block, ...]
    bare: tuple[BareBlock, ...] = ()
    readings: tuple[Reading, ...] = ()

    @property
    def figures(self) -> Figures:
        """Every statistic of the run, computed anew at each look."""
        from edge_sdk.bench.figures import Figures

        return Figures.of(self)

    @property
    def verdict(self) -> Verdict:
        """Whether the figures can be relied on, and why not; where figures are at hand, use ``Verdict.of``."""
        from edge_sdk.bench.verdict import Verdict

        return Verdict.of(self)

    @property
    def deadline_ms(self) -> float:
        """Age at delivery above which an answer is late."""
        given = self.recipe.deadline_ms
        return 1e3 / self.source.fps if given is None else given

    def row(self, name: str) -> Row:
        """The row of that name.

        Raises:
            RecipeError: there is none.
        """
        return self.row_named(self.rows, name)

    def to_json(self, figures: Figures | None = None) -> str:
        """Samples, figures and verdict as JSON, one line a block.

        Args:
            figures: its figures where they are computed already.
        """
        from edge_sdk.bench.verdict import Verdict

        computed = self.figures if figures is None else figures
        data: dict[str, Any] = self.model_dump(mode="json")
        data["figures"] = computed.model_dump(mode="json")
        data["verdict"] = Verdict.of(self, computed).model_dump(mode="json")
        return json.dumps(data) + "\n"
