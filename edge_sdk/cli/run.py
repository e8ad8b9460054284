"""``edge-sdk run``."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_sdk.cli.options import (
    SOURCES,
    EngineName,
    JsonFlag,
    Limit,
    RecipeOption,
    Serve,
    ServeToken,
    Threads,
    TrustedKeys,
)
from edge_sdk.errors import RecipeError, ShapeError, VideoError

if TYPE_CHECKING:
    from edge_sdk.bundle import Bundle
    from edge_sdk.cli.progress import RichProgress
    from edge_sdk.cli.run_summary import RunSummary
    from edge_sdk.runtime.recipe import RunRecipe
    from edge_sdk.runtime.runner import EdgeRunner
    from edge_sdk.serve import LiveServer
    from edge_sdk.video import VideoSink, VideoSource


# What is read, by what it is called in messages.
Inputs = dict[str, Path]

_Out = Annotated[
    str | None,
    typer.Option("--out", help="Annotated video (.mp4, .avi), or a folder for PNGs, ending in '/'."),
]
_Interval = Annotated[int | None, typer.Option("--interval", min=1, help="A keyframe every K frames.")]
_ScheduleFile = Annotated[
    Path | None,
    typer.Option("--schedule", help="YAML file with a 'schedule', for other rules than --interval."),
]
_Results = Annotated[Path | None, typer.Option("--results", help="Write one JSON line a frame to this file.")]


def run(
    bundle: Annotated[
        str | None,
        typer.Argument(metavar="BUNDLE", help="Folder written by 'edge-sdk export'; --recipe names it too."),
    ] = None,
    source: Annotated[str | None, typer.Argument(metavar="SOURCE", help=SOURCES)] = None,
    recipe: RecipeOption = None,
    out: _Out = None,
    interval: _Interval = None,
    schedule: _ScheduleFile = None,
    limit: Limit = None,
    threads: Threads = None,
    backend: Annotated[
        str | None, typer.Option("--backend", help="Runtime that computes; onnxruntime unless given.")
    ] = None,
    engine: EngineName = None,
    results: _Results = None,
    serve: Serve = None,
    serve_token: ServeToken = None,
    trust: TrustedKeys = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a bundle over a video, draw its answers and say how long each step took.

    Sources are files (video.mp4, file:///data/video.mp4), folders of frames, scenes (synthetic:shapes), and live ones:
    camera:0, v4l2:///dev/video0, csi://0 on a Jetson, rtsp://user:password@host/path. Options follow a '?', such as
    'csi://0?width=1280&height=720&fps=30&flip=rotate-180', of rtsp a '#', such as 'rtsp://host/path#latency_ms=100'.
    Of files every frame is answered, of live sources the newest; one that stalls is opened again.

    A run recipe, such as 'edge-sdk tune' writes, holds the settings of a run; options replace its values. It names the
    bundle, so that a single argument beside it is the SOURCE.

    Ctrl-C or SIGTERM ends a run on a live source as its normal end: what was written is kept.
    """
    from edge_sdk.cli.progress import RichProgress
    from edge_sdk.cli.run_summary import RunSummary
    from edge_sdk.cli.schedules import schedule_from
    from edge_sdk.cli.serve import serve_settings, served
    from edge_sdk.runtime.runner import EdgeRunner
    from edge_sdk.runtime.schedule import SampleSchedule
    from edge_sdk.update import open_to_run
    from edge_sdk.video import exit_on_signals, open_source

    serving = serve_settings(serve, serve_token)
    if recipe is not None and source is None:
        bundle, source = None, bundle
    given = {
        "bundle": bundle, "source": source, "backend": backend, "engine": engine, "threads": threads,
        "schedule": schedule_from(interval, schedule), "trust": {"keys": trust} if trust else None,
    }  # fmt: skip
    settings, uri = read_run(recipe, given)
    opened = open_to_run(settings.bundle, settings.trust)  # once: the runner has no need to check it again
    _check_output(out, results, _inputs(settings.bundle, uri, schedule, recipe))
    with exit_on_signals(), open_source(uri, limit=limit) as frames:
        check_size(opened, frames)
        summary = RunSummary(bundle=settings.bundle, source=frames.uri, output=out, results=results)
        with (
            EdgeRunner(opened, **settings.options() | {"trust": None}) as runner,
            served(serving, runner, frames) as page,
            RichProgress() as progress,
        ):
            summary.device = runner.device_report
            if isinstance(runner.schedule, SampleSchedule):
                summary.coverage = runner.schedule.coverage(frames.fps)
            process(runner, frames, summary, progress, page)
    _report(summary, as_json)


def _report(summary: RunSummary, as_json: bool) -> None:
    from edge_sdk.cli.output import emit_json, show

    if as_json:
        emit_json(summary.figures())
    else:
        show(*summary.renderables())


