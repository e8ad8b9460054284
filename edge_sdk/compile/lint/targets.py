"""What can be given to the linter: a graph, a folder of two, or a bundle with every precision it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from onnx import ModelProto, TensorProto

from edge_sdk.bundle import Bundle
from edge_sdk.compile.accumulators import accumulators_of
from edge_sdk.compile.lint.finding import Backend, Finding, Precision
from edge_sdk.compile.lint.graph import DEQUANTIZE, QUANTIZE, GraphView
from edge_sdk.compile.lint.linter import lint, lint_pair, read_model
from edge_sdk.errors import MissingFileError, RecipeError
from edge_sdk.manifest import FLOAT32, MANIFEST, StateForm, is_state

KEYFRAME, DELTA = "keyframe", "delta"
DEFAULT_BACKEND = "tensorrt"


@dataclass(frozen=True)
class LintReport:
    """What the linter found in one graph, or in the graphs of one pair.

    Args:
        where: the graph's file, or the bundle and the pair in it.
        backend, precision: what it was looked at for.
        findings: errors first.
    """

    where: str
    backend: str
    precision: str
    findings: list[Finding]


@dataclass(frozen=True)
class _Pair:
    where: str
    backend: str
    precision: str | None
    graphs: dict[str, Path]
    forms: Mapping[str, StateForm] | None = None


def lint_path(
    path: str | Path, *, backend: str | None = None, precision: str | None = None
) -> list[LintReport]:
    """Lint whatever is at ``path``.

    Args:
        path: an ONNX file; a folder with ``keyframe.onnx`` and ``delta.onnx``; or a bundle, whose float32 pair and
            variants are all looked at.
        backend: ``tensorrt`` or ``onnxruntime``; of a bundle only what is meant for it. ``None``: what the variant, or
            a folder's name such as ``onnxruntime-int8``, says; otherwise TensorRT, the stricter of the two.
        precision: ``float32``, ``float16`` or ``int8``; of a bundle only that. ``None``: what the variant or the
            folder's name says, otherwise what the graph holds.

    Returns:
        One report for each pair or graph.

    Raises:
        MissingFileError: there is no graph.
        RecipeError: an unknown backend or precision, or a bundle that has none such.
        EdgeSdkError: whatever opening a bundle or reading a graph raises.
    """
    place = Path(path)
    pairs = [_renamed(pair, backend, precision) for pair in _pairs(place, backend, precision)]
    if not pairs:
        asked = " and ".join(word for word in (backend, precision) if word)
        raise RecipeError(
            f"bundle {place}: it holds no graphs for {asked}.", hint="Leave --backend and --precision out."
        )
    return [_lint_pair(pair) for pair in pairs]


def _pairs(place: Path, backend: str | None, precision: str | None) -> Iterator[_Pair]:
    if place.is_dir() and (place / MANIFEST).is_file():
        yield from _of_bundle(place, backend, precision)
        return
    named = _by_folder(place if place.is_dir() else place.parent)
    graphs = {KEYFRAME: place}
    if place.is_dir():
        graphs = {step: file for step in (KEYFRAME, DELTA) if (file := place / f"{step}.onnx").is_file()}
        if not graphs:
            raise MissingFileError(
                f"graph: expected a bundle, or {KEYFRAME}.onnx or {DELTA}.onnx, in {place}, found neither.",
                hint="Name an ONNX file, or the folder that edge-sdk export wrote.",
            )
    yield _Pair(str(place), named[0] or DEFAULT_BACKEND, named[1], graphs)


def _of_bundle(place: Path, backend: str | None, precision: str | None) -> Iterator[_Pair]:
    bundle = Bundle.open(place)
    manifest = bundle.manifest
    if precision in (None, FLOAT32):
        graphs = {str(step): place / spec.graph for step, spec in manifest.pair.steps.items()}
        yield _Pair(f"{place} ({FLOAT32})", backend or DEFAULT_BACKEND, FLOAT32, graphs)
    for name, variant in manifest.variants.items():
        if backend in (None, variant.backend) and precision in (None, variant.precision):
            graphs = {str(step): place / spec.graph for step, spec in variant.steps.items()}
            yield _Pair(f"{place} ({name})", variant.backend, variant.precision, graphs, variant.forms)


def _renamed(pair: _Pair, backend: str | None, precision: str | None) -> _Pair:
    return replace(pair, backend=backend or pair.backend, precision=precision or pair.precision)


def _by_folder(folder: Path) -> tuple[str | None, str | None]:
    """Backend and precision by a folder's name, such as ``tensorrt-int8``."""
    backend, _, precision = folder.resolve().name.partition("-")
    known = backend in get_args(Backend) and precision in get_args(Precision)
    return (backend, precision) if known else (None, None)


def _lint_pair(pair: _Pair) -> LintReport:
    models = {step: read_model(file) for step, file in pair.graphs.items()}
    if len(models) == 1 and _reads_state(next(iter(models.values()))):
        models = {DELTA: next(iter(models.values()))}
    precision = pair.precision or _precision_of(models)
    delta = models.get(DELTA)
    wide = accumulators_of(delta).state if delta is not None else ()
    findings = [
        finding
        for step, model in models.items()
        for finding in lint(model, backend=pair.backend, precision=precision, step=step, wide_state=wide)
    ]
    if len(models) == 2:
        both = (models[KEYFRAME], models[DELTA])
        findings += lint_pair(*both, backend=pair.backend, precision=precision, forms=pair.forms)
        findings = list(dict.fromkeys(findings))  # a graph that is none is told of by either
    findings.sort(key=lambda finding: finding.severity != "error")
    return LintReport(pair.where, pair.backend, precision, findings)


def _reads_state(model: ModelProto) -> bool:
    return any(is_state(value.name) for value in model.graph.input)


def _precision_of(models: dict[str, ModelProto]) -> str:
    views = [GraphView(model) for model in models.values()]
    if any(view.of_type(QUANTIZE, DEQUANTIZE) for view in views):
        return "int8"
    half = any(TensorProto.FLOAT16 in map(view.elem_type, n.output) for view in views for n in view.nodes)
    return "float16" if half else FLOAT32
