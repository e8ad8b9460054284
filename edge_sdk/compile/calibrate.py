"""``edge-sdk calibrate``: run the float32 pair over a user's clips and record what each step graph receives.

The pair runs in the real runner, a keyframe at the beginning of each clip and delta steps after it, so that the state
is that of use, at every distance from the keyframe that the clips are long. A pair that sees a few frames of each clip
sees those alone, by its own schedule. Needs numpy, ONNX Runtime and OpenCV.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

import edge_sdk
from edge_sdk.arrays import OVERHEAD_BYTES, ArrayWriter, require_arrays_place, write_arrays
from edge_sdk.bundle import Bundle
from edge_sdk.compile.calibration_frames import FrameFacts, check_frames
from edge_sdk.compile.calibration_set import (
    CALIBRATION_SET,
    CalibrationHeader,
    CalibrationSet,
    PassRecord,
    counts_of,
    sealed,
)
from edge_sdk.errors import OutputError, RecipeError, ShapeError
from edge_sdk.files import require_writable
from edge_sdk.manifest import FLOAT32, StepName, state_output
from edge_sdk.optional import require
from edge_sdk.progress import Progress
from edge_sdk.recording import Content, RecordingBackend, graph_hashes
from edge_sdk.revision import commit_of_sources
from edge_sdk.runtime.engine import backend_named
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import AlwaysSchedule, ExternalSchedule, SampleSchedule, ScheduleSettings
from edge_sdk.settings import Settings, parse_settings
from edge_sdk.video.clips import CalibrationClips, CalibrationClipsRecipe, draw_clips, read_clip

BACKEND = "onnxruntime"
# A device whose schedule names no longest interval.
_DEFAULT_INTERVAL = 10


class DrawSettings(Settings):
    """Clips that are drawn for one set and not kept.

    Args:
        sources: URIs of recorded sources, see :func:`edge_sdk.video.open_source`. Give them or ``labelled``.
        labelled: URIs of lists of labelled clips, see :func:`edge_sdk.video.labelled.open_clips`.
        clips: how many in all.
        frames: frames a clip, consecutive, or spread evenly over a labelled clip; None for the keyframe interval of
            the bundle's schedule, or the length of the clips that it classifies.
        seed: of the places that clips begin at.
    """

    sources: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    labelled: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    clips: int = Field(default=32, ge=2)
    frames: int | None = Field(default=None, ge=2)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_kind(self) -> DrawSettings:
        if bool(self.sources) == bool(self.labelled):
            raise ValueError("expected either 'sources' or 'labelled', not both and not neither")
        return self


class CalibrateRecipe(Settings):
    """What is run over which clips.

    Give either ``clips`` or ``draw``.

    Args:
        bundle: the exported pair, or a per-frame network.
        clips: folder of clips that ``calibration/draw_clips.py`` drew, of the bundle's frame size.
        draw: which clips to draw now; frames of other sizes are cut centrally and resized to the bundle's.
        out: the file to write, ``*.npz``.
        max_bytes: refuse a set larger than this, before anything runs.
        threads: CPU threads of one step; None for ONNX Runtime's own choice.
    """

    bundle: Path
    clips: Path | None = None
    draw: DrawSettings | None = None
    out: Path
    max_bytes: int = Field(default=4_000_000_000, gt=0)
    threads: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_origin(self) -> CalibrateRecipe:
        if (self.clips is None) == (self.draw is None):
            raise ValueError("expected either 'clips' or 'draw', not both and not neither")
        if self.out.suffix != ".npz":
            raise ValueError(f"'out': expected a file *.npz, got {self.out}")
        return self


def calibrate(recipe: CalibrateRecipe, *, progress: Progress | None = None) -> CalibrationSet:
    """Record a calibration set.

    Returns:
        The set, opened.

    Raises:
        MissingFileError, FileFormatError, BundleError: bundle or clips are not whole.
        RecipeError: the frames say nothing of how the pair is used, see
            :func:`edge_sdk.compile.calibration_frames.check_frames`, or the set would exceed ``max_bytes``.
        ShapeError: the clips are not of the bundle's frame size.
        OutputError: nothing can be written there, or something else is there.
    """
    require_arrays_place(recipe.out, CALIBRATION_SET)
    require_writable(recipe.out.parent)
    bundle = Bundle.open(recipe.bundle)
    with _clips_of(recipe, bundle, progress) as (folder, clips):
        _check_clips(folder, clips, bundle, progress)
        _check_size(recipe, bundle, [len(clip.frames) for clip in clips.clips])
        with write_arrays(recipe.out, CALIBRATION_SET) as writer:
            images = (read_clip(folder, clip) for clip in clips.clips)
            passes = record(
                bundle, images, writer, clips.frame_count, threads=recipe.threads, progress=progress
            )
            writer.finish(_header(bundle, clips, passes))
    return sealed(recipe.out)


def record(
    bundle: Bundle,
    clips: Iterable[Iterable[np.ndarray]],
    writer: ArrayWriter,
    frame_count: int,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[PassRecord]:
    """Run the float32 pair over clips and write what each step receives; one pass is in memory at a time.

    Args:
        bundle: the pair.
        clips: frames (H, W, 3) uint8 BGR of each clip; the first of a clip is its keyframe.
        writer: takes the arrays; its header is the caller's to write.
        frame_count: frames in all, for the progress; 0 where that is not known.
        threads: CPU threads of one step.
        progress: told of each frame.

    Returns:
        The passes, in the order in which they ran.
    """
    passes: list[PassRecord] = []
    backend = RecordingBackend(backend_named(BACKEND), bundle)
    done = 0
    with EdgeRunner(
        bundle, backend=backend, engine=FLOAT32, schedule=_schedule(bundle), threads=threads
    ) as runner:
        for index, clip in enumerate(clips):
            backend.observer = _ClipRecorder(index, writer, passes)
            runner.reset()
            for image in clip:
                runner(image)
                done += 1
                if progress is not None:
                    progress.update("calibrate", done, frame_count)
    return passes


class _ClipRecorder:
    """Writes the passes of one clip; what two of them receive alike is stored once."""

    def __init__(self, clip: int, writer: ArrayWriter, passes: list[PassRecord]) -> None:
        self._clip, self._writer, self._passes = clip, writer, passes
        self._frame = self._distance = -1
        self._stored: dict[int, str] = {}

    def before(self, step: StepName, inputs: Mapping[str, Content]) -> None:
        self._frame += 1
        self._distance = 0 if step == "keyframe" else self._distance + 1
        members = {}
        for name, received in inputs.items():
            if received.token not in self._stored:
                member = f"clip_{self._clip:03d}/{self._frame:03d}/{name}.npy"
                self._writer.write(member, received.array)
                self._stored[received.token] = member
            members[name] = self._stored[received.token]
        self._passes.append(PassRecord(step=step, clip=self._clip, distance=self._distance, inputs=members))

    def after(self, step: StepName, outputs: Mapping[str, Content]) -> None:
        """What a step gives is the next one's to receive."""


