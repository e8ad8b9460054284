"""Skip-Convolution (Habibian et al., CVPR 2021, arXiv 2104.11487): convolutions that compute only what changed."""

from edge_sdk.distill.skip.net import SkipConversion, SkipPair, to_skip
from edge_sdk.distill.skip.recipes import SkipRecipe, SkipSettings

__all__ = ["SkipConversion", "SkipPair", "SkipRecipe", "SkipSettings", "to_skip"]
