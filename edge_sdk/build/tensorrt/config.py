"""TensorRT's builder configuration, from the recipe's settings.

polygraphy sets what every version has under one name and says which version lacks it. Two things are done here
instead: the timing cache, because polygraphy does not look at TensorRT's answer to it, and the DLA, because polygraphy
knows core 0 alone and sets flags that strongly typed networks refuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_sdk.build.tensorrt.network import onnx_name
from edge_sdk.build.tensorrt.settings import TensorRTSettings
from edge_sdk.errors import EngineError
from edge_sdk.optional import require

# Layers that hold or describe values and run nowhere.
_PASSIVE = ("CONSTANT", "SHAPE")


def make_config(
    trt: Any,
    builder: Any,
    network: Any,
    settings: TensorRTSettings,
    workspace_bytes: int | None,
    monitor: Any,
    *,
    refit_all: bool,
) -> Any:
    """The configuration, without timing cache and DLA.

    Args:
        refit_all: leave every weight open.

    Raises:
        EngineError: this version of TensorRT lacks something that the settings ask for.
    """
    loaders = require("polygraphy.backend.trt", "building for TensorRT")
    refusal = require("polygraphy.exception", "building for TensorRT").PolygraphyException
    pools = {} if workspace_bytes is None else {trt.MemoryPoolType.WORKSPACE: workspace_bytes}
    try:
        return loaders.CreateConfig(
            profiles=[],  # fixed shapes need none
            memory_pool_limits=pools,
            builder_optimization_level=settings.optimisation_level,
            max_aux_streams=settings.aux_streams,
            tf32=settings.tf32,
            version_compatible=settings.version_compatible,
            exclude_lean_runtime=settings.exclude_lean_runtime,
            refittable=refit_all,
            profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
            progress_monitor=monitor,
        )(builder, network)
    except refusal as error:
        raise EngineError(f"TensorRT {trt.__version__}: {' '.join(str(error).split())}") from error


def leave_open(trt: Any, network: Any, config: Any, names: Sequence[str]) -> None:
    """Let these weights be exchanged in the finished plan, and no others: layers without any keep their fusions.

    Args:
        names: of initialisers of the graph.

    Raises:
        EngineError: this version can leave open all weights or none, or the network has no such weights.
    """
    flag = getattr(trt.BuilderFlag, "REFIT_INDIVIDUAL", None)
    if flag is None:
        raise EngineError(
            f"TensorRT {trt.__version__}: it cannot leave open the weights of single layers.",
            hint="Leave 'refittable' out, and give AdaptSettings(swap='engine').",
        )
    config.set_flag(flag)
    for name in names:
        if not network.mark_weights_refittable(name):
            raise EngineError(
                f"refittable: TensorRT {trt.__version__} knows no weights '{name}' in this network.",
                hint="Leave 'refittable' out, and give AdaptSettings(swap='engine').",
            )


def use_dla(trt: Any, builder: Any, network: Any, config: Any, settings: TensorRTSettings) -> tuple[str, ...]:
    """Send the network to the DLA core that the settings name, if they do.

    Returns:
        A note naming every layer that the DLA cannot run and the GPU will; nothing without a DLA.

    Raises:
        EngineError: there is no such core, the DLA can run nothing of this network, or not all of it and
            ``dla_fallback`` is off.
    """
    if settings.dla_core is None:
        return ()
    cores = int(builder.num_DLA_cores)
    if settings.dla_core >= cores:
        raise EngineError(
            f"dla_core: {settings.dla_core} was asked for, TensorRT {trt.__version__} sees {cores} DLA cores here.",
            hint="Leave 'dla_core' out: Orin Nano, Thor and PCs have none, and TensorRT 10.8 to 11.4.0 drive none.",
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = settings.dla_core
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    active = [layer for layer in layers if layer.type.name not in _PASSIVE]
    fallen = [onnx_name(layer) for layer in active if not config.can_run_on_DLA(layer)]
    if len(fallen) == len(active):
        raise EngineError(
            f"dla_core: the DLA can run none of the graph's {len(active)} layers.",
            hint="Leave 'dla_core' out; before TensorRT 11 the DLA does not take quantised graphs.",
        )
    if fallen and not settings.dla_fallback:
        raise EngineError(
            f"dla_core: the DLA cannot run {len(fallen)} of the graph's {len(active)} layers, first '{fallen[0]}'.",
            hint="Set 'dla_fallback: true' to run those on the GPU.",
        )
    if not fallen:
        return ()
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    return (f"DLA: {len(fallen)} of {len(active)} layers fall back to the GPU: {', '.join(fallen)}",)


def set_timing_cache(config: Any, data: bytes) -> bool:
    """Give the build a timing cache; ``False`` where TensorRT rejects it."""
    try:
        cache = config.create_timing_cache(data)
        # No mismatch is forgiven: times of another device would choose the wrong kernels.
        return cache is not None and bool(config.set_timing_cache(cache, False))
    except (RuntimeError, TypeError):  # how the bindings say that they got nothing
        return False
