"""The bundle: the one folder that is deployed, opened only when it is whole.

    NAME/manifest.json     what is in it, how its tensors are named and shaped, where it came from
    NAME/keyframe.onnx     frame -> task outputs, state.X.next for every state tensor X
    NAME/delta.onnx        frame, state.X for every X -> task outputs, state.X.next for those that it rewrites
    NAME/graphs/SET/...    the same two in another precision, for one backend; SET is such as tensorrt-int8
    NAME/engines/SET/...   engines built from them for one machine, each with a JSON that says what for
    NAME/signature.json    who signed it, see :mod:`edge_sdk.signing`; where somebody did
    NAME/...               whatever else ``files`` lists

A per-frame network has a keyframe step alone and no state.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import edge_sdk
from edge_sdk.errors import BundleError, ChecksumError, FileFormatError, MissingFileError, RecipeError
from edge_sdk.files import atomic_folder, require_writable, sha256_of
from edge_sdk.manifest import (
    EXPORT_AGAIN,
    FLOAT32,
    FRAME,
    MANIFEST,
    BackendName,
    EngineSet,
    FileRecord,
    Manifest,
    PairSpec,
    StateForm,
    StepName,
    StepSpec,
    StepsSpec,
    Variant,
    check_listed,
    check_manifest,
    set_name,
    state_input,
    state_output,
)
from edge_sdk.settings import parse_settings
from edge_sdk.signing import Signature, Trust, check_nothing_unlisted, sign_manifest
from edge_sdk.tasks import Task, task_from_spec

__all__ = [
    "FLOAT32",
    "FRAME",
    "Bundle",
    "EngineSet",
    "FileRecord",
    "Manifest",
    "PairSpec",
    "StateForm",
    "StepName",
    "StepSpec",
    "StepsSpec",
    "Variant",
    "check_manifest",
    "extend_bundle",
    "require_place",
    "set_name",
    "sign_bundle",
    "state_input",
    "state_output",
    "write_bundle",
]

FORMAT = 1

_BUILD_AGAIN = "Build it again on this machine: edge-sdk build RECIPE"
_COPY_AGAIN = "Copy the bundle again from where it was exported, or export it again."


class Bundle:
    """An opened bundle: its manifest is consistent and its files are those that were exported.

    Made by :meth:`open` or :func:`write_bundle`.

    Args:
        path: its folder.
        manifest: what it holds.
        manifest_sha256: of the manifest's bytes, hex; what a signature signs.
        signature: the signature, where a policy asked to have it checked and it is good.
    """

    def __init__(
        self, path: Path, manifest: Manifest, manifest_sha256: str, signature: Signature | None = None
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.manifest_sha256 = manifest_sha256
        self.signature = signature
        self.task: Task = task_from_spec(manifest.task)

    @classmethod
    def open(cls, path: str | Path, verify: bool = True, *, trust: Trust | None = None) -> Bundle:
        """Open the bundle in folder ``path``.

        Args:
            path: the bundle.
            verify: also read every file and compare its SHA-256; without it only presence and size count.
            trust: accept only bundles that this policy accepts; every file is then read, whatever ``verify`` says.

        Raises:
            SignatureError: ``trust`` does not accept it.
            MissingFileError: the folder, the manifest or a listed file is not there.
            FileFormatError: the manifest is not JSON, or a file has another size than recorded.
            ChecksumError: a file's content is not what was exported.
            BundleError: the manifest is of another format, has an unknown key or a bad value, contradicts
                itself, or names a file outside the folder.
        """
        folder = Path(path)
        data = _read_manifest(folder)
        signature = None if trust is None else trust.check(folder, data)
        manifest = _parse_manifest(folder, data)
        check_manifest(manifest)
        check_listed(manifest, manifest.files)
        if signature is not None:
            check_nothing_unlisted(folder, manifest.files)
        for name, record in manifest.files.items():
            _check_file(folder, name, record, verify or trust is not None)
        return cls(folder, manifest, hashlib.sha256(data).hexdigest(), signature)

    def step(self, name: StepName) -> StepSpec:
        """Spec of a step.

        Raises:
            BundleError: the bundle has no such step.
        """
        step: StepSpec | None = getattr(self.manifest.steps, name)
        if step is None:
            raise BundleError(f"bundle {self.path}: it has no {name} step, only a keyframe step.")
        return step

    def graph_path(self, name: StepName) -> Path:
        """File of a step's graph.

        Raises:
            BundleError: the bundle has no such step.
        """
        return self.path / self.step(name).graph

    def pair(self, engine: str = FLOAT32) -> PairSpec:
        """Steps and state of the float32 graphs, or of the engine set named ``engine``.

        Raises:
            BundleError: there is no such engine set.
        """
        if engine == FLOAT32:
            return self.manifest.pair
        if engine not in self.manifest.engines:
            there = ", ".join((FLOAT32, *sorted(self.manifest.engines)))
            raise BundleError(
                f"bundle {self.path}: it has no engines '{engine}', only {there}.",
                hint="Build them on this machine with: edge-sdk build RECIPE",
            )
        return self.manifest.engines[engine]

    def engine_for(self, backend: str, engine: str | None) -> str:
        """The engine set that a runner on ``backend`` takes: ``engine``, else the chosen one, else float32.

        Raises:
            BundleError: there is no such engine set, or it is another backend's.
        """
        if engine is None:
            return next((name for key, name in self.manifest.chosen.items() if key == backend), FLOAT32)
        found = self.pair(engine)
        if isinstance(found, EngineSet) and found.backend != backend:
            raise BundleError(
                f"engine '{engine}': it is built for {found.backend}, the runner's backend is {backend}.",
                hint=f"Ask for backend='{found.backend}', or for another engine.",
            )
        return engine

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the frames it takes, in pixels."""
        height, width, _ = self.manifest.frame.shape
        return height, width

    @property
    def state_bytes(self) -> int:
        """Bytes of one copy of the state."""
        return sum(spec.size_bytes for spec in self.manifest.state)


