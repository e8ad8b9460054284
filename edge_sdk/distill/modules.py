"""Any user's network: made by a named function, filled from a checkpoint, never half."""

from __future__ import annotations

import importlib
import inspect
import pickle
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge_sdk.distill.recipes import ModuleSettings
from edge_sdk.errors import CheckpointError, FileFormatError, RecipeError
from edge_sdk.files import atomic_file, require_file

# Keys under which training frameworks keep the weights inside a checkpoint.
_NESTED_KEYS = ("state_dict", "model", "model_state_dict", "module", "weights", "net")


# What wrappers put before every name, outermost first.
_PREFIXES = ("module.", "_orig_mod.", "module.")
# What is before every name of a network inside `small_input` and `several_views`.
_INNER = "network."


def make_module(settings: ModuleSettings) -> nn.Module:
    """Call the factory; the module has its initial weights.

    Raises:
        RecipeError: the factory cannot be imported, refuses the arguments or returns something else.
    """
    where, _, name = settings.factory.partition(":")
    if not where or not name:
        raise RecipeError(f"'factory': expected package.module:function, got '{settings.factory}'.")
    try:
        factory = getattr(importlib.import_module(where), name)
    except Exception as error:  # a user's package may raise anything while it is imported
        raise RecipeError(
            f"'factory': cannot import {settings.factory}: {reason_of(error)}.",
            hint="Check the spelling, and that the package is installed or its folder is on PYTHONPATH.",
        ) from error
    try:
        inspect.signature(factory).bind(**settings.arguments)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"'arguments' of {settings.factory}: {error}.", hint="Match them with the function's parameters."
        ) from error
    try:
        module = factory(**settings.arguments)
    except Exception as error:  # it is the user's code
        raise RecipeError(
            f"'factory': {settings.factory} raised {reason_of(error)}.",
            hint="Check its 'arguments', and call it by hand.",
        ) from error
    if not isinstance(module, nn.Module):
        raise RecipeError(
            f"'factory': expected {settings.factory} to return an nn.Module, got {type(module).__name__}.",
            hint="Name a function that returns the network itself.",
        )
    return module


def reason_of(error: Exception) -> str:
    """The first sentence of somebody else's error."""
    text = str(error).strip().split("\n")[0].split(". ")[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def load_module(settings: ModuleSettings) -> nn.Module:
    """Make a module and fill it from its checkpoint, in evaluation mode.

    Raises:
        RecipeError: no checkpoint is named: weights are never random by omission.
        CheckpointError: the checkpoint does not fit.
    """
    if settings.checkpoint is None:
        raise RecipeError(
            f"'checkpoint' of {settings.factory}: expected a file with trained weights, got none.",
            hint="Train one with: edge-sdk train RECIPE",
        )
    module = make_module(settings)
    fill_module(module, read_weights(settings.checkpoint), settings.checkpoint)
    return module.eval()


def keep_norm(network: nn.Module) -> None:
    """Leave the statistics of batch norm as they are, and compute with them, until the next ``train``."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.eval()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, read as data only (no code is run).

    Raises:
        FileFormatError: truncated, not a checkpoint, or holding objects other than tensors and plain values.
    """
    file = require_file(path, "checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about foreign pickles; the error below says it
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to load it in a way that runs the code in it.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise FileFormatError(
            f"checkpoint {file}: not a file of tensors, or with code in it{what}, which is never run.",
            hint="Save it again as a state dict: torch.save(model.state_dict(), path).",
        ) from error
    except (RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        raise FileFormatError(
            f"checkpoint {file}: truncated or not a file of tensors ({reason_of(error)}).",
            hint="Copy it again, or save it again as a state dict: torch.save(model.state_dict(), path).",
        ) from error
    if not isinstance(content, dict):
        raise FileFormatError(
            f"checkpoint {file}: expected a dictionary of tensors, got {type(content).__name__}.",
            hint="Save it again as a state dict: torch.save(model.state_dict(), path).",
        )
    return content


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint, whether bare or nested as training frameworks do."""
    content: Any = read_checkpoint(path)
    for key in _NESTED_KEYS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    weights = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not weights:
        raise CheckpointError(f"checkpoint {path}: expected a state dict, found no tensors in it.")
    return weights


def matched_names(weights: Mapping[str, Tensor], own: set[str]) -> Mapping[str, Tensor]:
    """``weights`` by the names in ``own``.

    They lose what DistributedDataParallel and ``torch.compile`` put before every name; those of a network by itself
    get the prefix of one inside a module that changes its input or answers alone.
    """
    for prefix in _PREFIXES:
        if _prefixed(weights, prefix) and not _prefixed(own, prefix):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    if _prefixed(own, _INNER) and not any(name.startswith(_INNER) for name in weights):
        weights = {_INNER + name: value for name, value in weights.items()}
    return weights


def _prefixed(names: Collection[str], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)


def fill_module(module: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Load ``weights`` strictly.

    Raises:
        CheckpointError: names the first missing, unexpected or differently shaped tensors.
    """
    own = module.state_dict()
    weights = matched_names(weights, set(own))
    missing = [name for name in own if name not in weights]
    extra = [name for name in weights if name not in own]
    shapes = [
        f"{name}: expected {tuple(own[name].shape)}, got {tuple(weights[name].shape)}"
        for name in own
        if name in weights and own[name].shape != weights[name].shape
    ]
    problems = [
        f"{len(names)} {title} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for title, names in (("missing", missing), ("not in the module", extra), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"checkpoint {source} does not fit {type(module).__name__}: {'; '.join(problems)}.",
            hint="Use the checkpoint of this very architecture, with the same 'arguments' (classes, width).",
        )
    module.load_state_dict(dict(weights))


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    with atomic_file(path) as temporary:
        torch.save(content, temporary)
