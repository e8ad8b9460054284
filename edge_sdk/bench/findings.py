"""A figure against its limit, and a limit that is broken, as they are told."""

from __future__ import annotations

import math

from edge_sdk.bench.figures import Estimate, WorstFrame
from edge_sdk.bench.samples import Mode
from edge_sdk.settings import Settings

# How a figure is written, by the end of its budget's name: factor, decimals and unit.
_UNITS = {
    "_ms": (1, 2, "ms"),
    "_rate": (100, 2, "% of frames"),
    "dropped": (1, 0, "frames"),
    "_bytes": (1e-6, 1, "MB"),
    "_per_hour": (1e-6, 2, "MB an hour"),
    "_mj": (1, 2, "mJ a frame"),
    "_fps": (1, 1, "frames a second"),
    "_miou": (1, 4, "mIoU"),
    "_agreement": (1, 4, "mIoU with the teacher's answers"),
}


class Finding(Settings):
    """One figure against its limit.

    Args:
        budget: name of the budget.
        figure: what was measured.
        limit: in the unit of the figure.
        mode: of the blocks that it was measured in; None where it is of the whole run.
        basis: how a relative limit came about.
    """

    budget: str
    figure: Estimate
    limit: float
    mode: Mode | None = None
    basis: str = ""

    @property
    def least(self) -> bool:
        """Whether the limit is the least, not the most, that the figure may be."""
        return self.budget.startswith("min_")

    @property
    def broken(self) -> bool:
        """Whether the figure is beyond the limit; exactly at the limit it holds."""
        return self._beyond(self.figure.value)

    @property
    def uncertain(self) -> bool:
        """Whether the limit lies within the figure's interval: another run may come to the other end."""
        low, high = self.figure.low, self.figure.high
        return low is not None and high is not None and self._beyond(low) != self._beyond(high)

    def _beyond(self, value: float) -> bool:
        return value < self.limit if self.least else value > self.limit

    def text(self) -> str:
        """Budget, figure with its interval, and limit."""
        unit = next(form[2] for end, form in _UNITS.items() if self.budget.endswith(end))
        figure, limit, *ends = self._written()
        where = {"camera": "at camera pace", "saturated": "saturated"}.get(self.mode or "", "")
        if ends:
            where = ", ".join(filter(None, (f"95 % interval {' to '.join(ends)}", where)))
        side = ("below" if self.least else "over") if self.broken else "within"
        reaches = "within" if self.broken else "beyond"
        parts = (
            f"{self.budget}: {figure} {unit}",
            f" ({where})" if where else "",
            f", {side} the budget of {limit} {unit}",
            f" ({self.basis})" if self.basis else "",
            f"; the interval reaches {reaches} the budget: measure longer" if self.uncertain else "",
        )
        return "".join(parts)

    def _written(self) -> list[str]:
        """Figure, limit and the interval's ends, with as many decimals as tell the figure from a limit it breaks."""
        factor, decimals, _ = next(form for end, form in _UNITS.items() if self.budget.endswith(end))
        ends = [end for end in (self.figure.low, self.figure.high) if end is not None]
        values = [value * factor for value in (self.figure.value, self.limit, *ends)]
        if self.budget.endswith("_ms") and 0 < values[0] < 1:
            decimals += min(4, -math.floor(math.log10(values[0])))
        while self.broken and decimals < 12 and f"{values[0]:.{decimals}f}" == f"{values[1]:.{decimals}f}":
            decimals += 1
        return [f"{value:.{decimals}f}" for value in values]


class Breach(Settings):
    """A budget that is broken.

    Args:
        budget: its name; ``"verdict"`` where the run itself is invalid.
        finding: figure and limit; None for the verdict.
        reason: of the verdict.
        worst: the slowest frame, of the kind and pace that the budget is about where such a frame is known.
    """

    budget: str
    finding: Finding | None = None
    reason: str = ""
    worst: WorstFrame | None = None

    def line(self) -> str:
        """The breach in one line: budget, figure, limit, and the slowest frame with its conditions."""
        what = self.finding.text() if self.finding is not None else f"{self.budget}: {self.reason}"
        slowest = f"; slowest {self.worst.line()}" if self.worst is not None else ""
        return " ".join((what + slowest).split())
