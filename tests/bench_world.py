"""Bench documents made from a formula, so that every statistic of them is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_sdk.bench.document import SUBJECT, BenchDocument, Machine, Row, SourceFacts
from edge_sdk.bench.recipe import BenchRecipe
from edge_sdk.bench.samples import BareBlock, Block, FrameColumns, Mode, Reading, Start
from edge_sdk.conditions import Conditions
from edge_sdk.evaluate.facts import BundleFacts
from edge_sdk.runtime.schedule import AlwaysSchedule, EverySchedule

CONDITIONS = Conditions(
    date="2026-01-02T03:04:05+00:00",
    machine="a board",
    cpu="a processor",
    cores=2,
    threads=None,
    load=0.1,
    python="3.12.0",
    sdk_version="0.1.0",
    commit="0123abc",
    packages={"onnxruntime": "1.0"},
)
# Milliseconds of a step, by row and letter.
STEP_MS = {
    SUBJECT: {"k": 20.0, "d": 8.0},
    "teacher": {"k": 18.0},
    "copy": {"k": 18.0, "s": 0.0},
    "flow": {"k": 18.0, "s": 5.0},
}
OWN_MS = {"copy_in_ms": 0.03, "decode_ms": 0.04, "rest": 0.02}


def columns(
    kinds: str, step_ms: np.ndarray, due_ms: np.ndarray | None = None, from_ms: float = 0.0
) -> FrameColumns:
    """Frames that wait for each other: each is called when it is due and the one before is answered."""
    copy_in, decode, rest = OWN_MS.values()
    due, called, total = [], [], []
    free_ms = from_ms
    for index, step in enumerate(step_ms):
        ready = free_ms if due_ms is None else float(due_ms[index])
        begin = max(free_ms, ready)
        spent = 0.0 if kinds[index] == "s" and step == 0 else copy_in + float(step) + decode
        due.append(ready)
        called.append(begin)
        total.append(spent + rest)
        free_ms = begin + spent + rest
    ran = [kind != "s" for kind in kinds]
    age, ages = 0, []
    for kind in kinds:
        age = 0 if kind == "k" else age + 1
        ages.append(age)
    return FrameColumns(
        kinds=kinds,
        seq=tuple(range(len(kinds))),
        due_ms=tuple(due),
        called_ms=tuple(called),
        copy_in_ms=tuple(copy_in if on else 0.0 for on in ran),
        step_ms=tuple(float(step) for step in step_ms),
        copy_out_ms=(0.0,) * len(kinds),
        decode_ms=tuple(decode if on else 0.0 for on in ran),
        total_ms=tuple(total),
        state_age=tuple(ages),
        preempted=(0,) * len(kinds),
    )


def make_document(
    *,
    rounds: int = 6,
    interval: int = 5,
    periods: int = 20,
    fps: float = 30.0,
    seed: int = 0,
    noise: float = 0.01,
    between: float = 0.01,
    machine: float = 1.0,
    slower: dict[str, float] | None = None,
    rows: tuple[str, ...] = tuple(STEP_MS),
    growth_bytes: int = 0,
    throttled: tuple[str, ...] = (),
) -> BenchDocument:
    """A run over ``periods`` keyframe periods a block.

    Args:
        noise: standard deviation of the logarithm of a step's time, from frame to frame.
        between: the same from round to round, of the part that the yardstick does not see.
        machine: factor on everything, the yardstick too.
        slower: factor by letter on the subject's steps, bare and through the runner.
        growth_bytes: of the process, from one reading to the next.
    """
    rng = np.random.default_rng(seed)
    slower = slower or {}
    blocks: list[Block] = []
    bare: list[BareBlock] = []
    starts: list[Start] = []
    now_ms = 0.0
    for index in range(rounds):
        drift = float(np.exp(rng.normal(0, 0.05))) * machine
        level = drift * float(np.exp(rng.normal(0, between)))
        yard = 3.0 * drift

        def steps(row: str, kinds: str, level: float = level) -> np.ndarray:
            base = np.array(
                [STEP_MS[row][k] * (slower.get(k, 1.0) if row == SUBJECT else 1.0) for k in kinds]
            )
            return base * level * np.exp(rng.normal(0, noise, len(kinds)))

        for row in rows:
            letter = {"teacher": "k", "copy": "s", "flow": "s"}.get(row, "d")
            kinds = ("k" + letter * (interval - 1)) * periods
            for mode in ("warm-up", "saturated", "camera") if row == SUBJECT else ("saturated",):
                due = now_ms + np.arange(len(kinds)) * 1e3 / fps if mode == "camera" else None
                found = columns(kinds, steps(row, kinds), due, now_ms)
                now_ms = found.called_ms[-1] + found.total_ms[-1] + 50.0
                blocks.append(_block(row, index, mode, found, yard))
            if row == SUBJECT:
                alone = steps(row, kinds)
                wall = tuple(alone.tolist())
                through = tuple((alone + sum(OWN_MS.values())).tolist())
                bare.append(
                    BareBlock(round=index, kinds=kinds, runner_ms=through, wall_ms=wall, yardstick_ms=yard)
                )
                now_ms += float(alone.sum())
        first, second = {"keyframe": 60.0, "delta": 30.0}, {"keyframe": 21.0, "delta": 9.0}
        starts.append(
            Start(
                round=index,
                check_ms=12.0,
                load_ms=80.0,
                bind_ms=3.0,
                first_ms=first,
                second_ms=second,
            )
        )
    readings = tuple(
        Reading(
            at_ms=float(at),
            rss_bytes=100_000_000 + growth_bytes * number,
            clock_mhz={"cpu0": 2000.0, "cpu1": 2000.0},
            temperature_c={"cpu": 50.0 + number * 0.01},
            power_w={"VDD_IN": 10.0},
            throttled=throttled,
            stolen=0.0,
        )
        for number, at in enumerate(np.arange(0.0, now_ms, 1000.0))
    )
    schedule = EverySchedule(interval=interval)
    variants = {SUBJECT: "pair", "teacher": "teacher", "copy": "copy", "flow": "flow"}
    scores = {SUBJECT: 0.57, "teacher": 0.58, "copy": 0.50, "flow": 0.52}
    return BenchDocument(
        recipe=BenchRecipe(bundle=Path("bundle"), source="clip.mp4", rounds=max(rounds, 2)),
        conditions=CONDITIONS,
        machine=Machine(telemetry=("sysfs",)),
        bundles=(
            BundleFacts(
                role="subject",
                path="bundle",
                name="pair",
                method="delta",
                created="2026-01-01",
                sdk_version="0.1.0",
                state_bytes=1000,
                sha256={},
                provenance={},
            ),
        ),
        source=SourceFacts(
            uri="clip.mp4", frames=100, labelled=10, height=360, width=480, fps=fps, live=False
        ),
        rows=tuple(
            Row(
                name=row,
                variant=variants[row],  # type: ignore[arg-type]
                engine="float32",
                schedule=AlwaysSchedule() if row == "teacher" else schedule,
                labels=scores[row],
                agreement=scores[row] + 0.3,
            )
            for row in rows
        ),
        starts=tuple(starts),
        blocks=tuple(blocks),
        bare=tuple(bare),
        readings=readings,
    )


def _block(row: str, round_: int, mode: str, frames: FrameColumns, yardstick_ms: float) -> Block:
    named: Mode = mode  # type: ignore[assignment]
    return Block(row=row, round=round_, mode=named, frames=frames, yardstick_ms=yardstick_ms)
