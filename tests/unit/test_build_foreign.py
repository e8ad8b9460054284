"""Engines that are not what was built or not for here, and which engines a runner takes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="graphs are made with onnx")
ort = pytest.importorskip("onnxruntime", reason="engines are built with ONNX Runtime")

import onnx  # noqa: E402

from edge_sdk.build.pipeline import build  # noqa: E402
from edge_sdk.bundle import MANIFEST, Bundle, extend_bundle  # noqa: E402
from edge_sdk.errors import BundleError, EdgeSdkError  # noqa: E402
from edge_sdk.identity import read_identity, write_identity  # noqa: E402
from edge_sdk.runtime.runner import EdgeRunner  # noqa: E402
from edge_sdk.runtime.schedule import EverySchedule  # noqa: E402
from tests import quantised_pairs as pairs  # noqa: E402
from tests.build_world import INT8, SETS, built_copy, content, everything, recipe, reused  # noqa: E402


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A folder with a built bundle and its calibration set."""
    return built_copy(tmp_path / "built")


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
