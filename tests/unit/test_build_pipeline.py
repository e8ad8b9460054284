"""``edge-sdk build``: graphs and engines; what is kept, what is built again, and what keeps a build from beginning."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("onnx", reason="graphs are made with onnx")
ort = pytest.importorskip("onnxruntime", reason="engines are built with ONNX Runtime")

import onnx  # noqa: E402

from edge_sdk.build import onnxruntime as builder  # noqa: E402
from edge_sdk.build import pipeline  # noqa: E402
from edge_sdk.build.pipeline import build  # noqa: E402
from edge_sdk.bundle import Bundle  # noqa: E402
from edge_sdk.cli import app  # noqa: E402
from edge_sdk.errors import BundleError, DependencyError, EngineError, RecipeError  # noqa: E402
from edge_sdk.identity import read_identity  # noqa: E402
from edge_sdk.runtime.runner import EdgeRunner  # noqa: E402
from tests import graphs  # noqa: E402
from tests import quantised_pairs as pairs  # noqa: E402
from tests.build_world import (  # noqa: E402
    INT8,
    SETS,
    accuracy,
    built_copy,
    content,
    everything,
    recipe,
    reused,
    unbuilt_copy,
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a bundle and its calibration set."""
    return unbuilt_copy(tmp_path / "place")


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """The same after a build."""
    return built_copy(tmp_path / "built")


# What is built


def test_a_build_makes_graphs_engines_and_identities(place: Path) -> None:
    report = build(recipe(place))
    assert reused(report) == everything(False)
    manifest = report.bundle.manifest
    assert set(manifest.variants) == {INT8}
    assert set(manifest.engines) == set(SETS)
    assert manifest.chosen == {}
    assert report.notes == ("nothing was timed or chosen: the recipe has no 'accuracy'",)
    calibration = manifest.variants[INT8].provenance["calibration_sha256"]
    for engine in report.engines:
        found = engine.identity
        assert engine.path == report.bundle.path / "engines" / engine.name / f"{found.step}.onnx"
        assert read_identity(engine.path) == found
        assert found.engine_sha256 == hashlib.sha256(engine.path.read_bytes()).hexdigest()
        assert found.runtime == f"onnxruntime {ort.__version__}"
        graph = manifest.pair if found.precision == "float32" else manifest.variants[engine.name]
        step = dict(graph.steps.items())[found.step]
        assert found.graph_sha256 == manifest.files[step.graph].sha256
        assert found.calibration_sha256 == (None if found.precision == "float32" else calibration)
        assert found.shares == pytest.approx(found.asked), "what was asked for is what was built"
        if found.precision == "int8":
            assert found.asked == pytest.approx({"keyframe": {"int8": 2 / 3, "float32": 1 / 3},
                                                 "delta": {"int8": 3 / 4, "float32": 1 / 4}}[found.step])  # fmt: skip
        kinds = {node.op_type for node in onnx.load(str(engine.path)).graph.node}
        assert ("QLinearConv" in kinds) == (found.precision == "int8")


def test_a_second_build_builds_nothing_and_changes_no_file(built: Path) -> None:
    before = content(built)
    report = build(recipe(built))
    assert reused(report) == everything(True)
    assert content(built) == before


def test_another_place_is_gone_on_with_and_the_origin_left_alone(place: Path, tmp_path: Path) -> None:
    before = content(place)
    out = tmp_path / "out"
    first = build(recipe(place, out=out))
    assert first.bundle.path == out
    assert content(place) == before
    made = content(out)
    assert reused(build(recipe(place, out=out))) == everything(True)
    assert content(out) == made
    # The pair was exported again: what was made of the old one is of no use.
    other = pairs.recurrent(tmp_path / "other", seed=1)
    pairs.record(other, tmp_path / "other.npz", clips=2)
    again = build(recipe(place, bundle=other.path, calibration=tmp_path / "other.npz", out=out))
    assert reused(again) == everything(False)


def test_a_place_that_is_damaged_is_made_again(place: Path, tmp_path: Path) -> None:
    build(recipe(place, out=tmp_path / "out"))
    graph = tmp_path / "out" / "delta.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    report = build(recipe(place, out=tmp_path / "out"))
    assert reused(report) == everything(False)
    assert any("made again, it is not whole" in note for note in report.notes)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"int8": {"keep": ["mix"]}}, {"onnxruntime-float32"}),
        ({"int8": {"method": "percentile"}}, {"onnxruntime-float32"}),
        ({"onnxruntime": {"threads": 1}}, set(SETS)),
        ({"float16": {"largest": 100}}, set(SETS)),
        ({"precisions": ["int8", "float32"]}, set(SETS)),
    ],
    ids=["layers kept", "method", "threads", "float16", "order"],
)
def test_what_a_changed_setting_touches_is_built_again(
    built: Path, changes: dict[str, Any], kept: set[str]
) -> None:
    report = build(recipe(built, **changes))
    assert {name for (name, _), value in reused(report).items() if value} == kept
    assert set(Bundle.open(built / "bundle").manifest.engines) == set(SETS)


