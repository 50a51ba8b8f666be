"""What a function is trained towards and where it starts, as the losses take them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from regimes.core.batch import check_finite
from regimes.core.decision import check_signs
from regimes.core.error import UserError
from regimes.core.loss import CrossEntropy, Hinge, Loss, SoftHinge, Squared

__all__ = ["as_start", "as_targets", "check_margin_targets", "check_targets", "mean_loss"]


def check_targets(targets: Tensor) -> None:
    """Raise unless these are targets of at least one sample: finite numbers, (n,) or (n, c)."""
    kind = type(targets).__name__
    if isinstance(targets, Tensor):
        kind = f"{targets.dtype} {tuple(targets.shape)}"
        if targets.dim() in (1, 2) and targets.numel() and not targets.is_complex():
            return check_finite(targets, "`targets`", "drop that sample, or mend it")
    raise UserError(f"`targets`: got {kind}, expected a tensor of real numbers, (n,) or (n, c), n at least 1")


def as_targets(targets: Tensor, samples: int, outputs: int, loss: Loss) -> Tensor:
    """The targets as the loss takes them, those of the squared loss as (n, c); checked."""
    check_targets(targets)
    targets = targets.detach()
    if targets.is_floating_point():
        width = targets.shape[1] if targets.dim() == 2 else 1
        if (
            len(targets) != samples
            or width != outputs
            or (targets.dim() == 2 and not isinstance(loss, Squared))
        ):
            floats = (
                f"({samples}, {outputs})" if isinstance(loss, Squared) else f"({samples},) for one output"
            )
            raise UserError(
                f"`targets`: got floats of shape {tuple(targets.shape)} for {outputs} outputs, expected {floats}, or "
                "class indices (int64)"
            )
        check_margin_targets(targets, loss)
        return targets.double().reshape(samples, -1) if isinstance(loss, Squared) else targets.double()
    if isinstance(loss, Hinge | SoftHinge) or outputs < 2:
        raise UserError(
            f"`targets`: got {targets.dtype} for {type(loss).__name__} and {outputs} outputs, expected floats -1 and "
            "+1; y.double() makes them of whole numbers, 2.0 * y - 1 of 0 and 1"
        )
    right = targets.dtype == torch.int64 and targets.shape == (samples,)
    if not right or int(targets.min()) < 0 or int(targets.max()) >= outputs:
        raise UserError(
            f"`targets`: got {targets.dtype} {tuple(targets.shape)} from {int(targets.min())} to {int(targets.max())}, "
            f"expected ({samples},) class indices (int64) below {outputs}; y.long() makes them of other whole numbers, "
            "y.double() real targets"
        )
    return one_hot(targets, outputs).double() if isinstance(loss, Squared) else targets


def check_margin_targets(targets: Tensor, loss: Loss) -> None:
    """Raise unless floats are -1 and +1 where the loss is one of margins F y."""
    if isinstance(loss, Hinge | SoftHinge | CrossEntropy) and targets.is_floating_point():
        check_signs(targets, why=f"for {type(loss).__name__}")


def as_start(start: Tensor, samples: int, outputs: int) -> Tensor:
    """F0 as (n, c), checked."""
    if not isinstance(start, Tensor):
        raise UserError(f"`start`: got {type(start).__name__}, expected a tensor {(samples, outputs)}")
    found = start[:, None] if start.dim() == 1 else start
    if tuple(found.shape) != (samples, outputs):
        raise UserError(
            f"`start`: got shape {tuple(start.shape)}, expected {(samples, outputs)}, the outputs at the start"
        )
    check_finite(found, "`start`", "start from finite weights")
    return found.detach()


def mean_loss(loss: Loss, outputs: Tensor, targets: Tensor) -> float:
    """The mean over samples; targets of the squared loss are (n, c) here."""
    if isinstance(loss, Squared):
        return float((outputs - targets).square().sum(1).mean() / 2)
    return float(loss.per_sample(outputs, targets).mean())
