"""A gated network over a stream: answers and open shares, frame by frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_sdk.distill.frames import FrameSet, FrameToInput
from edge_sdk.distill.skip.macs import Work
from edge_sdk.distill.skip.net import SkipPair
from edge_sdk.distill.steps import State
from edge_sdk.distill.train import mask_of
from edge_sdk.tasks import Segmentation, task_from_spec
from edge_sdk.tasks.base import TaskSpec

Opened = Mapping[str, float]


@dataclass(frozen=True)
class StreamWork:
    """Work over the frames of a stream.

    Attributes:
        open_share: of the gated layers, weighted by their multiply-accumulates; mean over the frames between
            keyframes; nan where there is none.
        macs: multiply-accumulates a frame, keyframes counted in.
    """

    open_share: float
    macs: float

    @classmethod
    def of(cls, work: Work, opened: list[Opened | None]) -> StreamWork:
        """Of one entry a frame, ``None`` for a keyframe."""
        shares = [work.open_share(found) for found in opened if found is not None]
        return cls(sum(shares) / len(shares) if shares else float("nan"), work.amortised(opened))


def follow(pair: SkipPair, inputs: Iterable[Tensor], interval: int) -> Iterator[tuple[Tensor, Opened | None]]:
    """Run the pair over network inputs (1, 3, h, w) with a keyframe every ``interval`` frames, the first one too.

    Yields:
        the frame's logits, and the open share of each gated layer; None at a keyframe.
    """
    state: State = {}
    for index, x in enumerate(inputs):
        if index % interval == 0:
            logits, state = pair.keyframe(x)
            yield logits, None
        else:
            logits, changes, opened = pair.measured(x, state)
            state = {**state, **changes}
            yield logits, {key: float(share.mean()) for key, share in opened.items()}


def stream_figures(
    pair: SkipPair, work: Work, to_input: FrameToInput, frames: FrameSet, task: TaskSpec, interval: int
) -> dict[str, float]:
    """mIoU, open share and multiply-accumulates over labelled clips, each from a keyframe on."""
    score = task_from_spec(task).score()
    device = next(pair.parameters()).device
    was_training = pair.training
    pair.eval()
    opened: list[Opened | None] = []
    with torch.no_grad():
        for start, stop in frames.clips:
            clip = (to_input(torch.from_numpy(frames.images[i])[None].to(device)) for i in range(start, stop))
            for index, (logits, found) in enumerate(follow(pair, clip, interval), start):
                opened.append(found)
                mask = frames.masks[index]
                if mask is not None:
                    score.update(Segmentation(mask_of(logits, mask.shape)), Segmentation(mask))
    pair.train(was_training)
    spent = StreamWork.of(work, opened)
    return {"miou": score.compute()[score.primary], "open": spent.open_share, "macs": spent.macs}
