"""What an engine was built from and for: a JSON file beside it, checked before anything deserialises the engine.

The engine's own file stays pure, so that other programs can read it. Deserialising runs native code and says little
when it fails; so what does not fit is found out here, and said in words.
"""

from __future__ import annotations

import hashlib
import json
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue

import edge_sdk
from edge_sdk.errors import ChecksumError, EngineMismatchError, FileFormatError, MissingFileError, RecipeError
from edge_sdk.files import write_text
from edge_sdk.machine import MachineFacts, differences, machine_facts
from edge_sdk.manifest import BackendName, Precision, Sha256, StepName
from edge_sdk.settings import Settings, parse_settings

__all__ = [
    "EngineIdentity",
    "MachineFacts",
    "installed_runtime",
    "machine_facts",
    "open_engine",
    "write_identity",
]

FORMAT = 1
# Of everything else in the file, so that a slip of an editor shows.
_CHECKSUM = "checksum"
# Version-compatible plans of the first major version also load in the second (and in newer releases of their own).
_NEXT_MAJOR = {8: 10, 10: 11}


class EngineIdentity(Settings):
    """Where an engine comes from and where it runs.

    Args:
        format: version of this file's format.
        backend, precision, step: which engine of its bundle it is.
        graph_sha256: of the ONNX graph that it was built from.
        engine_sha256, engine_bytes: of the engine's file.
        runtime: module and version that built it, such as ``"tensorrt 10.3.0"``.
        machine: what it was built for.
        settings: the builder's settings, as they were in the end.
        asked: share of the layers that do the work (the convolutions, where there are any) by the precision that the
            graph asks for; 0-1.
        shares: the same as the finished engine does it; None where the engine could not be read back.
        shares_unknown: why ``shares`` is None.
        notes: what a person should know, such as layers that fell back from the DLA to the GPU.
        calibration_sha256: of the calibration set that the graph's scales come from; None for a float graph.
        created: ISO 8601 time, UTC.
        sdk_version, commit: the edge_sdk that built it.
        build_s: how long the build took, in seconds.
    """

    format: Literal[1] = 1
    backend: BackendName
    precision: Precision
    step: StepName
    graph_sha256: Sha256
    engine_sha256: Sha256
    engine_bytes: int = Field(ge=1)
    runtime: str = Field(pattern=r"^\w+ \S+$")
    machine: MachineFacts
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    asked: dict[str, float] = Field(default_factory=dict)
    shares: dict[str, float] | None = None
    shares_unknown: str = ""
    notes: tuple[str, ...] = ()
    calibration_sha256: Sha256 | None = None
    created: str
    sdk_version: str
    commit: str | None = None
    build_s: float = Field(ge=0)


def identity_path(engine: Path) -> Path:
    """Where an engine's identity is."""
    return engine.with_suffix(".json")


def write_identity(engine: Path, identity: EngineIdentity) -> Path:
    """Write ``identity`` beside ``engine``, atomically.

    Raises:
        OutputError: it cannot be written there.
    """
    data = identity.model_dump(mode="json")
    path = identity_path(engine)
    write_text(path, json.dumps({**data, _CHECKSUM: _checksum(data)}, indent=2) + "\n")
    return path


def read_identity(engine: Path, rebuild: str = "edge-sdk build") -> EngineIdentity:
    """The identity beside ``engine``.

    Args:
        rebuild: the command that builds the engine again, for messages.

    Raises:
        MissingFileError: there is none.
        FileFormatError: it is not JSON, of another format, or lacks something.
        ChecksumError: it was changed after it was written.
    """
    file = identity_path(engine)
    again = _again(rebuild)
    if not file.is_file():
        raise MissingFileError(f"engine {engine}: its identity {file.name} is missing.", hint=again)
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileFormatError(f"{file}: not readable as JSON: {error}.", hint=again) from error
    if not isinstance(data, dict):
        raise FileFormatError(
            f"{file}: expected an engine's identity, got {type(data).__name__}.", hint=again
        )
    if data.get("format") != FORMAT:
        raise FileFormatError(
            f"{file}: expected an engine's identity of format {FORMAT}, got format {data.get('format')!r} "
            f"(this is edge_sdk {edge_sdk.__version__}).",
            hint=again,
        )
    given = data.pop(_CHECKSUM, None)
    if given != _checksum(data):
        raise ChecksumError(
            f"{file}: it was changed after it was written, its checksum does not fit.", hint=again
        )
    try:
        return parse_settings(data, EngineIdentity, str(file))
    except RecipeError as error:
        raise FileFormatError(str(error), hint=again) from None


