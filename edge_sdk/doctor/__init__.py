"""``edge-sdk doctor``: what this machine can really do, each backend made to compute, and how to repair the rest."""

from edge_sdk.doctor.checks import Check, Machine, diagnose

__all__ = ["Check", "Machine", "diagnose"]
