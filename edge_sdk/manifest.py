"""What a bundle's manifest says, and the check that it does not contradict itself.

A *pair* is the two step graphs of one method in one precision, and the state that passes between them. The manifest
holds the exported float32 pair, its *variants* (typed graphs of another precision, portable) and its *engine sets*
(built for one machine).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from edge_sdk.errors import BundleError
from edge_sdk.runtime.schedule import DriftSchedule, ScheduleSettings
from edge_sdk.settings import Settings
from edge_sdk.tasks import TaskSpec, task_from_spec
from edge_sdk.tensors import TensorSpec

MANIFEST = "manifest.json"
# Beside the manifest, which it signs, and so not listed in it.
SIGNATURE = "signature.json"
FRAME = "frame"
# The output by which a delta step tells how much of the keyframe still holds, 0 to 1: float32, shape ().
TRUST = "trust"
FLOAT32 = "float32"
StepName = Literal["keyframe", "delta"]
Precision = Literal["float32", "float16", "int8"]
BackendName = Literal["onnxruntime", "tensorrt"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

_STATE, _NEXT = "state.", ".next"

EXPORT_AGAIN = "Export the bundle again."


def state_input(name: str) -> str:
    """Name of the graph input that reads state tensor ``name``."""
    return f"{_STATE}{name}"


def state_output(name: str) -> str:
    """Name of the graph output that writes state tensor ``name``."""
    return f"{_STATE}{name}{_NEXT}"


def is_state(tensor: str) -> bool:
    """Whether a graph input or output reads or writes state."""
    return tensor.startswith(_STATE)


def is_told(tensor: str) -> bool:
    """Whether a graph output is for the runner alone, as state and trust are, and no answer of the task."""
    return tensor == TRUST or is_state(tensor)


def state_name(tensor: str) -> str:
    """Name of the state tensor that a graph input reads or a graph output writes."""
    return tensor.removeprefix(_STATE).removesuffix(_NEXT)


def set_name(backend: str, precision: str) -> str:
    """Name of a variant or an engine set, such as ``"tensorrt-int8"``."""
    return f"{backend}-{precision}"


class StepSpec(Settings):
    """One step.

    Args:
        graph: the graph's, or the built engine's, file, relative to the bundle.
        inputs: every input.
        outputs: every output.
        macs: multiply-accumulates of one run; None where nobody counted.
    """

    graph: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    macs: int | None = Field(default=None, ge=0)


class StepsSpec(Settings):
    """The steps of a pair; ``delta`` is None for a per-frame network."""

    keyframe: StepSpec
    delta: StepSpec | None = None

    def items(self) -> Iterator[tuple[StepName, StepSpec]]:
        """Name and spec of each step that there is."""
        yield "keyframe", self.keyframe
        if self.delta is not None:
            yield "delta", self.delta


class StateForm(Settings):
    """How a state tensor is kept, against the float32 pair's (1, C, H, W): ``x = (kept - zero_point) * scale``.

    Args:
        scale: of a quantised tensor; 1 for one of floats.
        zero_point: of a quantised tensor; 0 for one of floats.
        permutation: axes of the float32 tensor in the order in which they are kept, such as (0, 2, 3, 1).
    """

    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    zero_point: int = 0
    permutation: tuple[int, ...] = ()


class PairSpec(Settings):
    """Steps and state of a pair in one precision.

    Args:
        steps: the steps.
        state: state tensors, named without the prefix that the graphs use.
        forms: how those state tensors are kept that are not kept as the float32 pair does.
    """

    steps: StepsSpec
    state: tuple[TensorSpec, ...] = ()
    forms: dict[str, StateForm] = Field(default_factory=dict)

    @property
    def state_bytes(self) -> int:
        """Bytes of one copy of the state."""
        return sum(spec.size_bytes for spec in self.state)

    @property
    def trust(self) -> TensorSpec | None:
        """The output by which the delta step tells how much of the keyframe still holds; None where it has none."""
        outputs = () if self.steps.delta is None else self.steps.delta.outputs
        return next((spec for spec in outputs if spec.name == TRUST), None)


class Variant(PairSpec):
    """The pair's graphs in another precision, for one backend; portable.

    Args:
        backend: whose kernels the graphs are written for.
        precision: what most of the work is done in.
        provenance: calibration, settings and what was left in higher precision; anything JSON holds.
    """

    backend: BackendName
    precision: Precision
    provenance: dict[str, JsonValue] = Field(default_factory=dict)


class EngineSet(Variant):
    """The pair's engines, built for one machine.

    Args:
        identities: by step, the JSON file beside the engine that says what it was built from and for.
        measured: what was measured on that machine: times, accuracy.
    """

    identities: dict[StepName, str]
    measured: dict[str, JsonValue] = Field(default_factory=dict)


class FileRecord(Settings):
    """What a file must be: hex SHA-256 and size."""

    sha256: Sha256
    size_bytes: int = Field(ge=0)


class OnlineSpec(Settings):
    """What a trainer needs to teach this bundle's student on the stream, see :mod:`edge_sdk.adapt`.

    Args:
        recipe: the :class:`edge_sdk.distill.online.OnlineRecipe` that makes the pair; nothing on the device reads it.
        weights: file in the bundle with the pair's weights, tensors alone.
        tensors: by step, the name in its graph of every parameter that learns, by the parameter's name; a step that
            has none of them is left out.
        open: names of those parameters that the graphs leave open, so that a runner can exchange them alone.
    """

    recipe: dict[str, JsonValue]
    weights: str
    tensors: dict[StepName, dict[str, str]]
    open: tuple[str, ...] = ()


class Manifest(Settings):
    """Everything about a bundle but its files' content.

    Args:
        format: version of the bundle format.
        name: name of the pair, for people.
        method: the method that made it, such as ``"per_frame"`` or ``"delta"``; for people and tables, no
            code acts on it.
        task: what the outputs mean.
        frame: the frame input: named ``frame``, (H, W, 3), uint8 BGR.
        steps: the float32 step graphs.
        state: their state tensors, named without the prefix that the graphs use.
        variants: graphs in other precisions, by name.
        engines: engines built for one machine, by name.
        chosen: name of the engine set that a runner takes unless told otherwise, by backend.
        schedule: the schedule that a runner follows unless told otherwise.
        online: what a trainer needs to go on teaching the student; None where it cannot learn on a stream.
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
    variants: dict[str, Variant] = Field(default_factory=dict)
    engines: dict[str, EngineSet] = Field(default_factory=dict)
    chosen: dict[BackendName, str] = Field(default_factory=dict)
    schedule: ScheduleSettings
    online: OnlineSpec | None = None
    provenance: dict[str, JsonValue] = Field(default_factory=dict)
    files: dict[str, FileRecord] = Field(default_factory=dict)
    created: str = ""
    sdk_version: str = ""

    @property
    def pair(self) -> PairSpec:
        """The float32 pair."""
        return PairSpec(steps=self.steps, state=self.state)


