"""The whole of ``edge-sdk build`` with real TensorRT: a calibration set from video, graphs, plans, one bundle.

The pair's delta step rewrites its state, which no exported student does; ``test_build`` has those.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx", reason="graphs are made with onnx")
pytest.importorskip("onnxruntime", reason="the pair is calibrated with ONNX Runtime")

from edge_sdk.build import pipeline
from edge_sdk.build.pipeline import build
from edge_sdk.build.recipe import BuildRecipe
from edge_sdk.bundle import Bundle
from edge_sdk.identity import read_identity
from edge_sdk.settings import parse_settings
from tests import quantised_pairs as pairs
from tests.tensorrt import harness

ALL = ("float32", "float16", "int8")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle and its calibration set, where child processes find TensorRT."""
    found = harness.environment()
    for name in ("LD_LIBRARY_PATH", "PYTHONPATH"):
        monkeypatch.setenv(name, found[name])
    monkeypatch.setattr(pipeline, "find_spec", lambda name: object())
    shutil.copytree(pairs.origin("recurrent"), tmp_path / "place")
    return tmp_path / "place"


def recipe(place: Path, **changes: Any) -> BuildRecipe:
    data = {
        "bundle": place / "bundle", "calibration": place / "set.npz", "backends": ["tensorrt"],
        "tensorrt": {"timing_cache": place / "timing", "runtime": "tensorrt"}, **changes,
    }  # fmt: skip
    return parse_settings(data, BuildRecipe, "test")


def test_every_precision_of_a_pair_that_rewrites_its_state(place: Path) -> None:
    report = build(recipe(place, precisions=ALL))
    manifest = Bundle.open(place / "bundle").manifest
    assert set(manifest.engines) == {f"tensorrt-{precision}" for precision in ALL}
    for precision in ALL:
        built = manifest.engines[f"tensorrt-{precision}"]
        assert {spec.dtype for spec in built.state} == {precision}, "state is in the engine's own type"
        for step, spec in built.steps.items():
            plan = place / "bundle" / spec.graph
            identity = read_identity(plan)
            assert (identity.step, identity.precision) == (step, precision)
            assert identity.engine_bytes == plan.stat().st_size > 0
            calibrated = built.provenance.get("calibration_sha256")
            assert identity.calibration_sha256 == calibrated
            assert (calibrated is None) == (precision == "float32")
            assert identity.asked.get(precision, 0) >= 0.6
    assert len(report.engines) == 2 * len(ALL)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("remainder", ["float16", "float32"])
def test_int8_in_every_form(place: Path, remainder: str, layout: str) -> None:
    settings = {"remainder": remainder, "state_layout": layout, "keep": ["recall"]}
    report = build(recipe(place, precisions=["int8"], int8=settings))
    assert [engine.identity.step for engine in report.engines] == ["keyframe", "delta"]
    assert report.engines[1].identity.asked == pytest.approx({"int8": 0.5, remainder: 0.5})
