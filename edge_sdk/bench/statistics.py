"""From the raw samples of a bench run to its figures. Pure numbers: nothing here runs or waits.

The round is the independent unit everywhere: frames of one round share where memory lies and how warm the machine is,
so that intervals come from the spread between rounds and never from the number of frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_sdk.bench.document import SUBJECT, BenchDocument
from edge_sdk.bench.figures import (
    ALL,
    STAGES,
    Cold,
    Cost,
    Deadline,
    Distribution,
    Estimate,
    Figures,
    Jitter,
    RowFigures,
)
from edge_sdk.bench.intervals import plain, positive, share
from edge_sdk.bench.pooled import Pooled, frame_energy_mj, round_parts
from edge_sdk.bench.samples import KINDS, BareBlock, Block, Mode
from edge_sdk.bench.surroundings import memory, span, spans, worst_frames

TEACHER = "teacher"
MODES: tuple[Mode, ...] = ("saturated", "camera")
# From the camera to the result; they mean something only where a camera sets the pace.
_CAMERA_STAGES = ("capture", "age")


def compute(document: BenchDocument) -> Figures:
    """Every statistic of a run; a function of the document alone."""
    pools = _pools(document)
    rows = tuple(
        row_figures(document, row.name, mode, pools)
        for row in document.rows
        for mode in MODES
        if (row.name, mode) in pools
    )
    subject = {mode: pools[SUBJECT, mode] for mode in MODES if (SUBJECT, mode) in pools}
    readings = sorted(document.readings, key=lambda reading: reading.at_ms)
    yardstick_ms, yardstick_by_round_ms = yardstick(document)
    stolen = [reading.stolen for reading in readings if reading.stolen is not None]
    return Figures(
        rows=rows,
        cold=cold(document, subject.get("saturated")),
        cost=cost(document.bare),
        memory=memory(document.blocks, readings),
        clocks_mhz=spans(readings, "clock_mhz"),
        temperatures_c=spans(readings, "temperature_c"),
        power_w=spans(readings, "power_w"),
        stolen=span(stolen) if stolen else None,
        yardstick_ms=yardstick_ms,
        yardstick_by_round_ms=yardstick_by_round_ms,
        worst=worst_frames(subject, readings),
    )


def _pools(document: BenchDocument) -> dict[tuple[str, Mode], Pooled]:
    """Every row in every mode in which it answered anything."""
    found: dict[tuple[str, Mode], list[Block]] = {}
    for block in document.blocks:
        if block.mode in MODES:
            found.setdefault((block.row, block.mode), []).append(block)
    return {key: Pooled.of(blocks) for key, blocks in found.items() if any(len(b.frames) for b in blocks)}


def row_figures(
    document: BenchDocument, name: str, mode: Mode, pools: dict[tuple[str, Mode], Pooled]
) -> RowFigures:
    """One row in one mode."""
    pool = pools[name, mode]
    teacher = pools.get((TEACHER, mode)) if mode == "saturated" else None
    camera = mode == "camera"
    return RowFigures(
        row=name,
        mode=mode,
        stages=_stages(pool, camera),
        gpu=_gpu(pool),
        throughput_fps=throughput(pool),
        speedup=None if teacher is None else speedup(teacher, pool),
        jitter=jitter(pool, 1e3 / document.source.fps) if camera else None,
        deadline=deadline(pool, document.deadline_ms) if camera else None,
        energy_mj=energy(pool),
    )


def distribution(values_ms: np.ndarray, rounds: np.ndarray) -> Distribution:
    """Times of frames.

    Args:
        values_ms: (frames,) float64, at least one.
        rounds: (frames,) int64, which does not fall.
    """
    shares = (50, 90, 99)
    parts = round_parts(values_ms, rounds)
    by_round = np.array([[part.mean(), *np.percentile(part, shares)] for part in parts])
    p50, p90, p99, p999 = np.percentile(values_ms, (*shares, 99.9)).tolist()
    mean, *percentiles = (
        positive(value, by_round[:, place])
        for place, value in enumerate((float(values_ms.mean()), p50, p90, p99))
    )
    return Distribution(
        frames=len(values_ms),
        mean_ms=mean,
        p50_ms=percentiles[0],
        p90_ms=percentiles[1],
        p99_ms=percentiles[2],
        p999_ms=p999,
        max_ms=float(values_ms.max()),
    )


def _stages(pool: Pooled, camera: bool) -> dict[str, dict[str, Distribution]]:
    found: dict[str, dict[str, Distribution]] = {}
    for stage in STAGES:
        if stage in _CAMERA_STAGES and not camera:
            continue
        # Every frame waits, is answered and has an age, if only for no time; the others can be passed by.
        always = stage in (*_CAMERA_STAGES, "total")
        values = pool.stages[stage]
        kinds = {
            kind: distribution(values[mask], pool.round[mask])
            for kind, mask in pool.kinds()
            if always or values[mask].any()
        }
        if kinds:
            found[stage] = kinds
    return found


def _gpu(pool: Pooled) -> dict[str, Distribution]:
    told = ~np.isnan(pool.gpu_ms)
    return {
        kind: distribution(pool.gpu_ms[mask & told], pool.round[mask & told])
        for kind, mask in pool.kinds()
        if pool.gpu_ms[mask & told].any()
    }


def throughput(pool: Pooled) -> Estimate | None:
    """Answered frames a second: of each block the n - 1 intervals between its n answers, over their length."""
    delivered = dict(zip((id(block) for block in pool.blocks), pool.block_parts(pool.delivered_ms)))

    def rate(blocks: Sequence[Block]) -> float | None:
        answers = [delivered[id(block)] for block in blocks if len(block.frames) > 1]
        spent_ms = sum(float(times[-1] - times[0]) for times in answers)
        return 1e3 * sum(len(times) - 1 for times in answers) / spent_ms if spent_ms > 0 else None

    value = rate(pool.blocks)
    return None if value is None else positive(value, pool.by_round(lambda blocks, _: rate(blocks)))


def speedup(teacher: Pooled, pool: Pooled) -> Estimate | None:
    """The teacher's mean total over this row's: geometric mean of the rounds' ratios; None where no round has both."""
    means = [
        {number: float(part.mean()) for number, part in zip(np.unique(of.round), _totals(of))}
        for of in (teacher, pool)
    ]
    ratios = np.array([mean / means[1][number] for number, mean in means[0].items() if means[1].get(number)])
    if not len(ratios) or ratios.min() <= 0:
        return None
    return positive(float(np.exp(np.log(ratios).mean())), ratios)