def check_listed(manifest: Manifest, names: Iterable[str]) -> None:
    """Check that every name is a plain path inside the bundle, and every graph and engine is among them.

    Raises:
        BundleError: naming the path.
    """
    listed = list(names)
    wanted = list(_named_files(manifest))
    for name in listed + wanted:
        path = PurePosixPath(name)
        plain = path.as_posix() == name and not path.is_absolute() and not {"\\", ":"} & set(name)
        if not plain or ".." in path.parts or name in (MANIFEST, SIGNATURE, "."):
            raise _contradiction(f"'{name}' is not the plain path of a file inside the bundle")
    for name in wanted:
        if name not in listed:
            raise _contradiction(f"the graph '{name}' is not among its files")


def _named_files(manifest: Manifest) -> Iterator[str]:
    for pair in (manifest.pair, *manifest.variants.values(), *manifest.engines.values()):
        yield from (step.graph for _, step in pair.steps.items())
    for built in manifest.engines.values():
        yield from built.identities.values()
    if manifest.online is not None:
        yield manifest.online.weights


def check_manifest(manifest: Manifest) -> None:
    """Check that frame, steps, state and schedule of a manifest agree with each other, in every precision.

    Raises:
        BundleError: naming the tensor, what was expected and what the manifest has.
    """
    frame = manifest.frame
    if frame.name != FRAME or len(frame.shape) != 3 or frame.shape[2] != 3 or frame.dtype != "uint8":
        raise _contradiction(f"frame: expected '{FRAME}' (H, W, 3) uint8, got {_text(frame)}")
    _check_pair(manifest, manifest.pair)
    if manifest.steps.delta is None and manifest.schedule.uses_delta:
        raise _contradiction(
            f"schedule '{manifest.schedule.kind}' asks for delta steps, there is no delta step"
        )
    if isinstance(manifest.schedule, DriftSchedule) and manifest.pair.trust is None:
        raise _contradiction(f"schedule 'drift' asks for the output '{TRUST}', the delta step has none")
    for kind, pairs in (("variant", manifest.variants), ("engines", manifest.engines)):
        for name, pair in pairs.items():
            _check_variant(manifest, f"{kind} '{name}': ", name, pair)
    for name, built in manifest.engines.items():
        steps = [step for step, _ in built.steps.items()]
        if sorted(built.identities) != sorted(steps):
            raise _contradiction(f"engines '{name}': expected an identity for {' and '.join(steps)}")
    for backend, name in manifest.chosen.items():
        if name != FLOAT32 and (name not in manifest.engines or manifest.engines[name].backend != backend):
            raise _contradiction(f"chosen: '{name}' is none of its engine sets for {backend}")


