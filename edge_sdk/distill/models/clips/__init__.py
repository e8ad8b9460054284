"""Clip networks by name, for recipes: ``factory: edge_sdk.distill.models.clips:clip_network``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

from edge_sdk.distill.models.clips.aggregators import Aggregator, Mean, NetVLAD, NeXtVLAD, Ordered
from edge_sdk.distill.models.clips.causal3d import CausalEncoder
from edge_sdk.distill.models.clips.encoded import EncodedClip, SlidingWindow
from edge_sdk.distill.models.clips.encoders import Encoder, FeatureInput, SmallEncoder
from edge_sdk.distill.models.clips.heads import LinearHead, MixtureHead
from edge_sdk.distill.models.clips.recurrent import HierarchicalLSTM
from edge_sdk.distill.models.clips.residual import ResidualEncoder
from edge_sdk.distill.models.clips.temporal import ShiftEncoder
from edge_sdk.errors import RecipeError

__all__ = [
    "EncodedClip", "SlidingWindow", "causal3d_network", "clip_network", "consensus_network", "tsm_network",
]  # fmt: skip

Family = Literal["hrnn", "netvlad", "nextvlad", "mean"]
EncoderName = Literal["small", "residual", "tsm", "causal3d", "features"]
_ENCODERS: dict[str, Callable[..., Encoder]] = {
    "small": SmallEncoder, "residual": ResidualEncoder, "tsm": ShiftEncoder, "causal3d": CausalEncoder,
    "features": FeatureInput,
}  # fmt: skip
_FAMILIES: dict[str, Callable[..., Aggregator]] = {
    "hrnn": HierarchicalLSTM, "netvlad": NetVLAD, "nextvlad": NeXtVLAD, "mean": Mean,
}  # fmt: skip
_HEADS: dict[str, Callable[..., LinearHead | MixtureHead]] = {"linear": LinearHead, "mixture": MixtureHead}


def clip_network(
    classes: int,
    family: Family,
    *,
    samples: int | None = None,
    encoder: EncoderName = "small",
    order: bool = False,
    head: Literal["linear", "mixture"] = "linear",
    dropout: float = 0.0,
    **options: Any,
) -> EncodedClip:
    """A clip network of a frame encoder, an aggregator and a head.

    Args:
        classes: number of classes.
        family: ``hrnn`` (hierarchical LSTM), ``netvlad``, ``nextvlad`` or ``mean``.
        samples: frames of a clip that are seen; needed by ``hrnn`` and ``order``.
        encoder: for frames ``small``, ``residual``, or ``tsm`` and ``causal3d``, which look at the frames before;
            ``features`` for vectors that were extracted before.
        order: tell the aggregator when a frame was seen and what is new in it, see :class:`Ordered`; without, families
            other than ``hrnn`` forget the order.
        head: ``linear``, or ``mixture`` of logistic experts for ``multi_label`` tasks.
        dropout: share of the representation left out in training.
        options: of the parts by name: ``width``, ``depth``, ``features``, ``pool``, ``grid`` (:class:`SmallEncoder`);
            these and ``strides`` (:class:`ResidualEncoder`, :class:`CausalEncoder`), ``share`` (:class:`ShiftEncoder`);
            ``dim`` (:class:`FeatureInput`); ``segments``, ``hidden``, ``layers`` (:class:`HierarchicalLSTM`);
            ``clusters``, ``hidden``, ``scale`` (:class:`NetVLAD`), and ``groups``, ``expansion``, ``gating``
            (:class:`NeXtVLAD`); ``experts`` (:class:`MixtureHead`).

    Raises:
        RecipeError: an option belongs to none of the chosen parts, is missing or out of range.
    """
    make_encoder = _chosen("encoder", encoder, _ENCODERS)
    make_family = _chosen("family", family, _FAMILIES)
    make_head = _chosen("head", head, _HEADS)
    if samples is None and (family == "hrnn" or order):
        raise RecipeError("clip network: expected samples, the number of frames seen of a clip, got none.")
    if family == "hrnn":
        options["samples"] = samples
    seen = _part(make_encoder, options)
    dim = seen.width
    within = _part(make_family, options, Ordered.wider(dim) if order else dim)
    # The number of frames was asked for above.
    aggregator = Ordered(within, samples or 0) if order else within
    made = _part(make_head, options, aggregator.width, classes, dropout)
    if options:
        known = sorted({*_names(make_encoder), *_names(make_family, 1), *_names(make_head, 3)} - {"samples"})
        raise RecipeError(
            f"clip network: unknown option '{next(iter(options))}' for encoder '{encoder}', family '{family}' and "
            f"head '{head}'.",
            hint=f"They know: {', '.join(known)}.",
        )
    return EncodedClip(seen, aggregator, made)


def consensus_network(
    classes: int,
    *,
    width: int = 16,
    depth: int = 1,
    strides: Sequence[int] = (2, 1, 2, 2),
    dropout: float = 0.0,
) -> EncodedClip:
    """A residual network over each frame, and the mean over the frames (TSN): the 2D network of arXiv 2209.12797.

    Args:
        classes: number of classes.
        width, depth, strides: see :class:`ResidualEncoder`.
        dropout: share of the representation left out in training (0.5 as published).
    """
    return _averaged("residual", classes, dropout, width=width, depth=depth, strides=strides)


def tsm_network(
    classes: int, *, width: int = 16, depth: int = 1, strides: Sequence[int] = (2, 1, 2, 2), share: int = 8,
    dropout: float = 0.0,
) -> EncodedClip:  # fmt: skip
    """A residual network with a temporal shift of one in ``share`` channels, and the mean over the frames.

    Args:
        classes: number of classes.
        width, depth, strides, share: see :class:`ShiftEncoder`.
        dropout: share of the representation left out in training.
    """
    return _averaged("tsm", classes, dropout, width=width, depth=depth, strides=strides, share=share)


def causal3d_network(
    classes: int,
    *,
    width: int = 16,
    depth: int = 1,
    strides: Sequence[int] = (2, 1, 2, 2),
    dropout: float = 0.0,
) -> EncodedClip:
    """A causal 3D residual network, and the mean over the frames.

    Args:
        classes: number of classes.
        width, depth, strides: see :class:`CausalEncoder`.
        dropout: share of the representation left out in training.
    """
    return _averaged("causal3d", classes, dropout, width=width, depth=depth, strides=strides)


def _averaged(encoder: EncoderName, classes: int, dropout: float, **options: Any) -> EncodedClip:
    return clip_network(classes, "mean", encoder=encoder, dropout=dropout, **options)


def _chosen(what: str, name: str, table: dict[str, Any]) -> Any:
    if name not in table:
        raise RecipeError(f"clip network: expected {what} to be one of {', '.join(table)}, got '{name}'.")
    return table[name]


def _names(make: Callable[..., Any], given: int = 0) -> list[str]:
    return list(inspect.signature(make).parameters)[given:]


def _part(make: Callable[..., Any], options: dict[str, Any], *given: Any) -> Any:
    """Call ``make`` with ``given`` and with those of ``options`` that it knows, which are taken out of them."""
    parameters = inspect.signature(make).parameters
    names = list(parameters)[len(given) :]
    taken = {name: options.pop(name) for name in names if name in options}
    for name in names:
        if name not in taken and parameters[name].default is inspect.Parameter.empty:
            raise RecipeError(f"clip network: {make.__name__} needs the option '{name}'.")
    return make(*given, **taken)