def write_bundle(path: str | Path, manifest: Manifest, files: Mapping[str, Path | bytes]) -> Bundle:
    """Write a bundle, whole or not at all; an older bundle in its place is replaced.

    Args:
        path: the folder to make.
        manifest: its ``files`` is empty and is filled in here, as are ``created`` and ``sdk_version`` where
            they are empty.
        files: content by path relative to the bundle: bytes, or a file to copy.

    Returns:
        The bundle, opened and verified.

    Raises:
        BundleError: the manifest contradicts itself, lists files already, names a graph that ``files`` lacks,
            or ``path`` is something else than a bundle.
        MissingFileError: a file to copy is not there.
    """
    target = Path(path)
    if manifest.files:
        raise BundleError("manifest.files: expected it empty, write_bundle records the files itself.")
    check_manifest(manifest)
    check_listed(manifest, files)
    require_place(target)
    with atomic_folder(target) as folder:
        records = {name: _place(folder / name, content) for name, content in files.items()}
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        whole = manifest.model_copy(
            update={
                "files": records,
                "created": manifest.created or now,
                "sdk_version": manifest.sdk_version or edge_sdk.__version__,
            }
        )
        (folder / MANIFEST).write_text(whole.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Bundle.open(target)


def extend_bundle(
    bundle: Bundle,
    files: Mapping[str, Path | bytes],
    *,
    variants: Mapping[str, Variant] | None = None,
    engines: Mapping[str, EngineSet] | None = None,
    measured: Mapping[str, EngineSet] | None = None,
    chosen: Mapping[BackendName, str] | None = None,
    out: str | Path | None = None,
) -> Bundle:
    """Write a bundle again with graphs or engines added; those of the same name are replaced, whole or not at all.

    Args:
        bundle: what is extended.
        files: content of the new files, as for :func:`write_bundle`.
        variants, engines: new entries of the manifest, by name. Engines of a variant that is replaced are dropped.
        measured: entries of engine sets that are there, with new figures and the same files.
        chosen: new choices; a choice whose engine set is replaced or dropped without a new choice is dropped.
        out: another place for the result; None replaces ``bundle``.

    Raises:
        BundleError, MissingFileError, OutputError: as :func:`write_bundle`.
    """
    old = bundle.manifest
    gone = {*(variants or {}), *(engines or {})}
    kept_engines = {name: built for name, built in old.engines.items() if name not in gone}
    manifest = old.model_copy(
        update={
            "files": {},
            "variants": {**old.variants, **(variants or {})},
            "engines": {**kept_engines, **(measured or {}), **(engines or {})},
            "chosen": {k: v for k, v in old.chosen.items() if v not in gone} | dict(chosen or {}),
        }
    )
    replaced = [f"graphs/{name}/" for name in variants or {}] + [f"engines/{name}/" for name in gone]
    kept: dict[str, Path | bytes] = {
        name: bundle.path / name for name in old.files if not name.startswith(tuple(replaced))
    }
    return write_bundle(bundle.path if out is None else out, manifest, {**kept, **files})


def sign_bundle(bundle: Bundle, key: str | Path, release: int) -> Signature:
    """Sign a bundle, as its manifest is now; an older signature is replaced.

    Args:
        bundle: opened with every file verified.
        key: file of the private key, PEM.
        release: number of this release, greater than that of the one before.

    Raises:
        SignatureError: the bundle holds files that its manifest does not list.
        MissingFileError, FileFormatError, RecipeError, OutputError, DependencyError: see
            :func:`edge_sdk.signing.sign_manifest`.
    """
    check_nothing_unlisted(bundle.path, bundle.manifest.files)
    return sign_manifest(bundle.path, bundle.manifest.name, bundle.manifest_sha256, key, release)


def require_place(path: str | Path) -> None:
    """Refuse a place that :func:`write_bundle` would not write to.

    Raises:
        BundleError: something else than a bundle is there.
        OutputError: nothing can be written there.
    """
    target = Path(path)
    # The folder is replaced as a whole; a slip of the pen must not take someone's data with it.
    if target.exists() and not (target / MANIFEST).is_file() and (target.is_file() or any(target.iterdir())):
        raise BundleError(f"bundle {target}: something else is in its place.", hint="Name another folder.")
    require_writable(target)


def _place(target: Path, content: Path | bytes) -> FileRecord:
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        target.write_bytes(content)
    elif content.is_file():
        shutil.copyfile(content, target)
    else:
        raise MissingFileError(f"file for the bundle: expected a file at {content}, found none.")
    return FileRecord(sha256=sha256_of(target), size_bytes=target.stat().st_size)


def _read_manifest(folder: Path) -> bytes:
    if not folder.exists():
        raise MissingFileError(f"bundle: expected a folder at {folder}, found nothing.")
    if not folder.is_dir():
        raise BundleError(f"bundle {folder}: expected a folder, got a file.", hint="Name its folder.")
    file = folder / MANIFEST
    if not file.is_file():
        raise MissingFileError(f"bundle {folder}: it holds no {MANIFEST}.", hint="Name the exported folder.")
    return file.read_bytes()


def _parse_manifest(folder: Path, content: bytes) -> Manifest:
    file = folder / MANIFEST
    try:
        data: Any = json.loads(content.decode("utf-8"))
    except ValueError as error:  # covers bad JSON and bad UTF-8
        raise FileFormatError(f"{file}: not readable as JSON: {error}.", hint=_COPY_AGAIN) from error
    found = data.get("format") if isinstance(data, dict) else None
    if isinstance(found, int) and found != FORMAT:
        raise BundleError(
            f"bundle {folder}: its format is {found}, edge_sdk {edge_sdk.__version__} reads format {FORMAT}.",
            hint="Install the edge_sdk that wrote it, or export it again with this one.",
        )
    try:
        return parse_settings(data, Manifest, str(file))
    except RecipeError as error:
        raise BundleError(str(error), hint=EXPORT_AGAIN) from None


def _check_file(folder: Path, name: str, record: FileRecord, verify: bool) -> None:
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"bundle {folder}: '{name}' is a link out of the bundle.", hint=_COPY_AGAIN)
    if not file.is_file():
        raise MissingFileError(f"bundle {folder}: the file '{name}' is missing.", hint=_repair(name))
    size = file.stat().st_size
    if size != record.size_bytes:
        raise FileFormatError(
            f"bundle {folder}: '{name}' is truncated or replaced: expected {record.size_bytes} bytes, got {size}.",
            hint=_repair(name),
        )
    if verify and (digest := sha256_of(file)) != record.sha256:
        raise ChecksumError(
            f"bundle {folder}: '{name}' is damaged or replaced: expected SHA-256 {record.sha256[:12]}..., "
            f"got {digest[:12]}....",
            hint=_repair(name),
        )


def _repair(name: str) -> str:
    return _BUILD_AGAIN if name.startswith("engines/") else _COPY_AGAIN
