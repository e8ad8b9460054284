"""Progress of a long stage on stderr: a live bar on a terminal, plain lines now and then anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

from edge_sdk.cli.output import is_first_rank

# Between two plain lines of one stage; a log that is read by people needs no more.
PLAIN_EVERY_S = 10.0


class RichProgress:
    """Implements the ``progress`` argument of every stage. Use it as a context manager.

    Args:
        stream: where to write; stderr by default, so that stdout stays free for results.
        clock: seconds, monotonic.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._stage = ""
        self._began_s = self._printed_s = 0.0
        self._first_done = 0
        self._last: tuple[int, int, dict[str, float]] = (0, 0, {})
        self._bar: Any = None
        self._task: Any = None
        self._silent = not is_first_rank()
        self._live = not self._silent and self._stream.isatty()

    def update(self, stage: str, done: int, total: int, **figures: float) -> None:
        """Show that ``done`` of ``total`` steps of ``stage`` are finished.

        Args:
            total: 0 where it is not known, as for a camera.
            figures: newest values to show beside the bar, such as ``loss`` or ``miou``.
        """
        if self._silent:
            return
        if stage != self._stage:
            self._finish()
            self._stage, self._began_s, self._printed_s = stage, self._clock(), -PLAIN_EVERY_S
            self._first_done = done if done > 1 else 0
        self._last = (done, total, figures)
        if self._live:
            self._draw(done, total, figures)
        elif self._clock() - self._printed_s >= PLAIN_EVERY_S or done == total:
            self._printed_s = self._clock()
            self._stream.write(self._line() + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Leave the last state of the current stage on the screen. Calling it again does nothing."""
        self._finish()
        self._stage = ""

    def __enter__(self) -> RichProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _line(self) -> str:
        done, total, figures = self._last
        parts = [f"{self._stage}: {done}/{total}" if total else f"{self._stage}: {done}"]
        elapsed, steps = self._clock() - self._began_s, done - self._first_done
        if total and 0 < done < total and steps > 0 and elapsed > 0:
            parts.append(f"{_duration(elapsed / steps * (total - done))} left")
        elif total and done >= total:
            parts.append(f"done in {_duration(elapsed)}")
        return "  ".join((*parts, _figures(figures))).rstrip()

    def _draw(self, done: int, total: int, figures: dict[str, float]) -> None:
        if self._bar is None:
            self._bar = _new_bar(self._stream)
            self._bar.start()
            self._task = self._bar.add_task(self._stage, total=total or None, figures="")
        self._bar.update(self._task, completed=done, total=total or None, figures=_figures(figures))

    def _finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None


def _new_bar(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[figures]}"),
        console=Console(file=stream),
        # The bar's own thread must not disturb what is measured.
        refresh_per_second=4,
    )


def _figures(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
