"""Samples of many blocks side by side, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from edge_sdk.bench.figures import ALL
from edge_sdk.bench.samples import KINDS, Block

# Stages that the runner times, by their column.
COLUMNS = {
    "copy in": "copy_in_ms",
    "step": "step_ms",
    "copy out": "copy_out_ms",
    "decode": "decode_ms",
    "total": "total_ms",
}


@dataclass(frozen=True, eq=False)
class Pooled:
    """Frames of several blocks, in order of round and time.

    Args:
        blocks: the blocks, in that order.
        block: (frames,) int64, place of each frame's block in ``blocks``.
        round: (frames,) int64.
        letters: (frames,) one of ``k``, ``d``, ``s``.
        seq: (frames,) int64.
        due_ms, called_ms: (frames,) float64.
        stages: (frames,) float64 by stage, ``"capture"`` and ``"age"`` with them.
        gpu_ms: (frames,) float64; NaN in blocks that have none.
        preempted: (frames,) int64; -1 where the system does not say.
    """

    blocks: tuple[Block, ...]
    block: np.ndarray
    round: np.ndarray
    letters: np.ndarray
    seq: np.ndarray
    due_ms: np.ndarray
    called_ms: np.ndarray
    stages: dict[str, np.ndarray]
    gpu_ms: np.ndarray
    preempted: np.ndarray

    @classmethod
    def of(cls, blocks: Iterable[Block]) -> Pooled:
        """Side by side, whatever their order in the document."""
        ordered = tuple(sorted(blocks, key=_order))
        lengths = [len(block.frames) for block in ordered]
        due, called = _column(ordered, "due_ms"), _column(ordered, "called_ms")
        stages = {stage: _column(ordered, name) for stage, name in COLUMNS.items()}
        return cls(
            blocks=ordered,
            block=np.repeat(np.arange(len(ordered)), lengths),
            round=np.repeat(np.array([block.round for block in ordered], np.int64), lengths),
            letters=np.array(list("".join(block.frames.kinds for block in ordered)), "U1"),
            seq=_column(ordered, "seq", dtype=np.int64),
            due_ms=due,
            called_ms=called,
            stages={"capture": called - due, **stages, "age": called - due + stages["total"]},
            gpu_ms=_column(ordered, "gpu_ms", missing=np.nan),
            preempted=_column(ordered, "preempted", missing=-1, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.letters)

    @property
    def delivered_ms(self) -> np.ndarray:
        """(frames,) float64: when each answer was ready, since the beginning of the run."""
        return self.called_ms + self.stages["total"]

    def kinds(self) -> Iterator[tuple[str, np.ndarray]]:
        """``"all"`` and each kind of frame there is, with a (frames,) bool mask."""
        yield ALL, np.ones(len(self), bool)
        for letter, kind in KINDS.items():
            mask = self.letters == letter
            if mask.any():
                yield kind.value, mask

    def block_parts(self, values: np.ndarray) -> list[np.ndarray]:
        """``values`` (frames,) cut into one array a block."""
        return np.split(values, np.cumsum([len(block.frames) for block in self.blocks])[:-1])

    def by_round(self, figure: Callable[[list[Block], np.ndarray], float | None]) -> list[float]:
        """A figure of each round's blocks and the (frames,) mask of their frames; rounds where it is None are left
        out."""
        found = []
        for number in sorted({block.round for block in self.blocks}):
            of_round = [block for block in self.blocks if block.round == number]
            value = figure(of_round, self.round == number)
            if value is not None:
                found.append(value)
        return found


def frame_energy_mj(blocks: Iterable[Block]) -> float | None:
    """Millijoules for each frame answered, over the blocks whose energy is known; None where no frame has any."""
    told = [(block.energy_j, len(block.frames)) for block in blocks if block.energy_j is not None]
    frames = sum(count for _, count in told)
    return 1e3 * sum(joules for joules, _ in told) / frames if frames else None


def round_parts(values: np.ndarray, rounds: np.ndarray) -> list[np.ndarray]:
    """``values`` (frames,) cut into one array for each round that has any; ``rounds`` (frames,) does not fall."""
    return np.split(values, np.flatnonzero(np.diff(rounds)) + 1) if len(values) else []


def _order(block: Block) -> tuple[int, float]:
    return block.round, block.frames.called_ms[0] if len(block.frames) else 0.0


def _column(
    blocks: tuple[Block, ...], name: str, missing: float = 0.0, dtype: type = np.float64
) -> np.ndarray:
    parts: list[np.ndarray] = [
        np.array(getattr(block.frames, name), dtype)
        if getattr(block.frames, name)
        else np.full(len(block.frames), missing, dtype)
        for block in blocks
    ]
    return np.concatenate(parts) if parts else np.empty(0, dtype)