def open_engine(
    engine: Path,
    *,
    backend: str,
    rebuild: str,
    step: str | None = None,
    precision: str | None = None,
    graph_sha256: str | None = None,
) -> tuple[bytes, EngineIdentity]:
    """Read an engine and check that it is whole, is the one that is meant, and was built for this machine and runtime.

    Nothing of it is deserialised here; call this first.

    Args:
        engine: the engine's file.
        backend: the backend that will run it.
        rebuild: the command that builds it again, for messages.
        step, precision, graph_sha256: what it must be; None where the caller does not mind.

    Returns:
        The very bytes that were checked, and the identity.

    Raises:
        MissingFileError: the engine or its identity is not there.
        FileFormatError: either is truncated or not what its name says.
        ChecksumError: either was changed.
        EngineMismatchError: it is another engine, or one for another machine, runtime or version; the message names
            both sides of each difference.
    """
    again = _again(rebuild)
    if not engine.is_file():
        raise MissingFileError(f"engine: expected a file at {engine}, found none.", hint=again)
    identity = read_identity(engine, rebuild)
    data = engine.read_bytes()
    if len(data) != identity.engine_bytes:
        raise FileFormatError(
            f"engine {engine}: truncated or replaced: expected {identity.engine_bytes} bytes, got {len(data)}.",
            hint=again,
        )
    digest = hashlib.sha256(data).hexdigest()
    if digest != identity.engine_sha256:
        raise ChecksumError(
            f"engine {engine}: damaged or replaced: expected SHA-256 {identity.engine_sha256[:12]}..., "
            f"got {digest[:12]}....",
            hint=again,
        )
    wanted = {"backend": backend, "step": step, "precision": precision, "graph_sha256": graph_sha256}
    _check_meant(engine, identity, wanted, again)
    _check_fits(engine, identity, again)
    return data, identity


def installed_runtime(module: str) -> str | None:
    """Module and version, such as ``"tensorrt 10.3.0"``, as installed here; ``None`` where it cannot be imported."""
    try:
        version = getattr(import_module(module), "__version__", None)
    except ImportError:
        return None
    return f"{module} {version}" if version else None


def _check_meant(engine: Path, identity: EngineIdentity, wanted: dict[str, str | None], again: str) -> None:
    for key, value in wanted.items():
        found = getattr(identity, key)
        if value is not None and found != value:
            what = "graph's SHA-256" if key == "graph_sha256" else key
            theirs, ours = (text[:12] + "..." if key == "graph_sha256" else text for text in (found, value))
            raise EngineMismatchError(
                f"engine {engine}: another engine is in its place: its {what} is '{theirs}', expected '{ours}'.",
                hint=again,
            )


def _check_fits(engine: Path, identity: EngineIdentity, again: str) -> None:
    """Runtime and machine, all differences in one message."""
    module = identity.runtime.split()[0]
    here = installed_runtime(module)
    found = []
    if here is None:
        found.append(f"it was built with {identity.runtime}, this machine has no {module}")
    elif not _loads(identity, here):
        found.append(f"it was built with {identity.runtime}, this machine has {here}")
    ahead = module == "tensorrt_rtx" and identity.machine.compute_capability is None
    now = machine_facts(identity.backend)
    found += differences(identity.machine, now, identity.backend, ahead_of_time=ahead)
    if found:
        raise EngineMismatchError(f"engine {engine}: it does not fit: {'; '.join(found)}.", hint=again)


def _loads(identity: EngineIdentity, here: str) -> bool:
    if identity.runtime == here:
        return True
    if not identity.settings.get("version_compatible"):
        return False
    try:
        theirs, ours = (tuple(map(int, text.split()[1].split(".")[:3])) for text in (identity.runtime, here))
    except ValueError:
        return False
    return (ours[0] == theirs[0] and ours >= theirs) or _NEXT_MAJOR.get(theirs[0]) == ours[0]


def _checksum(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _again(rebuild: str) -> str:
    return f"Build it again on this machine: {rebuild}"