def _schedule(bundle: Bundle) -> ScheduleSettings:
    """A keyframe at the first frame of each clip, where the runner is reset, and no other; or the frames that are seen
    of a clip by the bundle's own schedule."""
    if isinstance(bundle.manifest.schedule, SampleSchedule):
        return bundle.manifest.schedule
    if bundle.manifest.steps.delta is None:
        return AlwaysSchedule()
    return ExternalSchedule()


def _seen(schedule: ScheduleSettings, frames: int) -> tuple[int, int]:
    """How many keyframe and delta steps a clip of so many frames takes."""
    running, blank = schedule.start(), np.zeros((1, 1, 3), np.uint8)
    kinds = [running.decide(blank, index or None) for index in range(frames)]
    return kinds.count(StepKind.KEYFRAME), kinds.count(StepKind.DELTA)


@contextmanager
def _clips_of(
    recipe: CalibrateRecipe, bundle: Bundle, progress: Progress | None
) -> Iterator[tuple[Path, CalibrationClips]]:
    """The folder of clips and what is in it; clips that are drawn now are gone when the block ends."""
    if recipe.clips is not None:
        yield recipe.clips, CalibrationClips.load(recipe.clips)
        return
    if recipe.draw is None:
        raise RecipeError("expected either 'clips' or 'draw', got neither.")
    drawn = recipe.draw
    recipe.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=recipe.out.parent, prefix=".clips-") as name:
        wanted = {
            **drawn.model_dump(),
            "out": Path(name) / "clips",
            "frames": drawn.frames or interval_of(bundle),
            "size_hw": bundle.size_hw,
        }
        settings = parse_settings(wanted, CalibrationClipsRecipe, "'draw'")
        yield settings.out, draw_clips(settings, progress=progress)


