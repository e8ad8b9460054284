"""Recording a reference: the float32 pair over a source, on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import edge_sdk
from edge_sdk.arrays import ArrayWriter, just_written, write_arrays
from edge_sdk.bundle import FLOAT32, FRAME, Bundle
from edge_sdk.errors import RecipeError, VideoError
from edge_sdk.evaluate.clip import check_frame_size, truth_of
from edge_sdk.manifest import StepName
from edge_sdk.optional import require
from edge_sdk.parity.reference import (
    BACKEND,
    REFERENCE,
    Reference,
    ReferenceHeader,
    ReferencePass,
    ReferenceSettings,
    answer_file,
    frame_file,
    label_file,
    schedule_of,
)
from edge_sdk.progress import Progress, Silent
from edge_sdk.recording import Content, RecordingBackend, graph_hashes
from edge_sdk.revision import commit_of_sources
from edge_sdk.runtime.engine import backend_named
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import SampleSchedule
from edge_sdk.video.base import VideoSource
from edge_sdk.video.frame import Frame
from edge_sdk.video.source import open_source

_DEFAULT_INTERVAL = 10


def record_reference(
    bundle: Bundle, settings: ReferenceSettings, path: str | Path, *, progress: Progress | None = None
) -> Reference:
    """Run the float32 pair over a source and write what it received and answered; memory stays flat.

    Raises:
        RecipeError: fewer frames than a keyframe interval, where there is a delta step.
        ShapeError: frames or labels of another size than the bundle takes.
        VideoError: the source cannot be read, or frames were lost on the way.
        FileFormatError: labels hold ids that are no classes.
        OutputError: nothing can be written there, or something else is there.
    """
    watcher = progress or Silent()
    target = Path(path)
    interval = settings.interval or interval_of(bundle)
    sight = _Sight.of(bundle)
    with open_source(settings.source, limit=sight.frames_for(settings.limit)) as source:
        check_frame_size(source.uri, source.size_hw, bundle.size_hw)
        there = source.frame_count
        count = settings.limit if there is None else min(sight.count(there), settings.limit)
        whole = kept_periods(count, interval, settings.periods)
        with write_arrays(target, REFERENCE) as writer:
            recorder = _StreamRecorder(writer, interval, whole, bundle.task.output_names)
            labelled = []
            backend = RecordingBackend(backend_named(BACKEND), bundle)
            with EdgeRunner(
                bundle,
                backend=backend,
                engine=FLOAT32,
                schedule=schedule_of(interval),
                threads=settings.threads,
            ) as runner:
                backend.observer = recorder
                for index, frame in enumerate(_seen(source, sight)):
                    runner(frame.image)
                    if (truth := truth_of(source.uri, frame, bundle.task, bundle.size_hw)) is not None:
                        (label,) = bundle.task.encode(truth).values()
                        writer.write(label_file(index), label, compress=True)
                        labelled.append(index)
                    watcher.update("reference", index + 1, count)
            _check_length(source.uri, recorder.frames, interval)
            writer.finish(_header(bundle, settings, interval, labelled, recorder))
    return Reference(just_written(target, REFERENCE))


@dataclass(frozen=True)
class _Sight:
    """Which frames of a source a bundle's steps see: of ``length`` frames those at ``places``."""

    length: int
    places: tuple[int, ...]

    @classmethod
    def of(cls, bundle: Bundle) -> _Sight:
        schedule = bundle.manifest.schedule
        return cls(schedule.length, schedule.seen) if isinstance(schedule, SampleSchedule) else cls(1, (0,))

    def sees(self, index: int) -> bool:
        return index % self.length in self.places

    def count(self, frames: int) -> int:
        """How many of the first ``frames`` frames are seen."""
        whole, rest = divmod(frames, self.length)
        return whole * len(self.places) + sum(place < rest for place in self.places)

    def frames_for(self, seen: int) -> int:
        """The fewest frames of which so many are seen."""
        whole, last = divmod(seen - 1, len(self.places))
        return whole * self.length + self.places[last] + 1


