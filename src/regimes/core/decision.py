"""What counts as wrong: the one definition for error rates, ensembles and comparisons."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regimes.core.error import UserError

__all__ = ["check_decision", "check_signs", "wrong"]


def wrong(outputs: Float[Tensor, "*m n c"], targets: Any, what: str = "`targets`") -> Bool[Tensor, "*m n"]:
    """Which samples are decided wrongly.

    A sample of a binary task is right if F y > 0, one of a classification if F_y > F_k for every other class k. So an
    output that decides nothing is wrong: 0, nan, and a tie between the largest outputs.

    Args:
        outputs: F; leading axes are members.
        targets: y, (n,), which is checked: -1 and +1 as floats where c = 1, class indices of any integer type from 0
            to c - 1 where c > 1.
        what: the name of the targets in errors.

    Returns:
        True where the decision is wrong.

    Raises:
        UserError: if the targets have another shape or kind.

    >>> wrong(torch.tensor([[0.3], [0.0], [-2.0]]), torch.tensor([1.0, 1.0, -1.0]))
    tensor([False,  True, False])
    >>> wrong(torch.tensor([[0.0, 1.0], [1.0, 1.0]]), torch.tensor([1, 1]))
    tensor([False,  True])
    """
    check_decision(outputs, targets, what)
    if targets.is_floating_point():
        return ~(outputs[..., 0] * targets > 0)
    index = targets.long().expand(outputs.shape[:-1])[..., None]
    return ~(outputs.gather(-1, index) > outputs.scatter(-1, index, -torch.inf)).all(-1)


def check_decision(outputs: Tensor, targets: Any, what: str = "`targets`") -> None:
    """Raise unless there is one target for each sample, of the kind that goes with the outputs (..., n, c).

    Raises:
        UserError: names the targets, what came and what goes.
    """
    if outputs.is_complex() or outputs.dtype == torch.bool:
        raise UserError(f"`outputs`: got {outputs.dtype}, expected real numbers")
    n, c = outputs.shape[-2:]
    wanted = f"({n},) floats -1 and +1" if c == 1 else f"({n},) class indices from 0 to {c - 1}"
    if not isinstance(targets, Tensor):
        raise UserError(f"{what}: got {type(targets).__name__}, expected a tensor of {wanted}")
    came = f"{what}: got {targets.dtype} {tuple(targets.shape)} for outputs (n, c) = ({n}, {c})"
    if targets.shape != (n,) or not n:
        raise UserError(f"{came}, expected {wanted}, at least one")
    if targets.is_floating_point():
        if c != 1:
            raise UserError(f"{came}, expected {wanted}; use .long()")
        return check_signs(targets, what)
    if c == 1 or targets.dtype == torch.bool or targets.is_complex():
        raise UserError(f"{came}, expected {wanted}" + ("; 2.0 * y - 1 makes them of 0 and 1" * (c == 1)))
    if int(targets.min()) < 0 or int(targets.max()) >= c:
        raise UserError(f"{came} from {int(targets.min())} to {int(targets.max())}, expected {wanted}")


def check_signs(targets: Tensor, what: str = "`targets`", why: str = "for a decision by the sign") -> None:
    """Raise unless all targets are -1 or +1.

    Raises:
        UserError: names the range that came.
    """
    if not bool((targets.abs() == 1).all()):
        raise UserError(
            f"{what}: got values from {float(targets.min()):g} to {float(targets.max()):g}, expected -1 and +1 "
            f"{why}; 2 * y - 1 makes them of 0 and 1"
        )
