"""The Q/DQ and FP16 linter: names the node and the rule before a backend is asked to build anything. Needs onnx."""

from edge_sdk.compile.lint.finding import Finding, errors_of, require_clean
from edge_sdk.compile.lint.linter import lint, lint_pair, read_model
from edge_sdk.compile.lint.targets import LintReport, lint_path

__all__ = [
    "Finding",
    "LintReport",
    "errors_of",
    "lint",
    "lint_pair",
    "lint_path",
    "read_model",
    "require_clean",
]
