"""The choice between engines: the fastest within the accuracy budget, measured in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx", reason="graphs are made with onnx")
pytest.importorskip("onnxruntime", reason="engines are built with ONNX Runtime")

from edge_sdk.build import choose as choosing
from edge_sdk.build.pipeline import build
from edge_sdk.bundle import Bundle
from edge_sdk.errors import RecipeError
from edge_sdk.evaluate.timing import Spread, Timing
from edge_sdk.runtime.runner import EdgeRunner
from tests.build_world import INT8, SETS, accuracy, built_copy, recipe, unbuilt_copy


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a bundle and its calibration set."""
    return unbuilt_copy(tmp_path / "place")


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """The same after a build."""
    return built_copy(tmp_path / "built")


def timing(mean_ms: float) -> Timing:
    """What a choice reads of a measurement."""
    spread = Spread(median=mean_ms, iqr=0)
    return Timing.model_construct(mean_ms=spread, speedup=spread, keyframe_ms=mean_ms, between_ms=mean_ms)


def with_times(monkeypatch: pytest.MonkeyPatch, times: dict[str, float]) -> list[str]:
    """Timings in place of measured ones; returns the references that were asked for."""
    references: list[str] = []

    def measure(contenders: dict[str, Any], reference: str, *_: Any) -> dict[str, Timing]:
        references.append(reference)
        return {name: timing(times[name]) for name in contenders}

    monkeypatch.setattr(choosing, "measure", measure)
    return references


CHOICES: list[tuple[str, dict[str, float], float, str, str]] = [
    (
        "INT8 is fastest",
        {"float32": 9, SETS[0]: 8, INT8: 4},
        50,
        INT8,
        "4.00 ms a frame against 9.00 (float32), K=4",
    ),
    ("INT8 loses too much", {"float32": 9, SETS[0]: 8, INT8: 4}, 0, SETS[0], f"over the budget: {INT8} ("),
    ("INT8 is slower", {"float32": 9, SETS[0]: 8, INT8: 12}, 50, SETS[0], "loses 0.00 of the 50 points"),
    ("nothing is faster", {"float32": 2, SETS[0]: 8, INT8: 12}, 50, "float32", "float32: 2.00 ms a frame"),
]


@pytest.mark.parametrize(
    ("times", "drop", "name", "why"), [row[1:] for row in CHOICES], ids=[row[0] for row in CHOICES]
)
def test_the_fastest_within_the_budget_is_chosen(
    built: Path, monkeypatch: pytest.MonkeyPatch, times: dict[str, float], drop: float, name: str, why: str
) -> None:
    references = with_times(monkeypatch, times)
    report = build(recipe(built, accuracy=accuracy(max_drop=drop, sweep="never")))
    choice = report.choices["onnxruntime"]
    assert references == ["float32"]
    assert choice.name == name
    assert why in choice.why
    assert [c.name for c in choice.candidates] == ["float32", *SETS]
    lost = {c.name: c.lost_points for c in choice.candidates}
    assert lost["float32"] == lost[SETS[0]] == 0
    assert 0 < lost[INT8] < 50
    # The manifest says it, and a runner that is told nothing takes it.
    manifest = Bundle.open(built / "bundle").manifest
    assert manifest.chosen == {"onnxruntime": name}
    assert manifest.engines[INT8].measured["mean_ms"] == times[INT8]
    assert manifest.engines[INT8].measured["lost_points"] == pytest.approx(lost[INT8], abs=1e-3)
    assert EdgeRunner(report.bundle).engine == name


def test_a_set_that_is_built_again_does_not_become_the_reference(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    references = with_times(monkeypatch, {"float32": 9, SETS[0]: 8, INT8: 4})
    cut_file = built / "bundle" / f"engines/{SETS[0]}/keyframe.onnx"
    cut_file.write_bytes(cut_file.read_bytes()[:-1])
    report = build(recipe(built, accuracy=accuracy(max_drop=50, sweep="never")))
    assert report.choices["onnxruntime"].candidates[0].name == "float32"
    assert references == ["float32"]
    assert any(f"{SETS[0]}: built again" in note for note in report.notes)


def test_the_choice_is_measured_in_one_run(built: Path) -> None:
    """With real times: every candidate has them, and the figures are of one kind."""
    report = build(recipe(built, accuracy=accuracy(max_drop=100, sweep="never")))
    choice = report.choices["onnxruntime"]
    for candidate in choice.candidates:
        assert candidate.timing.mean_ms.median > 0
        assert candidate.timing.between_ms is not None
    assert choice.candidates[0].timing.speedup.median == pytest.approx(1, abs=1e-9)
    fastest = min(choice.candidates, key=lambda c: c.timing.mean_ms.median)
    assert choice.name == fastest.name


def test_a_backend_that_cannot_run_here_is_not_chosen_from(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "backend_available", lambda name: False)
    report = build(recipe(built, accuracy=accuracy(max_drop=50, sweep="never")))
    assert report.choices == {}
    assert any("this machine cannot run it; see edge-sdk doctor" in note for note in report.notes)


def test_a_choice_goes_with_the_engines_it_was_made_from(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs made anew: their engines and the choice of them are gone; other engines and other choices stay."""
    with_times(monkeypatch, {"float32": 9, SETS[0]: 8, INT8: 4})
    build(recipe(built, accuracy=accuracy(max_drop=50, sweep="never")))
    report = build(recipe(built, int8={"keep": ["mix"]}), graphs_only=True)
    manifest = report.bundle.manifest
    assert set(manifest.engines) == {SETS[0]}
    assert manifest.chosen == {}
    assert not [name for name in manifest.files if name.startswith(f"engines/{INT8}/")]
    assert not (built / "bundle" / "engines" / INT8).exists()
    assert EdgeRunner(report.bundle).engine == "float32"


def test_too_few_frames_to_choose_on(built: Path) -> None:
    with pytest.raises(RecipeError, match=r"accuracy\.interval: 30 needs as many frames"):
        build(recipe(built, accuracy=accuracy(interval=30, sweep="never")))
    assert set(Bundle.open(built / "bundle").manifest.engines) == set(SETS)


def test_progress_is_told_of_each_stage(place: Path) -> None:
    told: list[tuple[str, int, int]] = []

    class Watcher:
        def update(self, stage: str, done: int, total: int, **figures: float) -> None:
            told.append((stage, done, total))

    build(recipe(place, accuracy=accuracy(max_drop=50, sweep="always")), progress=Watcher())
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages[:2] == ["graphs", "sensitivity"]
    assert {"build keyframe float32", "build delta int8", f"accuracy of {INT8}"} <= set(stages)
    for stage in stages:
        steps = [done for name, done, _ in told if name == stage]
        assert steps == sorted(steps)
