"""The training loop every method shares: Lightning Fabric around one module whose ``forward`` is the loss.

Batches are a pure function of (seed, step, rank), so a run that was stopped continues exactly where its last checkpoint
left it. Under ``torchrun`` every process takes its own batches and gradients are averaged.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from edge_sdk.distill.modules import read_checkpoint, save_checkpoint
from edge_sdk.distill.recipes import LoopSettings, Optimiser
from edge_sdk.errors import CheckpointError, EdgeSdkError
from edge_sdk.files import require_writable
from edge_sdk.progress import Progress, Silent

Batch = dict[str, Tensor]
# Keys of a recipe that may change between a run and the one that goes on from it.
FREE: dict[str, Any] = {"out": True, "loop": {"workers", "checkpoint_every"}}


class Objective(nn.Module):
    """What is trained: ``forward(batch)`` returns the loss and the figures to show."""

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one batch, and figures by name."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def groups(self, optimiser: Optimiser) -> list[dict[str, Any]]:
        """Parameter groups with their learning rates."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": optimiser.lr}]

    def clipped(self) -> Sequence[nn.Module]:
        """Parts whose gradients ``optimiser.clip_norm`` limits, each by its own norm."""
        return (self,)

    def weights(self) -> dict[str, Tensor]:
        """State that a checkpoint keeps."""
        return self.state_dict()


class _Steps(Dataset[Batch]):
    """Batch of each step, made from its own random stream."""

    def __init__(self, draw: Callable[[Any], Batch], seed: int, rank: int) -> None:
        self.draw, self.seed, self.rank = draw, seed, rank

    def __getitem__(self, step: int) -> Batch:
        import numpy as np

        return self.draw(np.random.default_rng([self.seed, step, self.rank]))


def fit(
    objective: Objective,
    draw: Callable[[Any], Batch],
    *,
    loop: LoopSettings,
    optimiser: Optimiser,
    out: Path,
    identity: dict[str, Any],
    stage: str,
    validate: Callable[[], dict[str, float]] | None = None,
    progress: Progress | None = None,
    resume: bool = True,
) -> dict[str, Any]:
    """Train ``objective`` and return its last figures; noise inside it is a function of seed and step.

    Args:
        objective: the module whose forward is the loss.
        draw: makes a batch from a ``numpy`` generator.
        loop, optimiser: settings.
        out: folder; ``last.pt`` in it is the checkpoint to resume from.
        identity: settings that must be equal for a checkpoint to be continued.
        stage: name shown to ``progress``.
        validate: figures to show and keep, called every ``loop.validate_every`` steps and at the end.
        resume: continue from ``last.pt`` where there is one; ``False`` starts over.

    Raises:
        CheckpointError: the checkpoint belongs to other settings.
        EdgeSdkError: the loss is no longer finite.
    """
    fabric = _launched(loop)
    require_writable(out)
    progress = progress if progress is not None and fabric.is_global_zero else Silent()
    plain, schedule = _optimiser(objective, optimiser, loop.steps)
    wrapped, optim = fabric.setup(objective, plain)
    # After the set-up, so that momenta land on the device that their parameters are on.
    start, figures = _restore(out / "last.pt", objective, plain, schedule, identity) if resume else (0, {})
    batches = _batches(fabric, draw, loop, start)
    for step in range(start, loop.steps):
        # The batch comes before the seed, because a loader that starts draws a number for itself.
        batch = next(batches)
        torch.manual_seed(hash((loop.seed, step, fabric.global_rank)) & 0x7FFFFFFF)
        objective.train()
        figures.update(_step(fabric, wrapped, optim, batch, objective.clipped(), optimiser.clip_norm))
        schedule.step()
        if not math.isfinite(figures["loss"]):
            raise EdgeSdkError(
                f"{stage}: the loss became {figures['loss']} at step {step}.",
                hint="Lower optimiser.lr, set optimiser.clip_norm, or use precision 32-true.",
            )
        done = step + 1
        if validate is not None and (done % loop.validate_every == 0 or done == loop.steps):
            figures.update(validate() if fabric.is_global_zero else {})
            fabric.barrier()
        if done % loop.checkpoint_every == 0 or done == loop.steps:
            if fabric.is_global_zero:
                content = {
                    "weights": objective.weights(), "optimiser": optim.state_dict(),
                    "schedule": schedule.state_dict(), "step": done, "figures": figures, "identity": identity,
                }  # fmt: skip
                save_checkpoint(out / "last.pt", content)
            fabric.barrier()
        progress.update(stage, done, loop.steps, **figures)
    return figures


