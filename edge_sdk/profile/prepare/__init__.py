"""The workstation's half of ``edge-sdk profile``: tiny pairs of every candidate. Needs torch and onnx."""

from edge_sdk.profile.prepare.recipe import ProfileRecipe
from edge_sdk.profile.prepare.stage import prepare, profile

__all__ = ["ProfileRecipe", "prepare", "profile"]
