"""Turn any network into a delta network: fold batch norm, give every chosen convolution its student candidates."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from edge_sdk.distill.candidates import (
    candidate_macs,
    conv_macs,
    full_candidate,
    layer_rank,
    low_rank_candidate,
)
from edge_sdk.distill.delta import DeltaBlock, DeltaConv2d, DeltaNet, KeptBlock
from edge_sdk.distill.recipes import DeltaSettings
from edge_sdk.distill.surgery import copy_of, fold, matches, obstacle, replace
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
    """A delta network and what was done to each convolution."""

    net: DeltaNet
    layers: tuple[LayerReport, ...]


def to_delta(teacher: nn.Module, example: Tensor, settings: DeltaSettings) -> Conversion:
    """Convert a copy of ``teacher``; the teacher itself is left as it is.

    Args:
        teacher: any module mapping (N, 3, h, w) to outputs.
        example: one input (1, 3, h, w), float32, to watch the module run.
        settings: which layers, which candidates.

    Raises:
        ConversionError: a pattern matches no convolution, nothing is left to convert, or the converted network does
            not agree with the teacher.
    """
    network = copy_of(teacher).eval()
    probe = probe_like(example)
    expected = answer(network, probe)
    uses = survey(network, example)
    check_patterns("delta", settings, ("include", "exclude", "full"), uses)
    for use in uses:
        if use.norm is not None and obstacle(use.conv) is None:
            fold(network, use.conv, use.norm)
    tape = Tape()
    blocks = _blocks(network, settings.blocks, "blocks")
    kept = _blocks(network, settings.kept, "kept")
    _check_apart(blocks, kept)
    check_blocks(network, example, blocks | kept)
    homes = {id(m): f"block {name}" for name, block in blocks.items() for m in block.modules()}
    homes |= {id(m): f"kept {name}" for name, block in kept.items() for m in block.modules()}
    reports, replaced = _convert_layers(uses, homes, settings, tape)
    for name, block in blocks.items():
        replaced[id(block)] = DeltaBlock(block, name, tape, _narrow(block, settings))
    replaced |= {id(block): KeptBlock(block, name, tape) for name, block in kept.items()}
    if not replaced:
        reasons = sorted({report.reason for report in reports}) or ["the network has no Conv2d"]
        raise ConversionError(
            f"'delta': no convolution of {type(teacher).__name__} can be converted ({'; '.join(reasons)}).",
            hint="Widen delta.include, or choose a larger gamma.",
        )
    replace(network, replaced)
    net = DeltaNet(network, tape)
    check_conversion(net, probe, expected)
    unused = _drop_unused(net, example)
    reports = [_told(row, unused) for row in reports]
    return Conversion(net, tuple(reports))


def _convert_layers(
    uses: list[ConvUse], homes: dict[int, str], settings: DeltaSettings, tape: Tape
) -> tuple[list[LayerReport], dict[int, nn.Module]]:
    """Students for every convolution that is not inside a block or kept part, and the table of all of them.

    Args:
        uses: the network's convolutions in order.
        homes: for each module inside a block or kept part, by identity, the reason to give.

    Returns:
        the table, and the new layers by the identity of those they replace.
    """
    reports: list[LayerReport] = []
    replaced: dict[int, nn.Module] = {}
    for index, use in enumerate(uses):
        macs = sum(conv_macs(use.conv, hw)[0] for hw in use.inputs)
        home = homes.get(id(use.conv))
        if home is not None:
            cheapest = 0 if home.startswith("kept ") else _block_macs(use, settings)
            reports.append(LayerReport(use.name, True, home, macs, cheapest))
            continue
        reason = _left_alone(index, len(uses), use, settings)
        layer, cheapest = _students(use, settings, tape) if reason is None else (None, macs)
        if layer is None:
            reports.append(LayerReport(use.name, False, reason or "no cheaper candidate", macs, macs))
            continue
        replaced[id(use.conv)] = layer
        candidates = (("full", layer.g_full), ("low rank", layer.g_low))
        held = " and ".join(name for name, candidate in candidates if candidate is not None)
        reports.append(LayerReport(use.name, True, held, macs, cheapest))
    return reports, replaced


def _drop_unused(net: DeltaNet, example: Tensor) -> set[str]:
    """Put the teacher's own layers back where they feed only kept blocks: their state would never be read.

    Returns:
        their labels.
    """
    unused = net.unused_state(example)
    joined = [m for m in net.network.modules() if isinstance(m, DeltaConv2d | DeltaBlock | KeptBlock)]
    with torch.no_grad():
        state = net.keyframe(example)[1]
    used = {name.split(".call")[0] for name in state if name not in unused}
    dropped = {m.label: m for m in joined if m.label not in used}
    replace(net.network, {id(m): m.restored() for m in dropped.values()})
    return set(dropped)


def _told(row: LayerReport, unused: set[str]) -> LayerReport:
    """A layer's row, corrected where nothing reads the layer between keyframes."""
    if row.name in unused or any(row.reason.endswith(f" {label}") for label in unused):
        return LayerReport(row.name, False, "feeds only what is kept", row.macs, 0)
    return row


