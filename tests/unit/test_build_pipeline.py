"""``edge-sdk build``: graphs, engines and the choice; what is kept, what is built again, and what a runner refuses."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("onnx", reason="graphs are made with onnx")
ort = pytest.importorskip("onnxruntime", reason="engines are built with ONNX Runtime")

import onnx  # noqa: E402

from edge_sdk.build import choose as choosing  # noqa: E402
from edge_sdk.build import onnxruntime as builder  # noqa: E402
from edge_sdk.build import pipeline  # noqa: E402
from edge_sdk.build.pipeline import BuildReport, build  # noqa: E402
from edge_sdk.build.recipe import BuildRecipe  # noqa: E402
from edge_sdk.bundle import MANIFEST, Bundle, extend_bundle  # noqa: E402
from edge_sdk.cli import app  # noqa: E402
from edge_sdk.errors import (  # noqa: E402
    BundleError,
    DependencyError,
    EdgeSdkError,
    EngineError,
    RecipeError,
)
from edge_sdk.evaluate.timing import Spread, Timing  # noqa: E402
from edge_sdk.identity import read_identity, write_identity  # noqa: E402
from edge_sdk.runtime.runner import EdgeRunner  # noqa: E402
from edge_sdk.runtime.schedule import EverySchedule  # noqa: E402
from edge_sdk.settings import parse_settings  # noqa: E402
from tests import graphs  # noqa: E402
from tests import quantised_pairs as pairs  # noqa: E402

SETS = ("onnxruntime-float32", "onnxruntime-int8")
INT8 = "onnxruntime-int8"


def recipe(folder: Path, **changes: Any) -> BuildRecipe:
    data = {
        "bundle": folder / "bundle", "calibration": folder / "set.npz", "backends": ["onnxruntime"],
        "precisions": ["float32", "int8"], **changes,
    }  # fmt: skip
    return parse_settings(
        {key: value for key, value in data.items() if value is not None}, BuildRecipe, "test"
    )


def accuracy(**changes: Any) -> dict[str, Any]:
    return {"source": pairs.unlabelled(), "interval": pairs.INTERVAL, "limit": 8, "repeats": 2, **changes}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a bundle and its calibration set."""
    shutil.copytree(pairs.origin("recurrent"), tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after a build; for copying."""
    folder = tmp_path_factory.mktemp("finished") / "place"
    shutil.copytree(pairs.origin("recurrent"), folder)
    build(recipe(folder))
    return folder


@pytest.fixture
def built(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "built")
    return tmp_path / "built"


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file, with the time of its last change."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


def reused(report: BuildReport) -> dict[tuple[str, str], bool]:
    return {(engine.name, engine.identity.step): engine.reused for engine in report.engines}


def everything(value: bool) -> dict[tuple[str, str], bool]:
    return {(name, step): value for name in SETS for step in ("keyframe", "delta")}


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


# Engines that are not what was built, or not for here


def reseal(folder: Path, inside: str, data: bytes) -> None:
    """Change a file of a bundle and what the manifest says of it."""
    (folder / inside).write_bytes(data)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][inside] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    (folder / MANIFEST).write_text(json.dumps(manifest))


ENGINE = f"engines/{INT8}/delta.onnx"
IDENTITY = f"engines/{INT8}/delta.json"


def cut(folder: Path) -> None:
    (folder / ENGINE).write_bytes((folder / ENGINE).read_bytes()[:-10])


def flipped(folder: Path) -> None:
    data = (folder / ENGINE).read_bytes()
    (folder / ENGINE).write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])


def gone(folder: Path) -> None:
    (folder / ENGINE).unlink()


def identity_gone(folder: Path) -> None:
    (folder / IDENTITY).unlink()


def resealed_engine(folder: Path) -> None:
    data = (folder / ENGINE).read_bytes()
    reseal(folder, ENGINE, data[:-1] + bytes([data[-1] ^ 1]))


def edited_identity(folder: Path) -> None:
    reseal(folder, IDENTITY, (folder / IDENTITY).read_bytes().replace(b'"int8"', b'"float32"'))


def identity_is_text(folder: Path) -> None:
    reseal(folder, IDENTITY, b"no identity")


def swapped_steps(folder: Path) -> None:
    reseal(folder, ENGINE, (folder / f"engines/{INT8}/keyframe.onnx").read_bytes())
    reseal(folder, IDENTITY, (folder / f"engines/{INT8}/keyframe.json").read_bytes())


def another_graph(folder: Path) -> None:
    """The graphs were made again, the engines come from elsewhere."""
    rewritten(folder, graph_sha256="0" * 64)


def rewritten(folder: Path, **changes: Any) -> None:
    """An identity with other facts, as another machine would write it."""
    found = read_identity(folder / ENGINE)
    write_identity(folder / ENGINE, type(found).model_validate({**found.model_dump(), **changes}))
    reseal(folder, IDENTITY, (folder / IDENTITY).read_bytes())


def other_cpu(folder: Path) -> None:
    machine = read_identity(folder / ENGINE).machine.model_dump()
    rewritten(folder, machine={**machine, "cpu_features": ("avx2", "avx9000")})


def other_architecture(folder: Path) -> None:
    machine = read_identity(folder / ENGINE).machine.model_dump()
    rewritten(folder, machine={**machine, "arch": "aarch64"})


def other_runtime(folder: Path) -> None:
    rewritten(folder, runtime="onnxruntime 1.0.0")


# Each with what the line of refusal must hold; both sides where there are two.
FOREIGN: list[tuple[Callable[[Path], None], tuple[str, ...]]] = [
    (cut, ("delta.onnx' is truncated", "expected", "bytes, got")),
    (flipped, ("delta.onnx' is damaged", "expected SHA-256", "got")),
    (gone, ("delta.onnx' is missing",)),
    (identity_gone, ("delta.json' is missing",)),
    (resealed_engine, ("delta.onnx: damaged", "expected SHA-256", "got")),
    (edited_identity, ("delta.json: it was changed after it was written",)),
    (identity_is_text, ("delta.json: not readable as JSON",)),
    (swapped_steps, ("another engine is in its place", "step is 'keyframe', expected 'delta'")),
    (another_graph, ("graph's SHA-256 is '000000000000...'", "expected '")),
    (other_cpu, ("its cpu features is avx2 avx9000", "this machine's is")),
    (other_architecture, ("its arch is 'aarch64'", "this machine's is")),
    (other_runtime, ("built with onnxruntime 1.0.0", f"this machine has onnxruntime {ort.__version__}")),
]


@pytest.mark.parametrize(("spoil", "parts"), FOREIGN, ids=[spoil.__name__ for spoil, _ in FOREIGN])
def test_a_foreign_engine_is_refused_by_the_runner_and_built_again(
    built: Path, spoil: Callable[[Path], None], parts: tuple[str, ...]
) -> None:
    spoil(built / "bundle")
    with pytest.raises(EdgeSdkError) as error, EdgeRunner(built / "bundle", engine=INT8):
        pass
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < 700
    for part in (*parts, "Build it again on this machine: edge-sdk build RECIPE"):
        assert part in line, line
    report = build(recipe(built))
    assert reused(report) == {key: key[0] != INT8 for key in everything(True)}
    with EdgeRunner(report.bundle, engine=INT8) as runner:
        runner(pairs.images(1)[0])
    assert content(built / "bundle").keys() == {MANIFEST, *report.bundle.manifest.files}


def test_an_engine_is_checked_before_it_is_given_to_the_runtime(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_runtime(built / "bundle")
    given: list[Any] = []
    real = ort.InferenceSession

    def session(*args: Any, **settings: Any) -> Any:
        given.append(args[0])
        return real(*args, **settings)

    monkeypatch.setattr(ort, "InferenceSession", session)
    with pytest.raises(EdgeSdkError, match="does not fit"), EdgeRunner(built / "bundle", engine=INT8):
        pass
    # The keyframe's engine is sound; that of the delta step is never parsed.
    assert given == [(built / "bundle" / f"engines/{INT8}/keyframe.onnx").read_bytes()]


def test_a_damaged_graph_is_not_mended_by_a_build(built: Path) -> None:
    graph = built / "bundle" / "keyframe.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(EdgeSdkError, match=r"'keyframe\.onnx' is truncated.*Copy the bundle again"):
        build(recipe(built))


def test_a_file_of_somebody_elses_is_not_taken_along(built: Path) -> None:
    """The folder is replaced as a whole; a calibration set kept in it would be gone."""
    shutil.move(built / "set.npz", built / "bundle" / "set.npz")
    before = content(built)
    with pytest.raises(
        BundleError, match=r"'set\.npz' is not of the bundle, and building replaces .*Move that file"
    ):
        build(recipe(built, calibration=built / "bundle" / "set.npz"))
    assert content(built) == before


# Which engines a runner takes


def test_a_runner_takes_what_it_is_told(built: Path) -> None:
    bundle = Bundle.open(built / "bundle")
    assert EdgeRunner(bundle).engine == "float32"
    for name in ("float32", *SETS):
        assert EdgeRunner(bundle, engine=name).engine == name
    chosen = extend_bundle(bundle, {}, chosen={"onnxruntime": INT8})
    assert EdgeRunner(chosen).engine == INT8
    assert EdgeRunner(chosen, engine="float32").engine == "float32"
    with EdgeRunner(chosen) as runner:
        assert runner.state_bytes == 2 * 16 * 24 * 8 + 8, "bytes; what the delta step rewrites counts twice"
    with EdgeRunner(chosen, engine="float32") as runner:
        assert runner.state_bytes == 4 * (2 * 16 * 24 * 8 + 8)


def test_engines_that_a_runner_cannot_take(built: Path) -> None:
    with pytest.raises(
        BundleError, match=r"no engines 'onnxruntime-int4', only float32, .*edge-sdk build RECIPE"
    ):
        EdgeRunner(built / "bundle", engine="onnxruntime-int4")

    class Other:
        name = "tensorrt"
        owns_thread = False

    with pytest.raises(
        BundleError, match=r"built for onnxruntime, the runner's backend is tensorrt.*backend='onnx"
    ):
        EdgeRunner(built / "bundle", backend=Other(), engine=INT8)  # type: ignore[arg-type]
    assert EdgeRunner(built / "bundle", backend=Other()).engine == "float32"  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["float32", *SETS])
def test_a_runner_answers_as_the_graphs_do(built: Path, name: str) -> None:
    """State that alternates between two places, keyframes and deltas, against sessions over the graphs."""
    bundle = Bundle.open(built / "bundle")
    pair = bundle.manifest.variants[INT8] if name == INT8 else bundle.manifest.pair
    models = {str(step): onnx.load(str(bundle.path / spec.graph)) for step, spec in pair.steps.items()}
    frames = pairs.images(10)
    expected = [found["mask"] for found in pairs.stream(models, frames)]
    with EdgeRunner(bundle, engine=name, schedule=EverySchedule(interval=pairs.INTERVAL)) as runner:
        found = [runner(frame).mask.copy() for frame in frames]
    assert [np.array_equal(a, b) for a, b in zip(expected, found, strict=True)] == [True] * len(frames)
    assert len({mask.tobytes() for mask in found}) > 5, "a stream in which every frame has its own answer"


@pytest.mark.parametrize("name", SETS)
def test_two_runners_at_once_answer_as_two_alone(built: Path, name: str) -> None:
    bundle = Bundle.open(built / "bundle")
    streams = [pairs.images(9), pairs.images(9, pairs.SCENE)]

    def alone(frames: Iterable[np.ndarray]) -> list[bytes]:
        with EdgeRunner(bundle, engine=name) as runner:
            return [runner(frame).mask.tobytes() for frame in frames]

    expected = [alone(frames) for frames in streams]
    with EdgeRunner(bundle, engine=name) as one, EdgeRunner(bundle, engine=name) as other:
        found = [(one(a).mask.tobytes(), other(b).mask.tobytes()) for a, b in zip(*streams, strict=True)]
    assert [list(masks) for masks in zip(*found, strict=True)] == expected


# The choice


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
