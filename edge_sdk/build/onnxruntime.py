"""Engines for ONNX Runtime on the CPU: graphs optimised for this machine, and proof of what they compute in."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import edge_sdk
from edge_sdk.errors import EngineError
from edge_sdk.files import atomic_file, require_file, sha256_of
from edge_sdk.identity import EngineIdentity, machine_facts, write_identity
from edge_sdk.manifest import Precision, StepName
from edge_sdk.optional import require
from edge_sdk.revision import commit_of_sources
from edge_sdk.runtime.onnxruntime import session_settings

# Kernels that do the work, by the precision they compute in. Matrix products only resize here.
_KERNELS = {
    "QLinearConv": "int8",
    "ConvInteger": "int8",
    "Conv": "float32",
    "FusedConv": "float32",
    "NhwcFusedConv": "float32",
    "ConvTranspose": "float32",
}
_TOLERANCE = 0.005


def build_session(
    graph: Path,
    engine: Path,
    *,
    step: StepName,
    precision: Precision,
    asked: Mapping[str, float],
    calibration_sha256: str | None = None,
) -> EngineIdentity:
    """Optimise a step graph for this CPU and write it with its identity beside it.

    Args:
        graph: the step graph in the precision asked.
        engine: where the optimised graph goes.
        step: which step it is.
        precision: what it should compute in.
        asked: share of the convolutions by precision that the graph asks for, 0-1.
        calibration_sha256: of the set that its scales come from.

    Raises:
        MissingFileError: no graph there.
        DependencyError: onnxruntime is not installed.
        EngineError: ONNX Runtime refuses the graph, or computes less of it in ``precision`` than asked.
    """
    file = require_file(graph, "graph", hint="Export the bundle again.")
    ort = require("onnxruntime", "building engines for ONNX Runtime")
    started_s = time.monotonic()
    with atomic_file(engine) as temporary:
        _optimise(ort, file, temporary, step)
        shares = kernel_shares(temporary)
        _require_shares(step, precision, asked, shares)
    identity = EngineIdentity(
        backend="onnxruntime",
        precision=precision,
        step=step,
        graph_sha256=sha256_of(file),
        engine_sha256=sha256_of(engine),
        engine_bytes=engine.stat().st_size,
        runtime=f"onnxruntime {ort.__version__}",
        machine=machine_facts("onnxruntime"),
        asked=dict(asked),
        shares=shares,
        calibration_sha256=calibration_sha256,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        sdk_version=edge_sdk.__version__,
        commit=commit_of_sources(),
        build_s=round(time.monotonic() - started_s, 3),
    )
    write_identity(engine, identity)
    return identity


def _optimise(ort: ModuleType, graph: Path, target: Path, step: StepName) -> None:
    settings = session_settings(ort)
    settings.optimized_model_filepath = str(target)
    try:
        ort.InferenceSession(str(graph), settings, providers=["CPUExecutionProvider"])
    # ONNX Runtime's exceptions have no common base below Exception.
    except Exception as error:
        raise EngineError(
            f"{step} step: ONNX Runtime {ort.__version__} refuses {graph}: {' '.join(str(error).split())}",
            hint="Look at the graph with: edge-sdk lint BUNDLE",
        ) from error


def kernel_shares(engine: Path) -> dict[str, float]:
    """Share of the convolutions by the precision of the kernel that really ran, 0-1, from a profiled run on zeros."""
    counts: Counter[str] = Counter()
    for _, op_type in profile_kernels(engine, runs=1):
        if op_type in _KERNELS:
            counts[_KERNELS[op_type]] += 1
    total = sum(counts.values())
    return {name: counts[name] / total for name in sorted(counts)} if total else {}


def profile_kernels(engine: Path, *, runs: int) -> dict[tuple[str, str], float]:
    """Mean time in ms of each node by (name, operator), on zeros; the first of several runs is left out.

    Args:
        engine: an ONNX file; it is not optimised further.
        runs: how many.
    """
    ort = require("onnxruntime", "profiling engines")
    with tempfile.TemporaryDirectory() as folder:
        settings = session_settings(ort, optimise=False)
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(engine), settings, providers=["CPUExecutionProvider"])
        feeds = {node.name: np.zeros(node.shape, _dtype(node.type)) for node in session.get_inputs()}
        for _ in range(runs):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return _mean_times(events, runs)


def _mean_times(events: list[dict[str, Any]], runs: int) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = (event["name"].removesuffix("_kernel_time"), event["args"]["op_name"])
            found.setdefault(key, []).append(event["dur"] / 1e3)
    return {key: float(np.mean(times[1:] if runs > 1 else times)) for key, times in found.items()}


def _dtype(name: str) -> str:
    inner = name.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(inner, inner)


def _require_shares(
    step: str, precision: str, asked: Mapping[str, float], shares: Mapping[str, float]
) -> None:
    if not shares and precision == "float32":
        return  # no convolution at all, which INT8 graphs never lack
    wanted, found = asked.get(precision, 0.0), shares.get(precision, 0.0)
    if abs(found - wanted) > _TOLERANCE:
        raise EngineError(
            f"{step} step: {wanted:.1%} of the convolutions were asked in {precision}, ONNX Runtime computes "
            f"{found:.1%} so.",
            hint="Look at the graph with: edge-sdk lint BUNDLE; this ONNX Runtime may lack the kernels.",
        )
