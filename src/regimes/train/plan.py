"""Plans: what the user decides anew at every step, as functions of its number, and what they said so far."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, final

import numpy as np
import torch
from torch import nn

from regimes.control.anchor.rules import Adaptive
from regimes.core.check import shown
from regimes.core.error import UserError, nearest
from regimes.core.tree import trainable

__all__ = ["Anchor", "Layers", "Plans"]

Layers = Callable[[int], Collection[str]]
"""From the number of a step to the names of the parameters, or of modules with all theirs, that move at it."""
Anchor = Callable[[int], bool] | Adaptive
"""Whether the network is linearised anew, at the parameters it has, before a step: a function of its number, such as
``control.Every(100)``, or a rule that looks at where each member is."""


@final
class Plans:
    """The plans of a run. What they said is kept, to be held against those of the run that goes on.

    Args:
        module: one of the members, for the names of its parameters.
        layers: which parameters move; None for all, at every step.
        anchor: when the linearisation is renewed; None for the network itself.

    Attributes:
        rule: the anchor.

    Raises:
        UserError: if ``layers`` gives what is none for the first step.
    """

    def __init__(self, module: nn.Module, layers: Layers | None, anchor: Anchor | None) -> None:
        self._layers, self.rule = layers, anchor
        places = {id(p): place for place, p in enumerate(trainable(module).values())}
        # A tied parameter goes by each of its names.
        every = module.named_parameters(remove_duplicate=False)
        self._places = {name: places[id(p)] for name, p in every if id(p) in places}
        self._count = len(places)
        # The anchor is at the start at step 0, without being asked for.
        self._said: dict[str, list[int]] = {"layers": [], "anchor": [] if anchor is None else [1]}
        self._moving(0)  # a plan that gives what is none is found before a run begins

    @property
    def linear(self) -> bool:
        """Whether the linearisation is trained in place of the network."""
        return self.rule is not None

    @property
    def partial(self) -> bool:
        """Whether only some parameters may move."""
        return self._layers is not None

    def moving(self, step: int) -> tuple[bool, ...] | None:
        """Whether each parameter moves at a step, in their order; None if all do at every step.

        Raises:
            UserError: if the plan gives no names, or one that is none of the module's.
        """
        if self._layers is None:
            return None
        found = self._moving(step)
        self._note("layers", step, _code(found))
        return found

    def renews(self, step: int) -> bool:
        """Whether a function of the step moves the anchor to the parameters before it; at step 0 it is there.

        Raises:
            UserError: if the plan says neither True nor False.
        """
        if self.rule is None:
            return False
        found = self._renews(step)
        self._note("anchor", step, int(found))
        return found

    def _moving(self, step: int) -> tuple[bool, ...]:
        if self._layers is None:
            return (True,) * self._count
        names = self._layers(step)
        if isinstance(names, str) or not isinstance(names, Collection):
            raise UserError(
                f"`layers`: gave {shown(names)} at step {step}, expected a set of names of parameters or modules"
            )
        if not names:
            raise UserError(
                f"`layers`: gave no name at step {step}, expected at least one; something has to move"
            )
        found = {place for name in names for place in self._under(name, step)}
        return tuple(place in found for place in range(self._count))

    def _under(self, name: str, step: int) -> list[int]:
        """The parameter of this name, or all under the module of this name."""
        found = [
            place
            for each, place in self._places.items()
            if isinstance(name, str) and (name in ("", each) or each.startswith(f"{name}."))
        ]
        if not found:
            modules = (each.rpartition(".")[0] for each in self._places)
            known = [each for each in dict.fromkeys([*self._places, *modules]) if each]
            raise UserError(
                f"`layers`: gave {shown(name)} at step {step}, expected names of parameters that train, or of modules "
                f"that have some, such as '{known[0]}'{nearest(str(name), known)}"
            )
        return found

    def _renews(self, step: int) -> bool:
        if self.rule is None or step == 0 or isinstance(self.rule, Adaptive):
            return step == 0 and self.linear  # an adaptive rule does not go by the number of the step
        found = self.rule(step)
        if not isinstance(found, bool | np.bool_):
            raise UserError(f"`anchor`: gave {shown(found)} at step {step}, expected True or False")
        return bool(found)

    def _note(self, plan: str, step: int, code: int) -> None:
        if step == len(self._said[plan]):
            self._said[plan].append(code)

    def state_dict(self) -> dict[str, Any]:
        """What each plan said at the steps so far, in numbers; None where there is no plan."""
        layers, anchor = (torch.tensor(codes, dtype=torch.int64) for codes in self._said.values())
        return {"layers": layers if self.partial else None, "anchor": anchor if self.linear else None}

    def load_state_dict(self, saved: Mapping[str, Any], steps: int) -> None:
        """Go on with what the plans of a saved run said; see :meth:`check`."""
        past = self._past(saved, steps)
        self._said = {name: past[name] for name in self._said}

    def check(self, saved: Mapping[str, Any], steps: int) -> None:
        """Raise if a plan says otherwise than that of the saved run, at one of its steps.

        Args:
            saved: its :meth:`state_dict`, empty of a version without plans.
            steps: how many steps it has taken; without a plan every parameter has moved at each.
        """
        if self.linear != (saved.get("anchor") is not None):
            came, then = ("a plan", "none") if self.linear else ("none", "a plan")
            raise UserError(f"`anchor`: got {came}, expected {then}, as in the saved run")
        past = self._past(saved, steps)
        for step, code in enumerate(past["layers"]):
            if _code(now := self._moving(step)) != code:
                moved = sorted(name for name, place in self._places.items() if now[place])
                raise UserError(
                    f"`layers`: moves {', '.join(moved)} at step {step}, which is not what the saved run moved there; "
                    "only the steps to come may differ"
                )
        for step, code in enumerate(past["anchor"]):
            if (now := self._renews(step)) != bool(code):
                raise UserError(
                    f"`anchor`: got {now} for step {step}, expected {bool(code)}, as in the saved run; only the steps "
                    "to come may differ"
                )

    def _past(self, saved: Mapping[str, Any], steps: int) -> dict[str, list[int]]:
        everything = [_code((True,) * self._count)] * steps
        layers, anchor = saved.get("layers"), saved.get("anchor")
        if layers is None:
            layers = everything if self.partial else []
        return {"layers": list(map(int, layers)), "anchor": [] if anchor is None else list(map(int, anchor))}


def _code(moving: tuple[bool, ...]) -> int:
    """A checksum of which parameters move."""
    return zlib.crc32(bytes(moving))
