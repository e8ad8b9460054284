"""The Q/DQ and FP16 linter: names the node and the rule before a backend is asked to build anything. Needs onnx."""

from edge_sdk.compile.lint.finding import Finding, errors_of, require_clean
from edge_sdk.compile.lint.linter import lint, lint_pair, read_model

__all__ = ["Finding", "errors_of", "lint", "lint_pair", "read_model", "require_clean"]
