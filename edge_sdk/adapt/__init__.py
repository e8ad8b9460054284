"""Online distillation: the student learns on the stream it watches, in a process beside it."""

from edge_sdk.adapt.settings import AdaptSettings

__all__ = ["AdaptSettings"]
