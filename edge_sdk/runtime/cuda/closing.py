"""Release several things in a fixed order, whatever fails in between."""

from __future__ import annotations

from collections.abc import Callable


def close_in_order(*actions: Callable[[], object], quiet: bool = False) -> None:
    """Call each of ``actions``; the first error is raised when all have been called, later ones are dropped.

    Args:
        quiet: drop the first one too: the GPU has failed, which has been raised where it happened.
    """
    first: Exception | None = None
    for action in actions:
        try:
            action()
        except Exception as error:  # noqa: BLE001  (raised below)
            first = first or error
    if first is not None and not quiet:
        raise first
