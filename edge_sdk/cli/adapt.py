"""``edge-sdk adapt``."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_sdk.cli.options import SOURCES, JsonFlag, Limit, RecipeOption, Threads
from edge_sdk.errors import RecipeError
from edge_sdk.files import require_writable
from edge_sdk.optional import require

if TYPE_CHECKING:
    from edge_sdk.adapt.adaptation import AdaptStatus
    from edge_sdk.adapt.recipe import AdaptRecipe
    from edge_sdk.adapt.replay import Answers, LessonLog
    from edge_sdk.bundle import Bundle
    from edge_sdk.cli.progress import RichProgress
    from edge_sdk.cli.run_summary import RunSummary
    from edge_sdk.runtime.runner import EdgeRunner
    from edge_sdk.video import VideoSource

# The last lesson of a stream that has ended is waited for this long; what it taught answers no frame, but is logged.
_LAST_LESSON_S = 60.0

_Threshold = Annotated[
    float | None, typer.Option("--threshold", help="Agreement from which the student is good enough, 0-1.")
]
_Pace = Annotated[
    str | None,
    typer.Option(
        "--pace",
        help="beside: frames go on while it learns; in_turn: they wait. Cameras: beside, recordings: in_turn.",
    ),
]
_Masks = Annotated[
    Path | None, typer.Option("--teacher", help="Folder of recorded masks, in place of the bundle's teacher.")
]
_State = Annotated[
    Path | None, typer.Option("--state", help="Folder for weights, stride and log, to go on from later.")
]
_Keep = Annotated[Path | None, typer.Option("--keep", help="Write what was learned as a new bundle.")]
_Key = Annotated[Path | None, typer.Option("--key", help="Private key to sign that bundle with.")]
_Save = Annotated[
    str | None, typer.Option("--save", help="Annotated video (.mp4, .avi), or a folder ending in '/'.")
]
_Report = Annotated[
    Path | None,
    typer.Option("--report", help="Folder for a report against the teacher on every frame; recordings only."),
]


def adapt(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="Exported with an 'online' recipe.")
    ] = None,
    source: Annotated[str | None, typer.Argument(metavar="SOURCE", help=SOURCES)] = None,
    recipe: RecipeOption = None,
    threshold: _Threshold = None,
    pace: _Pace = None,
    teacher: _Masks = None,
    state: _State = None,
    keep: _Keep = None,
    key: _Key = None,
    save: _Save = None,
    report: _Report = None,
    limit: Limit = None,
    threads: Threads = None,
    backend: Annotated[
        str | None, typer.Option("--backend", help="Runtime that computes; onnxruntime unless given.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a bundle whose student learns on the stream that it watches, from the teacher's frames, in a process beside.

    The more the student agrees with the teacher, the rarer teacher frames become. Ctrl-C or SIGTERM ends the run as its
    normal end: state, video and bundle are kept.
    """
    from edge_sdk.cli.output import emit_json, show
    from edge_sdk.cli.progress import RichProgress
    from edge_sdk.update import open_to_run

    given = {
        "bundle": bundle, "source": source, "keep": keep, "key": key, "save": save, "report": report, "limit": limit,
        "threads": threads, "backend": backend,
    }  # fmt: skip
    learning = {"threshold": threshold, "pace": pace, "teacher": teacher, "state": state}
    settings = read_settings(recipe, given, learning)
    check_outputs(settings)
    opened = open_to_run(settings.bundle, None)
    with RichProgress() as progress:
        figures, renderables = _run(opened, settings, progress)
    if as_json:
        emit_json(figures)
    else:
        show(*renderables)


def read_settings(recipe: Path | None, given: dict[str, Any], learning: dict[str, Any]) -> AdaptRecipe:
    """The recipe, or its defaults, with the options that were given in place of its values.

    Args:
        recipe: YAML file; None where options are all there is.
        given: options of the run, by key; None where one was not given.
        learning: options that are keys of ``adapt``.

    Raises:
        RecipeError: a key or value is wrong, or bundle or source is named nowhere.
    """
    from edge_sdk.adapt.recipe import AdaptRecipe
    from edge_sdk.cli.stage import read_options
    from edge_sdk.settings import parse_settings

    settings = read_options(AdaptRecipe, "adapt", recipe, given, ("bundle", "source"))
    found = {key: value for key, value in learning.items() if value is not None}
    if found:
        # Keys that nobody named stay unnamed: a pace that was not asked for follows the source.
        data = settings.model_dump(exclude_unset=True)
        data["adapt"] = data.get("adapt", {}) | found
        settings = parse_settings(data, AdaptRecipe, "edge-sdk adapt")
    return settings.paced()


def check_outputs(settings: AdaptRecipe) -> None:
    """Refuse, before anything runs, outputs that cannot be written or would take the place of something.

    Raises:
        RecipeError, OutputError: naming the option.
        DependencyError: what the report needs is not installed.
    """
    from edge_sdk.bundle import require_place
    from edge_sdk.video.uri import parse_source_uri

    named = {
        "--keep": settings.keep, "--save": settings.save, "--report": settings.report, "--state": settings.adapt.state,
    }  # fmt: skip
    places = {name: Path(path).resolve() for name, path in named.items() if path is not None}
    source = parse_source_uri(settings.source)
    inputs = {"bundle": settings.bundle.resolve()}
    if source.scheme == "path":
        inputs["source"] = Path(source.target).resolve()
    for name, place in places.items():
        for what, taken in inputs.items():
            if place == taken or (what == "bundle" and taken in place.parents):
                raise RecipeError(
                    f"{name}: expected a place of its own, got {place}, which is the {what}'s.",
                    hint="Name another file or folder.",
                )
    if len(set(places.values())) < len(places):
        raise RecipeError(f"{' and '.join(places)}: expected places of their own, two are the same.")
    if settings.keep is not None:
        require_place(settings.keep)
    if settings.report is not None:
        require_writable(settings.report)
        for package in ("jinja2", "matplotlib", "cv2"):  # known now, not after the whole run
            require(package, "the report of edge-sdk adapt (--report)")