def interval_of(bundle: Bundle) -> int:
    """Frames from keyframe to keyframe at most in a bundle's own schedule; 10 where it names none; at least 2.

    Of a schedule that sees a few frames of each clip, the frames of a clip, seen or not.
    """
    schedule = bundle.manifest.schedule
    if isinstance(schedule, SampleSchedule):
        return max(schedule.length, 2)
    found = (
        getattr(schedule, "interval", None) or getattr(schedule, "max_interval", None) or _DEFAULT_INTERVAL
    )
    return max(int(found), 2)


def _period(bundle: Bundle) -> int:
    """Steps from keyframe to keyframe at most in a bundle's own schedule."""
    schedule = bundle.manifest.schedule
    return schedule.samples if isinstance(schedule, SampleSchedule) else interval_of(bundle)


def _check_clips(folder: Path, clips: CalibrationClips, bundle: Bundle, progress: Progress | None) -> None:
    """Size and content of the frames; each is decoded once more than recording needs, which costs little."""
    where = f"calibration clips {folder}"
    if clips.size_hw != bundle.size_hw and clips.frame_count:
        (height, width), (ours, across) = clips.size_hw, bundle.size_hw
        raise ShapeError(
            f"{where}: their frames are {height} x {width} (height x width), bundle {bundle.path} takes "
            f"{ours} x {across}.",
            hint=f"Draw them again with 'size_hw: [{ours}, {across}]'.",
        )
    done = 0

    def facts(images: Iterable[np.ndarray]) -> Iterator[FrameFacts]:
        nonlocal done
        for image in images:
            yield FrameFacts.of(image)
            done += 1
            if progress is not None:
                progress.update("check clips", done, clips.frame_count)

    delta = bundle.manifest.steps.delta is not None
    check_frames((facts(read_clip(folder, clip)) for clip in clips.clips), where, delta=delta)


def _check_size(recipe: CalibrateRecipe, bundle: Bundle, lengths: list[int]) -> None:
    """What the set will take is known beforehand: refuse it now, not after an hour."""
    largest = clip_bytes(bundle, max(lengths))
    total = sum(clip_bytes(bundle, length) for length in lengths)
    if total > recipe.max_bytes:
        fitting = recipe.max_bytes // largest
        advice = f"Draw at most {fitting} clips of {max(lengths)} frames" if fitting else "Draw shorter clips"
        raise RecipeError(
            f"calibration set {recipe.out}: {len(lengths)} clips of up to {max(lengths)} frames take {_gb(total)}, "
            f"'max_bytes' is {_gb(recipe.max_bytes)}.",
            hint=f"{advice}, or raise 'max_bytes'.",
        )
    place = next(path for path in recipe.out.absolute().parents if path.exists())
    free = shutil.disk_usage(place).free
    if total > free:
        raise OutputError(
            f"calibration set {recipe.out}: it takes {_gb(total)}, {_gb(free)} are free there.",
            hint="Make room, or name another place with --out.",
        )


def clip_bytes(bundle: Bundle, frames: int) -> int:
    """Bytes that a clip of so many frames takes in a set, a little more rather than less."""
    manifest = bundle.manifest
    if manifest.steps.delta is None:
        return frames * (manifest.frame.size_bytes + OVERHEAD_BYTES)
    outputs = {spec.name for spec in manifest.steps.delta.outputs}
    keyframes, deltas = _seen(_schedule(bundle), frames)
    state = sum(
        (spec.size_bytes + OVERHEAD_BYTES)
        * (deltas if state_output(spec.name) in outputs else min(deltas, keyframes))
        for spec in manifest.state
    )
    return (keyframes + deltas) * (manifest.frame.size_bytes + OVERHEAD_BYTES) + state


def _header(bundle: Bundle, clips: CalibrationClips, passes: list[PassRecord]) -> CalibrationHeader:
    ort = require("onnxruntime", "calibrating")
    return CalibrationHeader(
        bundle=bundle.manifest.name,
        graphs=graph_hashes(bundle),
        inputs={step: spec.inputs for step, spec in bundle.manifest.steps.items()},
        clips_sha256=clips.sha256,
        clips=clips.clips,
        interval=_period(bundle),
        counts=counts_of(passes),
        passes=tuple(passes),
        runtime=f"{BACKEND} {ort.__version__}",
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        sdk_version=edge_sdk.__version__,
        commit=commit_of_sources(),
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
