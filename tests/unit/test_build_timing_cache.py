"""Timing caches: one per machine, version and settings; what is not what its record says is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.build.tensorrt import TensorRTSettings
from edge_sdk.build.tensorrt.timing_cache import DATA, RECORD, TimingCache
from edge_sdk.errors import ChecksumError, EngineMismatchError, FileFormatError
from edge_sdk.machine import MachineFacts

HERE = MachineFacts(
    arch="aarch64", os="linux", device="Orin, 8 multiprocessors", compute_capability="8.7", memory_bytes=8 << 30,
    driver="540.4.0", cuda="12.6", l4t="R36.4.3",
)  # fmt: skip
CONTENT = bytes(range(200))


def a_cache(folder: Path, **changes: Any) -> TimingCache:
    fields = {"runtime": "tensorrt 10.3.0", "machine": HERE, **changes}
    known = {"timing_cache": folder, **fields.pop("settings", {})}
    return TimingCache(fields["runtime"], fields["machine"], TensorRTSettings(**known))


def test_timing_cache_round_trip(tmp_path: Path) -> None:
    cache = a_cache(tmp_path)
    assert cache.read() is None
    cache.write(CONTENT)
    assert cache.read() == CONTENT
    assert cache.folder.name.startswith("Orin-8-multiprocessors-R36.4.3-tensorrt-10.3.0-")
    cache.write(b"newer")
    assert a_cache(tmp_path).read() == b"newer"
    assert [path.name for path in tmp_path.iterdir()] == [cache.folder.name], "nothing is left behind"


OTHERS: dict[str, dict[str, Any]] = {
    "version": {"runtime": "tensorrt 10.16.1"},
    "device": {"machine": HERE.model_copy(update={"device": "Orin, 16 multiprocessors"})},
    "JetPack": {"machine": HERE.model_copy(update={"l4t": "R39.2.0"})},
    "level": {"settings": {"optimisation_level": 5}},
    "refittable": {"settings": {"refittable": True}},
}


@pytest.mark.parametrize("name", OTHERS)
def test_each_combination_has_a_cache_of_its_own(name: str, tmp_path: Path) -> None:
    mine, other = a_cache(tmp_path), a_cache(tmp_path, **OTHERS[name])
    mine.write(CONTENT)
    assert other.read() is None
    # Copied by hand under the other's name it is still refused.
    shutil.copytree(mine.folder, other.folder)
    with pytest.raises(EngineMismatchError, match=r"timing cache .* it does not fit: ") as caught:
        other.read()
    assert "rm -r" in str(caught.value)


def test_a_workspace_is_no_reason_for_another_cache(tmp_path: Path) -> None:
    a_cache(tmp_path).write(CONTENT)
    assert a_cache(tmp_path, settings={"workspace_bytes": 64 << 20, "timeout_s": 5.0}).read() == CONTENT


def _change_record(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    (folder / RECORD).write_text(json.dumps({**data, **changes}), encoding="utf-8")


DAMAGE: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "truncated": (
        lambda f: (f / DATA).write_bytes(CONTENT[:-1]),
        FileFormatError,
        "expected 200 bytes, got 199",
    ),
    "missing": (lambda f: (f / DATA).unlink(), FileFormatError, "expected 200 bytes, got 0"),
    "tampered": (lambda f: (f / DATA).write_bytes(CONTENT[::-1]), ChecksumError, "damaged or replaced"),
    "no record": (lambda f: (f / RECORD).unlink(), FileFormatError, "its record cache.json is missing"),
    "record cut": (lambda f: (f / RECORD).write_text("{"), FileFormatError, "not readable as JSON"),
    "record of bytes": (
        lambda f: (f / RECORD).write_bytes(b"\xff\0"),
        FileFormatError,
        "not readable as JSON",
    ),
    "foreign record": (
        lambda f: (f / RECORD).write_text('{"a": 1}'),
        FileFormatError,
        "'runtime' is missing",
    ),
    "later format": (lambda f: _change_record(f, format=2), FileFormatError, "'format'"),
    "other version": (
        lambda f: _change_record(f, runtime="tensorrt 8.6.1"),
        EngineMismatchError,
        "measured with tensorrt 8.6.1, this machine has tensorrt 10.3.0",
    ),
    "other settings": (
        lambda f: _change_record(f, settings={"tf32": True}),
        EngineMismatchError,
        "its tf32 was True, this build's is False",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_timing_cache_is_refused(name: str, tmp_path: Path) -> None:
    cache = a_cache(tmp_path)
    cache.write(CONTENT)
    damage, error, words = DAMAGE[name]
    damage(cache.folder)
    with pytest.raises(error, match=words) as caught:
        cache.read()
    assert "\n" not in str(caught.value)
    assert f"rm -r '{cache.folder}'" in str(caught.value)
