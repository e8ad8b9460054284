"""Parity: what compare says of an engine set is what numpy computes of the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from edge_sdk.bundle import Bundle
from edge_sdk.cli import app
from edge_sdk.errors import BundleError, EdgeSdkError
from edge_sdk.manifest import StepName
from edge_sdk.parity import CompareRecipe, Comparison, Reference, compare, record_reference
from edge_sdk.video import open_source
from tests.graphs import PAIRS, TinyPair, per_frame
from tests.parity_world import INT8, INTERVAL, SIZE, images, rounded, settings, with_int8, write_source


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> TinyPair:
    return PAIRS[request.param](SIZE)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_source(tmp_path_factory.mktemp("frames"))


@pytest.fixture
def bundle(pair: TinyPair, tmp_path: Path) -> Bundle:
    return with_int8(pair.write(tmp_path / "bundle"), pair)


@pytest.fixture
def reference(bundle: Bundle, source: str, tmp_path: Path) -> Reference:
    return record_reference(bundle, settings(source, periods=2), tmp_path / "reference.npz")


def test_the_float32_pair_is_its_own_reference(bundle: Bundle, reference: Reference) -> None:
    found = compare(CompareRecipe(bundle=bundle.path, reference=reference.path, engines=("float32",)))
    (engine,) = found.engines
    assert (engine.engine, engine.backend, engine.precision) == ("float32", "onnxruntime", "float32")
    assert (engine.drop_points, engine.agreement, engine.same) == (0.0, 1.0, 1.0)
    assert engine.labels == engine.reference_labels
    assert {one.max for one in (*engine.steps, *engine.stream)} == {0.0, None}
    assert {one.differing for one in (*engine.steps, *engine.stream)} == {0.0}
    assert (engine.grows_in_steps, engine.grows_in_stream, engine.answers_change_at) == (None, None, None)


def test_what_is_said_of_an_int8_engine_is_what_numpy_computes(
    pair: TinyPair, bundle: Bundle, reference: Reference
) -> None:
    """Each step on the reference's own inputs, and the stream on the state that the engine made itself."""
    assert pair.delta_formula is not None
    found = compare(CompareRecipe(bundle=bundle.path, reference=reference.path))
    assert [one.engine for one in found.engines] == ["float32", INT8]
    engine = found.engines[1]
    same: list[float] = []
    errors: dict[tuple[StepName, int], list[np.ndarray]] = {}
    in_stream: dict[tuple[StepName, int], list[np.ndarray]] = {}
    state = own = np.zeros(SIZE, np.float32)
    for index, image in enumerate(images()):
        distance = index % INTERVAL
        formula = pair.delta_formula if distance else pair.keyframe_formula
        expected, state_next = formula(image, state)
        _, alone = formula(image, rounded(state))
        mask, own_next = formula(image, own)
        assert state_next is not None
        assert alone is not None
        assert own_next is not None
        if distance == 0 or pair.name == "tiny-chaining":
            own_next = rounded(own_next)
            if index < 2 * INTERVAL:  # those that are kept whole
                place: tuple[StepName, int] = ("delta" if distance else "keyframe", distance)
                errors.setdefault(place, []).append(np.abs(rounded(alone) - state_next))
                in_stream.setdefault(place, []).append(np.abs(own_next - state_next))
        same.append(float(np.mean(mask == expected)))
        state, own = state_next, own_next
    for rows, wanted in ((engine.steps, errors), (engine.stream, in_stream)):
        states = {(one.step, one.distance): one for one in rows if one.output == "state.memory.next"}
        assert set(states) == set(wanted)
        for place, passes in wanted.items():
            error = np.concatenate([one.ravel() for one in passes])
            assert states[place].max == pytest.approx(error.max())
            assert states[place].median == pytest.approx(np.quantile(error, 0.5, method="lower"))
            assert states[place].p99 == pytest.approx(np.quantile(error, 0.99, method="higher"))
            assert states[place].passes == 2
    assert engine.same == pytest.approx(np.mean(same))
    for row in engine.by_distance:
        assert row.same == pytest.approx(np.mean(same[row.distance :: INTERVAL]))
        assert row.frames == len(same[row.distance :: INTERVAL])
    assert 0 < 1 - engine.same < 0.2


