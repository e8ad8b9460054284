"""Reference networks: the published DDRNet sizes, JITNet, a small one for the demo, and the mean of several looks."""

from edge_sdk.distill.models.ddrnet import ddrnet, ddrnet_23, ddrnet_23_slim, ddrnet_39
from edge_sdk.distill.models.jitnet import jitnet
from edge_sdk.distill.models.small import small_segmenter
from edge_sdk.distill.models.views import several_views

__all__ = ["ddrnet", "ddrnet_23", "ddrnet_23_slim", "ddrnet_39", "jitnet", "several_views", "small_segmenter"]
