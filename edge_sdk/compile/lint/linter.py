"""Runs the rules over a graph, or over the two graphs of a pair."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import onnx

from edge_sdk.compile.lint import float16, qdq, rewritten, structure
from edge_sdk.compile.lint.finding import Backend, Finding, Precision, Target
from edge_sdk.compile.lint.graph import GraphView
from edge_sdk.compile.lint.pair import form_rules, state_rules
from edge_sdk.errors import FileFormatError, RecipeError
from edge_sdk.files import require_file
from edge_sdk.manifest import StateForm

Rule = Callable[[GraphView, Target], Iterator[Finding]]
RULES: tuple[Rule, ...] = (*structure.RULES, *qdq.RULES, *float16.RULES, *rewritten.RULES)


def read_model(path: str | Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        MissingFileError: it is not there.
        FileFormatError: it is no ONNX model, is truncated, or its weights are elsewhere and missing.
    """
    file = require_file(path, "graph")
    try:
        model = onnx.load(str(file))
    except Exception as error:  # protobuf, numpy and file system raise classes of their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileFormatError(
            f"graph {file}: not readable as ONNX: {reason}.", hint="Export it again."
        ) from error
    if not model.graph.node:
        raise FileFormatError(
            f"graph {file}: expected an ONNX model, got one without nodes.", hint="Export it again."
        )
    return model


def lint(
    model: onnx.ModelProto | str | Path,
    *,
    backend: str,
    precision: str,
    step: str = "keyframe",
    wide_state: Collection[str] = (),
) -> list[Finding]:
    """Look for what a backend would refuse, crash on, compute differently or gain nothing from.

    Args:
        model: a step graph, or its file. Nothing is run and nothing is changed.
        backend: ``tensorrt`` or ``onnxruntime``.
        precision: ``float32``, ``float16`` or ``int8``: what its layers should compute in.
        step: ``keyframe`` or ``delta``; named in the messages.
        wide_state: names of the state tensors that stay in float32 because the delta step adds to them; a delta step
            tells that of itself.

    Returns:
        Errors first, in the order of the graph within each rule; of a graph that ONNX's checker refuses, that alone.

    Raises:
        RecipeError: an unknown backend or precision.
        MissingFileError, FileFormatError: see :func:`read_model`.
    """
    target = replace(_target(backend, precision, step), wide_state=frozenset(wide_state))
    loaded = model if isinstance(model, onnx.ModelProto) else read_model(model)
    broken = _invalid(loaded, target)
    if broken is not None:
        return [broken]  # the rules take it for granted that every node has its inputs
    view = GraphView(loaded)
    return _sorted([finding for rule in RULES for finding in rule(view, target)])


def lint_pair(
    keyframe: onnx.ModelProto | str | Path,
    delta: onnx.ModelProto | str | Path,
    *,
    backend: str,
    precision: str,
    forms: Mapping[str, StateForm] | None = None,
) -> list[Finding]:
    """Look for state that the delta step would read differently from how it was written.

    Only rules across the two graphs; :func:`lint` looks at each alone.

    Args:
        keyframe, delta: the step graphs, or their files.
        backend, precision: as for :func:`lint`.
        forms: how the manifest says that the state is kept, to be held against the graphs; None: there is no manifest.

    Returns:
        Errors first.

    Raises:
        RecipeError, MissingFileError, FileFormatError: as for :func:`lint`.
    """
    steps = {"keyframe": keyframe, "delta": delta}
    models = {
        step: model if isinstance(model, onnx.ModelProto) else read_model(model)
        for step, model in steps.items()
    }
    targets = {step: _target(backend, precision, step) for step in steps}
    broken = [_invalid(model, targets[step]) for step, model in models.items()]
    if any(broken):
        return [finding for finding in broken if finding is not None]
    written, read = (GraphView(model) for model in models.values())
    found = list(state_rules(written, read, targets["delta"]))
    if forms is not None:
        found += form_rules(written, forms, targets["keyframe"])
    return _sorted(found)


def _invalid(model: onnx.ModelProto, target: Target) -> Finding | None:
    """What ONNX's own checker says of a graph that is none; types and shapes are left to the rules."""
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        what = f"ONNX's checker refuses the graph: {' '.join(str(error).split()).rstrip('.')}"
        return target.whole("invalid", "error", what, "Export or quantise it again.")
    return None


def _target(backend: str, precision: str, step: str) -> Target:
    for name, value, known in (
        ("backend", backend, get_args(Backend)),
        ("precision", precision, get_args(Precision)),
    ):
        if value not in known:
            raise RecipeError(f"{name}: expected one of {', '.join(known)}, got '{value}'.")
    return Target(cast(Backend, backend), cast(Precision, precision), step)


def _sorted(findings: list[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: finding.severity != "error")
