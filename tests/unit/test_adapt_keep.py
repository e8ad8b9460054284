"""What was learned as a bundle of its own: its weights, its signature, and where it came from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.adapt.keep import _MERGE, Learnt, keep_bundle, merge_weights
from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.bundle import Bundle, Variant, extend_bundle, sign_bundle
from edge_sdk.errors import BundleError, MissingFileError, TrainerError
from edge_sdk.signing import Trust, make_key, read_signature
from edge_sdk.update.probe import REFERENCE
from tests.adapt_world import TEACHER, World, ramp, threshold_of
from tests.fake_student import bright_bundle, threshold_graph
from tests.graphs import residual

MERGED = b"merged"
LEARNT = Learnt(
    base="bright", base_manifest_sha256="0" * 64, version=12, source="camera:0", frames=900, teacher_frames=50,
    lessons=48, updates=77, agreement=0.9, settings=AdaptSettings(), began="2026-01-01T00:00:00+00:00",
    kept="2026-01-01T01:00:00+00:00",
)  # fmt: skip


def merged(base: Path, kept: Path, out: Path) -> None:
    assert base.read_bytes() == b"no tensors"
    assert (kept / "trainer.pt").is_file()
    out.write_bytes(MERGED)


@pytest.fixture
def base(tmp_path) -> Bundle:
    """A bundle with what would be wrong of other weights: a variant, and a reference."""
    bundle = bright_bundle(tmp_path / "base")
    variant = Variant(**bundle.pair().model_dump(), backend="onnxruntime", precision="int8")
    files = {"graphs/onnxruntime-int8/keyframe.onnx": b"k", "graphs/onnxruntime-int8/delta.onnx": b"d"}
    steps = variant.steps.model_dump()
    for step, name in zip(("keyframe", "delta"), files, strict=True):
        steps[step]["graph"] = name
    variant = Variant(**(variant.model_dump() | {"steps": steps}))
    return extend_bundle(bundle, {**files, REFERENCE: b"r"}, variants={"onnxruntime-int8": variant})


@pytest.fixture
def version(tmp_path) -> Path:
    folder = tmp_path / "000012"
    folder.mkdir()
    (folder / "trainer.pt").write_text("{}")
    (folder / "delta.onnx").write_bytes(threshold_graph(33.0, opened=True).SerializeToString())
    return folder


def _adapted(bundle: Bundle) -> list[Any]:
    found: Any = bundle.manifest.provenance["adapted"]
    return list(found)


def test_the_new_bundle_has_the_new_weights_and_nothing_of_the_old(base, version, tmp_path) -> None:
    made = keep_bundle(base, version, LEARNT, tmp_path / "new", merge=merged)
    assert (made.path / "delta.onnx").read_bytes() == (version / "delta.onnx").read_bytes()
    assert (made.path / "keyframe.onnx").read_bytes() == (base.path / "keyframe.onnx").read_bytes()
    assert (made.path / "online.pt").read_bytes() == MERGED
    assert set(made.manifest.files) == {"keyframe.onnx", "delta.onnx", "online.pt"}
    assert (made.manifest.variants, made.manifest.engines, made.manifest.chosen) == ({}, {}, {})
    assert made.manifest.online == base.manifest.online
    (record,) = _adapted(made)
    assert record["note"].startswith("Left out of the base: onnxruntime-int8, reference.npz.")
    assert Learnt(**{key: value for key, value in record.items() if key != "note"}) == LEARNT
    assert made.manifest.provenance["made_by"] == "tests"

    again = keep_bundle(made, None, LEARNT, tmp_path / "again", merge=merged)
    assert [record["version"] for record in _adapted(again)] == [12, 12]
    assert (again.path / "online.pt").read_bytes() == MERGED  # nothing was learned: the base's own


@pytest.mark.parametrize(("release", "signed_before", "expected"), [(None, None, 1), (None, 4, 5), (9, 4, 9)])
def test_it_can_be_signed(base, version, tmp_path, release, signed_before, expected) -> None:
    key, public, _ = make_key(tmp_path / "key.pem")
    if signed_before is not None:
        sign_bundle(base, key, signed_before)
    keep_bundle(base, version, LEARNT, tmp_path / "new", sign_key=key, release=release, merge=merged)
    found = Bundle.open(tmp_path / "new", trust=Trust(keys=(public,)))
    assert found.signature is not None
    assert read_signature(found.path).signed.release == expected


def test_nothing_is_written_where_something_is_missing(base, version, tmp_path, monkeypatch) -> None:
    out = tmp_path / "new"
    monkeypatch.setattr("edge_sdk.adapt.keep._MERGE", "import sys; sys.exit('no weights in there')")
    with pytest.raises(MissingFileError, match="private key"):
        keep_bundle(base, version, LEARNT, out, sign_key=tmp_path / "none.pem", merge=merged)
    with pytest.raises(TrainerError, match="could not be written: no weights in there"):
        keep_bundle(base, version, LEARNT, out)
    (version / "delta.onnx").unlink()
    with pytest.raises(MissingFileError, match="file for the bundle"):
        keep_bundle(base, version, LEARNT, out, merge=merged)
    with pytest.raises(BundleError, match="no student that can learn"):
        keep_bundle(residual().write(tmp_path / "other"), None, LEARNT, out, merge=merged)
    assert not out.exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "diary.txt").write_text("mine")
    with pytest.raises(BundleError, match="something else is in its place"):
        keep_bundle(base, version, LEARNT, tmp_path / "taken", merge=merged)


def test_torch_weights_are_merged(tmp_path, monkeypatch) -> None:
    torch = pytest.importorskip("torch")
    pair = {"student.a": torch.zeros(2), "teacher.b": torch.ones(3)}
    torch.save({"pair": pair}, tmp_path / "online.pt")
    (tmp_path / "version").mkdir()
    torch.save({"weights": {"student.a": torch.full((2,), 5.0)}}, tmp_path / "version" / "trainer.pt")
    # In this process, which has torch already; the test below has it in one of its own, where that takes seconds.
    monkeypatch.setattr(
        "sys.argv", ["-c", *(str(tmp_path / name) for name in ("online.pt", "version", "out.pt"))]
    )
    exec(_MERGE, {})
    found = torch.load(tmp_path / "out.pt", weights_only=True)["pair"]
    assert found["student.a"].tolist() == [5.0, 5.0]
    assert found["teacher.b"].tolist() == [1.0, 1.0, 1.0]


def test_merging_is_done_in_a_process_of_its_own(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(
        "edge_sdk.adapt.keep._MERGE",
        "import sys, pathlib, edge_sdk; pathlib.Path(sys.argv[3]).write_text(sys.argv[2])",
    )
    monkeypatch.chdir(tmp_path)
    merge_weights(Path("online.pt"), Path("version"), Path("out.pt"))
    assert (tmp_path / "out.pt").read_text() == str(tmp_path / "version")


def test_a_runner_keeps_what_it_has_learned(tmp_path, monkeypatch) -> None:
    world = World(tmp_path, monkeypatch)
    monkeypatch.setattr("edge_sdk.adapt.keep.merge_weights", lambda base, kept, out: shutil.copy(base, out))
    with world.runner(pace="in_turn") as runner:
        first = runner.adaptation.keep(tmp_path / "first")
        runner(ramp())
        runner(ramp())
        made = runner.adaptation.keep(tmp_path / "made")
    (record,) = _adapted(first)
    assert (record["version"], record["lessons"]) == (0, 0)
    assert (first.path / "delta.onnx").read_bytes() == (world.bundle.path / "delta.onnx").read_bytes()
    (record,) = _adapted(made)
    assert (record["version"], record["updates"], record["agreement"]) == (1, 1, 1.0)
    assert record["base_manifest_sha256"] == world.bundle.manifest_sha256
    weight = np.float32(TEACHER).tobytes()
    assert weight in (made.path / "delta.onnx").read_bytes()
    world.bundle = made
    world.plan(rule="none")
    with world.runner(pace="in_turn", stride={"minimum": 2, "maximum": 2}) as runner:
        runner.adaptation.schedule.reset()
        runner(ramp())
        assert threshold_of(ramp(), runner(ramp())) == TEACHER
