"""Gated layers over the streams: agreement with the teacher against open share. Each row is kept under runs/skip."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from cases import INTERVALS, RUNS, Case, Stream, Variant, task_of, teacher_of, variants

from edge_sdk.distill.frames import FrameToInput
from edge_sdk.distill.modules import load_module
from edge_sdk.distill.recipes import Preprocess
from edge_sdk.distill.skip.measure import Opened, StreamWork, follow
from edge_sdk.distill.skip.net import SkipConversion, to_skip
from edge_sdk.distill.skip.train import load_skip
from edge_sdk.distill.train import mask_of
from edge_sdk.evaluate.baselines import copied, flowed
from edge_sdk.evaluate.metrics import plan, primary
from edge_sdk.files import sha256_of, write_text
from edge_sdk.progress import Progress
from edge_sdk.tasks import Segmentation, task_from_spec

Row = dict[str, Any]


def scored(stream: Stream, teacher: Sequence[Segmentation], masks: Iterable[np.ndarray]) -> Row:
    """Mean IoU of one mask a frame against the teacher's and against the labels, and frames equal to the teacher's."""
    task = task_from_spec(task_of())
    agreement, labels = task.score(), task.score()
    equal = 0
    for index, mask in enumerate(masks):
        found, truth = Segmentation(mask), stream.truths[index]
        agreement.update(found, teacher[index])
        equal += int(np.array_equal(mask, teacher[index].mask))
        if truth is not None:
            labels.update(found, truth)
    return {"agreement": primary(agreement), "miou": primary(labels), "equal_frames": equal}


def layer_rows(case: Case, stream: Stream, progress: Progress) -> list[Row]:
    """The teacher, copy and flow at each interval, and every variant."""
    network = load_module(teacher_of(case)).eval()
    to_input = FrameToInput(Preprocess())
    height, width = stream.images[0].shape[:2]
    with torch.inference_mode():
        inputs = [to_input(torch.from_numpy(image)[None]) for image in stream.images]
        teacher = [Segmentation(mask_of(network(x), (height, width))) for x in inputs]
    example = torch.zeros(1, 3, height, width)
    keyframe_macs = to_skip(network, example, variants(case)[0].settings).work.keyframe
    rows: list[Row] = [
        {"name": "teacher", "interval": 1, **scored(stream, teacher, (t.mask for t in teacher))}
        | {"open": None, "gmac": keyframe_macs / 1e9}
    ]
    for interval in INTERVALS:
        planned = plan(len(inputs), interval, 0)
        share = sum(p.distance == 0 for p in planned) / len(planned)
        for name, masks in (
            ("copy", copied(planned, teacher)),
            ("flow", flowed(planned, teacher, stream.images)),
        ):
            found = scored(stream, teacher, (mask for _, mask in masks))
            rows.append({"name": name, "interval": interval, **found, "open": 0.0})
            rows[-1]["gmac"] = share * keyframe_macs / 1e9
    todo = variants(case)
    for done, variant in enumerate(todo):
        progress.update(f"gates on {case.name}", done, len(todo))
        rows.append(_kept(case, variant, lambda v=variant: _measured(v, network, stream, inputs, teacher)))  # type: ignore[misc]
    progress.update(f"gates on {case.name}", len(todo), len(todo))
    return rows


def _conversion(variant: Variant, network: torch.nn.Module, example: torch.Tensor) -> SkipConversion:
    if variant.checkpoint is None:
        return to_skip(network, example, variant.settings)
    net, recipe, _ = load_skip(variant.checkpoint)
    # Work is counted at the size of this stream's frames.
    return SkipConversion(net, to_skip(network, example, recipe.skip).work)


def _measured(
    variant: Variant, network: torch.nn.Module, stream: Stream, inputs: Sequence[torch.Tensor],
    teacher: Sequence[Segmentation],
) -> Row:  # fmt: skip
    conversion = _conversion(variant, network, torch.zeros_like(inputs[0]))
    opened: list[Opened | None] = []
    masks = []
    exact = 0
    all_opens = variant.settings.gate != "gumbel" and variant.settings.eps == 0
    with torch.inference_mode():
        for x, (logits, found) in zip(inputs, follow(conversion.net, inputs, variant.interval), strict=True):
            opened.append(found)
            masks.append(mask_of(logits, teacher[0].mask.shape))
            if all_opens:
                exact += int(torch.equal(logits, conversion.net.teacher(x)))
    spent = StreamWork.of(conversion.work, opened)
    row = {
        "name": variant.name, "interval": variant.interval, **scored(stream, teacher, masks),
        "open": spent.open_share, "gmac": spent.macs / 1e9,
    }  # fmt: skip
    # Against the network with its batch norms folded, which is what both steps are made of.
    return row | ({"exact_frames": exact} if all_opens else {})


def _kept(case: Case, variant: Variant, make: Any) -> Row:
    """The row from an earlier, interrupted run with the same settings and weights, or made now."""
    weights = [sha256_of(case.teacher), sha256_of(variant.checkpoint) if variant.checkpoint else ""]
    what = [repr(case), variant.name, variant.settings.model_dump_json(), str(variant.interval), *weights]
    file = RUNS / "rows" / f"{hashlib.sha256(chr(10).join(what).encode()).hexdigest()[:16]}.json"
    if file.is_file():
        return dict(json.loads(file.read_text()))
    row: Row = make()
    write_text(file, json.dumps(row))
    return row