def read_run(recipe: Path | None, given: dict[str, Any]) -> tuple[RunRecipe, str]:
    """The settings of a run and the URI of its frames: those of the recipe, with what was given in their place.

    Raises:
        MissingFileError, FileFormatError: the recipe cannot be read.
        RecipeError: a key or value is wrong, or bundle or source is named nowhere.
    """
    from edge_sdk.cli.stage import read_options
    from edge_sdk.runtime.recipe import RunRecipe

    settings = read_options(RunRecipe, "run", recipe, given, ("bundle", "source"))
    return settings, str(settings.source)


def check_size(bundle: Bundle, source: VideoSource) -> None:
    """Refuse a source whose frames have another size than the bundle was exported for.

    Raises:
        ShapeError: naming both sizes and what to do.
    """
    takes, gives = bundle.size_hw, tuple(source.size_hw)
    if takes != gives:
        raise ShapeError(
            f"source {source.uri}: its frames are {gives[0]} x {gives[1]} (height x width), "
            f"bundle {bundle.path} takes {takes[0]} x {takes[1]}.",
            hint=f"Export the bundle again with frame size {gives[0]} x {gives[1]}, or give a source of that size.",
        )


def process(
    runner: EdgeRunner,
    source: VideoSource,
    summary: RunSummary,
    progress: RichProgress,
    page: LiveServer | None = None,
) -> None:
    """Run over every frame of ``source``; outputs appear only when they are whole.

    Raises:
        EdgeSdkError: the source breaks off, or an output cannot be written; no output file is left then. Where a live
            source is lost, what was written until then is kept.
    """
    from edge_sdk.cli.run_summary import ResultLines
    from edge_sdk.video import SourceState, open_sink
    from edge_sdk.video.signals import Stopped

    lost: VideoError | None = None

    with ExitStack() as outputs:
        sink: VideoSink | None = None
        if summary.output is not None:
            sink = outputs.enter_context(open_sink(summary.output, fps=source.fps, size_hw=source.size_hw))
        lines = outputs.enter_context(ResultLines(summary.results)) if summary.results is not None else None
        try:
            _loop(runner, source, summary, progress, sink, lines, page)
        except (KeyboardInterrupt, Stopped):
            # A camera has no last frame, so stopping is how such a run ends; a file stopped half way is not whole.
            if not source.live and source.frame_count is not None:
                raise
        except VideoError as error:
            if getattr(source, "state", None) is not SourceState.lost or not summary.frames:
                raise
            lost = error
    if lost is not None:
        raise lost


def _loop(
    runner: EdgeRunner,
    source: VideoSource,
    summary: RunSummary,
    progress: RichProgress,
    sink: VideoSink | None,
    lines: Any,
    page: LiveServer | None,
) -> None:
    from edge_sdk.update import Health

    total = source.frame_count or 0
    health = Health(runner.bundle)
    summary.start(source)
    for frame, result in health.watch(runner.stream(source)):
        drawn_s = written_s = 0.0
        if page is not None:
            page.show(frame, result)
        if sink is not None:
            begin = time.perf_counter()
            image = result.plot(frame.image)
            middle = time.perf_counter()
            sink.write(image)
            drawn_s, written_s = middle - begin, time.perf_counter() - middle
        if lines is not None:
            lines.write(result)
        summary.add(result, draw_ms=drawn_s * 1e3, write_ms=written_s * 1e3)
        progress.update("run", summary.frames, total, ms=summary.recent_ms, keyframes=summary.keyframes)
    summary.stop()


def _check_output(out: str | None, results: Path | None, inputs: Inputs) -> None:
    """Refuse outputs that would replace an input or each other, before any work is done."""
    named = [
        (name, path)
        for name, path in (("--out", _place(out)), ("--results", _place(results)))
        if path is not None
    ]
    for name, path in named:
        for what, given in inputs.items():
            if path == given or (what == "bundle" and given in path.parents):
                raise RecipeError(
                    f"{name}: expected a place of its own, got {path}, which is the {what}'s.",
                    hint="Name another file or folder.",
                )
    if len({path for _, path in named}) < len(named):
        raise RecipeError("--out and --results: expected two files, got the same.", hint="Name another file.")


def _inputs(bundle: Path, source: str, schedule: Path | None, recipe: Path | None) -> Inputs:
    """Resolved places of what is read; a camera or a synthetic scene has none."""
    from edge_sdk.video.uri import recorded_paths

    places = {"bundle": bundle, "schedule": schedule, "recipe": recipe}
    for number, path in enumerate(recorded_paths(source), 1):
        places["source" if number == 1 else f"source {number}"] = path
    return {name: place.resolve() for name, place in places.items() if place is not None}


def _place(output: str | Path | None) -> Path | None:
    """The resolved place of an output, given as path or ``file:`` URI."""
    from edge_sdk.video.uri import path_of_file_uri

    if output is None:
        return None
    text = str(output)
    return Path(path_of_file_uri(text) if text.lower().startswith("file:") else text).resolve()