def _launched(loop: LoopSettings) -> Fabric:
    """Fabric on the recipe's devices, or on those that ``torchrun`` gives this process."""
    fabric = Fabric(
        accelerator=loop.accelerator,
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", loop.devices)),
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
        precision=loop.precision,
    )
    fabric.launch()
    return fabric


def _step(
    fabric: Fabric,
    wrapped: Any,
    optim: Any,
    batch: Batch,
    clipped: Sequence[nn.Module],
    clip_norm: float | None,
) -> dict[str, float]:
    """One optimiser step; the loss and the other figures of the batch."""
    loss, shown = wrapped(batch)
    fabric.backward(loss)
    if clip_norm is not None and len(clipped) == 1:
        fabric.clip_gradients(wrapped, optim, max_norm=clip_norm)
    elif clip_norm is not None:
        # Limits nothing, but takes a loss scale back; by norm, Fabric would clip all that the optimiser has as one.
        fabric.clip_gradients(wrapped, optim, clip_val=math.inf)
        for part in clipped:
            nn.utils.clip_grad_norm_(part.parameters(), clip_norm, error_if_nonfinite=True)
    optim.step()
    optim.zero_grad()
    return {"loss": float(loss.detach()), **{name: float(value) for name, value in shown.items()}}


def is_writer() -> bool:
    """Whether this process writes results: the only one, or the first under ``torchrun``."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0


def _one_thread(worker: int) -> None:
    # OpenCV's threads do not survive the fork that made this worker.
    import cv2

    cv2.setNumThreads(0)


def _batches(fabric: Fabric, draw: Callable[[Any], Batch], loop: LoopSettings, start: int) -> Iterator[Batch]:
    steps = _Steps(draw, loop.seed, fabric.global_rank)
    loader: DataLoader[Batch] = DataLoader(
        steps, batch_size=None, sampler=range(start, loop.steps), num_workers=loop.workers,
        prefetch_factor=2 if loop.workers else None, worker_init_fn=_one_thread,
        pin_memory=fabric.device.type == "cuda",
    )  # fmt: skip
    placed: Any = fabric.setup_dataloaders(loader, use_distributed_sampler=False)
    return iter(placed)


def _optimiser(
    objective: Objective, settings: Optimiser, steps: int
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    groups = objective.groups(settings)
    optim: torch.optim.Optimizer
    if settings.kind == "sgd":
        optim = torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, weight_decay=settings.weight_decay)
    else:
        optim = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)

    warm = settings.warmup * steps

    def curve(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        share = min((step - warm) / max(steps - warm, 1), 1.0)
        if settings.curve == "poly":
            return (1 - share) ** 0.9
        return 0.5 * (1 + math.cos(math.pi * share)) if settings.curve == "cosine" else 1.0

    return optim, LambdaLR(optim, curve)


def _restore(
    path: Path,
    objective: Objective,
    optim: torch.optim.Optimizer,
    schedule: LambdaLR,
    identity: dict[str, Any],
) -> tuple[int, dict[str, float]]:
    if not path.is_file():
        return 0, {}
    content = read_checkpoint(path)
    was = content.get("identity") or {}
    # A setting that an older version did not know is one that is left at None.
    keys = sorted(k for k in {*identity, *was} if identity.get(k) != was.get(k))
    if keys:
        raise CheckpointError(
            f"checkpoint {path}: belongs to a training with other settings ({', '.join(keys)}).",
            hint="Start over with --no-resume, or give another 'out' folder.",
        )
    if set(content["weights"]) != set(objective.weights()):
        raise CheckpointError(
            f"checkpoint {path}: holds other tensors than this training.", hint="Start over with --no-resume."
        )
    # Not strict: an objective may leave out what it can rebuild, such as its frozen teacher.
    objective.load_state_dict(content["weights"], strict=False)
    optim.load_state_dict(content["optimiser"])
    schedule.load_state_dict(content["schedule"])
    return int(content["step"]), dict(content["figures"])
