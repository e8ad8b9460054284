"""How much scratch memory TensorRT may take."""

from __future__ import annotations

from pathlib import Path

from edge_sdk.build.tensorrt.settings import MIB
from edge_sdk.gpu import find_gpu, free_gpu_memory
from edge_sdk.machine import available_memory_bytes

# Of what is free; the rest is for weights and activations. A GPU that shares the machine's memory also shares it with
# the builder itself.
_SHARE, _SHARE_INTEGRATED = 0.75, 0.5
ADVICE = (
    "Close the desktop (sudo systemctl isolate multi-user.target) and other programs, lower 'workspace_bytes' or "
    "'optimisation_level'; swap does not help, GPU memory is never swapped."
)


def spendable_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that a build may use as workspace on this machine; ``None`` where nobody knows.

    On a GPU with memory of its own that memory counts, on a Jetson what Linux can still give.

    Args:
        root: where ``proc`` is found; another folder only in tests.
    """
    gpu = find_gpu()
    if gpu is not None and not gpu.integrated:
        free = free_gpu_memory()
        return None if free is None else int(free * _SHARE)
    available = available_memory_bytes(root)
    return None if available is None else int(available * _SHARE_INTEGRATED)


def workspace_limit(asked: int | None, spendable: int | None) -> tuple[int | None, str]:
    """Limit to set, in bytes (``None``: leave TensorRT's own), and a note where it is not what was asked for.

    Args:
        asked: the recipe's ``workspace_bytes``.
        spendable: what this machine can spend.
    """
    if spendable is None or (asked is not None and asked <= spendable):
        return asked, ""
    if asked is None:
        return spendable, ""
    return spendable, (
        f"workspace: {asked / MIB:.0f} MiB were asked for, {spendable / MIB:.0f} MiB are free to spend and were set"
    )
