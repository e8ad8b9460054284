"""Turn any network into a delta network: fold batch norm, give every chosen convolution its student candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edge_sdk.distill.candidates import candidate_macs, full_candidate, layer_rank, low_rank_candidate
from edge_sdk.distill.delta import Candidate, DeltaBlock, DeltaConv2d, DeltaNet, Joined
from edge_sdk.distill.delta_recipe import DeltaSettings
from edge_sdk.distill.kinds import Kind, macs_of, narrowed, student_of
from edge_sdk.distill.parts import Part, narrowed_by, parts_of
from edge_sdk.distill.surgery import copy_of, fold, obstacle, replace
from edge_sdk.distill.survey import ConvUse, check_blocks, check_patterns, fits, left_alone, survey
from edge_sdk.distill.tape import Tape
from edge_sdk.distill.verify import answer, check_conversion, probe_like
from edge_sdk.errors import ConversionError


@dataclass(frozen=True)
class LayerReport:
    """What became of one convolution.

    Attributes:
        name: layer name.
        converted: whether it has a student; otherwise it runs in full on every frame, exactly.
        reason: why it has none, or which candidates it has.
        macs: multiply-accumulates of the teacher layer in one frame, all calls together.
        student_macs: of its cheapest candidate, or of the layer itself.
    """

    name: str
    converted: bool
    reason: str
    macs: int
    student_macs: int


@dataclass(frozen=True)
class Conversion:
    """A delta network and what was done to each convolution.

    Attributes:
        net: the network.
        layers: a row for each convolution.
        units: by unit, what its student may be, and the multiply-accumulates of each in one frame.
        unused: units that feed only what is kept, whatever is still to be chosen; they are the teacher's own again.
    """

    net: DeltaNet
    layers: tuple[LayerReport, ...]
    units: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Found:
    """Students of units: new modules by the identity of those they replace, and rows and costs by name."""

    replaced: dict[int, nn.Module] = field(default_factory=dict)
    macs: dict[str, dict[str, int]] = field(default_factory=dict)


def to_delta(teacher: nn.Module, example: Tensor, settings: DeltaSettings) -> Conversion:
    """Convert a copy of ``teacher``; the teacher itself is left as it is.

    Args:
        teacher: any module mapping (N, 3, h, w) to outputs.
        example: one input (1, 3, h, w), float32, to watch the module run.
        settings: which layers and parts, which candidates.

    Raises:
        ConversionError: a pattern matches nothing, nothing is left to convert, or the converted network does not agree
            with the teacher.
        RecipeError: ``settings.choice`` names no unit, or what the unit may not be.
    """
    network = copy_of(teacher).eval()
    probe = probe_like(example)
    expected = answer(network, probe)
    uses = survey(network, example)
    check_patterns("delta", settings, ("include", "exclude", "full"), uses)
    for use in uses:
        if use.norm is not None and obstacle(use.conv) is None:
            fold(network, use.conv, use.norm)
    tape, found = Tape(), _Found()
    parts = parts_of(network, settings)
    check_blocks(network, example, {p.name: p.module for p in parts if not p.linear})
    homes = {id(m): part for part in parts for m in part.module.modules()}
    reports = _convert_layers(uses, homes, settings, tape, found)
    for part in parts:
        _convert_part(part, [use for use in uses if homes.get(id(use.conv)) is part], settings, tape, found)
    if not found.replaced:
        reasons = sorted({report.reason for report in reports}) or ["the network has no Conv2d"]
        raise ConversionError(
            f"'delta': no convolution of {type(teacher).__name__} can be converted ({'; '.join(reasons)}).",
            hint="Widen delta.include, or choose a larger gamma.",
        )
    narrowed_by(settings.choice, found.macs, "delta.choice")
    replace(network, found.replaced)
    net = DeltaNet(network, tape)
    _check_each(net, probe, expected)
    unused = drop_unused(net, example)
    units = {name: macs for name, macs in found.macs.items() if name not in unused}
    return Conversion(net, tuple(_told(row, unused) for row in reports), units, frozenset(unused))


def _check_each(net: DeltaNet, probe: Tensor, expected: list[Tensor]) -> None:
    """Check the network with each candidate of its units in turn."""
    for index in range(max((len(unit.candidates) for unit in net.units.values()), default=1)):
        with net.each_as(index):
            check_conversion(net, probe, expected)


def _convert_layers(
    uses: list[ConvUse], homes: Mapping[int, Part], settings: DeltaSettings, tape: Tape, found: _Found
) -> list[LayerReport]:
    """Students for every convolution that is not part of a unit that was named, and the table of all of them.

    Args:
        uses: the network's convolutions in order.
        homes: for each module of a named unit, by identity, that unit.
    """
    reports: list[LayerReport] = []
    for index, use in enumerate(uses):
        macs = sum(macs_of(use.conv, hw, Kind(), settings) for hw in use.inputs)
        part = homes.get(id(use.conv))
        if part is not None:
            names = _narrowed(part.name, part.candidates, settings)
            cheapest = min(_use_macs(use, Kind.parse(name), settings) for name in names)
            reports.append(LayerReport(use.name, True, part.reason(names), macs, cheapest))
            continue
        reason = _left_alone(index, len(uses), use, settings)
        published = _published(use, settings) if reason is None else {}
        if not published:
            reports.append(LayerReport(use.name, False, reason or "no cheaper candidate", macs, macs))
            continue
        found.macs[use.name] = {name: cost for name, (_, cost) in published.items()}
        names = _narrowed(use.name, tuple(published), settings)
        candidates = [published[name][0] for name in names]
        found.replaced[id(use.conv)] = DeltaConv2d(
            use.conv, use.name, tape, candidates, calls=len(use.inputs)
        )
        held = " and ".join("full" if name == "full" else "low rank" for name in names)
        cheapest = min(published[name][1] for name in names)
        reports.append(LayerReport(use.name, True, held, macs, cheapest))
    return reports


def _convert_part(
    part: Part, uses: list[ConvUse], settings: DeltaSettings, tape: Tape, found: _Found
) -> None:
    """Students of one unit that was named; ``uses`` are the convolutions in it."""
    candidates = _candidates(part, uses, settings, found)
    if part.linear and isinstance(part.module, nn.Conv2d):
        if not uses:
            raise ConversionError(
                f"'delta.units': expected '{part.name}' to be called, it is not.",
                hint="Leave it out of delta.units.",
            )
        unit: Joined = DeltaConv2d(part.module, part.name, tape, candidates, calls=len(uses[0].inputs))
    else:
        unit = DeltaBlock(part.module, part.name, tape, candidates)
    found.replaced[id(part.module)] = unit


def _narrowed(name: str, candidates: tuple[str, ...], settings: DeltaSettings) -> tuple[str, ...]:
    """What the choice leaves of a unit's candidates; one that it may not be is refused later, with all units known."""
    chosen = settings.choice.get(name)
    return (chosen,) if chosen in candidates and chosen is not None else candidates