def test_another_calibration_set_makes_the_int8_graphs_anew(built: Path) -> None:
    pairs.record(Bundle.open(built / "bundle"), built / "set.npz", clips=2)
    report = build(recipe(built))
    assert reused(report) == {key: key[0] != INT8 for key in everything(True)}


def test_graphs_alone(place: Path) -> None:
    report = build(recipe(place, backends=["onnxruntime", "tensorrt"]), graphs_only=True)
    assert report.engines == ()
    assert report.bundle.manifest.engines == {}
    assert set(report.bundle.manifest.variants) == {INT8, "tensorrt-int8"}
    # On a device: no onnx package and no calibration set; the graphs are there.
    later = build(recipe(place, calibration=None))
    assert reused(later) == everything(False)


# What keeps a build from beginning


def missing(*names: str) -> Callable[[str], Any]:
    """``find_spec`` on a machine without some packages."""
    return lambda name: None if name in names else object()


def test_no_calibration_set(place: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"'calibration': .*names no calibration set.*edge-sdk calibrate RECIPE"
    ):
        build(recipe(place, calibration=None))
    build(recipe(place, calibration=None, precisions=["float32"]))


def test_a_calibration_set_of_another_pair(place: Path, tmp_path: Path) -> None:
    other = pairs.recurrent(tmp_path / "other", seed=1)
    pairs.record(other, place / "set.npz", clips=2)
    before = content(place)
    with pytest.raises(BundleError, match=r"calibration set .*edge-sdk calibrate RECIPE"):
        build(recipe(place))
    assert content(place) == before


def test_a_device_without_onnx(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "find_spec", missing("onnx"))
    with pytest.raises(
        DependencyError, match=r"no graphs onnxruntime-int8.*needs the onnx package.*--graphs-only"
    ):
        build(recipe(place))


def test_a_device_without_onnx_builds_from_graphs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(recipe(place), graphs_only=True)
    monkeypatch.setattr(pipeline, "find_spec", missing("onnx"))
    assert reused(build(recipe(place, int8={"keep": ["mix"]}))) == everything(False)


def test_float16_on_the_cpu_is_left_out_with_a_note(place: Path) -> None:
    report = build(recipe(place, precisions=["float32", "float16"]))
    assert set(report.bundle.manifest.engines) == {"onnxruntime-float32"}
    assert any(note.startswith("onnxruntime-float16: left out, its CPU kernels") for note in report.notes)


def test_nothing_that_can_be_built(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        RecipeError, match=r"precisions: nothing of float16 can be built here .*edge-sdk doctor"
    ):
        build(recipe(place, precisions=["float16"]))
    monkeypatch.setattr(pipeline, "find_spec", missing("onnxruntime", "tensorrt", "tensorrt_rtx"))
    with pytest.raises(
        RecipeError, match=r"nothing of float32, int8 can be built.*onnxruntime is not installed"
    ):
        build(recipe(place, backends="auto"))
    with pytest.raises(
        DependencyError, match=r"backends: onnxruntime is asked for, .* not installed.*doctor"
    ):
        build(recipe(place))


def test_a_backend_that_is_not_installed_is_left_out_of_auto(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "find_spec", missing("tensorrt", "tensorrt_rtx"))
    report = build(recipe(place, backends="auto", precisions=["float32"]))
    assert set(report.bundle.manifest.engines) == {"onnxruntime-float32"}
    assert "tensorrt: left out, tensorrt or tensorrt_rtx is not installed here" in report.notes


@pytest.mark.parametrize("name", ["precisions", "backends"])
def test_a_recipe_names_each_once(place: Path, name: str) -> None:
    values = {"precisions": ["int8", "int8"], "backends": ["onnxruntime", "onnxruntime"]}
    with pytest.raises(RecipeError, match=f"expected each of '{name}' once"):
        recipe(place, **{name: values[name]})


def test_a_pair_without_convolutions_is_built_in_float32(tmp_path: Path) -> None:
    graphs.chaining().write(tmp_path / "bundle")
    report = build(recipe(tmp_path, calibration=None, precisions=["float32"]))
    assert [engine.identity.shares for engine in report.engines] == [{}, {}]


