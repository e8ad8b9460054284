"""What a comparison found: numbers with the conditions they hold under."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edge_sdk.conditions import Conditions
from edge_sdk.files import write_text
from edge_sdk.parity.deviation import OutputDeviation
from edge_sdk.settings import Settings

JSON_NAME = "comparison.json"
REPORT_NAME = "comparison.html"


class AtDistance(Settings):
    """One engine's answers at one distance from the keyframe.

    Args:
        distance: frames since the keyframe.
        frames: how many.
        labels, reference_labels: the task's metric against the labels, of the engine and of the reference, 0-1; None
            without labels.
        agreement: the same metric with the reference's answers as truth, 0-1.
        same: share of the answers' values that are the reference's, 0-1.
    """

    distance: int
    frames: int
    labels: float | None
    reference_labels: float | None
    agreement: float | None
    same: float


class EngineParity(Settings):
    """One engine set beside the reference.

    Args:
        engine: its name; ``"float32"`` is the exported pair on ONNX Runtime.
        backend: what ran it.
        precision: of most of its work.
        labels, reference_labels, agreement, same: over the whole stream, as in :class:`AtDistance`.
        drop_points: what the engine loses against the reference, in points (hundredths): of the task's metric against
            the labels, or, without labels, what agreement lacks to 1. Negative where it gains.
        by_distance: the stream's answers by distance from the keyframe.
        steps: outputs of each step, run on the reference's own inputs.
        stream: outputs in the stream, where each step runs on the state that this engine made; of those periods that
            the reference keeps whole.
        grows_in_steps, grows_in_stream: the first output, in the order of the run, whose error is above the threshold.
        answers_change_at: first distance at which more answers differ than at the keyframe, see
            :func:`edge_sdk.parity.stream.answers_change_at`.
    """

    engine: str
    backend: str
    precision: str
    labels: float | None
    reference_labels: float | None
    agreement: float | None
    same: float
    drop_points: float
    by_distance: tuple[AtDistance, ...]
    steps: tuple[OutputDeviation, ...]
    stream: tuple[OutputDeviation, ...]
    grows_in_steps: OutputDeviation | None
    grows_in_stream: OutputDeviation | None
    answers_change_at: int | None

    def worst(self, step: str) -> OutputDeviation | None:
        """The output of a step with the largest relative error on the reference's inputs; None without such a step."""
        return max(
            (one for one in self.steps if one.step == step), key=lambda one: one.relative, default=None
        )


class NotRun(Settings):
    """An engine set, or a variant without engines, that this machine could not run, and why."""

    engine: str
    reason: str


class LayerError(Settings):
    """One tensor inside a graph, in the order of the run.

    Args:
        step: which step.
        node: the float32 graph's node that makes it.
        operator: its type.
        tensor: its name.
        relative: p99 of the absolute errors over the largest absolute value of the float32 graph's; None where it is
            not finite.
    """

    step: str
    node: str
    operator: str
    tensor: str
    relative: float | None


class Trace(Settings):
    """Errors inside one variant's graphs on ONNX Runtime, on the reference's inputs.

    Args:
        variant: name of the variant.
        layers: every tensor that both graphs have, in the order of the run.
        grows_at: the first above the threshold.
    """

    variant: str
    layers: tuple[LayerError, ...]
    grows_at: LayerError | None


class ReferenceFacts(Settings):
    """Which reference it was: file, identity, source, counts, and what made it."""

    path: str
    sha256: str
    source: str
    frames: int
    labelled: int
    interval: int
    whole_passes: int
    runtime: str
    created: str


class Comparison(Settings):
    """Every engine set beside one reference."""

    schema_version: Literal[1] = 1
    bundle: str
    bundle_path: str
    metric: str
    grown: float
    max_drop: float | None
    reference: ReferenceFacts
    engines: tuple[EngineParity, ...]
    not_run: tuple[NotRun, ...]
    traces: tuple[Trace, ...]
    conditions: Conditions

    @property
    def over_budget(self) -> tuple[EngineParity, ...]:
        """Engines that lose more than ``max_drop`` points."""
        budget = self.max_drop
        return () if budget is None else tuple(one for one in self.engines if one.drop_points > budget)

    def write_report(self, folder: str | Path) -> Path:
        """Write ``comparison.json`` and the self-contained ``comparison.html`` into ``folder``.

        Returns:
            The HTML file.

        Raises:
            DependencyError: jinja2 is not installed.
        """
        from edge_sdk.parity.report import render

        html = render(self)
        target = Path(folder)
        write_text(target / JSON_NAME, self.model_dump_json(indent=1) + "\n")
        write_text(target / REPORT_NAME, html)
        return target / REPORT_NAME
