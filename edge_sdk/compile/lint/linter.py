"""Runs the rules over a graph, or over the two graphs of a pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast, get_args

import onnx

from edge_sdk.compile.lint import float16, qdq, structure
from edge_sdk.compile.lint.finding import Backend, Finding, Precision, Target
from edge_sdk.compile.lint.graph import GraphView
from edge_sdk.compile.lint.pair import state_rules
from edge_sdk.errors import FileFormatError, RecipeError
from edge_sdk.files import require_file

Rule = Callable[[GraphView, Target], Iterator[Finding]]
RULES: tuple[Rule, ...] = (*structure.RULES, *qdq.RULES, *float16.RULES)


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
    model: onnx.ModelProto | str | Path, *, backend: str, precision: str, step: str = "keyframe"
) -> list[Finding]:
    """Look for what a backend would refuse, crash on, compute differently or gain nothing from.

    Args:
        model: a step graph, or its file. Nothing is run and nothing is changed.
        backend: ``tensorrt`` or ``onnxruntime``.
        precision: ``float32``, ``float16`` or ``int8``: what its layers should compute in.
        step: ``keyframe`` or ``delta``; named in the messages.

    Returns:
        Errors first, in the order of the graph within each rule.

    Raises:
        RecipeError: an unknown backend or precision.
        MissingFileError, FileFormatError: see :func:`read_model`.
    """
    target = _target(backend, precision, step)
    view = GraphView(model if isinstance(model, onnx.ModelProto) else read_model(model))
    return _sorted([finding for rule in RULES for finding in rule(view, target)])


def lint_pair(
    keyframe: onnx.ModelProto | str | Path,
    delta: onnx.ModelProto | str | Path,
    *,
    backend: str,
    precision: str,
) -> list[Finding]:
    """Look for state that the delta step would read differently from how it was written.

    Only rules across the two graphs; :func:`lint` looks at each alone.

    Args:
        keyframe, delta: the step graphs, or their files.
        backend, precision: as for :func:`lint`.

    Returns:
        Errors first.

    Raises:
        RecipeError, MissingFileError, FileFormatError: as for :func:`lint`.
    """
    written, read = (
        GraphView(model if isinstance(model, onnx.ModelProto) else read_model(model))
        for model in (keyframe, delta)
    )
    return _sorted(list(state_rules(written, read, _target(backend, precision, "delta"))))


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
