"""The SDK's exceptions: one tree, each class also a builtin so that ordinary ``except`` clauses work.

A message names the argument, what was expected and what came; ``hint`` is the step that repairs it. The command line
prints the two on one line and exits with :attr:`EdgeSdkError.exit_code`; anything that is not an ``EdgeSdkError`` is a
defect of ours and keeps its traceback.
"""

from __future__ import annotations


class EdgeSdkError(Exception):
    """Base of every error a user can cause or repair.

    Args:
        message: what was expected and what came.
        hint: the step or command that repairs it.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.hint = hint
        super().__init__(f"{message} {hint}" if hint else message)


class RecipeError(EdgeSdkError, ValueError):
    """A recipe or option is unknown, of the wrong type or out of range."""


class MissingFileError(EdgeSdkError, FileNotFoundError):
    """A file or folder that was named is not there."""

    # FileNotFoundError formats itself from errno fields; the message is all we carry.
    __str__ = Exception.__str__


class FileFormatError(EdgeSdkError, ValueError):
    """A file is there but is truncated, undecodable or not what its name says."""


class OutputError(EdgeSdkError, OSError):
    """A file or folder cannot be written, or is in the way of one that should be."""

    __str__ = Exception.__str__


class ChecksumError(FileFormatError):
    """A file's SHA-256 is not the one recorded for it."""


class BundleError(EdgeSdkError, ValueError):
    """A bundle is incomplete, of an unknown format, or does not hold what was asked of it."""


class SignatureError(BundleError):
    """A bundle is not signed, signed by another key, altered since, or older than what is accepted."""


class UpdateError(EdgeSdkError, RuntimeError):
    """A bundle cannot be installed, confirmed or gone back from; what ran before still does."""


class CheckpointError(EdgeSdkError, ValueError):
    """A checkpoint does not fit the module it was given for."""


class ConversionError(EdgeSdkError, TypeError):
    """A module holds something that a distillation method cannot convert."""


class ShapeError(EdgeSdkError, ValueError):
    """A frame or tensor has another shape or dtype than the graph takes."""


class FrameOrderError(EdgeSdkError, ValueError):
    """A frame was given to a runner twice."""


class VideoError(EdgeSdkError, OSError):
    """A video cannot be opened, decoded or written."""

    __str__ = Exception.__str__


class DependencyError(EdgeSdkError, ImportError):
    """A package that this step needs is not installed on this machine."""

    __str__ = Exception.__str__


class LintError(EdgeSdkError, ValueError):
    """A graph holds what its backend refuses, crashes on or computes differently; node and rule are named."""


class EngineError(EdgeSdkError, RuntimeError):
    """An engine cannot be loaded or its run failed."""


class EngineMismatchError(EngineError):
    """An engine is whole, but was built from another graph or for another machine, runtime or version."""


class DeviceLostError(EngineError):
    """The GPU has failed in a way that only a new process repairs; every later call would fail too."""

    # EX_TEMPFAIL of sysexits.h: whoever watches the process should start it again.
    exit_code = 75


class TrainerError(EdgeSdkError, RuntimeError):
    """The process that teaches a student on its stream ended, does not answer, or said what it may not say."""


class ServeError(EdgeSdkError, OSError):
    """The live page cannot be served where it was asked for."""

    __str__ = Exception.__str__


class ClosedError(EdgeSdkError, RuntimeError):
    """A runner, source or sink was used after ``close()`` or outside its ``with`` block."""
