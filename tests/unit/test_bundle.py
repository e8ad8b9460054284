from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edge_sdk
from edge_sdk.bundle import Bundle, FileRecord, Manifest, write_bundle
from edge_sdk.errors import BundleError, ChecksumError, EdgeSdkError, FileFormatError, MissingFileError
from edge_sdk.runtime.schedule import DriftSchedule, EverySchedule
from edge_sdk.tensors import TensorSpec
from tests.graphs import chaining, per_frame, residual, telling


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest of a bundle as a careless hand would."""
    file = folder / "manifest.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def test_what_is_written_is_opened(tmp_path: Path) -> None:
    pair = residual()
    manifest = pair.manifest()
    written = write_bundle(tmp_path / "b", manifest, pair.files() | {"notes/readme.txt": b"hello"})
    opened = Bundle.open(str(tmp_path / "b"))
    assert opened.manifest == written.manifest
    assert opened.manifest.model_copy(update={"files": {}, "created": "", "sdk_version": ""}) == manifest
    assert opened.manifest.sdk_version == edge_sdk.__version__
    assert opened.manifest.created.endswith("+00:00")
    assert opened.size_hw == (4, 6)
    assert opened.state_bytes == 4 * 6 * 4
    assert opened.graph_path("delta").read_bytes() == pair.files()["delta.onnx"]
    assert opened.task.spec == manifest.task
    assert opened.manifest.files["notes/readme.txt"] == FileRecord(
        sha256="2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824", size_bytes=5
    )


def test_files_are_copied_and_dates_are_kept(tmp_path: Path) -> None:
    pair = per_frame()
    graph = tmp_path / "somewhere.onnx"
    graph.write_bytes(pair.keyframe.SerializeToString())
    manifest = pair.manifest().model_copy(
        update={"created": "2026-01-01T00:00:00+00:00", "sdk_version": "0.0.9"}
    )
    bundle = write_bundle(tmp_path / "b", manifest, {"keyframe.onnx": graph})
    assert bundle.manifest.created == "2026-01-01T00:00:00+00:00"
    assert bundle.manifest.sdk_version == "0.0.9"
    assert bundle.graph_path("keyframe").read_bytes() == graph.read_bytes()
    assert bundle.state_bytes == 0
    with pytest.raises(BundleError, match="has no delta step, only a keyframe step"):
        bundle.graph_path("delta")


def test_an_older_bundle_is_replaced_whole(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", residual().manifest(), residual().files() | {"old.txt": b"old"})
    bundle = per_frame().write(tmp_path / "b")
    assert bundle.manifest.method == "per_frame"
    assert sorted(file.name for file in (tmp_path / "b").iterdir()) == ["keyframe.onnx", "manifest.json"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]


def test_nothing_else_than_a_bundle_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("home", "file"):
        with pytest.raises(
            BundleError, match=f"bundle .*{name}: something else is in its place.*another folder"
        ):
            per_frame().write(tmp_path / name)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"
    assert per_frame().write(tmp_path / "empty").manifest.name == "tiny-per-frame"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"expected a file at .*absent\.onnx, found none"):
        write_bundle(tmp_path / "b", per_frame().manifest(), {"keyframe.onnx": tmp_path / "absent.onnx"})
    assert list(tmp_path.iterdir()) == []


def _truncate(folder: Path) -> None:
    file = folder / "delta.onnx"
    file.write_bytes(file.read_bytes()[:-1])


def _flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "delta.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "delta.onnx").write_bytes(data)


def _link_out(folder: Path) -> None:
    outside = folder.parent / "outside.onnx"
    (folder / "delta.onnx").rename(outside)
    (folder / "delta.onnx").symlink_to(outside)


def _link_folder_out(folder: Path) -> None:
    (folder.parent / "outside").mkdir()
    (folder / "extra" / "notes.txt").rename(folder.parent / "outside" / "notes.txt")
    (folder / "extra").rmdir()
    (folder / "extra").symlink_to(folder.parent / "outside")


def _manifest_text(text: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "manifest.json").write_bytes(
        text.encode() if isinstance(text, str) else text
    )


def _set(*path: str | int, value: object) -> Callable[[Path], object]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return lambda folder: edit(folder, change)


def _rename_record(new: str) -> Callable[[Path], object]:
    def change(data: dict[str, Any]) -> None:
        data["files"][new] = data["files"]["delta.onnx"]

    return lambda folder: edit(folder, change)


TAMPERINGS: dict[str, tuple[Callable[[Path], object], type[EdgeSdkError], str]] = {
    "no manifest": (
        lambda folder: (folder / "manifest.json").unlink(),
        MissingFileError,
        r"holds no manifest\.json.*Name the exported folder",
    ),
    "missing file": (
        lambda folder: (folder / "delta.onnx").unlink(),
        MissingFileError,
        r"the file 'delta\.onnx' is missing.*Copy the bundle again",
    ),
    "missing extra file": (
        lambda folder: (folder / "extra" / "notes.txt").unlink(),
        MissingFileError,
        r"'extra/notes\.txt' is missing",
    ),
    "truncated": (
        _truncate,
        FileFormatError,
        r"'delta\.onnx' is truncated or replaced: expected \d+ bytes, got \d+",
    ),
    "wrong hash": (
        _flip_a_byte,
        ChecksumError,
        r"'delta\.onnx' is damaged or replaced: expected SHA-256 [0-9a-f]{12}",
    ),
    "link out": (_link_out, BundleError, r"'delta\.onnx' is a link out of the bundle"),
    "folder link out": (_link_folder_out, BundleError, r"'extra/notes\.txt' is a link out of the bundle"),
    "graph above": (
        _set("steps", "delta", "graph", value="../delta.onnx"),
        BundleError,
        r"'\.\./delta\.onnx' is not the plain path of a file inside the bundle",
    ),
    "graph unlisted": (
        _set("steps", "delta", "graph", value="other.onnx"),
        BundleError,
        r"the graph 'other\.onnx' is not among its files",
    ),
    "record above": (_rename_record("../x"), BundleError, r"'\.\./x' is not the plain path"),
    "record deep above": (_rename_record("a/../../x"), BundleError, r"'a/\.\./\.\./x' is not the plain path"),
    "record absolute": (_rename_record("/etc/passwd"), BundleError, r"'/etc/passwd' is not the plain path"),
    "record of a drive": (_rename_record("C:x"), BundleError, r"'C:x' is not the plain path"),
    "record backslash": (_rename_record("..\\x"), BundleError, r"is not the plain path"),
    "record untidy": (_rename_record("./delta.onnx"), BundleError, r"'\./delta\.onnx' is not the plain path"),
    "record manifest": (
        _rename_record("manifest.json"),
        BundleError,
        r"'manifest\.json' is not the plain path",
    ),
    "record folder": (_rename_record("."), BundleError, r"'\.' is not the plain path"),
    "record empty": (_rename_record(""), BundleError, r"'' is not the plain path"),
    "not JSON": (
        _manifest_text('{"format": 1,'),
        FileFormatError,
        r"manifest\.json: not readable as JSON: .*Copy",
    ),
    "not text": (_manifest_text(b"\xff\xfe"), FileFormatError, r"manifest\.json: not readable as JSON"),
    "not an object": (_manifest_text("[]"), BundleError, r"manifest\.json: 'the whole'"),
    "newer format": (
        _set("format", value=2),
        BundleError,
        rf"its format is 2, edge_sdk {edge_sdk.__version__} reads format 1\. Install the edge_sdk that wrote it",
    ),
    "format as text": (_set("format", value="one"), BundleError, r"'format'.*got 'one'"),
    "unknown key": (
        _set("shedule", value=1),
        BundleError,
        r"unknown key 'shedule', did you mean 'schedule'\?",
    ),
    "missing key": (
        lambda folder: edit(folder, lambda data: data.pop("task")),
        BundleError,
        r"'task' is missing",
    ),
    "bad hash": (
        _set("files", "delta.onnx", "sha256", value="abc"),
        BundleError,
        r"'files\.delta\.onnx\.sha256'.*got 'abc'",
    ),
    "bad schedule": (
        _set("schedule", "interval", value=0),
        BundleError,
        r"interval'.*greater than or equal to 1",
    ),
    "frame dtype": (
        _set("frame", "dtype", value="float32"),
        BundleError,
        r"frame: expected 'frame' \(H, W, 3\) uint8, got 'frame' \(4, 6, 3\) float32",
    ),
    "frame layout": (
        _set("frame", "shape", value=[3, 4, 6]),
        BundleError,
        r"frame: expected .* got 'frame' \(3, 4, 6\)",
    ),
    "frame of another size": (
        _set("steps", "delta", "inputs", 0, "shape", value=[8, 6, 3]),
        BundleError,
        r"delta input: expected 'frame' \(4, 6, 3\) uint8, got 'frame' \(8, 6, 3\) uint8",
    ),
    "state of another size": (
        _set("state", 0, "shape", value=[4, 7]),
        BundleError,
        r"keyframe output: expected 'state\.memory\.next' \(4, 7\) float32, got .*\(4, 6\)",
    ),
    "state nobody writes": (
        lambda folder: edit(
            folder, lambda data: data["state"].append({"name": "ghost", "shape": [1], "dtype": "uint8"})
        ),
        BundleError,
        r"keyframe output: 'state\.ghost\.next' is missing",
    ),
    "state nobody declared": (
        _set("state", value=[]),
        BundleError,
        r"'state\.memory\.next' is unknown or named twice",
    ),
    "state nobody reads": (
        lambda folder: edit(folder, lambda data: data["steps"]["delta"]["inputs"].pop()),
        BundleError,
        r"delta input: 'state\.memory' is missing",
    ),
    "output twice": (
        lambda folder: edit(folder, lambda data: data["steps"]["delta"]["outputs"].append(data["frame"])),
        BundleError,
        r"delta output: 'frame' is unknown or named twice",
    ),
    "output of another type": (
        _set("steps", "delta", "outputs", 0, "dtype", value="int64"),
        BundleError,
        r"delta output: expected 'mask' \(4, 6\) uint8, got 'mask' \(4, 6\) int64",
    ),
    "no mask": (
        lambda folder: edit(folder, lambda data: data["steps"]["keyframe"]["outputs"].pop(0)),
        BundleError,
        r"keyframe output: the task needs 'mask'",
    ),
    "mask of another size": (
        _set("steps", "keyframe", "outputs", 0, "shape", value=[2, 3]),
        BundleError,
        r"output 'mask': expected \(4, 6\) uint8",
    ),
    "no delta but state": (
        _set("steps", "delta", value=None),
        BundleError,
        r"state: 'memory' is read by no step",
    ),
}


@pytest.mark.parametrize("name", TAMPERINGS)
@pytest.mark.parametrize("build", [residual, chaining])
def test_tampering_is_named(name: str, build: Callable[[], Any], tmp_path: Path) -> None:
    tamper, error, message = TAMPERINGS[name]
    pair = build()
    write_bundle(tmp_path / "b", pair.manifest(), pair.files() | {"extra/notes.txt": b"notes"})
    tamper(tmp_path / "b")
    with pytest.raises(error, match=message) as caught:
        Bundle.open(tmp_path / "b")
    assert "\n" not in str(caught.value)


def test_delta_schedule_without_delta_step(tmp_path: Path) -> None:
    manifest = per_frame().manifest(EverySchedule(interval=5))
    with pytest.raises(BundleError, match="schedule 'every' asks for delta steps, there is no delta step"):
        write_bundle(tmp_path / "b", manifest, per_frame().files())
    skipping = per_frame().manifest(EverySchedule(interval=5, between="skip"))
    assert (
        write_bundle(tmp_path / "b", skipping, per_frame().files()).manifest
        == Bundle.open(tmp_path / "b").manifest
    )


def test_drift_schedule_without_trust(tmp_path: Path) -> None:
    drift = DriftSchedule(below=0.5)
    with pytest.raises(
        BundleError, match="schedule 'drift' asks for the output 'trust', the delta step has none"
    ):
        write_bundle(tmp_path / "b", residual().manifest(drift), residual().files())
    with pytest.raises(BundleError, match="schedule 'drift' asks for delta steps, there is no delta step"):
        write_bundle(tmp_path / "b", per_frame().manifest(drift), per_frame().files())
    assert telling().write(tmp_path / "b", drift).manifest.pair.trust is not None


@pytest.mark.parametrize(
    ("step", "change", "message"),
    [
        ("delta", {"shape": [1]}, r"delta output: expected 'trust' \(\) float32, got 'trust' \(1,\) float32"),
        ("delta", {"dtype": "float16"}, r"expected 'trust' \(\) float32, got 'trust' \(\) float16"),
        ("keyframe", {}, r"keyframe output: 'trust' is unknown or named twice"),
    ],
)
def test_trust_is_one_number_of_the_delta_step(
    step: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    telling().write(tmp_path / "b")

    def edited(data: dict[str, Any]) -> None:
        trust = {**data["steps"]["delta"]["outputs"].pop(), **change}
        data["steps"][step]["outputs"].append(trust)

    edit(tmp_path / "b", edited)
    with pytest.raises(BundleError, match=message):
        Bundle.open(tmp_path / "b")


def test_without_verify_content_is_not_read_but_size_is(tmp_path: Path) -> None:
    residual().write(tmp_path / "b")
    _flip_a_byte(tmp_path / "b")
    assert Bundle.open(tmp_path / "b", verify=False).manifest.name == "tiny-residual"
    _truncate(tmp_path / "b")
    with pytest.raises(FileFormatError, match="truncated"):
        Bundle.open(tmp_path / "b", verify=False)


def test_a_link_inside_is_fine(tmp_path: Path) -> None:
    residual().write(tmp_path / "b")
    (tmp_path / "b" / "delta.onnx").rename(tmp_path / "b" / "real.onnx")
    (tmp_path / "b" / "delta.onnx").symlink_to("real.onnx")
    assert Bundle.open(tmp_path / "b").manifest.name == "tiny-residual"


def test_a_moved_bundle_opens(tmp_path: Path) -> None:
    residual().write(tmp_path / "b")
    (tmp_path / "b").rename(tmp_path / "c")
    assert Bundle.open(tmp_path / "c").path == tmp_path / "c"


def test_a_wrong_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"expected a folder at .*absent, found nothing"):
        Bundle.open(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="expected a folder, got a file"):
        Bundle.open(tmp_path / "file")


@pytest.mark.parametrize(
    ("update", "files", "message"),
    [
        (
            {"files": {"x": FileRecord(sha256="0" * 64, size_bytes=0)}},
            {},
            r"manifest\.files: expected it empty",
        ),
        ({}, {"keyframe.onnx": b"x"}, r"the graph 'delta\.onnx' is not among its files"),
        ({}, {"keyframe.onnx": b"x", "delta.onnx": b"x", "../x": b"x"}, r"'\.\./x' is not the plain path"),
        (
            {"frame": TensorSpec(name="image", shape=(4, 6, 3), dtype="uint8")},
            {},
            r"expected 'frame' .* got 'image'",
        ),
    ],
)
def test_write_bundle_refuses_before_writing(
    update: dict[str, Any], files: dict[str, Path | bytes], message: str, tmp_path: Path
) -> None:
    manifest: Manifest = residual().manifest().model_copy(update=update)
    with pytest.raises(BundleError, match=message):
        write_bundle(tmp_path / "b", manifest, files)
    assert list(tmp_path.iterdir()) == []
