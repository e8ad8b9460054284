"""Which parts of a network feed which: what runs in a delta step, and what vanishes behind units that are kept.

A *part* is a unit, which has candidates, or *fixed*: a layer outside all units, which runs in full in every delta step
that needs its output.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from edge_sdk.errors import FileFormatError
from edge_sdk.settings import Settings

KEPT = "kept"

Choice = dict[str, str]


class Structure(Settings):
    """The data flow between parts.

    Args:
        reads: by part, the parts whose outputs reach its input without passing through another part.
        answer: the parts whose outputs reach the network's output so.
    """

    reads: dict[str, tuple[str, ...]]
    answer: tuple[str, ...]

    def readers(self) -> dict[str, list[str]]:
        """By part, the parts that read it.

        Raises:
            FileFormatError: a part that is read is none, or parts read each other in a ring.
        """
        found: dict[str, list[str]] = {part: [] for part in self.reads}
        for part, sources in [*self.reads.items(), ("the answer", self.answer)]:
            for source in sources:
                if source not in found:
                    raise FileFormatError(f"structure: '{part}' reads '{source}', which is no part.")
                if part in found:
                    found[source].append(part)
        return found

    def in_order(self) -> list[str]:
        """Every part before those that it reads.

        Raises:
            FileFormatError: parts read each other in a ring, or a part that is read is none.
        """
        waiting = {part: len(readers) for part, readers in self.readers().items()}
        ready = [part for part, count in waiting.items() if count == 0]
        order: list[str] = []
        while ready:
            part = ready.pop()
            order.append(part)
            for source in dict.fromkeys(self.reads[part]):
                waiting[source] -= self.reads[part].count(source)
                if waiting[source] == 0:
                    ready.append(source)
        if len(order) != len(self.reads):
            ring = sorted(set(self.reads) - set(order))
            raise FileFormatError(f"structure: the parts {', '.join(ring)} read each other in a ring.")
        return order

    def alive(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        """The probability that a delta step computes or reads a part at all.

        Args:
            kept: by unit, the probability that it is kept, 0 to 1: numbers, or tensors that have gradients.

        Returns:
            by part, 0 to 1. Readers count as independent; where every probability is 0 or 1 this is exact.
        """
        readers, answer = self.readers(), set(self.answer)
        found: dict[str, Any] = {}
        for part in self.in_order():
            dead: Any = 0.0 if part in answer else 1.0
            for reader in readers[part]:
                dead = dead * (1.0 - found[reader] * (1.0 - kept.get(reader, 0.0)))
            found[part] = 1.0 - dead
        return found

    def without(self, parts: Collection[str]) -> Structure:
        """The same data flow through ``parts``, which are parts no more."""
        reads = dict(self.reads)
        for part in reversed(self.in_order()):  # what a part reads has been looked through before
            reads[part] = _through(reads[part], parts, reads)
        return Structure(
            reads={part: sources for part, sources in reads.items() if part not in parts},
            answer=_through(self.answer, parts, reads),
        )

    def vanished(self, choice: Mapping[str, str]) -> tuple[str, ...]:
        """Parts that a student of this choice has nothing of in its delta step."""
        kept = {unit: float(candidate == KEPT) for unit, candidate in choice.items()}
        return tuple(part for part, share in self.alive(kept).items() if share == 0.0)


def _through(
    sources: tuple[str, ...], parts: Collection[str], reads: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    found = [each for source in sources for each in (reads[source] if source in parts else (source,))]
    return tuple(dict.fromkeys(found))
