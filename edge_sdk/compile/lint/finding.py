"""What the linter says, and how it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onnx import NodeProto

from edge_sdk.compile.lint.graph import label
from edge_sdk.errors import LintError

Severity = Literal["error", "warning"]
Backend = Literal["tensorrt", "onnxruntime"]
Precision = Literal["float32", "float16", "int8"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or slow, in a graph.

    Args:
        rule: stable name of the rule, such as ``zero-point``.
        severity: ``error``: the backend refuses the graph, crashes on it or computes something else than ONNX says;
            ``warning``: it runs, but slower or less exactly than asked.
        node: the node it is about; empty where it is about an input, an output or the whole graph.
        tensor: the tensor it is about; empty where it is about the node, or the graph, as a whole.
        message: what is there and why that is wrong; names the node or tensor.
        repair: what to do.
        step: the step whose graph it is.
    """

    rule: str
    severity: Severity
    node: str
    tensor: str
    message: str
    repair: str
    step: str = ""

    def __str__(self) -> str:
        return f"[{self.rule}] {self.message}"


@dataclass(frozen=True)
class Target:
    """What a graph is meant for.

    Args:
        backend: the runtime that will compute it.
        precision: what its layers should compute in.
        step: ``keyframe`` or ``delta``.
        wide_state: names of the state tensors that stay in float32 in any precision.
    """

    backend: Backend
    precision: Precision
    step: str
    wide_state: frozenset[str] = frozenset()

    @property
    def if_tensorrt(self) -> Severity:
        """Severity of what TensorRT refuses and ONNX Runtime only computes slowly."""
        return "error" if self.for_tensorrt else "warning"

    @property
    def for_tensorrt(self) -> bool:
        """Whether TensorRT will build it."""
        return self.backend == "tensorrt"

    def at(
        self, rule: str, severity: Severity, node: NodeProto, what: str, repair: str, tensor: str = ""
    ) -> Finding:
        """A finding about a node: ``what`` follows its name in the message."""
        name = label(node)
        message = f"{self.step} step, node '{name}' ({node.op_type}): {what}."
        return Finding(rule, severity, name, tensor, message, repair, self.step)

    def whole(self, rule: str, severity: Severity, what: str, repair: str) -> Finding:
        """A finding about the graph as a whole."""
        return Finding(rule, severity, "", "", f"{self.step} step: {what}.", repair, self.step)

    def on(self, rule: str, severity: Severity, tensor: str, what: str, repair: str) -> Finding:
        """A finding about an input, an output or a weight: ``what`` follows its name in the message."""
        message = f"{self.step} step, tensor '{tensor}': {what}."
        return Finding(rule, severity, "", tensor, message, repair, self.step)


def errors_of(findings: Sequence[Finding]) -> list[Finding]:
    """Those that forbid a build."""
    return [finding for finding in findings if finding.severity == "error"]


def require_clean(findings: Sequence[Finding], where: str) -> None:
    """Let only warnings pass.

    Args:
        findings: what the linter found.
        where: the graph or bundle; begins the message.

    Raises:
        LintError: there are errors; it names rule, node and repair of the first and how many more there are.
    """
    errors = errors_of(findings)
    if errors:
        more = f" And {len(errors) - 1} more: edge-sdk lint lists them." if len(errors) > 1 else ""
        raise LintError(f"{where}: {errors[0]}", hint=f"{errors[0].repair}{more}")
