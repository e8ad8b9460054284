"""Whether a converted network still computes what its teacher does, tried on noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from edge_sdk.distill.steps import StepPair
from edge_sdk.errors import ConversionError

# Relative to the largest output. Folded norms and added residuals reorder sums, which costs float32 about 1e-5; a layer
# that was converted wrongly is off by far more.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
COARSE_TOLERANCE = 5e-2


def probe_like(example: Tensor) -> Tensor:
    """Noise of the example's shape, the same every time."""
    return torch.randn(example.shape, generator=torch.Generator().manual_seed(0)).to(example)


def answer(network: Callable[[Tensor], Any], probe: Tensor) -> list[Tensor]:
    """Every tensor that ``network`` returns for ``probe``, with the same random draws every time."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return [leaf.clone() for leaf in tree_leaves(network(probe.clone())) if isinstance(leaf, Tensor)]


def check_conversion(net: StepPair, probe: Tensor, expected: list[Tensor], *, setting: str = "delta") -> None:
    """Refuse a network whose keyframe step is not the teacher, or whose delta step is not on the same frame.

    Args:
        net: the converted network.
        probe: an input.
        expected: the teacher's :func:`answer` to it.
        setting: where the recipe says which layers are converted, for messages.

    Raises:
        ConversionError: saying which step differs and by how much, or what it raised.
    """
    net.eval()
    state: dict[str, Tensor] = {}

    def keyframe(x: Tensor) -> Any:
        out, written = net.keyframe(x)
        state.update(written)
        return out

    steps = {"keyframe": keyframe, "delta": lambda x: net.delta(x, state)[0]}
    hint = (
        f"Leave layers out with {setting}.exclude until it agrees; a network whose answer depends on more than its "
        "input cannot be converted."
    )
    for name, step in steps.items():
        try:
            found = answer(step, probe)
        except Exception as error:  # whatever the network's own code raises
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            raise ConversionError(
                f"'{setting}': the converted {name} step fails ({reason}).", hint=hint
            ) from error
        off, allowed = _difference(found, expected), _tolerance(expected)
        if not off <= allowed:
            raise ConversionError(
                f"'{setting}': on one and the same frame the converted {name} step differs from the teacher by "
                f"{off:.1e} of its largest output, allowed are {allowed:.0e}.",
                hint=hint,
            )


def _tolerance(expected: list[Tensor]) -> float:
    return max(
        (TOLERANCE.get(t.dtype, COARSE_TOLERANCE) for t in expected if t.is_floating_point()), default=0.0
    )


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference relative to the largest value, over the finite values of each tensor."""
    if [t.shape for t in found] != [t.shape for t in expected]:
        return float("inf")
    worst = 0.0
    for mine, theirs in zip(found, expected, strict=True):
        if theirs.is_floating_point():
            finite = theirs.isfinite()
            if bool(finite.any()):
                scale = float(theirs[finite].abs().max())
                worst = max(worst, float((mine - theirs)[finite].abs().max()) / max(scale, 1e-6))
    return worst
