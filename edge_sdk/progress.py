"""Whoever watches a long stage."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Whoever watches a long stage."""

    def update(self, stage: str, done: int, total: int, **figures: float) -> None:
        """``done`` of ``total`` steps of ``stage`` are finished; ``figures`` are the newest values to show.

        ``total`` is 0 where it is not known.
        """


class Silent:
    """Nobody watches."""

    def update(self, stage: str, done: int, total: int, **figures: float) -> None:
        """Do nothing."""
