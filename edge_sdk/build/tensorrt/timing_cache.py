"""Timing caches: what TensorRT measured while building, kept for the next build on the same machine.

    FOLDER/NAME/cache.bin     what TensorRT wrote
    FOLDER/NAME/cache.json    what it was measured on and with, and its SHA-256

``NAME`` is made of device, version and settings, so that each has a cache of its own. The folder of a cache is replaced
as a whole. A cache that is not what its JSON says is refused: TensorRT itself may crash on one.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal

from pydantic import Field

from edge_sdk.build.tensorrt.settings import TensorRTSettings
from edge_sdk.errors import ChecksumError, EngineMismatchError, FileFormatError, RecipeError
from edge_sdk.files import atomic_folder
from edge_sdk.machine import MachineFacts, differences
from edge_sdk.manifest import Sha256
from edge_sdk.settings import Settings, parse_settings

DATA, RECORD = "cache.bin", "cache.json"
# Settings that change which kernels are timed; a cache serves one combination.
_SETTINGS = (
    "optimisation_level", "aux_streams", "dla_core", "dla_fallback", "tf32", "version_compatible", "refittable",
)  # fmt: skip


class CacheRecord(Settings):
    """What a timing cache was measured on and with.

    Args:
        format: version of this file's format.
        runtime: module and version of TensorRT.
        machine: where it was measured.
        settings: the builder's settings that change what is measured.
        sha256, size_bytes: of the cache.
    """

    format: Literal[1] = 1
    runtime: str
    machine: MachineFacts
    settings: dict[str, int | bool | None]
    sha256: Sha256
    size_bytes: int = Field(ge=0)


class TimingCache:
    """The cache of one machine, version and combination of settings.

    Args:
        runtime: module and version of TensorRT.
        machine: this machine.
        settings: the recipe's settings.
    """

    def __init__(self, runtime: str, machine: MachineFacts, settings: TensorRTSettings) -> None:
        self.runtime, self.machine = runtime, machine
        self.settings: dict[str, int | bool | None] = {key: getattr(settings, key) for key in _SETTINGS}
        words = f"{machine.device}-{machine.l4t or machine.cuda or machine.arch}-{runtime}"
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]
        self.folder = settings.cache_folder / f"{re.sub(r'[^A-Za-z0-9._]+', '-', words)}-{digest}"

    def read(self) -> bytes | None:
        """The cache's content; ``None`` where there is none yet.

        Raises:
            FileFormatError: it is truncated, or its record is missing or unreadable.
            ChecksumError: it was changed.
            EngineMismatchError: it was measured on another machine, with another version or other settings.
        """
        if not self.folder.exists():
            return None
        record = self._record()
        file = self.folder / DATA
        data = file.read_bytes() if file.is_file() else b""
        if len(data) != record.size_bytes:
            raise FileFormatError(
                f"timing cache {file}: truncated or replaced: expected {record.size_bytes} bytes, got {len(data)}.",
                hint=self._hint,
            )
        digest = hashlib.sha256(data).hexdigest()
        if digest != record.sha256:
            raise ChecksumError(
                f"timing cache {file}: damaged or replaced: expected SHA-256 {record.sha256[:12]}..., "
                f"got {digest[:12]}....",
                hint=self._hint,
            )
        found = differences(record.machine, self.machine, "tensorrt")
        if record.runtime != self.runtime:
            found.insert(0, f"it was measured with {record.runtime}, this machine has {self.runtime}")
        for key, value in self.settings.items():
            if record.settings.get(key) != value:
                found.append(f"its {key} was {record.settings.get(key)}, this build's is {value}")
        if found:
            raise EngineMismatchError(
                f"timing cache {file}: it does not fit: {'; '.join(found)}.", hint=self._hint
            )
        return data

    def write(self, data: bytes) -> None:
        """Keep ``data``, whole or not at all.

        Raises:
            OutputError: it cannot be written there.
        """
        record = CacheRecord(
            runtime=self.runtime, machine=self.machine, settings=self.settings,
            sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data),
        )  # fmt: skip
        with atomic_folder(self.folder) as folder:
            (folder / DATA).write_bytes(data)
            (folder / RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @property
    def _hint(self) -> str:
        return f"It only saves time; delete it and it is made again: rm -r '{self.folder}'"

    def _record(self) -> CacheRecord:
        file = self.folder / RECORD
        try:
            data: Any = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileFormatError(
                f"timing cache {self.folder}: its record {RECORD} is missing.", hint=self._hint
            ) from None
        except (OSError, ValueError) as error:
            raise FileFormatError(f"{file}: not readable as JSON: {error}.", hint=self._hint) from error
        try:
            return parse_settings(data, CacheRecord, str(file))
        except RecipeError as error:
            raise FileFormatError(str(error), hint=self._hint) from None
