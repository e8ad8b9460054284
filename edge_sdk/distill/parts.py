"""Which modules of a network are units by name: what ``delta.units``, ``blocks`` and ``kept`` mean in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from edge_sdk.distill.delta_recipe import DeltaSettings
from edge_sdk.distill.kinds import KEPT, Kind
from edge_sdk.distill.surgery import obstacle
from edge_sdk.errors import ConversionError, RecipeError

_WORDS = {"blocks": "block", "kept": "kept", "units": "unit"}


@dataclass(frozen=True)
class Part:
    """A module that is one unit.

    Attributes:
        name: its name in the network.
        module: the teacher's module.
        candidates: names of what its student may be.
        key: the setting that names it.
    """

    name: str
    module: nn.Module
    candidates: tuple[str, ...]
    key: str

    @property
    def linear(self) -> bool:
        """Whether it is one plain convolution, whose students are linear."""
        return self.key == "units" and isinstance(self.module, nn.Conv2d) and obstacle(self.module) is None

    def reason(self, candidates: Iterable[str]) -> str:
        """What to say of a convolution in it."""
        if self.linear:
            return ", ".join(candidates)
        return f"{_WORDS[self.key]} {self.name}"


def parts_of(network: nn.Module, settings: DeltaSettings) -> list[Part]:
    """The units that settings name, outermost first; a module inside another of the same setting is part of it.

    Raises:
        ConversionError: a pattern matches no module, or two settings name overlapping modules.
    """
    low = str(Kind("rank", settings.gamma))
    asked: dict[str, dict[str, tuple[str, ...]]] = {
        "units": settings.units,
        "blocks": dict.fromkeys(settings.blocks, (low,)),
        "kept": dict.fromkeys(settings.kept, (str(KEPT),)),
    }
    found: list[Part] = []
    for key, patterns in asked.items():
        named = _named(network, patterns, key)
        for name in named:
            other = next((part for part in found if _overlap(name, part.name)), None)
            if other is not None:
                what = "the block" if other.key == "blocks" else "the unit"
                raise ConversionError(
                    f"'delta.{key}': '{name}' overlaps with {what} '{other.name}' of 'delta.{other.key}'.",
                    hint="Name each part of the network under one of the two.",
                )
        found += [Part(name, module, names, key) for name, (module, names) in named.items()]
    return found


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _named(
    network: nn.Module, patterns: Mapping[str, tuple[str, ...]], key: str
) -> dict[str, tuple[nn.Module, tuple[str, ...]]]:
    """Modules that the patterns of setting ``key`` name, with what the first pattern that fits says of them."""
    found: dict[str, tuple[nn.Module, tuple[str, ...]]] = {}
    taken: set[int] = set()
    named = list(network.named_modules(remove_duplicate=False))
    for name, module in named:
        fitting = [pattern for pattern in patterns if name and fnmatchcase(name, pattern)]
        if fitting and id(module) not in taken:
            found[name] = (module, patterns[fitting[0]])
            taken |= {id(m) for m in module.modules()}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name, _ in named):
            raise ConversionError(
                f"'delta.{key}': the pattern '{pattern}' matches no module.",
                hint=f"The network's parts are: {', '.join(n for n, _ in network.named_children())}.",
            )
    return found


def narrowed_by(choice: Mapping[str, str], units: Mapping[str, Iterable[str]], where: str) -> None:
    """Refuse a choice that names what is no unit, or a candidate that the unit does not have.

    Raises:
        RecipeError: naming the unit and what there is instead.
    """
    for unit, candidate in choice.items():
        if unit not in units:
            raise RecipeError(
                f"'{where}': '{unit}' is no unit of this network.", hint=f"Its units are: {', '.join(units)}."
            )
        if candidate not in units[unit]:
            raise RecipeError(
                f"'{where}': expected one of {', '.join(units[unit])} for '{unit}', got '{candidate}'.",
                hint="Choose one of them, or add it under delta.units.",
            )