def _seen(source: VideoSource, sight: _Sight) -> Iterator[Frame]:
    for index, frame in enumerate(source):
        _check_order(source.uri, frame, index)
        if sight.sees(index):
            yield frame


class _StreamRecorder:
    """Writes frames and answers of every run, and everything else of those in the periods that are kept whole."""

    def __init__(self, writer: ArrayWriter, interval: int, whole: set[int], answers: tuple[str, ...]) -> None:
        self._writer, self._interval, self._whole, self._answers = writer, interval, whole, answers
        self._stored: dict[int, str] = {}
        self._inputs: dict[str, str] = {}
        self.frames = 0
        self.passes: list[ReferencePass] = []

    @property
    def _kept(self) -> bool:
        return self.frames // self._interval in self._whole

    def before(self, step: StepName, inputs: Mapping[str, Content]) -> None:
        if step == "keyframe":
            self._stored.clear()
        self._writer.write(frame_file(self.frames), inputs[FRAME].array, compress=True)
        if self._kept:
            # State was stored when it was written.
            self._inputs = {
                name: frame_file(self.frames) if name == FRAME else self._stored[content.token]
                for name, content in inputs.items()
            }

    def after(self, step: StepName, outputs: Mapping[str, Content]) -> None:
        members: dict[str, str] = {}
        for name, content in outputs.items():
            answer = name in self._answers
            members[name] = (
                answer_file(self.frames, name) if answer else f"passes/{self.frames:06d}/{name}.npy"
            )
            if answer or self._kept:
                self._writer.write(members[name], content.array, compress=answer)
                self._stored[content.token] = members[name]
        if self._kept:
            distance = self.frames % self._interval
            self.passes.append(
                ReferencePass(
                    step=step, frame=self.frames, distance=distance, inputs=self._inputs, outputs=members
                )
            )
        self.frames += 1


def interval_of(bundle: Bundle) -> int:
    """Frames from keyframe to keyframe in a bundle's own schedule; 1 without a delta step, 10 where it names none.

    Of a schedule that sees a few frames of each clip, those that are seen.
    """
    if bundle.manifest.steps.delta is None:
        return 1
    schedule = bundle.manifest.schedule
    if isinstance(schedule, SampleSchedule):
        return schedule.samples
    found = getattr(schedule, "interval", None) or getattr(schedule, "max_interval", None)
    return int(found or _DEFAULT_INTERVAL)


def kept_periods(frames: int, interval: int, wanted: int) -> set[int]:
    """Which keyframe periods are kept whole: ``wanted`` of them, spread evenly over the whole ones of the stream."""
    there = max(frames // interval, 1)
    return {there * place // min(wanted, there) for place in range(min(wanted, there))}


def _header(
    bundle: Bundle, settings: ReferenceSettings, interval: int, labelled: list[int], recorder: _StreamRecorder
) -> ReferenceHeader:
    ort: Any = require("onnxruntime", "recording a reference")
    steps = dict(bundle.manifest.steps.items())
    return ReferenceHeader(
        bundle=bundle.manifest.name,
        graphs=graph_hashes(bundle),
        inputs={name: spec.inputs for name, spec in steps.items()},
        outputs={name: spec.outputs for name, spec in steps.items()},
        settings=settings,
        interval=interval,
        frames=recorder.frames,
        labelled=tuple(labelled),
        passes=tuple(recorder.passes),
        runtime=f"{BACKEND} {ort.__version__}",
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        sdk_version=edge_sdk.__version__,
        commit=commit_of_sources(),
    )


def _check_order(uri: str, frame: Frame, index: int) -> None:
    if frame.seq != index:
        raise VideoError(
            f"{uri}: frame {frame.seq} came where {index} was due; a reference needs every frame.",
            hint="Record the stream to a file and name that.",
        )


def _check_length(uri: str, frames: int, interval: int) -> None:
    if frames < interval:
        raise RecipeError(
            f"source {uri}: it gave {frames} frames, a reference needs a whole keyframe period of {interval}.",
            hint="Name a longer source, or lower the interval.",
        )
