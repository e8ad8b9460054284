"""Plans for TensorRT, built on the machine that will run them.

Nothing here imports TensorRT: that happens in the child process of :func:`build_plan`.
"""

from edge_sdk.build.tensorrt.builder import build_plan
from edge_sdk.build.tensorrt.settings import TensorRTSettings

__all__ = ["TensorRTSettings", "build_plan"]
