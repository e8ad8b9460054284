"""Release several things in a fixed order, whatever fails in between."""

from __future__ import annotations

from collections.abc import Callable


def close_in_order(*actions: Callable[[], object]) -> None:
    """Call each of ``actions``; the first error is raised when all have been called, later ones are dropped."""
    first: Exception | None = None
    for action in actions:
        try:
            action()
        except Exception as error:  # noqa: BLE001  (raised below)
            first = first or error
    if first is not None:
        raise first
