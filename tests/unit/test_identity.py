"""An engine is opened only when it is whole, is the one that is meant and fits this machine."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge_sdk
from edge_sdk import identity as module
from edge_sdk.errors import ChecksumError, EngineError, EngineMismatchError, FileFormatError, MissingFileError
from edge_sdk.identity import EngineIdentity, installed_runtime, open_engine, read_identity, write_identity
from edge_sdk.machine import NO_GPU, MachineFacts

HERE = MachineFacts(
    arch="aarch64", os="linux", device="Orin, 8 multiprocessors", compute_capability="8.7",
    memory_bytes=8 << 30, driver="540.4.0", cuda="12.6", l4t="R36.4.3",
)  # fmt: skip
PLAN = bytes(range(256)) * 3
GRAPH = hashlib.sha256(b"graph").hexdigest()
REBUILD = "edge-sdk build engines/mine.yaml"


@pytest.fixture(autouse=True)
def orin(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine is a Jetson with TensorRT 10.3.0."""
    monkeypatch.setattr(module, "machine_facts", lambda backend: HERE)
    monkeypatch.setattr(module, "installed_runtime", lambda name: {"tensorrt": "tensorrt 10.3.0"}.get(name))


def an_identity(**changes: Any) -> EngineIdentity:
    data: dict[str, Any] = {
        "backend": "tensorrt",
        "precision": "int8",
        "step": "delta",
        "graph_sha256": GRAPH,
        "engine_sha256": hashlib.sha256(PLAN).hexdigest(),
        "engine_bytes": len(PLAN),
        "runtime": "tensorrt 10.3.0",
        "machine": HERE,
        "settings": {"optimisation_level": 3},
        "asked": {"int8": 0.9, "float16": 0.1},
        "shares": {"int8": 0.9, "float16": 0.1},
        "created": "2026-11-21T08:00:00+00:00",
        "sdk_version": edge_sdk.__version__,
        "build_s": 12.5,
    }
    return EngineIdentity.model_validate({**data, **changes})


def engine(folder: Path, **changes: Any) -> Path:
    plan = folder / "delta.plan"
    plan.write_bytes(PLAN)
    write_identity(plan, an_identity(**changes))
    return plan


def test_round_trip(tmp_path: Path) -> None:
    plan = engine(tmp_path)
    data, found = open_engine(
        plan, backend="tensorrt", rebuild=REBUILD, step="delta", precision="int8", graph_sha256=GRAPH
    )
    assert data == PLAN
    assert found == an_identity()
    assert plan.read_bytes() == PLAN, "the engine's own file stays pure"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["delta.json", "delta.plan"]


def edit(plan: Path, **changes: Any) -> None:
    """Change the JSON as an editor would, leaving its checksum."""
    file = plan.with_suffix(".json")
    data = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**data, **changes}), encoding="utf-8")


def _without(plan: Path, suffix: str) -> None:
    plan.with_suffix(suffix).unlink()


def _unsigned(plan: Path, **changes: Any) -> None:
    """Change the JSON and make its checksum fit again."""
    file = plan.with_suffix(".json")
    data = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    data = {key: value for key, value in data.items() if value is not ... and key != "checksum"}
    file.write_text(json.dumps({**data, "checksum": module._checksum(data)}), encoding="utf-8")