def test_metrics_against_the_labels_are_the_tasks_own(
    source: str, pair: TinyPair, bundle: Bundle, reference: Reference
) -> None:
    from edge_sdk.runtime.runner import EdgeRunner
    from edge_sdk.runtime.schedule import EverySchedule

    engine = compare(CompareRecipe(bundle=bundle.path, reference=reference.path)).engines[1]
    scores = {name: bundle.task.score() for name in ("float32", INT8)}
    for name, score in scores.items():
        with EdgeRunner(bundle, engine=name, schedule=EverySchedule(interval=INTERVAL)) as runner:
            for frame, result in runner.stream(open_source(source)):
                assert frame.truth is not None
                truth = bundle.task.from_truth(frame.truth)
                assert truth is not None
                score.update(result.prediction, truth)
    expected = {name: score.compute()["miou"] for name, score in scores.items()}
    assert engine.labels == pytest.approx(expected[INT8])
    assert engine.reference_labels == pytest.approx(expected["float32"])
    assert engine.drop_points == pytest.approx(100 * (expected["float32"] - expected[INT8]))


def test_without_labels_the_drop_is_what_agreement_lacks(bundle: Bundle, tmp_path: Path) -> None:
    unlabelled = write_source(tmp_path / "frames", labelled=False)
    found = compare(CompareRecipe(bundle=bundle.path, record=settings(unlabelled)))
    engine = found.engines[1]
    assert (engine.labels, engine.reference_labels, found.reference.labelled) == (None, None, 0)
    assert engine.agreement is not None
    assert engine.drop_points == pytest.approx(100 * (1 - engine.agreement))
    assert engine.drop_points > 0


def test_where_the_error_first_grows_is_named(pair: TinyPair, bundle: Bundle, reference: Reference) -> None:
    # A level is 4 of 255 wide, so half of it is about 0.8 % of the largest value.
    found = compare(CompareRecipe(bundle=bundle.path, reference=reference.path, grown=0.005)).engines[1]
    assert found.grows_in_steps is not None
    assert found.grows_in_steps.output == "state.memory.next"
    assert (found.grows_in_steps.step, found.grows_in_steps.distance) == ("keyframe", 0)
    assert (
        compare(CompareRecipe(bundle=bundle.path, reference=reference.path, grown=0.9))
        .engines[1]
        .grows_in_steps
        is None
    )
    # Answers are made last, so they are last at each distance.
    by_distance = [one.output for one in found.steps if one.distance == 0]
    assert by_distance == ["state.memory.next", "mask"]


def test_a_per_frame_network_is_compared_too(source: str, tmp_path: Path) -> None:
    bundle = per_frame(SIZE).write(tmp_path / "bundle")
    found = compare(CompareRecipe(bundle=bundle.path, record=settings(source, interval=None)))
    assert (found.reference.interval, found.reference.whole_passes) == (1, 4)
    (engine,) = found.engines
    assert [row.distance for row in engine.by_distance] == [0]
    assert {one.step for one in engine.steps} == {"keyframe"}


def test_what_cannot_run_here_is_listed_with_its_reason(source: str, pair: TinyPair, tmp_path: Path) -> None:
    bundle = with_int8(pair.write(tmp_path / "bundle"), pair, engines=False)
    found = compare(CompareRecipe(bundle=bundle.path, record=settings(source)))
    assert [one.engine for one in found.engines] == ["float32"]
    (left,) = found.not_run
    assert left.engine == INT8
    assert "edge-sdk build RECIPE" in left.reason
    with pytest.raises(BundleError, match=f"it has no engines '{INT8}', only float32"):
        compare(CompareRecipe(bundle=bundle.path, record=settings(source), engines=(INT8,)))