@pytest.mark.parametrize(
    "found", [{"float32": 1.0}, {"int8": 1.0}, {}], ids=["none", "too much", "no answer"]
)
def test_a_request_that_is_not_met_is_a_failure(
    place: Path, monkeypatch: pytest.MonkeyPatch, found: dict[str, float]
) -> None:
    real = builder.kernel_shares
    monkeypatch.setattr(builder, "kernel_shares", lambda path: found if "int8" in str(path) else real(path))
    match = (
        r"keyframe step: 66\.7% of the convolutions were asked in int8, ONNX Runtime computes .*edge-sdk lint"
    )
    with pytest.raises(EngineError, match=match):
        build(recipe(place))
    assert set(Bundle.open(place / "bundle").manifest.engines) == {"onnxruntime-float32"}


# Interruptions


@pytest.mark.parametrize("error", [RuntimeError("power"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
@pytest.mark.parametrize("after", range(4))
def test_an_interrupted_build_leaves_a_whole_bundle_and_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException
) -> None:
    calls = 0
    real = pipeline.build_session

    def interrupted(*args: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise error
        return real(*args, **settings)

    monkeypatch.setattr(pipeline, "build_session", interrupted)
    with pytest.raises(type(error)):
        build(recipe(place))
    monkeypatch.undo()
    there = Bundle.open(place / "bundle")
    assert set(there.manifest.engines) == set(SETS[: after // 2])
    with EdgeRunner(there) as runner:
        assert runner(pairs.images(1)[0]).mask.shape == pairs.SIZE
    assert [path.name for path in place.iterdir() if path.name.startswith(".")] == []
    later = reused(build(recipe(place)))
    assert later == {key: key[0] in SETS[: after // 2] for key in later}


# The command


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_the_command_prints_json_and_nothing_else(place: Path, method: str) -> None:
    """ONNX Runtime's calibrators print what they do; none of it may reach standard output."""
    data = recipe(place, int8={"method": method}, accuracy=accuracy(max_drop=100, sweep="never"))
    (place / "recipe.yaml").write_text(data.model_dump_json())  # JSON is YAML
    command = [sys.executable, "-m", "edge_sdk", "build", str(place / "recipe.yaml"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(e["name"], e["step"]) for e in found["engines"]] == list(everything(True))
    for engine in found["engines"]:
        assert Path(engine["path"]).stat().st_size == engine["engine_bytes"]
        assert sum(engine["shares"].values()) == pytest.approx(1)
        assert engine["build_s"] > 0
    assert set(found["chosen"]["onnxruntime"]["measured"]) == {"float32", *SETS}


def test_the_command_prints_path_size_shares_time_and_choice(built: Path) -> None:
    data = recipe(built, accuracy=accuracy(max_drop=100, sweep="never"), int8={"method": "percentile"})
    (built / "recipe.yaml").write_text(data.model_dump_json())
    command = [sys.executable, "-m", "edge_sdk", "build", str(built / "recipe.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120,
                          env={**os.environ, "COLUMNS": "250"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    for part in ("there already", "int8 75%, float32 25%", f"engines/{INT8}/delta.onnx", "chosen for onnxruntime: ",
                 "points lost", "speed-up", f"bundle: {built / 'bundle'}"):  # fmt: skip
        assert part in done.stdout, (part, done.stdout)


def test_a_build_that_costs_a_bundle_its_signature_says_so(place: Path) -> None:
    signature = place / "bundle" / "signature.json"
    signature.write_text("{}")
    (place / "recipe.yaml").write_text(recipe(place).model_dump_json())
    command = ["build", str(place / "recipe.yaml"), "--graphs-only"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert not signature.exists()
    assert json.loads(done.stdout)["signature_dropped"]
    said = [line for line in done.stderr.splitlines() if "unsigned now" in line]
    assert len(said) == 1
    assert said[0].endswith(
        f"Sign it again with: edge-sdk sign {place / 'bundle'} --key KEY --release NUMBER"
    )

    signature.write_text("{}")
    done = CliRunner().invoke(app, [*command, "--json"])
    assert not json.loads(done.stdout)["signature_dropped"]
    assert signature.exists()
    assert "unsigned" not in done.stderr


def test_a_signed_bundle_that_is_built_elsewhere_stays_signed(place: Path, tmp_path: Path) -> None:
    (place / "bundle" / "signature.json").write_text("{}")
    assert build(recipe(place, out=tmp_path / "out"), graphs_only=True).signature_dropped
    assert (place / "bundle" / "signature.json").exists()
    assert not (tmp_path / "out" / "signature.json").exists()
