"""Reference networks: the published DDRNet sizes, JITNet, and a small one for the demo."""

from edge_sdk.distill.models.ddrnet import ddrnet, ddrnet_23, ddrnet_23_slim, ddrnet_39
from edge_sdk.distill.models.jitnet import jitnet
from edge_sdk.distill.models.small import small_segmenter

__all__ = ["ddrnet", "ddrnet_23", "ddrnet_23_slim", "ddrnet_39", "jitnet", "small_segmenter"]