def _totals(pool: Pooled) -> list[np.ndarray]:
    return round_parts(pool.stages["total"], pool.round)


def jitter(pool: Pooled, period_ms: float) -> Jitter | None:
    """How evenly answers come; None where no block has two."""
    intervals = np.concatenate([np.diff(times) for times in pool.block_parts(pool.delivered_ms)])
    if not len(intervals):
        return None
    return Jitter(
        interval_ms=float(intervals.mean()),
        deviation_ms=float(intervals.std(ddof=1)) if len(intervals) > 1 else 0.0,
        p99_ms=float(np.percentile(np.abs(intervals - period_ms), 99)),
    )


def deadline(pool: Pooled, deadline_ms: float) -> Deadline:
    """Answers against the deadline; at the deadline is in time, and a dropped frame is a miss."""
    late = pool.stages["age"] > deadline_ms

    def counts(blocks: Sequence[Block], of: np.ndarray) -> tuple[int, int, int]:
        dropped = sum(block.dropped for block in blocks)
        return int(of.sum()) + dropped, int(late[of].sum()), dropped

    def rate(blocks: Sequence[Block], of: np.ndarray) -> float | None:
        frames, missed, dropped = counts(blocks, of)
        return (missed + dropped) / frames if frames else None

    frames, missed, dropped = counts(pool.blocks, np.ones(len(pool), bool))
    return Deadline(
        deadline_ms=deadline_ms,
        frames=frames,
        late=missed,
        dropped=dropped,
        miss_rate=share(missed + dropped, frames, pool.by_round(rate)),
    )


