"""``edge-sdk bench --compare``: what has changed between two runs beyond the noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edge_sdk.bench.comparison import Answer, Change, Comparison, Difference
from edge_sdk.bench.document import SUBJECT, BenchDocument
from edge_sdk.bench.effects import Effect, effect, holm, levels
from edge_sdk.bench.figures import Estimate
from edge_sdk.bench.metrics import METRICS, Metric, Rounds, Run, subject_blocks
from edge_sdk.bench.samples import Mode
from edge_sdk.errors import RecipeError

# Changes of steps and means up to here count as none. Two processes differ by 1 to 2 % where nothing has changed, and
# no number of rounds within them can show that.
MARGIN = 0.03
# Probability that anything is reported where nothing has changed, over all metrics together.
FAMILY = 0.05
# The yardstick is another graph than the bundle's: what slows one by a fifth may slow the other by a sixth. Beyond a
# small difference of the machines this share of it is added to the margin.
ADJUSTMENT_ERROR = 0.1
_SMALL_DIFFERENCE = 0.05
_MODES: tuple[Mode, ...] = ("saturated", "camera")


def compare(old: BenchDocument, new: BenchDocument, *, margin: float = MARGIN) -> Comparison:
    """Say what has changed in the subject beyond the noise.

    A figure of each round is one observation: frames of one round share where memory lies, and are no independent
    witnesses. Ratios are compared, so on the logarithm. A change counts where it is larger than a margin with
    statistical significance (a minimum-effect test), since two processes differ a little even where nothing has
    changed; over all metrics together the probability of reporting anything without reason is at most 5 %
    (Holm's procedure).

    Args:
        old, new: two runs of one bundle, or of two that do the same work.
        margin: relative change of steps and means up to which nothing has changed; the margins of the other
            metrics are multiples of it.

    Raises:
        RecipeError: the runs have other frames' sizes, backends or schedules, or ``margin`` is not in 0-1.
    """
    if not 0 < margin < 1:
        raise RecipeError(f"margin: expected a share above 0 and below 1, got {margin:g}.")
    _refuse_other_work(old, new)
    machine = _machine(old, new)
    return Comparison(
        old=_label(old),
        new=_label(new),
        changes=changes(old, new, margin),
        adjusted=machine is not None,
        machine=None if machine is None else _relative(machine),
        differences=tuple(_differences(old, new)),
        remarks=tuple(_remarks(old, new)),
    )


def changes(old: BenchDocument, new: BenchDocument, margin: float = MARGIN) -> tuple[Change, ...]:
    """The metrics that both runs have, tested; arguments as in :func:`compare`."""
    machine = _machine(old, new)
    reference = None if machine is None else math.exp(float(np.mean(_yardstick_logs(old))))
    with_bare = all(_has_bare(document, machine is not None) for document in (old, new))
    runs = Run(old, reference, with_bare), Run(new, reference, with_bare)
    pairs = []
    for metric in METRICS:
        if _elsewhere(metric, old, new):
            continue
        before, after = metric.of(runs[0]), metric.of(runs[1])
        if before is not None and after is not None:
            width = _margin(metric, margin, machine)
            pairs.append(_Pair(metric, before, after, width, _not_judged(metric, old, new, machine)))
    return _judged(pairs)


@dataclass(frozen=True)
class _Pair:
    """One metric in both runs; ``margin`` as the test takes it: a logarithm, or of a share a difference."""

    metric: Metric
    old: Rounds
    new: Rounds
    margin: float
    note: str

    @property
    def effect(self) -> Effect | None:
        """None where there is nothing to test."""
        if self.note or min(len(self.old.by_round), len(self.new.by_round)) < 2:
            return None
        if self.metric.is_share:
            # No fewer late frames than two in four more: where neither run had one there still may be some.
            cases = self.old.cases, self.new.cases
            late = self.old.value * cases[0] + self.new.value * cases[1]
            rate = (late + 2) / (sum(cases) + 4)
            by_chance = math.sqrt(rate * (1 - rate) * (1 / cases[0] + 1 / cases[1]))
            return effect(self.old.by_round, self.new.by_round, None, by_chance)
        return effect(np.log(self.old.by_round), np.log(self.new.by_round), self.metric.prior)


def _judged(pairs: list[_Pair]) -> tuple[Change, ...]:
    """Every pair's change; those that can be tested are one family."""
    effects = [pair.effect for pair in pairs]
    tested = [(pair, found) for pair, found in zip(pairs, effects, strict=True) if found is not None]
    weights = [pair.metric.weight for pair, _ in tested]
    p_values = [found.p_value(pair.margin) for pair, found in tested]
    significant = iter(holm(p_values, weights, FAMILY))
    level = iter(levels(weights, FAMILY))
    return tuple(
        _untested(pair) if found is None else _change(pair, found, next(significant), next(level))
        for pair, found in zip(pairs, effects, strict=True)
    )


def _change(pair: _Pair, found: Effect, significant: bool, level: float) -> Change:
    low, high = found.interval()
    answer: Answer = "cannot tell"
    if significant:
        answer = "changed"
    elif -pair.margin <= low and high <= pair.margin:
        answer = "no change"
    shown = (lambda value: value) if pair.metric.is_share else math.expm1
    return Change(
        metric=pair.metric.name,
        unit=pair.metric.unit,
        old=pair.old.value,
        new=pair.new.value,
        change=Estimate(value=shown(found.difference), low=shown(low), high=shown(high)),
        margin=shown(pair.margin),
        p_value=found.p_value(pair.margin),
        answer=answer,
        smallest=shown(found.detectable(pair.margin, level)),
    )


def _untested(pair: _Pair) -> Change:
    return Change(
        metric=pair.metric.name,
        unit=pair.metric.unit,
        old=pair.old.value,
        new=pair.new.value,
        change=None,
        margin=pair.margin if pair.metric.is_share else math.expm1(pair.margin),
        p_value=None,
        answer="cannot tell",
        smallest=None,
        note=pair.note or "it takes two rounds in each run",
    )


def _margin(metric: Metric, central: float, machine: Effect | None) -> float:
    """As the test takes it; wider for times where the machines differ in speed."""
    if metric.is_share:
        return central * metric.margins
    doubt = 0.0 if machine is None else max(0.0, abs(machine.difference) - _SMALL_DIFFERENCE)
    return math.log1p(central) * metric.margins + (ADJUSTMENT_ERROR * doubt if metric.timed else 0.0)


def _yardstick_logs(document: BenchDocument) -> np.ndarray:
    """(rounds,) float64: mean logarithm of the yardstick beside the subject's blocks, by round; empty where a block
    has none."""
    blocks = [block for mode in _MODES for block in subject_blocks(document, mode)]
    by_round: dict[int, list[float]] = {}
    for block in blocks:
        if not block.yardstick_ms:
            return np.empty(0)
        by_round.setdefault(block.round, []).append(math.log(block.yardstick_ms))
    return np.array([np.mean(by_round[number]) for number in sorted(by_round)])


def _has_bare(document: BenchDocument, adjusted: bool) -> bool:
    """Whether the bare engine was run in every round, with a yardstick where times are put right by one."""
    rounds = {block.round for block in document.bare if block.yardstick_ms or not adjusted}
    return {block.round for block in subject_blocks(document, "saturated")} <= rounds


def _machine(old: BenchDocument, new: BenchDocument) -> Effect | None:
    """How the machine's own speed differs; None without yardsticks in both."""
    logs = _yardstick_logs(old), _yardstick_logs(new)
    return effect(*logs) if min(map(len, logs)) > 1 else None


def _relative(machine: Effect) -> Estimate:
    low, high = machine.interval()
    return Estimate(value=math.expm1(machine.difference), low=math.expm1(low), high=math.expm1(high))


def _elsewhere(metric: Metric, old: BenchDocument, new: BenchDocument) -> bool:
    """Whether the runs measured this under different orders, so that there is nothing to compare."""
    if metric.mode != "camera":
        return False
    pace = [(d.source.fps, d.recipe.late, d.source.live) for d in (old, new)]
    return pace[0] != pace[1] or (metric.is_share and old.deadline_ms != new.deadline_ms)


def _not_judged(metric: Metric, old: BenchDocument, new: BenchDocument, machine: Effect | None) -> str:
    """Why a metric cannot be put right for the machine's speed; empty where it can, or need not be."""
    if machine is None or abs(machine.difference) <= math.log1p(MARGIN) or not metric.is_share:
        return ""
    if any(block.dropped for document in (old, new) for block in subject_blocks(document, "camera")):
        return "the machine's own speed differs, and nobody knows which frames it would have dropped at equal speed"
    return ""


def _refuse_other_work(old: BenchDocument, new: BenchDocument) -> None:
    for what, before, after in (
        ("frames", _size(old), _size(new)),
        ("backend", old.recipe.backend, new.recipe.backend),
        ("schedule", _schedule(old), _schedule(new)),
    ):
        if before != after:
            raise RecipeError(
                f"compare: the runs did different work: {what} {before} in the old one, {after} in the new one.",
                hint="Run edge-sdk bench again as the old run was made.",
            )


def _size(document: BenchDocument) -> str:
    return f"{document.source.width} x {document.source.height}"


def _schedule(document: BenchDocument) -> str:
    row = document.row(SUBJECT)
    settings = row.schedule.model_dump()
    kind = settings.pop("kind")
    told = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    return (
        f"'{kind}'{f' ({told})' if told else ''}{', keyframes beside the frames' if row.background else ''}"
    )


def _differences(old: BenchDocument, new: BenchDocument) -> Iterator[Difference]:
    """What a reader must have in mind, the machine first; packages one by one."""
    before, after = _facts(old), _facts(new)
    for what in dict.fromkeys((*before, *after)):
        if before.get(what) != after.get(what):
            yield Difference(what=what, old=before.get(what, "none"), new=after.get(what, "none"))


def _facts(document: BenchDocument) -> dict[str, str]:
    conditions, machine, source, recipe = (
        document.conditions,
        document.machine,
        document.source,
        document.recipe,
    )
    found = {
        "machine": conditions.machine,
        "processor": conditions.cpu,
        "processors": conditions.cores,
        "accelerator": machine.accelerator,
        "power mode": machine.power_mode,
        "clocks locked": machine.clocks_locked,
        "governors": ", ".join(machine.governors) or None,
        "threads": conditions.threads,
        "engine": document.row(SUBJECT).engine,
        "source": source.uri,
        "frames a second": f"{source.fps:g}",
        "late frames": "drop" if source.live else recipe.late,
        "deadline": f"{document.deadline_ms:.2f} ms",
        "rounds": recipe.round_count,
        "length": f"{recipe.length_s:g} s",
        "edge_sdk": conditions.sdk_version,
        "python": conditions.python,
        **conditions.packages,
        **machine.engine_report,
    }
    return {what: str(value) for what, value in found.items() if value is not None}


def _label(document: BenchDocument) -> str:
    commit = document.conditions.commit
    return document.conditions.date + (f", commit {commit[:12]}" if commit else "")


def _remarks(old: BenchDocument, new: BenchDocument) -> Iterator[str]:
    for which, document in (("old", old), ("new", new)):
        verdict = document.verdict
        if verdict.grade != "sound":
            more = f" ({len(verdict.reasons) - 1} more)" if len(verdict.reasons) > 1 else ""
            yield f"the {which} run is {verdict.grade}: {verdict.reasons[0]}{more}"
    if any(_elsewhere(metric, old, new) for metric in METRICS):
        yield "the runs differ in pace or deadline: figures that rest on it are not compared"
