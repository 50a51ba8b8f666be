"""Iterative linearisation in a loop of one's own: before which steps of the optimiser the anchor moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from regimes.control.anchor.block import Block, Findings, blocks_from, updates
from regimes.control.anchor.look import Look, adapted, probed
from regimes.control.anchor.rates import Rates
from regimes.control.anchor.rules import Adaptive, Every, Renewal, resets
from regimes.control.anchor.stability import (
    GROWN,
    MeanLoss,
    Stable,
    check_targets,
    lowered,
    mean_loss,
    too_large,
)
from regimes.control.linear import Linearized
from regimes.core.batch import Inputs, check, count, feed, take
from regimes.core.check import checked, shown
from regimes.core.error import UserError
from regimes.core.loss import Loss

__all__ = ["IterativeLinearisation"]


@final
@checked
class IterativeLinearisation:
    r"""Train the linearisation of a network, and renew it: a plan for the anchor beside any optimiser.

    .. math:: F(w, x) = f(a, x) + J(a, x) (w - a), \qquad a \leftarrow w \text{ where the rule says so}

    The loop calls the linearised module, and ``step()`` after each step of the optimiser, as of a scheduler. With
    ``Every(1)`` it is plain training of f, with ``Every(K)``, K all steps or more, that of a linear model. Momentum and
    moments are kept when the anchor moves, unless the rule resets them.

    Args:
        module: a network from ``control.linearize``.
        optimizer: any of ``torch.optim`` that holds its parameters.
        rule: ``Every(K)``, ``AtSteps([...])``, ``Adaptive(...)``, or a function from the number of a step to whether
            the anchor moves before it.
        inputs, targets, loss: training samples that an adaptive rule, and ``stable``, look at: a few hundred, or all.
            The loss is one of ``regimes.core.loss``, or a function from outputs and targets to the mean loss.
        stable: what is done where the rate of ``SGD`` is beyond the stability bound of a block, see
            :func:`stable_rate`: "lower" it to 0.9 of the bound during the steps of this block (what a schedule sees
            stays), "shorten" the block, so that no direction grows by more than 2, or "refuse" with an error that
            names both numbers. None computes no bound. Nothing is computed for ``Every(1)``.
        batch_size: of the batches of the loop; the bound is then that of the worst of four batches of that size.

    Attributes:
        module: the linearised network.
        steps: how many steps were taken.
        blocks: when and why each block began, a list of :class:`Block`.

    Raises:
        UserError: if the optimiser does not hold the parameters of the module, an adaptive rule or ``stable`` has
            nothing to look at, or ``stable`` is asked for with an optimiser that is not ``SGD``.

    Source: Goldwaser, Ge 2022, arXiv:2211.12345.

    >>> from torch.nn.functional import mse_loss
    >>> from regimes import control, models
    >>> x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> linear = control.linearize(models.mlp(3, 8, 2))
    >>> optimizer = torch.optim.SGD(linear.parameters(), lr=0.1, momentum=0.9)
    >>> policy = IterativeLinearisation(linear, optimizer, control.Every(4))
    >>> for _ in range(10):
    ...     optimizer.zero_grad()
    ...     mse_loss(linear(x)[:, 0], x[:, 0]).backward()
    ...     optimizer.step()
    ...     moved = policy.step()
    >>> policy.updates, [block.step for block in policy.blocks]
    (3, [0, 4, 8])
    """

    def __init__(
        self,
        module: Linearized,
        optimizer: Optimizer,
        rule: Renewal | Callable[[int], bool],
        *,
        inputs: Inputs | None = None,
        targets: Tensor | None = None,
        loss: Loss | MeanLoss | None = None,
        stable: Stable | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.module, self.steps, self.blocks = module, 0, [Block(0, "start")]
        self._optimizer, self._rule, self._stable, self._grown = optimizer, rule, stable, 0.0
        _check_held(module, optimizer)
        self._rates = None if stable is None else Rates(module, optimizer)
        if batch_size is not None and batch_size < 1:
            raise UserError(f"`batch_size`: got {batch_size}, expected 1 or more")
        self._batch = batch_size
        self._data: tuple[Inputs, Tensor, Loss | MeanLoss] | None = None
        if isinstance(rule, Adaptive) or stable is not None:
            if inputs is None or targets is None or loss is None:
                what = "an adaptive rule" if isinstance(rule, Adaptive) else "`stable`"
                given = {"inputs": inputs, "targets": targets, "loss": loss}
                missing = next(name for name, value in given.items() if value is None)
                raise UserError(
                    f"`{missing}`: got None, expected training samples and their loss; {what} looks at them"
                )
            check(inputs, "inputs")
            check_targets(inputs, targets)
            self._data = inputs, targets, loss
            self._check_loss()
        self._looker = self._look_at(rule) if isinstance(rule, Adaptive) else None
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]
        self._kept: list[float] = []

    @property
    def updates(self) -> int:
        """U, the feature updates spent: from how many anchors the steps so far were taken, T / K for ``Every(K)``."""
        return updates(self.blocks, self.steps)

    def step(self) -> bool:
        """After a step of the optimiser: move the anchor to the parameters if the rule says so; whether it moved.

        Raises:
            UserError: if a function says neither True nor False.
        """
        self.steps += 1
        block = self._decided() or self._shortened()
        if block is None:
            return False
        self.module.relinearize()
        self.blocks.append(block)
        self._grown = 0.0
        if resets(self._rule):
            self._optimizer.state.clear()
        return True

    def remove(self) -> None:
        """End the policy: the anchor stays where it is."""
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """What a policy needs to go on at any step, the anchor among it: numbers, words and tensors."""
        return {
            **self._identity(),
            "steps": self.steps,
            "blocks": [block.state_dict() for block in self.blocks],
            "grown": self._grown,
            "anchor": {name: value.clone() for name, value in self.module.anchor.named_buffers()},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where the policy was that gave this state, with its anchor. Load module and optimiser as well.

        Raises:
            UserError: if it is that of another policy.
        """
        own = self._identity()
        for name in (*own, "steps", "blocks", "grown", "anchor"):
            if name not in state_dict:
                raise UserError(
                    f"`state_dict`: '{name}' is missing, expected the state_dict() of an IterativeLinearisation"
                )
        for name, mine in own.items():
            if state_dict[name] != mine:
                raise UserError(
                    f"`state_dict`: is that of another policy: `{name}` is {shown(state_dict[name])}, expected "
                    f"{shown(mine)}; make the policy as it was made then"
                )
        blocks = blocks_from(state_dict["blocks"])
        self._check_past(blocks, int(state_dict["steps"]))
        self.steps, self.blocks, self._grown = int(state_dict["steps"]), blocks, float(state_dict["grown"])
        with torch.no_grad():
            for name, value in self.module.anchor.named_buffers():
                value.copy_(state_dict["anchor"][name])

    def __repr__(self) -> str:
        return f"IterativeLinearisation({self._rule!r}, steps={self.steps}, updates={self.updates})"

    def _identity(self) -> dict[str, Any]:
        """What has to be the same in a policy that goes on."""
        own = repr(self._rule) if isinstance(self._rule, Renewal) else "a function"
        names = [[name, *value.shape] for name, value in self.module.anchor.named_buffers()]
        return {"rule": own, "parameters": names, "stable": self._stable}

    def _check_past(self, blocks: list[Block], steps: int) -> None:
        """Raise if a function says otherwise of the past than that of the saved policy."""
        if isinstance(self._rule, Renewal):
            return
        then = {block.step for block in blocks if block.why == "plan"}
        for step in range(1, steps + 1):
            if self._asked(step) != (step in then):
                raise UserError(
                    f"`rule`: got {step not in then} for step {step}, expected {step in then}, as in the saved run; "
                    "only the steps to come may differ"
                )

    def _asked(self, step: int) -> bool:
        """What a function says."""
        found = False if isinstance(self._rule, Adaptive) else self._rule(step)
        if not isinstance(found, bool):
            raise UserError(f"`rule`: gave {shown(found)} at step {step}, expected True or False")
        return found

    def _decided(self) -> Block | None:
        """The block that begins now by the rule."""
        rule = self._rule
        if not isinstance(rule, Adaptive):
            return Block(self.steps, "plan") if self._asked(self.steps) else None
        return adapted(rule, self.blocks[-1].step, self.steps, self._reading)

    def _reading(self) -> Findings:
        """What an adaptive rule goes by, now."""
        assert self._looker is not None
        anchor, own = dict(self.module.anchor.named_buffers()), dict(self.module.nonlinear.named_parameters())
        return self._looker.reading(anchor, {name: own[name] for name in anchor})

    def _check_loss(self) -> None:
        """Raise unless the loss of a few samples is a finite number."""
        assert self._data is not None
        inputs, targets, loss = self._data
        with torch.no_grad():
            found = mean_loss(loss, 1.0, targets[:2], feed(self.module, take(inputs, slice(0, 2))))
        if not isinstance(found, Tensor) or found.dim() or not bool(found.isfinite()):
            raise UserError(
                f"`loss`: gave {shown(found)} for two samples, expected their mean loss, a finite number"
            )

    def _look_at(self, rule: Adaptive) -> Look:
        assert self._data is not None
        inputs, targets, loss = self._data
        index = probed(count(inputs), rule)
        x, y = take(inputs, index.to(targets.device)), targets[index.to(targets.device)]
        return Look(self.module.nonlinear, x, partial(mean_loss, loss, 1.0, y), rule, self.module._output)

    def _bound(self) -> float:
        """The largest stable rate of the present block, for the largest rate of the optimiser; computed once."""
        assert self._rates is not None
        assert self._data is not None
        if self.blocks[-1].bound is None:
            found = self._rates.bound(self._data, self._batch)
            self.blocks[-1] = replace(self.blocks[-1], bound=found)
        return self.blocks[-1].bound or 0.0

    def _shortened(self) -> Block | None:
        """A block that begins because the worst direction of the last would grow too far."""
        if self._stable != "shorten" or self._rates is None or self._rule == Every(1):
            return None
        self._grown += math.log(self._rates.growth(self._bound()))
        return Block(self.steps, "stable") if self._grown > GROWN else None

    def _before(self, optimizer: Optimizer, args: Any, named: Any) -> None:
        """The rates of this step within the bound of the block."""
        if self._stable is None or self._rates is None or self._rule == Every(1):
            return
        self._after(optimizer, args, named)  # a step that was broken off has not put them back
        rate, bound = self._rates.largest(), self._bound()
        if rate > bound and self._stable == "refuse":
            raise too_large(rate, bound, self.steps)
        if rate > bound and self._stable == "lower":
            self._kept = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * lowered(rate, bound) / rate
            self.blocks[-1] = replace(self.blocks[-1], lowered=True)

    def _after(self, optimizer: Optimizer, args: Any, named: Any) -> None:
        """The rates as they were."""
        for group, rate in zip(optimizer.param_groups, self._kept, strict=False):
            group["lr"] = rate
        self._kept = []


def _check_held(linear: Linearized, optimizer: Optimizer) -> None:
    """Raise unless the optimiser holds all parameters of the module that train."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    own = {id(p): name for name, p in linear.named_parameters() if p.requires_grad}
    if missing := [name for key, name in own.items() if key not in held]:
        raise UserError(
            f"`optimizer`: does not hold '{missing[0]}' of `module`; make it of module.parameters(), after linearize, "
            "which copies the network"
        )
