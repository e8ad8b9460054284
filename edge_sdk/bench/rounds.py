"""The rounds of a bench: every row by turns, in short blocks between readings of the yardstick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edge_sdk.bench.clock import Clock
from edge_sdk.bench.document import SUBJECT, Row
from edge_sdk.bench.lineup import Entrant, Lineup, interval_of, opened
from edge_sdk.bench.pace import Recorder, Reel, camera, live, paired, saturated
from edge_sdk.bench.recipe import BenchRecipe
from edge_sdk.bench.samples import BareBlock, Block, Mode, Start
from edge_sdk.bench.telemetry import Telemetry
from edge_sdk.bench.yardstick import Yardstick
from edge_sdk.progress import Progress
from edge_sdk.runtime.engine import Backend
from edge_sdk.video import VideoSource
from edge_sdk.video.frame import Frame

# Slow spells of a machine come and go within seconds: the yardstick tells them only where blocks are shorter than that.
_BLOCK_MS = 400.0
_WARM_UP_MS = 500.0
# Of the time of a round that is not at camera pace: alone, in pairs with the bare engine; the rest is the other rows'.
_ALONE, _PAIRED = 0.35, 0.25
_STAGE = "bench (seconds)"


@dataclass(frozen=True)
class _Kept:
    """A block that was measured, before it is put into words."""

    facts: dict[str, Any]
    recorder: Recorder


@dataclass
class Session:
    """A run under way: what it works with, and what it has gathered.

    Args:
        recipe, lineup, rows: what is measured; the first row is the subject.
        reel: frames in memory.
        first: a frame for what warms up outside the runner.
        source: the source, open, where it is live; all of the time is then spent at its pace. None for others.
        fps: rate of the simulated camera.
        backend, clock, yardstick, telemetry, progress: what it works with.
        even: all rows get the same time saturated, and the bare engine none.
    """

    recipe: BenchRecipe
    lineup: Lineup
    rows: tuple[Row, ...]
    reel: Reel
    first: Frame
    source: VideoSource | None
    fps: float
    backend: Backend
    clock: Clock
    yardstick: Yardstick | None
    telemetry: Telemetry
    progress: Progress
    even: bool
    starts: list[Start] = field(default_factory=list)
    kept: list[_Kept] = field(default_factory=list)
    bare: list[BareBlock] = field(default_factory=list)
    overhead_ms: float = 0.0

    def round(self, index: int) -> None:
        """Every row once, in an order that begins one further on in each round; the subject at camera pace too."""
        planned_ms, began_ms = self.recipe.round_s * 1e3, self.clock.now_ms()
        # Opening runners takes time too; what it took in the last round is taken off this one.
        length_ms = max(planned_ms / 2, planned_ms - self.overhead_ms)
        paced_ms = length_ms * self.recipe.camera_share if self.source is None else length_ms
        free_ms = length_ms - paced_ms
        start = index % len(self.rows)
        for row in (*self.rows[start:], *self.rows[:start]):
            with opened(row, self.lineup, self.recipe, self.backend, self.first) as entrant:
                turn = _Turn(self, row, entrant, index)
                if row.name == SUBJECT:
                    self.starts.append(turn.start())
                    turn.warm_up(min(_WARM_UP_MS, 0.1 * length_ms))
                else:
                    turn.warm_up(0.0)
                turn.saturate(*self._shares(row, free_ms))
                if row.name == SUBJECT and paced_ms:
                    turn.at_camera_pace(paced_ms)
            spent_s, all_s = int(self.clock.now_ms() / 1e3), int(self.recipe.length_s)
            last = index + 1 == self.recipe.round_count and row is self.rows[start - 1]
            self.progress.update(_STAGE, all_s if last else min(spent_s, all_s - 1), all_s)
        self.overhead_ms = self.clock.now_ms() - began_ms - length_ms

    def blocks(self) -> tuple[Block, ...]:
        """What was measured, in order."""
        return tuple(Block(frames=kept.recorder.columns(), **kept.facts) for kept in self.kept)

    def _shares(self, row: Row, free_ms: float) -> tuple[float, float]:
        """Milliseconds of a row alone and in pairs with the bare engine."""
        others = len(self.rows) - 1
        if self.even:
            return free_ms / len(self.rows), 0.0
        if row.name == SUBJECT:
            return free_ms * (_ALONE if others else 1 - _PAIRED), free_ms * _PAIRED
        return free_ms * (1 - _ALONE - _PAIRED) / others, 0.0


@dataclass
class _Turn:
    """One row in one round, its runner open."""

    session: Session
    row: Row
    entrant: Entrant
    index: int

    def start(self) -> Start:
        """What opening took."""
        times = self.entrant.runner.start_times
        return Start(
            round=self.index,
            check_ms=times.check_ms,
            load_ms=times.load_ms,
            bind_ms=times.bind_ms,
            first_ms=dict(times.first_ms),
            second_ms=dict(times.second_ms),
        )

    def warm_up(self, length_ms: float) -> None:
        """A block that counts for nothing."""
        self._frames("warm-up", length_ms)

    def saturate(self, alone_ms: float, paired_ms: float) -> None:
        """Short blocks alone and in pairs with the bare engine, by turns."""
        if alone_ms <= 0:
            return
        count = max(1, round(alone_ms / _BLOCK_MS))
        for _ in range(count):
            self._frames("saturated", alone_ms / count)
            if paired_ms:
                self._pairs(paired_ms / count)

    def at_camera_pace(self, length_ms: float) -> None:
        """One block of its whole time at camera pace: a queue needs time to build up."""
        self._frames("camera", length_ms)

    def _frames(self, mode: Mode, length_ms: float) -> None:
        session = self.session
        before_ms, before_j = self._yardstick(), session.telemetry.energy_j()
        if mode == "camera":
            recorder, dropped = self._paced(length_ms)
        else:
            chunk = interval_of(self.row.schedule)
            recorder = saturated(self.entrant.contender, session.reel, session.clock, length_ms, chunk)
            dropped = 0
        after_j, after_ms = session.telemetry.energy_j(), self._yardstick()
        facts = {
            "row": self.row.name,
            "round": self.index,
            "mode": mode,
            "dropped": dropped,
            "yardstick_ms": _mean(before_ms, after_ms),
            "energy_j": None if before_j is None or after_j is None else after_j - before_j,
        }
        session.kept.append(_Kept(facts, recorder))

    def _pairs(self, length_ms: float) -> None:
        session, entrant = self.session, self.entrant
        before_ms = self._yardstick()
        found = paired(
            entrant.contender,
            entrant.runner.time_bare,
            session.reel,
            session.clock,
            length_ms,
            interval_of(self.row.schedule),
        )
        session.bare.append(
            BareBlock(round=self.index, yardstick_ms=_mean(before_ms, self._yardstick()), **found._asdict())
        )

    def _paced(self, length_ms: float) -> tuple[Recorder, int]:
        session, contender = self.session, self.entrant.contender
        if session.source is not None:
            return live(contender, session.source, session.clock, length_ms)
        return camera(contender, session.reel, session.clock, length_ms, session.fps, session.recipe.late)

    def _yardstick(self) -> float | None:
        yardstick = self.session.yardstick
        return None if yardstick is None else yardstick.measure_ms()


def _mean(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else (before + after) / 2
