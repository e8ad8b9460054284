"""``edge-sdk compare``: every precision of a pair against one stored float32 reference, on the machine that runs it.

Needs numpy and the backends; tracing single layers needs onnx too.
"""

from edge_sdk.parity.compare import CompareRecipe, compare
from edge_sdk.parity.comparison import Comparison
from edge_sdk.parity.record import record_reference
from edge_sdk.parity.reference import Reference, ReferenceSettings

__all__ = ["CompareRecipe", "Comparison", "Reference", "ReferenceSettings", "compare", "record_reference"]