DAMAGE: dict[str, tuple[Any, type[Exception], str]] = {
    "no plan": (lambda p: _without(p, ".plan"), MissingFileError, r"expected a file at .*delta\.plan"),
    "no identity": (lambda p: _without(p, ".json"), MissingFileError, r"its identity delta\.json is missing"),
    "empty plan": (lambda p: p.write_bytes(b""), FileFormatError, "expected 768 bytes, got 0"),
    "truncated plan": (lambda p: p.write_bytes(PLAN[:-1]), FileFormatError, "truncated or replaced.*767"),
    "longer plan": (lambda p: p.write_bytes(PLAN + b"\0"), FileFormatError, "expected 768 bytes, got 769"),
    "foreign plan": (
        lambda p: p.write_bytes(PLAN[::-1]),
        ChecksumError,
        "damaged or replaced: expected SHA-256",
    ),
    "empty JSON": (
        lambda p: p.with_suffix(".json").write_bytes(b""),
        FileFormatError,
        "not readable as JSON",
    ),
    "truncated JSON": (
        lambda p: p.with_suffix(".json").write_bytes(p.with_suffix(".json").read_bytes()[:-30]),
        FileFormatError,
        "not readable as JSON",
    ),
    "bytes for JSON": (
        lambda p: p.with_suffix(".json").write_bytes(b"\xff\xfe\0"),
        FileFormatError,
        "not readable as JSON",
    ),
    "a list for JSON": (
        lambda p: p.with_suffix(".json").write_text("[]"),
        FileFormatError,
        "expected an engine's identity, got list",
    ),
    "foreign JSON": (
        lambda p: p.with_suffix(".json").write_text('{"some": "thing"}'),
        FileFormatError,
        "expected an engine's identity of format 1, got format None",
    ),
    "later format": (
        lambda p: edit(p, format=2),
        FileFormatError,
        r"format 1, got format 2 \(this is edge_sdk",
    ),
    "edited precision": (
        lambda p: edit(p, precision="float16"),
        ChecksumError,
        "changed after it was written",
    ),
    "edited hash": (lambda p: edit(p, engine_sha256="0" * 64), ChecksumError, "changed after it was written"),
    "no checksum": (lambda p: edit(p, checksum=None), ChecksumError, "changed after it was written"),
    "unknown key": (lambda p: _unsigned(p, taste="sweet"), FileFormatError, "unknown key 'taste'"),
    "missing key": (lambda p: _unsigned(p, runtime=...), FileFormatError, "'runtime' is missing"),
    "bad value": (lambda p: _unsigned(p, engine_bytes=-1), FileFormatError, "'engine_bytes'"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused(name: str, tmp_path: Path) -> None:
    plan = engine(tmp_path)
    damage, error, words = DAMAGE[name]
    damage(plan)
    with pytest.raises(error, match=words) as caught:
        open_engine(plan, backend="tensorrt", rebuild=REBUILD)
    assert "\n" not in str(caught.value)
    assert REBUILD in str(caught.value)


MISMATCHES: dict[str, tuple[dict[str, Any], str]] = {
    "backend": ({"backend": "onnxruntime"}, "its backend is 'onnxruntime', expected 'tensorrt'"),
    "step": ({"step": "keyframe"}, "its step is 'keyframe', expected 'delta'"),
    "precision": ({"precision": "float16"}, "its precision is 'float16', expected 'int8'"),
    "graph": (
        {"graph_sha256": "a" * 64},
        rf"graph's SHA-256 is 'aaaaaaaaaaaa\.\.\.', expected '{GRAPH[:12]}",
    ),
    "older runtime": (
        {"runtime": "tensorrt 10.2.0"},
        r"built with tensorrt 10\.2\.0, .* has tensorrt 10\.3\.0",
    ),
    "newer runtime": ({"runtime": "tensorrt 11.4.0.106"}, r"built with tensorrt 11\.4\.0\.106, .* 10\.3\.0"),
    "other product": (
        {"runtime": "tensorrt_rtx 1.7.1"},
        r"tensorrt_rtx 1\.7\.1, this machine has no tensorrt_rtx",
    ),
    "other GPU": (
        {
            "machine": HERE.model_copy(
                update={"device": "Thor, 20 multiprocessors", "compute_capability": "11.0"}
            )
        },
        "device is 'Thor, 20 multi.*this machine's is 'Orin, 8.*compute capability is '11.0', .* '8.7'",
    ),
    "other JetPack": (
        {"machine": HERE.model_copy(update={"l4t": "R39.2.0"})},
        "its l4t is 'R39.2.0', this machine's is 'R36.4.3'",
    ),
    "no GPU": (
        {"machine": HERE.model_copy(update={"device": NO_GPU, "compute_capability": None})},
        "its device is 'no GPU'",
    ),
    "both": (
        {"runtime": "tensorrt 10.2.0", "machine": HERE.model_copy(update={"arch": "x86_64"})},
        r"10\.2\.0.*; its arch is 'x86_64'",
    ),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_a_mismatch_names_both_sides_and_the_rebuild_command(name: str, tmp_path: Path) -> None:
    changes, words = MISMATCHES[name]
    plan = engine(tmp_path, **changes)
    with pytest.raises(EngineMismatchError, match=words) as caught:
        open_engine(
            plan, backend="tensorrt", rebuild=REBUILD, step="delta", precision="int8", graph_sha256=GRAPH
        )
    assert isinstance(caught.value, EngineError)
    assert str(caught.value).endswith(f"Build it again on this machine: {REBUILD}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("built", "compatible", "loads"),
    [
        ("tensorrt 10.0.1", True, True),
        ("tensorrt 10.3.0", True, True),
        ("tensorrt 10.3.1", True, False),
        ("tensorrt 8.6.1", True, True),
        ("tensorrt 9.3.0", True, False),
        ("tensorrt 11.4.0", True, False),
        ("tensorrt unknown", True, False),
        ("tensorrt 10.0.1", False, False),
    ],
)
def test_version_compatible_plans(built: str, compatible: bool, loads: bool, tmp_path: Path) -> None:
    """A newer release of the same major version loads them, and the next major version does."""
    plan = engine(tmp_path, runtime=built, settings={"version_compatible": compatible})
    if loads:
        assert open_engine(plan, backend="tensorrt", rebuild=REBUILD)[0] == PLAN
    else:
        with pytest.raises(EngineMismatchError, match="it was built with"):
            open_engine(plan, backend="tensorrt", rebuild=REBUILD)


def test_rtx_plans_built_without_a_gpu_go_to_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed_runtime", lambda name: "tensorrt_rtx 1.7.1")
    anywhere = HERE.model_copy(update={"device": NO_GPU, "compute_capability": None, "cuda": None})
    plan = engine(tmp_path, runtime="tensorrt_rtx 1.7.1", machine=anywhere)
    assert open_engine(plan, backend="tensorrt", rebuild=REBUILD)[0] == PLAN
    bound = engine(
        tmp_path, runtime="tensorrt_rtx 1.7.1", machine=HERE.model_copy(update={"device": "Other"})
    )
    with pytest.raises(EngineMismatchError, match="its device is 'Other'"):
        open_engine(bound, backend="tensorrt", rebuild=REBUILD)


def test_onnx_runtime_engines_depend_on_the_cpus_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "installed_runtime", lambda name: f"{name} 1.31.1")
    other = HERE.model_copy(update={"device": "another CPU", "cpu_features": ("avx2",)})
    plan = engine(tmp_path, backend="onnxruntime", runtime="onnxruntime 1.31.1", machine=other)
    with pytest.raises(
        EngineMismatchError, match="its cpu features is avx2, this machine's is none"
    ) as caught:
        open_engine(plan, backend="onnxruntime", rebuild=REBUILD)
    assert "another CPU" not in str(caught.value)


@settings(max_examples=150)
@given(place=st.integers(0, len(PLAN) - 1), change=st.integers(1, 255))
def test_any_flipped_byte_of_a_plan_is_refused(
    place: int, change: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    try:
        plan = engine(folder)
        plan.write_bytes(PLAN[:place] + bytes([PLAN[place] ^ change]) + PLAN[place + 1 :])
        with pytest.raises(ChecksumError, match="damaged or replaced"):
            open_engine(plan, backend="tensorrt", rebuild=REBUILD)
    finally:
        shutil.rmtree(folder)


@settings(max_examples=150)
@given(share=st.floats(0, 0.999), change=st.integers(1, 255))
def test_a_flipped_byte_of_an_identity_changes_nothing_or_is_refused(
    share: float, change: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Only white space may differ."""
    folder = tmp_path_factory.mktemp("flip")
    try:
        plan = engine(folder)
        file = plan.with_suffix(".json")
        text = bytearray(file.read_bytes())
        text[int(share * len(text))] ^= change
        file.write_bytes(bytes(text))
        try:
            found = read_identity(plan)
        except (FileFormatError, ChecksumError):
            return
        assert found == an_identity()
    finally:
        shutil.rmtree(folder)


def test_installed_runtime_is_asked_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    import numpy

    assert installed_runtime("numpy") == f"numpy {numpy.__version__}"
    assert installed_runtime("no_such_runtime") is None
    assert installed_runtime("json.tool") is None, "a module without a version is no runtime"