def _check_variant(manifest: Manifest, where: str, name: str, pair: Variant) -> None:
    """A variant has the float32 pair's steps and state names, and the name that its contents give it."""
    if name != set_name(pair.backend, pair.precision):
        raise _contradiction(f"{where}it holds {set_name(pair.backend, pair.precision)}")
    if (pair.steps.delta is None) != (manifest.steps.delta is None):
        raise _contradiction(f"{where}it has not the steps of the float32 pair")
    if pair.trust != manifest.pair.trust:
        raise _contradiction(f"{where}the output '{TRUST}' is not in both, it and the float32 pair")
    names = {spec.name for spec in manifest.state}
    for odd in sorted(names ^ {spec.name for spec in pair.state}) + sorted(set(pair.forms) - names):
        raise _contradiction(f"{where}state '{odd}' is not in both, it and the float32 pair")
    _check_pair(manifest, pair, where)


def _check_pair(manifest: Manifest, pair: PairSpec, where: str = "") -> None:
    steps, state = pair.steps, pair.state
    task = task_from_spec(manifest.task)
    answers = {spec.name: spec for spec in steps.keyframe.outputs if spec.name in task.output_names}
    if missing := [name for name in task.output_names if name not in answers]:
        raise _contradiction(
            f"{where}keyframe output: the task needs '{missing[0]}', the step has no such output"
        )
    task.check_outputs([answers[name] for name in task.output_names], manifest.frame)
    expected = list(answers.values())
    written = [_renamed(spec, state_output(spec.name)) for spec in state]
    _same(steps.keyframe.inputs, [manifest.frame], f"{where}keyframe input")
    _same(steps.keyframe.outputs, expected + written, f"{where}keyframe output")
    if steps.delta is None:
        if state:
            raise _contradiction(
                f"{where}state: '{state[0].name}' is read by no step, there is no delta step"
            )
        return
    read = [_renamed(spec, state_input(spec.name)) for spec in state]
    _same(steps.delta.inputs, [manifest.frame, *read], f"{where}delta input")
    names = {spec.name for spec in steps.delta.outputs}
    rewritten = [spec for spec in written if spec.name in names]
    told = [TensorSpec(name=TRUST, shape=(), dtype="float32")] if TRUST in names else []
    _same(steps.delta.outputs, expected + rewritten + told, f"{where}delta output")


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
    return BundleError(f"manifest: {what}.", hint=EXPORT_AGAIN)


def _renamed(spec: TensorSpec, name: str) -> TensorSpec:
    return spec.model_copy(update={"name": name})


def _text(spec: TensorSpec | Any) -> str:
    return f"'{spec.name}' {spec.shape} {spec.dtype}"
