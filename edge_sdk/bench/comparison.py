"""What a comparison of two bench runs found, and how it reads."""

from __future__ import annotations

from typing import Any, Literal

from edge_sdk.bench.figures import Estimate
from edge_sdk.settings import Settings

# A smallest change above which it is no figure to give: nearly twice the time, or more than half of all frames.
_HOPELESS = 0.9

Answer = Literal["changed", "no change", "cannot tell"]


class Difference(Settings):
    """Something in which two runs differ besides what was measured."""

    what: str
    old: str
    new: str


class Change(Settings):
    """One figure of the subject in two runs.

    Args:
        metric: its name.
        unit: of ``old`` and ``new``: ``"ms"``, ``"share"`` in 0-1, ``"bytes"`` or ``"mJ"``.
        old, new: as measured, over all rounds.
        change: new over old less 1, with its 95 % interval; of a share, new less old. For times it is between machines
            of equal speed where the comparison is adjusted, and so need not be the ratio of ``old`` and ``new``.
            None where a run has fewer than two rounds of it, or where it cannot be put right; ``note`` says which.
        margin: changes up to here count as none; relative, of a share in points.
        p_value: of a change no larger than the margin; None without ``change``.
        answer: ``changed``: beyond the margin, by Holm's procedure over all metrics. ``no change``: the whole interval
            is within the margin. ``cannot tell``: neither.
        smallest: the smallest change that is found in nine of ten such comparisons; None without ``change``.
        note: what a reader must know about this row.
    """

    metric: str
    unit: str
    old: float
    new: float
    change: Estimate | None
    margin: float
    p_value: float | None
    answer: Answer
    smallest: float | None
    note: str = ""

    @property
    def worse(self) -> bool:
        """Changed, and upwards: of every metric less is better."""
        return self.answer == "changed" and self.change is not None and self.change.value > 0

    def text(self) -> str:
        """What is found, in words."""
        if self.change is None:
            return f"cannot tell: {self.note}"
        found = f"{_points(self, self.change.value)} ({_interval(self, self.change)})"
        if self.answer == "changed":
            up, down = ("slower", "faster") if self.unit == "ms" else ("higher", "lower")
            return f"{up if self.worse else down}: {found}"
        if self.answer == "no change":
            return f"no change beyond {_points(self, self.margin, sign='')}: {found}"
        if self.smallest is None:
            return f"cannot tell: {found}"
        if self.smallest > _HOPELESS:
            return f"cannot tell: {found}; the rounds differ too much for any change to be found"
        return f"cannot tell: {found}; {_points(self, self.smallest)} would be found in nine runs of ten"


class Comparison(Settings):
    """Two runs of one kind, the old one first.

    Args:
        old, new: when they were made, and from which commit.
        changes: by metric; those that either run does not have are missing.
        adjusted: times are divided by the yardstick of their block, so that a machine that is slower as a whole does
            not count as a slower bundle.
        machine: yardstick of the new run over the old one's less 1, with its 95 % interval; None without yardsticks.
        differences: in which the runs differ besides.
        remarks: what a reader must know, such as a run whose verdict is not sound.
    """

    old: str
    new: str
    changes: tuple[Change, ...]
    adjusted: bool
    machine: Estimate | None
    differences: tuple[Difference, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def worse(self) -> bool:
        """Whether any metric has got worse."""
        return any(change.worse for change in self.changes)

    @property
    def changed(self) -> tuple[Change, ...]:
        """The metrics that have changed, for better or worse."""
        return tuple(change for change in self.changes if change.answer == "changed")

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Metric, old and new as measured, and what is found, as text."""
        return [
            (change.metric, _value(change.old, change.unit), _value(change.new, change.unit), change.text())
            for change in self.changes
        ]

    def notes(self) -> list[str]:
        """What stands below the table."""
        if self.machine is not None:
            how = (
                "times are compared per yardstick, so that this does not count"
                if self.adjusted
                else "times are compared as measured"
            )
            found = f"the machine's own speed: yardstick {self.machine.value:+.1%}; {how}"
        else:
            found = "no yardstick in both runs: a slower machine cannot be told from a slower bundle"
        differences = [f"differs: {what.what}: {what.old} -> {what.new}" for what in self.differences]
        return [found, *differences, *self.remarks]

    def lines(self) -> list[str]:
        """The whole as lines of text, the answer first."""
        cells = [("", "old", "new", ""), *self.rows()]
        widths = [max(len(row[place]) for row in cells) for place in range(3)]
        table = [
            f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip()
            for row in cells
        ]
        return [self.summary(), *table, f"old: {self.old}; new: {self.new}", *self.notes()]

    def summary(self) -> str:
        """One line."""
        worse = [change.metric for change in self.changes if change.worse]
        better = [change.metric for change in self.changed if not change.worse]
        if not worse and not better:
            return "nothing has changed beyond the noise"
        parts = [
            f"{word}: {', '.join(names)}" for word, names in (("worse", worse), ("better", better)) if names
        ]
        return "; ".join(parts)

    def renderables(self) -> list[Any]:
        """For a terminal: the table, and what stands below it."""
        from rich.table import Table

        table = Table(title=f"compared with an older run: {self.summary()}", title_justify="left")
        table.add_column("figure")
        table.add_column(f"old: {self.old}", justify="right")
        table.add_column(f"new: {self.new}", justify="right")
        table.add_column("change")
        for row in self.rows():
            table.add_row(*row)
        return [table, "\n".join(self.notes())]


def _points(change: Change, value: float, sign: str = "+") -> str:
    """A change in percent, or of a share in percentage points."""
    unit = " points" if change.unit == "share" else " %"
    return f"{100 * value:{sign}.1f}{unit}"


def _interval(change: Change, estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "no interval"
    return f"{100 * estimate.low:+.1f} to {_points(change, estimate.high)}"


def _value(value: float, unit: str) -> str:
    if unit == "share":
        return f"{value:.2%}"
    if unit == "bytes":
        return f"{value / 1e6:.1f} MB"
    return f"{value:.2f} {unit}"
