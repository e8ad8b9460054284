"""Choosing each unit's candidate under a budget of milliseconds that were measured on the device that will run it.

As published (Delta Distillation, arXiv 2203.09594), every unit has one learnt score for each candidate, training draws
with Gumbel noise and the hard choice passes the soft one's gradient; in place of multiply-accumulates the loss has the
milliseconds that a cost table expects of the scores' probabilities:

    weight * relu(expected_ms / budget_ms - 1)

After a share of the steps every unit keeps its likeliest candidate. Where their sum is above the budget, candidates are
exchanged for cheaper ones, first where a saved millisecond costs the least log-probability. The rest of the training
fine-tunes what was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from edge_sdk.distill.candidates import Chooser
from edge_sdk.distill.delta import DeltaNet
from edge_sdk.distill.delta_recipe import SearchSettings
from edge_sdk.errors import RecipeError
from edge_sdk.files import write_text
from edge_sdk.profile.table import CostTable

CHOICE_FILE = "choice.yaml"


class BudgetSearch(nn.Module):
    """The search of one training; its buffer belongs in the checkpoint.

    Args:
        net: the network; its units' choices are read and, in the end, decided.
        settings: table, budget, and how long to search.
        steps: of the training.

    Raises:
        RecipeError: the table is of other units or candidates, nothing is left to choose, or even the cheapest student
            is above the budget.
    """

    decided: Tensor

    def __init__(self, net: DeltaNet, settings: SearchSettings, *, steps: int) -> None:
        super().__init__()
        self.settings, self.table, self._net = settings, CostTable.load(settings.table), [net]
        # At least one step searches, and at least one fine-tunes.
        self.until_step = min(max(int(settings.until * steps), 1), steps - 1)
        self._check_units()
        cheapest = cheapest_choice(self.table, {name: unit.candidates for name, unit in net.units.items()})
        if self.table.predict(cheapest) > settings.budget_ms:
            raise _too_little(settings.budget_ms, self.table.predict(cheapest))
        self.register_buffer("decided", torch.full((len(self._gates()),), -1))

    def _check_units(self) -> None:
        units = self._net[0].units
        if not self._gates():
            raise RecipeError(
                "'search': no unit has more than one candidate.",
                hint="Name units with several candidates under delta.units, or leave 'search' out.",
            )
        odd = sorted(set(units) ^ set(self.table.units))
        if odd:
            where = "the network" if odd[0] in units else "the table"
            raise RecipeError(
                f"'search.table': expected a table of this network's units, got {self.settings.table}: "
                f"'{odd[0]}' is in {where} alone.",
                hint="Measure again with the same 'delta': edge-sdk profile RECIPE",
            )
        for name, unit in units.items():
            for candidate in unit.candidates:
                self.table.cost(name, candidate)

    def _gates(self) -> dict[str, Chooser]:
        units = self._net[0].units
        return {name: unit.g_gate for name, unit in units.items() if unit.g_gate is not None}

    @property
    def over(self) -> bool:
        """Whether every unit's candidate is decided."""
        return bool((self.decided >= 0).all())

    def begin_step(self, step: int) -> None:
        """Step ``step``, counted from 0, begins: decide when it is time, and hold on to what was decided."""
        if step >= self.until_step and not self.over:
            self._decide()
        self.hold()

    def hold(self) -> None:
        """Tell the choices what was decided, also after a checkpoint was read."""
        for gate, index in zip(self._gates().values(), self.decided.tolist(), strict=True):
            gate.fixed = index if index >= 0 else None

    def expected_ms(self) -> Tensor:
        """Expected milliseconds of a delta step by the choices' probabilities, a scalar with gradients."""
        shares: dict[str, dict[str, Tensor | float]] = {}
        for name, unit in self._net[0].units.items():
            gate = unit.g_gate
            if gate is None or gate.fixed is not None:
                shares[name] = {unit.chosen: 1.0}
            else:
                shares[name] = dict(zip(unit.candidates, gate.shares(), strict=True))
        return torch.as_tensor(self.table.expected(shares), dtype=torch.float32, device=self.decided.device)

    def loss(self) -> tuple[Tensor, Tensor]:
        """The weighted excess over the budget, and the expected milliseconds."""
        expected = self.expected_ms()
        return self.settings.weight * torch.relu(expected / self.settings.budget_ms - 1), expected.detach()

    @torch.no_grad()
    def _decide(self) -> None:
        scores = {
            name: dict.fromkeys(unit.candidates, 0.0)
            if unit.g_gate is None
            else dict(zip(unit.candidates, unit.g_gate.shares().log().tolist(), strict=True))
            for name, unit in self._net[0].units.items()
        }
        choice = fitted(scores, self.table, self.settings.budget_ms)
        units = self._net[0].units
        found = [units[name].candidates.index(choice[name]) for name in self._gates()]
        self.decided.copy_(torch.tensor(found))


def cheapest_choice(table: CostTable, candidates: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """For every unit the candidate that costs least; what feeds only kept units costs nothing anyway."""
    return {name: min(names, key=lambda each: table.cost(name, each)) for name, names in candidates.items()}


def fitted(scores: Mapping[str, Mapping[str, float]], table: CostTable, budget_ms: float) -> dict[str, str]:
    """The likeliest choice, traded until its predicted milliseconds are within the budget.

    Args:
        scores: by unit and candidate, the log-probability.
        table: what they cost.
        budget_ms: the most that the sum may be, in milliseconds.

    Raises:
        RecipeError: even the cheapest choice is above the budget.
    """
    choice = {name: max(found, key=lambda each: found[each]) for name, found in scores.items()}
    now = table.predict(choice)
    while now > budget_ms:
        best: tuple[float, str, str, float] | None = None
        for name, found in scores.items():
            for candidate, score in found.items():
                if candidate == choice[name]:
                    continue
                then = table.predict({**choice, name: candidate})
                # Not below what a gradient resolves: an unlikely candidate is no reason to give up.
                lost = max(found[choice[name]] - score, 0.0) if math.isfinite(score) else 100.0
                if then < now - 1e-9 and (best is None or lost / (now - then) < best[0]):
                    best = (lost / (now - then), name, candidate, then)
        if best is None:
            # No single exchange helps any more: what each unit has is the cheapest, or all together must change.
            choice = cheapest_choice(table, {name: tuple(found) for name, found in scores.items()})
            now = table.predict(choice)
            if now > budget_ms:
                raise _too_little(budget_ms, now)
            break
        _, name, candidate, now = best
        choice[name] = candidate
    return choice


def _too_little(budget_ms: float, cheapest_ms: float) -> RecipeError:
    return RecipeError(
        f"'search.budget_ms': expected at least {cheapest_ms:.3f} ms, which the cheapest student of these units takes "
        f"by the table, got {budget_ms:.3f} ms.",
        hint="Raise the budget, or add cheaper candidates under delta.units and profile them.",
    )


def write_choice(folder: Path, choice: Mapping[str, str], predicted_ms: float) -> Path:
    """Write ``choice.yaml``, which ``delta.choice`` of another recipe takes.

    Returns:
        the file.
    """
    import yaml

    head = f"# A candidate for every unit; the table predicts {predicted_ms:.3f} ms a delta step.\n"
    file = folder / CHOICE_FILE
    write_text(file, head + yaml.safe_dump(dict(choice), sort_keys=False))
    return file
