"""The bundle: the one folder that is deployed, opened only when it is whole.

    NAME/manifest.json     what is in it, how its tensors are named and shaped, where it came from
    NAME/keyframe.onnx     frame -> task outputs, state.X.next for every state tensor X
    NAME/delta.onnx        frame, state.X for every X -> task outputs, state.X.next for those that it rewrites
    NAME/...               whatever else ``files`` lists

A per-frame network has a keyframe step alone and no state.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

import edge_sdk
from edge_sdk.errors import BundleError, ChecksumError, FileFormatError, MissingFileError, RecipeError
from edge_sdk.files import atomic_folder, require_writable, sha256_of
from edge_sdk.runtime.schedule import ScheduleSettings
from edge_sdk.settings import Settings, parse_settings
from edge_sdk.tasks import Task, TaskSpec, task_from_spec
from edge_sdk.tensors import TensorSpec

FORMAT = 1
MANIFEST = "manifest.json"
FRAME = "frame"
StepName = Literal["keyframe", "delta"]

_EXPORT_AGAIN = "Export the bundle again."
_COPY_AGAIN = "Copy the bundle again from where it was exported, or export it again."


def state_input(name: str) -> str:
    """Name of the graph input that reads state tensor ``name``."""
    return f"state.{name}"


def state_output(name: str) -> str:
    """Name of the graph output that writes state tensor ``name``."""
    return f"state.{name}.next"


class StepSpec(Settings):
    """One step graph.

    Args:
        graph: the graph's file, relative to the bundle.
        inputs: every graph input.
        outputs: every graph output.
        macs: multiply-accumulates of one run; None where nobody counted.
    """

    graph: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    macs: int | None = Field(default=None, ge=0)


class StepsSpec(Settings):
    """The step graphs of a bundle; ``delta`` is None for a per-frame network."""

    keyframe: StepSpec
    delta: StepSpec | None = None


class FileRecord(Settings):
    """What a file must be: hex SHA-256 and size."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: int = Field(ge=0)


class Manifest(Settings):
    """Everything about a bundle but its files' content.

    Args:
        format: version of the bundle format.
        name: name of the pair, for people.
        method: the method that made it, such as ``"per_frame"`` or ``"delta"``; for people and tables, no
            code acts on it.
        task: what the outputs mean.
        frame: the frame input: named ``frame``, (H, W, 3), uint8 BGR.
        steps: the step graphs.
        state: state tensors, named without the prefix that the graphs use.
        schedule: the schedule that a runner follows unless told otherwise.
        provenance: recipe, data, commit, metrics; anything JSON holds.
        files: record of every file but the manifest, by path relative to the bundle.
        created: ISO 8601 time of export, UTC.
        sdk_version: version of edge_sdk that wrote the bundle.
    """

    format: Literal[1] = 1
    name: str = Field(min_length=1)
    method: str = Field(min_length=1)
    task: TaskSpec
    frame: TensorSpec
    steps: StepsSpec
    state: tuple[TensorSpec, ...] = ()
    schedule: ScheduleSettings
    provenance: dict[str, JsonValue] = Field(default_factory=dict)
    files: dict[str, FileRecord] = Field(default_factory=dict)
    created: str = ""
    sdk_version: str = ""


