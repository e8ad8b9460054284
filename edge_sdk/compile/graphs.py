"""Step graphs as modules: camera frame in, decoded answer out, with one of a method's two steps between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edge_sdk.distill.frames import FrameToInput
from edge_sdk.distill.steps import TRUST, State, StepPair
from edge_sdk.errors import ConversionError
from edge_sdk.tasks.base import TaskSpec


class Decoder(nn.Module):
    """Class logits (1, C, h, w) to a class mask (H, W) uint8 at frame size.

    Args:
        size_hw: frame size.
        stride: the answer is computed for every ``stride``-th pixel and repeated between; 1 decides every pixel.
    """

    def __init__(self, size_hw: tuple[int, int], stride: int) -> None:
        super().__init__()
        self.size_hw, self.stride = size_hw, stride

    def forward(self, logits: Tensor) -> Tensor:
        """The mask of ``logits``."""
        height, width = self.size_hw
        step = self.stride
        mask = self.resized(logits).argmax(1).squeeze(0).to(torch.int32)
        if step > 1:
            # Repeating by concatenation: engines run it as a copy, where an expansion or a resize is slow or missing.
            rows, columns = mask.shape
            mask = torch.cat([mask[:, :, None]] * step, 2).reshape(rows, columns * step)
            mask = torch.cat([mask] * step, 1).reshape(rows * step, columns * step)[:height, :width]
        # Last, because TensorRT knows bytes only at a graph's border.
        return mask.to(torch.uint8)

    def resized(self, logits: Tensor) -> Tensor:
        """The logits of the places that are decided."""
        small = [-(-side // self.stride) for side in self.size_hw]
        return F.interpolate(logits, size=small, mode="bilinear", align_corners=False)


class ClassDecoder(nn.Module):
    """Class logits (1, C) to scores (C,) float32 in 0-1: shares of one, or with ``multi_label`` each by itself."""

    def __init__(self, multi_label: bool) -> None:
        super().__init__()
        self.multi_label = multi_label

    def forward(self, logits: Tensor) -> Tensor:
        """The scores of ``logits``."""
        # The batch goes last: TensorRT has no softmax over a tensor of one axis.
        own = logits.float()
        return (own.sigmoid() if self.multi_label else own.softmax(1)).squeeze(0)


def decoder_for(task: TaskSpec, frame_hw: tuple[int, int], stride: int) -> nn.Module:
    """What turns a network's logits into the answer of a task.

    Args:
        task: what the answer means.
        frame_hw: height and width of the camera's frames.
        stride: of a segmentation, see :class:`Decoder`.
    """
    if task.kind == "classification":
        return ClassDecoder(task.multi_label)
    return Decoder(frame_hw, stride)


class StepGraph(nn.Module):
    """One step as it is exported: ``forward(frame, *state) -> (answer, *written state[, trust])``.

    Args:
        pair: the method.
        step: ``keyframe`` or ``delta``.
        to_input, decoder: the nodes before and after the network.
        reads: names of the state tensors, in the order in which they are given.
        matmul_resize: write bilinear resizing as two matrix products, see :class:`BilinearAsMatmul`.

    Attributes:
        writes: names of the state tensors that it writes, once it has been run.
        tells: whether its last output is trust, once it has been run.
    """

    def __init__(
        self, pair: StepPair, step: str, to_input: FrameToInput, decoder: nn.Module, reads: Sequence[str],
        *, matmul_resize: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.pair, self.step = pair, step
        self.to_input, self.decoder = to_input, decoder
        self.reads = tuple(reads)
        self.writes: tuple[str, ...] = ()
        self.tells = False
        self.matmul_resize = matmul_resize

    def forward(self, frame: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Run the step on ``frame`` (H, W, 3) uint8 BGR.

        Raises:
            ConversionError: what the pair returns as trust is none.
        """
        if self.matmul_resize:
            with BilinearAsMatmul():
                return self._run(frame, state)
        return self._run(frame, state)

    def _run(self, frame: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # Cast first, because TensorRT knows bytes only at a graph's border.
        x = self.to_input(frame.float()[None])
        written: State
        if self.step == "keyframe":
            logits, written = self.pair.keyframe(x)
        else:
            logits, written = self.pair.delta(x, dict(zip(self.reads, state, strict=True)))
        state_of = {name: value for name, value in written.items() if name != TRUST}
        self.writes, self.tells = tuple(state_of), TRUST in written
        told = [self._trust(written[TRUST])] if self.tells else []
        return (self.decoder(logits), *state_of.values(), *told)

    def _trust(self, trust: Tensor) -> Tensor:
        """``trust`` checked, as float32."""
        if self.step == "keyframe":
            raise ConversionError(
                f"keyframe step: it returns '{TRUST}', the name of what a delta step tells of its keyframe.",
                hint="Give that state tensor another name.",
            )
        if trust.ndim or not trust.is_floating_point():
            raise ConversionError(
                f"delta step: '{TRUST}' is how much of the keyframe holds, expected a float of shape (), "
                f"got {tuple(trust.shape)} {str(trust.dtype).removeprefix('torch.')}.",
                hint=f"Return one number, such as confidence.mean(), and name state anything but '{TRUST}'.",
            )
        return trust.float()


class BilinearAsMatmul(TorchFunctionMode):
    """Writes bilinear resizing to a fixed size as two products with constant matrices: exact, and on CPUs several times
    faster than the resize kernels of inference engines."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.interpolate:
            out = self._resize(*args, **kwargs)
            if out is not None:
                return out
        return func(*args, **kwargs)

    @staticmethod
    def _resize(
        x: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
        align_corners: bool | None = None, recompute_scale_factor: bool | None = None, antialias: bool = False,
    ) -> Tensor | None:  # fmt: skip
        if mode != "bilinear" or antialias or size is None or x.ndim != 4:
            return None
        out_h, out_w = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        height, width = int(x.shape[-2]), int(x.shape[-1])
        # The narrow axis first: the product in between stays small. An axis that keeps its size needs no product.
        if out_w != width:
            x = torch.matmul(x, _weights(width, out_w, align_corners, x).T)
        return x if out_h == height else torch.matmul(_weights(height, out_h, align_corners, x), x)


def _weights(size: int, out: int, align_corners: bool | None, like: Tensor) -> Tensor:
    """Matrix (out, size) that resizes one axis linearly."""
    scale = (size - 1) / (out - 1) if align_corners and out > 1 else size / out
    rows: list[list[float]] = []
    for index in range(out):
        place = index * scale if align_corners else max((index + 0.5) * scale - 0.5, 0.0)
        low = min(int(place), size - 1)
        share = min(place - low, 1.0)
        row = [0.0] * size
        row[low] += 1 - share
        row[min(low + 1, size - 1)] += share
        rows.append(row)
    return torch.tensor(rows, dtype=like.dtype, device=like.device)
