"""Whether the figures of a run can be relied on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edge_sdk.settings import Settings

if TYPE_CHECKING:
    from edge_sdk.bench.document import BenchDocument

Grade = Literal["sound", "doubtful", "invalid"]


class Verdict(Settings):
    """What a reader must know before using a figure.

    Args:
        grade: ``invalid`` where the run was throttled; ``doubtful`` where something speaks against relying on the
            figures; else ``sound``.
        reasons: one sentence each, the gravest first, each with the figure it rests on.
        remarks: what is worth knowing and speaks against nothing, such as a rate that is not sustained.
    """

    grade: Grade
    reasons: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, document: BenchDocument) -> Verdict:
        """The verdict on a document."""
        raise NotImplementedError