def _run(bundle: Bundle, settings: AdaptRecipe, progress: RichProgress) -> tuple[dict[str, Any], list[Any]]:
    """The run and what follows it; its figures, and what people are shown."""
    from edge_sdk.adapt.replay import Answers, LessonLog
    from edge_sdk.cli.output import plain
    from edge_sdk.cli.run import check_size
    from edge_sdk.cli.run_summary import RunSummary
    from edge_sdk.runtime.runner import EdgeRunner
    from edge_sdk.video import exit_on_signals, open_source

    log, answers = LessonLog(), Answers() if settings.report is not None else None
    made: dict[str, Path] = {}
    with exit_on_signals():
        with open_source(settings.source, limit=settings.limit) as source:
            check_size(bundle, source)
            summary = RunSummary(
                bundle=settings.bundle, source=source.uri, output=settings.save, results=None
            )
            with EdgeRunner(
                bundle, backend=settings.backend, engine=settings.engine, threads=settings.threads,
                adapt=settings.adapt, on_adapt=log,
            ) as runner:  # fmt: skip
                summary.device = runner.device_report
                learner = runner.adaptation
                learner.source_name = source.uri
                stopped = process(runner, source, summary, progress, answers)
                if not stopped:
                    learner.wait_idle(_LAST_LESSON_S)
                if settings.keep is not None and summary.frames:
                    made["bundle"] = learner.keep(settings.keep, settings.key).path
                status = learner.status()
        if answers is not None and settings.report is not None and summary.frames:
            made["report"] = _report(bundle, settings, answers, log, progress, settings.report)
    figures = summary.figures() | {
        "adaptation": plain(status),
        "stopped": stopped,
        "kept": plain(made.get("bundle")),
    }
    figures["report"] = plain(made.get("report"))
    lines = [f"{what}: {path}" for what, path in made.items()]
    return figures, [*summary.renderables(), *learned(status, log), *lines]


def process(
    runner: EdgeRunner,
    source: VideoSource,
    summary: RunSummary,
    progress: RichProgress,
    answers: Answers | None = None,
) -> bool:
    """Answer every frame of ``source``.

    Args:
        runner: open, and learning.
        source: of the frames.
        summary: counts them.
        progress: shows how far the run and learning are.
        answers: keeps every answer; None keeps none.

    Returns:
        Whether Ctrl-C or a signal ended it; what was written is kept.
    """
    from edge_sdk.video import open_sink
    from edge_sdk.video.signals import Stopped

    learner, total = runner.adaptation, source.frame_count or 0
    with ExitStack() as outputs:
        sink = None
        if summary.output is not None:
            sink = outputs.enter_context(open_sink(summary.output, fps=source.fps, size_hw=source.size_hw))
        try:
            summary.start(source)
            for frame, result in runner.stream(source):
                drawn_s = written_s = 0.0
                if answers is not None:
                    answers.add(result)
                if sink is not None:
                    begin = time.perf_counter()
                    image = result.plot(frame.image)
                    middle = time.perf_counter()
                    sink.write(image)
                    drawn_s, written_s = middle - begin, time.perf_counter() - middle
                summary.add(result, draw_ms=drawn_s * 1e3, write_ms=written_s * 1e3)
                progress.update("adapt", summary.frames, total, **_live(summary, learner.status()))
        except (KeyboardInterrupt, Stopped):
            return True
        finally:
            summary.stop()
    return False


def _live(summary: RunSummary, status: AdaptStatus) -> dict[str, float]:
    """Figures beside the bar."""
    figures = {
        "ms": summary.recent_ms, "teacher %": 100 * summary.keyframes / summary.frames, "stride": status.stride,
        "version": status.version, "updates": status.updates,
    }  # fmt: skip
    return figures if status.agreement is None else figures | {"agreement": status.agreement}


def _report(
    bundle: Bundle,
    settings: AdaptRecipe,
    answers: Answers,
    log: LessonLog,
    progress: RichProgress,
    folder: Path,
) -> Path:
    from edge_sdk.adapt.reporting import make_report

    run = answers.record(settings.adapt, log.records())
    return make_report(bundle, settings, run, answers.masks, progress).write(folder)


def learned(status: AdaptStatus, log: LessonLog) -> list[Any]:
    """What was learned, as a table, with what went wrong below it."""
    from edge_sdk.cli.output import figures_table

    lessons, share = log.records(), status.teacher_frames / max(status.frames, 1)
    figures: dict[str, Any] = {
        "teacher_frames": f"{status.teacher_frames} of {status.frames} ({share:.1%})",
        "lessons": status.lessons,
        "updates": status.updates,
        "ms_an_update": sum(lesson.took_ms for lesson in lessons)
        / max(sum(lesson.updates for lesson in lessons), 1),
        "agreement_before": "-" if status.agreement_before is None else status.agreement_before,
        "agreement_after": "-" if status.agreement is None else status.agreement,
        "stride": status.stride,
        "version": status.version,
        "refused": status.refused,
        "restarts_of_the_trainer": status.restarts,
        "alarms": status.alarms,
    }
    wrong = [f"! {status.last_error}"] if status.last_error else []
    if status.trainer == "stopped":
        wrong.append("! learning has stopped: the trainer ended too often")
    return [figures_table("What was learned", figures), *wrong]