def _check_apart(blocks: dict[str, nn.Module], kept: dict[str, nn.Module]) -> None:
    for name in kept:
        for other in blocks:
            if name == other or name.startswith(f"{other}.") or other.startswith(f"{name}."):
                raise ConversionError(
                    f"'delta.kept': '{name}' overlaps with the block '{other}' of 'delta.blocks'.",
                    hint="Name each part of the network under one of the two.",
                )


def _blocks(network: nn.Module, patterns: tuple[str, ...], key: str) -> dict[str, nn.Module]:
    """Modules named by the patterns of setting ``key``, outermost first; one inside another is part of it."""
    blocks: dict[str, nn.Module] = {}
    taken: set[int] = set()
    named = list(network.named_modules(remove_duplicate=False))
    for name, module in named:
        if name and matches(name, patterns) and id(module) not in taken:
            blocks[name] = module
            taken |= {id(m) for m in module.modules()}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name, _ in named):
            raise ConversionError(
                f"'delta.{key}': the pattern '{pattern}' matches no module.",
                hint=f"The network's parts are: {', '.join(n for n, _ in network.named_children())}.",
            )
    return blocks


def _narrow(block: nn.Module, settings: DeltaSettings) -> nn.Module:
    """A copy of a block whose convolutions are low rank where that is cheaper."""
    student = copy.deepcopy(block)
    convs = {id(m): m for m in student.modules() if isinstance(m, nn.Conv2d)}
    cheaper: dict[int, nn.Module] = {
        key: low_rank_candidate(conv, _rank(conv, settings), bias=True)
        for key, conv in convs.items()
        if obstacle(conv) is None and _low_rank_pays(conv, settings)
    }
    replace(student, cheaper)
    return cheaper.get(id(student), student)


def _rank(conv: nn.Conv2d, settings: DeltaSettings) -> int:
    return layer_rank(conv, settings.gamma, settings.rank_rule, settings.rank_multiple)


def _low_rank_pays(conv: nn.Conv2d, settings: DeltaSettings) -> bool:
    in_hw = (64, 64)  # an example: both sides grow with the area
    low = candidate_macs(low_rank_candidate(conv, _rank(conv, settings)), in_hw)
    return low < conv_macs(conv, in_hw)[0]


def _block_macs(use: ConvUse, settings: DeltaSettings) -> int:
    """Multiply-accumulates of a convolution inside a narrowed block."""
    conv = use.conv
    if obstacle(conv) is not None or not _low_rank_pays(conv, settings):
        return sum(conv_macs(conv, hw)[0] for hw in use.inputs)
    low = low_rank_candidate(conv, _rank(conv, settings))
    return sum(candidate_macs(low, hw) for hw in use.inputs)


def _left_alone(index: int, count: int, use: ConvUse, settings: DeltaSettings) -> str | None:
    """Why this convolution is not converted, or ``None``."""
    reason = left_alone(index, count, use, settings)
    depthwise = 1 < use.conv.groups == use.conv.in_channels and not fits(use, settings.full)
    if depthwise and reason not in ("first", "last", "not included", "excluded"):
        return "depthwise: nothing is much cheaper"
    return reason


def _students(use: ConvUse, settings: DeltaSettings, tape: Tape) -> tuple[DeltaConv2d | None, int]:
    """The converted layer with its candidates and the cheapest one's cost; no layer where none is cheaper."""
    conv = use.conv
    teacher = sum(conv_macs(conv, hw)[0] for hw in use.inputs)
    low = low_rank_candidate(conv, _rank(conv, settings))
    low_macs = sum(candidate_macs(low, hw) for hw in use.inputs)
    only_full = settings.candidates == "full" or fits(use, settings.full)
    if only_full:
        return DeltaConv2d(conv, use.name, tape, full_candidate(conv), None, calls=len(use.inputs)), teacher
    if low_macs >= teacher:
        return None, teacher
    full = full_candidate(conv) if settings.candidates == "both" else None
    return DeltaConv2d(conv, use.name, tape, full, low, calls=len(use.inputs)), low_macs