class Bundle:
    """An opened bundle: its manifest is consistent and its files are those that were exported.

    Made by :meth:`open` or :func:`write_bundle`.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.task: Task = task_from_spec(manifest.task)

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> Bundle:
        """Open the bundle in folder ``path``.

        Args:
            path: the bundle.
            verify: also read every file and compare its SHA-256; without it only presence and size count.

        Raises:
            MissingFileError: the folder, the manifest or a listed file is not there.
            FileFormatError: the manifest is not JSON, or a file has another size than recorded.
            ChecksumError: a file's content is not what was exported.
            BundleError: the manifest is of another format, has an unknown key or a bad value, contradicts
                itself, or names a file outside the folder.
        """
        folder = Path(path)
        manifest = _read_manifest(folder)
        check_manifest(manifest)
        _check_listed(manifest, manifest.files)
        for name, record in manifest.files.items():
            _check_file(folder, name, record, verify)
        return cls(folder, manifest)

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
    _check_listed(manifest, files)
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


def _read_manifest(folder: Path) -> Manifest:
    if not folder.exists():
        raise MissingFileError(f"bundle: expected a folder at {folder}, found nothing.")
    if not folder.is_dir():
        raise BundleError(f"bundle {folder}: expected a folder, got a file.", hint="Name its folder.")
    file = folder / MANIFEST
    if not file.is_file():
        raise MissingFileError(f"bundle {folder}: it holds no {MANIFEST}.", hint="Name the exported folder.")
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
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
        raise BundleError(str(error), hint=_EXPORT_AGAIN) from None


def _check_file(folder: Path, name: str, record: FileRecord, verify: bool) -> None:
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"bundle {folder}: '{name}' is a link out of the bundle.", hint=_COPY_AGAIN)
    if not file.is_file():
        raise MissingFileError(f"bundle {folder}: the file '{name}' is missing.", hint=_COPY_AGAIN)
    size = file.stat().st_size
    if size != record.size_bytes:
        raise FileFormatError(
            f"bundle {folder}: '{name}' is truncated or replaced: expected {record.size_bytes} bytes, got {size}.",
            hint=_COPY_AGAIN,
        )
    if verify and (digest := sha256_of(file)) != record.sha256:
        raise ChecksumError(
            f"bundle {folder}: '{name}' is damaged or replaced: expected SHA-256 {record.sha256[:12]}..., "
            f"got {digest[:12]}....",
            hint=_COPY_AGAIN,
        )


def _check_listed(manifest: Manifest, names: Iterable[str]) -> None:
    """Every name is a plain relative path, and every graph is among them."""
    listed = list(names)
    steps = [manifest.steps.keyframe, manifest.steps.delta]
    graphs = [step.graph for step in steps if step is not None]
    for name in listed + graphs:
        path = PurePosixPath(name)
        plain = path.as_posix() == name and not path.is_absolute() and not {"\\", ":"} & set(name)
        if not plain or ".." in path.parts or name in (MANIFEST, "."):
            raise _contradiction(f"'{name}' is not the plain path of a file inside the bundle")
    for graph in graphs:
        if graph not in listed:
            raise _contradiction(f"the graph '{graph}' is not among its files")


def check_manifest(manifest: Manifest) -> None:
    """Check that frame, steps, state and schedule of a manifest agree with each other.

    Raises:
        BundleError: naming the tensor, what was expected and what the manifest has.
    """
    frame, steps, state = manifest.frame, manifest.steps, manifest.state
    if frame.name != FRAME or len(frame.shape) != 3 or frame.shape[2] != 3 or frame.dtype != "uint8":
        raise _contradiction(f"frame: expected '{FRAME}' (H, W, 3) uint8, got {_text(frame)}")
    task = task_from_spec(manifest.task)
    answers = {spec.name: spec for spec in steps.keyframe.outputs if spec.name in task.output_names}
    if missing := [name for name in task.output_names if name not in answers]:
        raise _contradiction(f"keyframe output: the task needs '{missing[0]}', the step has no such output")
    task.check_outputs([answers[name] for name in task.output_names], frame)
    expected = list(answers.values())
    written = [_renamed(spec, state_output(spec.name)) for spec in state]
    _same(steps.keyframe.inputs, [frame], "keyframe input")
    _same(steps.keyframe.outputs, expected + written, "keyframe output")
    if steps.delta is None:
        if state:
            raise _contradiction(f"state: '{state[0].name}' is read by no step, there is no delta step")
        if manifest.schedule.uses_delta:
            raise _contradiction(
                f"schedule '{manifest.schedule.kind}' asks for delta steps, there is no delta step"
            )
        return
    read = [_renamed(spec, state_input(spec.name)) for spec in state]
    _same(steps.delta.inputs, [frame, *read], "delta input")
    names = {spec.name for spec in steps.delta.outputs}
    _same(steps.delta.outputs, expected + [spec for spec in written if spec.name in names], "delta output")


def _same(found: Iterable[TensorSpec], expected: Iterable[TensorSpec], what: str) -> None:
    """The same tensors, in any order."""
    left = {spec.name: spec for spec in expected}
    for spec in found:
        wanted = left.pop(spec.name, None)
        if wanted is None:
            raise _contradiction(f"{what}: '{spec.name}' is unknown or named twice")
        if wanted != spec:
            raise _contradiction(f"{what}: expected {_text(wanted)}, got {_text(spec)}")
    if left:
        raise _contradiction(f"{what}: '{next(iter(left))}' is missing")


def _contradiction(what: str) -> BundleError:
    return BundleError(f"manifest: {what}.", hint=_EXPORT_AGAIN)


def _renamed(spec: TensorSpec, name: str) -> TensorSpec:
    return spec.model_copy(update={"name": name})


def _text(spec: TensorSpec) -> str:
    return f"'{spec.name}' {spec.shape} {spec.dtype}"