def _candidates(
    part: Part, uses: Sequence[ConvUse], settings: DeltaSettings, found: _Found
) -> list[Candidate]:
    """The students of a named unit, ``uses`` being the convolutions in it, and note what each costs."""
    kinds = {name: Kind.parse(name) for name in part.candidates}
    found.macs[part.name] = {
        name: sum(_use_macs(use, kind, settings) for use in uses) for name, kind in kinds.items()
    }
    if part.key == "blocks":
        # A convolution among them keeps its bias too, as checkpoints have it.
        ((name, kind),) = kinds.items()
        return [Candidate(name, "g_block", narrowed(part.module, kind, settings))]
    return [
        Candidate(name, kinds[name].part, student_of(part.module, kinds[name], settings))
        for name in _narrowed(part.name, part.candidates, settings)
    ]


def _use_macs(use: ConvUse, kind: Kind, settings: DeltaSettings) -> int:
    return sum(macs_of(use.conv, hw, kind, settings) for hw in use.inputs)


def drop_unused(net: DeltaNet, example: Tensor) -> set[str]:
    """Put the teacher's own layers back where they feed only kept units: their state would never be read.

    Returns:
        their labels.
    """
    unused = net.unused_state(example)
    with torch.no_grad():
        state = net.keyframe(example)[1]
    used = {name.split(".call")[0] for name in state if name not in unused}
    dropped = {label: unit for label, unit in net.units.items() if label not in used}
    replace(net.network, {id(unit): unit.restored() for unit in dropped.values()})
    return set(dropped)


def _told(row: LayerReport, unused: set[str]) -> LayerReport:
    """A layer's row, corrected where nothing reads the layer between keyframes."""
    if row.name in unused or any(row.reason.endswith(f" {label}") for label in unused):
        return LayerReport(row.name, False, "feeds only what is kept", row.macs, 0)
    return row


def _left_alone(index: int, count: int, use: ConvUse, settings: DeltaSettings) -> str | None:
    """Why this convolution is not converted, or ``None``."""
    reason = left_alone(index, count, use, settings)
    depthwise = 1 < use.conv.groups == use.conv.in_channels and not fits(use, settings.full)
    if depthwise and reason not in ("first", "last", "not included", "excluded"):
        return "depthwise: nothing is much cheaper"
    return reason


def _published(use: ConvUse, settings: DeltaSettings) -> dict[str, tuple[Candidate, int]]:
    """The candidates of a convolution that no pattern names as a unit, and what each costs; none if none is cheaper."""
    conv, whole = use.conv, _use_macs(use, Kind(), settings)
    full = Candidate("full", "g_full", full_candidate(conv)), whole
    if settings.candidates == "full" or fits(use, settings.full):
        return {"full": full}
    rank = layer_rank(conv, settings.gamma, settings.rank_rule, settings.rank_multiple)
    student = low_rank_candidate(conv, rank)
    # On the very sizes: at odd ones a strided convolution may gain what it does not at even ones.
    macs = sum(candidate_macs(student, hw) for hw in use.inputs)
    if macs >= whole:
        return {}
    name = str(Kind("rank", settings.gamma))
    low = Candidate(name, "g_low", student), macs
    return {"full": full, name: low} if settings.candidates == "both" else {name: low}
