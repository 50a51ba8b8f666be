"""What the engines begin with: the program of the members, and the training set they share or have one each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regimes.control.scale import unscaled
from regimes.core.error import UserError
from regimes.core.layer import begins_a_line
from regimes.core.loss import Loss
from regimes.train.plan import Anchor, Layers, Plans
from regimes.train.program import Program, choose_dtype, members_of
from regimes.train.target import check_margin_targets

__all__ = ["Given", "prepare", "prepare_plans"]

Given = Tensor | Sequence[Tensor]
"""A tensor that the members share, or one for each member, of one shape."""


def prepare(
    modules: nn.Module | Sequence[nn.Module],
    inputs: Given,
    targets: Given,
    loss: Loss,
    dtype: torch.dtype | None,
    default: torch.dtype | None,
) -> tuple[Program, Tensor, Tensor]:
    """The program of the members, and the training set on its device, checked.

    Of inputs or targets for each member the tensors come as one, with the members in front.

    Raises:
        UserError: if data, module and loss do not fit, or the members differ in architecture.
    """
    members = members_of(modules)
    for index, module in enumerate(members):
        alpha = unscaled(module)[1]
        if not math.isfinite(alpha) or alpha <= 0:
            raise UserError(
                f"`modules`: member {index} has alpha = {alpha}, expected a positive finite number"
            )
    own = not isinstance(inputs, Tensor)
    program = Program(members, loss, choose_dtype(members, dtype, default), own=own)
    every = [_each(name, given, len(members)) for name, given in (("inputs", inputs), ("targets", targets))]
    for i in range(max(map(len, every))):
        one, wanted = (each[min(i, len(each) - 1)] for each in every)
        _check(one, wanted)
        check_margin_targets(wanted, loss)
    x, y = (
        _placed(given if isinstance(given, Tensor) else torch.stack(each), program)
        for given, each in zip((inputs, targets), every, strict=True)
    )
    _try(program, x, y)
    return program, x, y


def prepare_plans(program: Program, start: Tensor, layers: Layers | None, anchor: Anchor | None) -> Plans:
    """The plans of a run, looked at for the first step; with an anchor the members are linear from here on.

    Raises:
        UserError: if a plan gives what is none, or a member cannot be linearised.
    """
    plans = Plans(program.modules[0], layers, anchor)
    if plans.linear:
        program.linearize(start)
    return plans


def _each(name: str, given: Given, members: int) -> list[Tensor]:
    """The tensors: one, or one for each member."""
    if isinstance(given, Tensor):
        return [given]
    if len(given) != members:
        raise UserError(
            f"`{name}`: got {len(given)} tensors for {members} members, expected one for each, or a tensor for all"
        )
    first = given[0]
    for member, each in enumerate(given):
        if each.shape != first.shape or each.dtype != first.dtype:
            raise UserError(
                f"`{name}`: got {each.dtype} {tuple(each.shape)} for member {member}, expected {first.dtype} "
                f"{tuple(first.shape)}, as for member 0; train others in a call of their own"
            )
    return [each.to(first.device) for each in given]


def _placed(x: Tensor, program: Program) -> Tensor:
    """On the device of the program, in its precision."""
    return begins_a_line(x.to(program.device, program.dtype if x.is_floating_point() else None))


def _check(x: Tensor, y: Tensor) -> None:
    for name, each in (("inputs", x), ("targets", y)):
        if each.dim() == 0 or each.is_complex():
            raise UserError(
                f"`{name}`: got {each.dtype} {tuple(each.shape)}, expected real numbers, (n, ...)"
            )
    if y.dim() != 1:
        raise UserError(
            f"`targets`: got shape {tuple(y.shape)}, expected (n,): -1 or +1 as floats, or class indices"
        )
    if len(x) == 0 or len(x) != len(y):
        raise UserError(
            f"`inputs`, `targets`: got {len(x)} and {len(y)} samples, expected the same number, at least 1"
        )
    for name, each in (("inputs", x), ("targets", y)):
        if not bool(torch.isfinite(each).all()):
            raise UserError(f"`{name}`: hold nan or infinity; expected finite numbers")


def _try(program: Program, x: Tensor, y: Tensor) -> None:
    """Evaluate one sample, so that what does not fit is said in words."""
    first = torch.arange(1, device=program.device)
    sample = x[:1, :1] if program.own else x[:1]
    try:
        classes = program.raw(program.start()[:1], first, sample).shape[-1]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"`inputs`: the module does not take samples of shape {tuple(sample.shape[1 + program.own :])}: {reason}"
        ) from error
    if y.is_floating_point():
        if classes != 1:
            raise UserError(
                f"`targets`: got floats for {classes} outputs, expected class indices (int64); "
                "floats go with 1 output"
            )
    elif y.dtype != torch.int64 or int(y.min()) < 0 or int(y.max()) >= classes:
        raise UserError(
            f"`targets`: got {y.dtype} from {int(y.min())} to {int(y.max())}, expected class indices (int64) "
            f"below {classes}, the outputs of the module; targets of -1 and +1 are floats"
        )