def energy(pool: Pooled) -> Estimate | None:
    """Millijoules for each frame answered."""
    value = frame_energy_mj(pool.blocks)
    return (
        None if value is None else positive(value, pool.by_round(lambda blocks, _: frame_energy_mj(blocks)))
    )


def cold(document: BenchDocument, saturated: Pooled | None) -> Cold:
    """Starting, beside the subject's usual step."""
    starts = document.starts
    first, second = (
        {
            step: float(np.median([times[step] for times in all_times if step in times]))
            for step in sorted({step for times in all_times for step in times}, reverse=True)
        }
        for all_times in ([start.first_ms for start in starts], [start.second_ms for start in starts])
    )
    usual = (
        {}
        if saturated is None
        else {kind: float(np.median(saturated.stages["step"][mask])) for kind, mask in saturated.kinds()}
    )
    return Cold(
        check_ms=float(np.median([start.check_ms for start in starts])),
        load_ms=float(np.median([start.load_ms for start in starts])),
        bind_ms=float(np.median([start.bind_ms for start in starts])),
        first_ms=first,
        second_ms=second,
        first_over_usual={step: ms / usual[step] for step, ms in first.items() if usual.get(step)},
    )


def cost(bare: Sequence[BareBlock]) -> dict[str, Cost]:
    """What the runner costs over its bare engines, by kind and in the mix that was run."""
    ordered = sorted(bare, key=lambda block: block.round)
    letters = np.array(list("".join(block.kinds for block in ordered)), "U1")
    rounds = np.repeat([block.round for block in ordered], [len(block.kinds) for block in ordered])
    runner, wall = (
        np.array([ms for block in ordered for ms in times(block)], np.float64)
        for times in (lambda block: block.runner_ms, lambda block: block.wall_ms)
    )
    gpu = np.array([ms for block in ordered for ms in (block.gpu_ms or (np.nan,) * len(block.kinds))])
    masks = {kind.value: letters == letter for letter, kind in KINDS.items() if letter in letters}
    shares = {kind: float(mask.mean()) for kind, mask in masks.items()}
    found = {
        kind: _cost_of({kind: mask}, {kind: 1.0}, rounds, runner, wall, gpu) for kind, mask in masks.items()
    }
    if found:
        found[ALL] = _cost_of(masks, shares, rounds, runner, wall, gpu)
    return found


def _cost_of(
    masks: dict[str, np.ndarray],
    shares: dict[str, float],
    rounds: np.ndarray,
    runner: np.ndarray,
    wall: np.ndarray,
    gpu: np.ndarray,
) -> Cost:
    """Medians by kind, weighted with the kinds' shares; a round counts where it has every kind."""

    def mixed(values: np.ndarray) -> float:
        return sum(weight * float(np.median(values[masks[kind]])) for kind, weight in shares.items())

    def mixed_in(number: int) -> float:
        own = runner - wall
        return sum(
            weight * float(np.median(own[masks[kind] & (rounds == number)]))
            for kind, weight in shares.items()
        )

    whole = [n for n in np.unique(rounds) if all((mask & (rounds == n)).any() for mask in masks.values())]
    own_ms = plain(mixed(runner - wall), [mixed_in(number) for number in whole])
    bare_ms, gpu_ms = mixed(wall), mixed(gpu)
    return Cost(
        runner_ms=mixed(runner),
        bare_ms=bare_ms,
        own_ms=own_ms,
        share=own_ms.value / bare_ms if bare_ms else 0.0,
        gpu_ms=None if np.isnan(gpu_ms) else gpu_ms,
    )


def yardstick(document: BenchDocument) -> tuple[Estimate | None, tuple[float, ...]]:
    """The yardstick over all blocks that are in a statistic, bare ones too, and its median in each round."""
    blocks = [block for block in document.blocks if block.mode in MODES]
    told = sorted(
        (block.round, block.yardstick_ms)
        for group in (blocks, document.bare)
        for block in group
        if block.yardstick_ms is not None
    )
    if not told:
        return None, ()
    rounds, times = np.array([number for number, _ in told]), np.array([ms for _, ms in told])
    by_round = [float(np.median(part)) for part in round_parts(times, rounds)]
    return positive(float(np.median(times)), by_round), tuple(by_round)
