"""A camera application: from a camera's frames to answers, for as long as the device is on.

The shortest one, which the README explains::

    import sys
    from contextlib import suppress

    from edge_sdk import EdgeRunner, open_sink, open_source
    from edge_sdk.video import Stopped, exit_on_signals

    bundle, source, out = sys.argv[1:]
    with exit_on_signals(), EdgeRunner(bundle) as runner, open_source(source) as camera:
        with open_sink(out, fps=camera.fps, size_hw=camera.size_hw) as video, suppress(Stopped, KeyboardInterrupt):
            for frame, result in runner.stream(camera):
                video.write(result.plot(frame.image))
                print(frame.seq, result.kind.value, f"{result.times.total_ms:.1f} ms")

The rest of this file is the full one, to be copied and changed: :func:`use` is where your code goes. It goes on when a
step fails or your code raises, tells systemd that it makes progress, has a new bundle confirmed or taken back, shows a
live page, and releases the camera however it ends. ``edge-sdk-camera.service`` runs it as a service::

    python jetson/camera_app.py my_pair "csi://0?width=640&height=480&fps=30" --backend tensorrt --background 1

Exit codes: 0 a signal or the end of a file, 2 wrong input, 69 the camera cannot be opened or is lost, 70 a defect,
75 go on in a new process: the GPU needs one, or the bundle before an update came back.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_sdk import (
    BackgroundKeyframes,
    EdgeRunner,
    EverySchedule,
    Frame,
    Result,
    RunRecipe,
    open_sink,
    open_source,
)
from edge_sdk.cli.options import (
    BundlePath,
    EngineName,
    Limit,
    RecipeOption,
    Serve,
    ServeToken,
    Source,
    Threads,
    TrustedKeys,
)
from edge_sdk.cli.report import run_verb
from edge_sdk.cli.run import check_size
from edge_sdk.cli.serve import serve_settings, served
from edge_sdk.cli.stage import read_options
from edge_sdk.errors import DeviceLostError, EngineError, UpdateError, VideoError
from edge_sdk.serve import LiveServer, ServeSettings
from edge_sdk.signing import Trust
from edge_sdk.systemd import Notifier
from edge_sdk.update import Health
from edge_sdk.video import LiveSource, Stopped, VideoSink, VideoSource, exit_on_signals

CAMERA_LOST, NEW_PROCESS = 69, 75  # EX_UNAVAILABLE and EX_TEMPFAIL of sysexits.h
TICK_S = 1.0
REPORT_S = 10.0
# So many steps that fail one after the other are no accident.
MOST_FAILURES = 10

Answer = tuple[Frame, Result]

_log = logging.getLogger("camera_app")


def use(frame: Frame, result: Result) -> None:
    """Your code: what is done with each answer. ``result`` is valid during this call; ``result.copy()`` keeps it."""


class CameraApp:
    """The loop between a source and a runner, both open, and what becomes of the answers.

    Args:
        runner: answers the frames.
        source: where frames come from.
        notifier: told that there is progress.
        sink: gets the annotated frames; None draws nothing.
        page: shows the answers; None shows nothing.
        woken: read and draw while the next frame is computed; the runner then has a thread of its own, and sets this
            from its ``on_result``.
        limit: stop after this many answers.
    """

    def __init__(
        self,
        runner: EdgeRunner,
        source: VideoSource,
        notifier: Notifier,
        *,
        sink: VideoSink | None = None,
        page: LiveServer | None = None,
        woken: threading.Event | None = None,
        limit: int | None = None,
    ) -> None:
        self._runner, self._source, self._notifier = runner, source, notifier
        self._sink, self._page, self._woken, self._limit = sink, page, woken, limit
        self._health = Health(runner.bundle)
        self.frames = self.failures = self.use_errors = 0
        self._state_age = self._failed_in_a_row = 0
        self._reported = (time.monotonic(), 0)

    def run(self) -> None:
        """Until the source or the limit ends it.

        Raises:
            VideoError: the camera is lost; its exit code says so.
            DeviceLostError: the GPU needs a new process.
            UpdateError: the bundle failed its trial, and the one before it is to be run in a new process.
            EngineError: too many steps have failed one after the other.
        """
        self._notifier.ready()
        for answer in self._serial() if self._woken is None else self._parallel(self._woken):
            # A tick without an answer is progress too, where none is due: the source's watchdog sees to the camera.
            self._notifier.alive()
            if answer is not None:
                self._handle(*answer)
            self._report()
            if self._limit is not None and self.frames >= self._limit:
                return

    def _serial(self) -> Iterator[Answer | None]:
        for frame in frames_of(self._source):
            answer = None
            if frame is not None:
                with self._survived():
                    answer = (frame, self._runner(frame))
            yield answer

    def _parallel(self, woken: threading.Event) -> Iterator[Answer | None]:
        """A live source is asked for its newest frame while the last one is computed; a file's frames all count."""
        source = self._source
        if not isinstance(source, LiveSource):
            yield from self._serial()
            return
        waiting: dict[int, Frame] = {}
        answered = -1
        with ExitStack() as stack:
            stack.callback(source.listen(woken.set))
            while True:
                woken.clear()
                with camera_errors():
                    frame = source.take(0)
                if frame is not None:
                    waiting[frame.seq] = frame
                    self._runner.submit(frame)
                result = None
                with self._survived():
                    result = self._runner.latest(after=answered, timeout_s=0)
                if result is not None:
                    answered = result.seq
                    yield waiting[answered], result
                    waiting = {seq: kept for seq, kept in waiting.items() if seq > answered}
                elif self._idle():
                    yield None  # where a frame waits for its answer, only the answer is progress
                woken.wait(TICK_S)

    def _idle(self) -> bool:
        counts = self._runner.counts
        return counts.submitted == counts.answered + counts.replaced + counts.failed

    @contextmanager
    def _survived(self) -> Iterator[None]:
        """A step that fails costs its frame; the next one is a keyframe."""
        try:
            yield
        except DeviceLostError:
            raise
        except EngineError as error:
            self.failures += 1
            self._failed_in_a_row += 1
            _log.error("a step failed (%d in a row): %s", self._failed_in_a_row, error)
            if self._page is not None:
                self._page.count_error("step")
            if self._health.error(error):
                back = UpdateError("the new bundle failed its trial; the one before it is back.")
                back.exit_code = NEW_PROCESS
                raise back from error
            if self._failed_in_a_row >= MOST_FAILURES:
                raise

    def _handle(self, frame: Frame, result: Result) -> None:
        self._failed_in_a_row = 0
        self._state_age = result.state_age
        self.frames += 1
        if self._page is not None:
            self._page.show(frame, result)
        if self._sink is not None:
            self._sink.write(result.plot(frame.image))
        try:
            use(frame, result)
        except Exception:  # noqa: BLE001  (your code's own; it must not end the stream)
            self.use_errors += 1
            level = logging.ERROR if self.use_errors == 1 else logging.DEBUG
            _log.log(level, "use() failed for frame %d", frame.seq, exc_info=True)
        self._health.ok()

    def _report(self) -> None:
        """One line in the log and in ``systemctl status`` now and then."""
        now_s, (then_s, then_frames) = time.monotonic(), self._reported
        if now_s - then_s < REPORT_S:
            return
        self._reported = (now_s, self.frames)
        rate = (self.frames - then_frames) / (now_s - then_s)
        line = f"{self.frames} frames, {rate:.1f}/s, state {self._state_age} frames old, {self.failures} failed steps"
        if isinstance(self._source, LiveSource):
            stats = self._source.stats
            line += (
                f"; camera {self._source.state.value}, {stats.dropped} dropped, {stats.reconnects} reconnects"
            )
        self._notifier.status(line)
        _log.info("%s", line)


