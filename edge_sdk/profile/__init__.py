"""What every candidate of every unit costs on a device, in milliseconds, and what a whole student takes.

A workstation prepares tiny pairs (:mod:`edge_sdk.profile.prepare`, which needs torch), the device builds and times
them (:mod:`edge_sdk.profile.measure`, which needs neither torch nor onnx), and the
:class:`~edge_sdk.profile.table.CostTable` travels back.
"""

from edge_sdk.profile.table import CostTable

__all__ = ["CostTable"]