def test_an_engine_of_another_machine_is_listed_or_refused(
    source: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_sdk.runtime.onnxruntime import OrtBackend

    load = OrtBackend.load

    def refusing(self: OrtBackend, path: Path, options: Any, built: bytes | None = None) -> Any:
        from edge_sdk.errors import EngineError

        if built is not None:
            raise EngineError("engine: of another machine.")
        return load(self, path, options)

    monkeypatch.setattr(OrtBackend, "load", refusing)
    found = compare(CompareRecipe(bundle=bundle.path, record=settings(source)))
    assert [(one.engine, one.reason) for one in found.not_run] == [(INT8, "engine: of another machine.")]
    with pytest.raises(EdgeSdkError, match="of another machine"):
        compare(CompareRecipe(bundle=bundle.path, record=settings(source), engines=(INT8,)))


def test_inside_the_graphs_the_first_tensor_with_an_error_is_named(
    pair: TinyPair, bundle: Bundle, reference: Reference
) -> None:
    found = compare(CompareRecipe(bundle=bundle.path, reference=reference.path, trace=True, grown=0.001))
    (trace,) = found.traces
    assert trace.variant == INT8
    assert {layer.relative for layer in trace.layers if layer.step == "keyframe"} == {0.0}
    assert trace.grows_at is not None
    # The delta is the first to read the coarse state.
    assert (trace.grows_at.step, trace.grows_at.operator, trace.grows_at.tensor) == ("delta", "Add", "sum")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_the_command_records_then_compares_on_another_machine(
    source: str, bundle: Bundle, tmp_path: Path
) -> None:
    file = tmp_path / "reference.npz"
    first = run(
        bundle.path, source, "--reference", file, "--interval", INTERVAL, "--out", tmp_path / "report"
    )
    assert first.exit_code == 0, first.output
    assert f"reference: {file}" in first.stdout
    assert "onnxruntime-int8" in first.stdout
    written = (tmp_path / "report" / "comparison.json").read_text()
    comparison = Comparison.model_validate_json(written)
    html = (tmp_path / "report" / "comparison.html").read_text()
    assert all(engine.engine in html for engine in comparison.engines)
    assert "<script" not in html
    again = run(bundle.path, "--reference", file, "--json")
    assert again.exit_code == 0, again.output
    told = json.loads(again.stdout)
    assert told["engines"] == json.loads(written)["engines"]
    assert told["reference"]["sha256"] == comparison.reference.sha256


def test_a_broken_budget_is_exit_code_1(bundle: Bundle, tmp_path: Path) -> None:
    unlabelled = write_source(tmp_path / "frames", labelled=False)
    file = record_reference(bundle, settings(unlabelled), tmp_path / "reference.npz").path
    drop = compare(CompareRecipe(bundle=bundle.path, reference=file)).engines[1].drop_points
    assert drop > 0
    allowed = run(bundle.path, "--reference", file, "--max-drop", drop + 0.01)
    assert (allowed.exit_code, "every engine that ran is within the budget" in allowed.stdout) == (0, True)
    broken = run(bundle.path, "--reference", file, "--max-drop", drop / 2)
    assert broken.exit_code == 1
    assert f"over the budget of {drop / 2:g} points: {INT8}" in broken.stdout
    float32 = run(bundle.path, "--reference", file, "--engine", "float32", "--max-drop", 0)
    assert float32.exit_code == 0


def test_a_device_needs_neither_torch_nor_onnx_nor_opencv(bundle: Bundle, reference: Reference) -> None:
    code = """
import sys
sys.modules["torch"] = sys.modules["onnx"] = sys.modules["cv2"] = None  # importing one is now an ImportError
from edge_sdk.manifest import StepName
from edge_sdk.parity import CompareRecipe, compare
found = compare(CompareRecipe(bundle=sys.argv[1], reference=sys.argv[2]))
print(*(engine.engine for engine in found.engines))
"""
    command = [sys.executable, "-c", code, str(bundle.path), str(reference.path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["float32", INT8], done.stderr