def frames_of(source: VideoSource) -> Iterator[Frame | None]:
    """The frames of ``source``; of a live one the newest, and None each second in which none came."""
    if not isinstance(source, LiveSource):
        yield from source
        return
    while True:
        with camera_errors():
            frame = source.take(TICK_S)
        yield frame


@contextmanager
def camera_errors() -> Iterator[None]:
    """Give errors of the camera their own exit code: unlike other wrong input, they may be over at the next start."""
    try:
        yield
    except VideoError as error:
        error.exit_code = CAMERA_LOST
        raise


def camera_app(
    bundle: BundlePath,
    source: Source,
    out: Annotated[
        str | None,
        typer.Option("--out", help="Annotated video (.mp4, .avi), or a folder for PNGs, ending in '/'."),
    ] = None,
    interval: Annotated[
        int | None, typer.Option("--interval", min=1, help="A keyframe every K frames.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option("--backend", help="Runtime: onnxruntime or tensorrt.")
    ] = None,
    engine: EngineName = None,
    threads: Threads = None,
    recipe: RecipeOption = None,
    threaded: Annotated[
        bool, typer.Option("--threaded", help="Read and draw while the next frame is computed.")
    ] = False,
    background: Annotated[
        int | None,
        typer.Option("--background", min=1, help="Keyframes beside the frames, on so many CPU threads."),
    ] = None,
    trust: TrustedKeys = None,
    serve: Serve = None,
    serve_token: ServeToken = None,
    limit: Limit = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
) -> None:
    """Answer a camera's frames until a signal comes. BUNDLE may be the folder that 'edge-sdk install' installs to."""
    # journald stamps lines itself.
    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(level=level, format=f"{stamp}%(levelname)s %(name)s: %(message)s", force=True)
    woken = threading.Event() if threaded else None
    given = {
        "bundle": bundle,
        "backend": backend,
        "engine": engine,
        "schedule": None if interval is None else EverySchedule(interval=interval),
        "threads": threads,
        "background": None if background is None else BackgroundKeyframes(threads=background),
        "trust": Trust(keys=tuple(trust)) if trust else None,
    }
    settings = read_options(RunRecipe, "camera_app", recipe, given, ("bundle",))
    options = settings.options() | {
        "threaded": threaded or None,
        "on_result": None if woken is None else lambda _: woken.set(),
    }
    page = serve_settings(serve, serve_token)
    notifier = Notifier()
    with exit_on_signals(), suppress(Stopped, KeyboardInterrupt):
        open_and_run(bundle, options, source, notifier, out=out, serving=page, woken=woken, limit=limit)
    notifier.stopping()
    _log.info("stopped")


def open_and_run(
    bundle: Path,
    options: dict[str, Any],
    uri: str,
    notifier: Notifier,
    *,
    out: str | None = None,
    serving: ServeSettings | None = None,
    woken: threading.Event | None = None,
    limit: int | None = None,
) -> None:
    """Open everything, run, and close everything, whatever happens; ``options`` are those of the runner."""
    with ExitStack() as opened:
        # The camera first: a start without one must not count against a bundle that is on trial.
        with camera_errors():
            source = opened.enter_context(open_source(uri))
        runner = EdgeRunner(bundle, **options)
        check_size(runner.bundle, source)
        opened.enter_context(runner)
        page = opened.enter_context(served(serving, runner, source))
        sink = None
        if out is not None:
            sink = opened.enter_context(open_sink(out, fps=source.fps, size_hw=source.size_hw))
        app = CameraApp(runner, source, notifier, sink=sink, page=page, woken=woken, limit=limit)
        _log.info("running %s on %s", runner.bundle.path, source.uri)
        try:
            app.run()
        except (Stopped, KeyboardInterrupt):
            # This is how a camera's run ends: what was written is kept. Without a frame there is nothing to keep.
            if app.frames == 0:
                raise
        finally:
            _log.info("%d frames, %d failed steps", app.frames, app.failures)


if __name__ == "__main__":
    run_verb(camera_app)
