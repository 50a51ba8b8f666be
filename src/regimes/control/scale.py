r"""The output scale: F(w, x) = alpha * (f(w, x) - f(w0, x)), and the loss factor that goes with alpha."""

from __future__ import annotations

import copy
import math
import warnings
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from regimes.core.batch import check_finite
from regimes.core.check import checked
from regimes.core.error import UserError

__all__ = ["LAZY", "Scaled", "duplicate", "rescaled", "scale", "unscaled"]

# From here on alpha (f - f0) has lost half its digits in float32 (Chizat et al. 2019 sweep in double).
LAZY = 1e3
# Without the numbers of the case, so that a sweep is told once.
_DIGITS = (
    f"`alpha` above {LAZY:g} in less than double precision: f - f0 is of size 1 / alpha, so that its rounding "
    "error is a share of about alpha * 1e-7; call .double() on the module and on its inputs"
)


@checked
class Scaled(nn.Module):
    r"""F(w, x) = alpha * (f(w, x) - f(w0, x)), an ordinary module.

    Attributes:
        network: f(w, .), which trains.
        origin: f(w0, .), a frozen copy in eval mode, or None if the module is not centred.
        alpha: the scale, a buffer of shape (): it is saved with the state_dict and moves with ``.to``.
    """

    alpha: Tensor
    _checked = False

    def __init__(self, network: nn.Module, alpha: float, center: bool = True) -> None:
        super().__init__()
        self._checked = False
        self.network = network
        self.origin = _frozen(duplicate(network)) if center else None
        like = next(network.parameters(), torch.zeros(()))
        dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
        self.register_buffer("alpha", torch.tensor(float(alpha), dtype=dtype, device=like.device))
        if like.device.type != "meta" and not 0 < float(self.alpha) < math.inf:
            raise UserError(
                f"`alpha`: got {alpha:g}, which is {float(self.alpha):g} in {dtype}, that of the module; call "
                ".double() on it"
            )

    def forward(self, *args: Any, **named: Any) -> Tensor:
        """F(w, x), of the shape of f(w, x)."""
        out, start = self.network(*args, **named), None
        if not isinstance(out, Tensor):
            raise UserError(
                f"`module`: gave outputs of type {type(out).__name__}, expected a tensor; wrap the module in one "
                "that picks them, such as out.logits"
            )
        if self.origin is not None:
            # Its parameters are frozen; by the inputs it has a gradient like f.
            start = self.origin(*args, **named)
        if not self._checked:
            self._check(out, start)
        return self.alpha * (out if start is None else out - start)

    def _check(self, out: Tensor, start: Tensor | None) -> None:
        """At the first call: raise if f(w0, x) is not finite, warn if its digits are too few for alpha."""
        try:
            if start is not None:
                # No part of what is computed: whoever watches the operations of the network need not see it.
                with torch._C.DisableTorchFunction():
                    check_finite(
                        start, "`module`: its output at the origin", "start from finite weights and inputs"
                    )
            short = out.dtype != torch.float64 and float(self.alpha) > LAZY
        except RuntimeError:  # inside vmap, or on the meta device, there are no numbers to look at
            return
        self._checked = True
        if short:
            warnings.warn(_DIGITS, UserWarning, stacklevel=2)

    def train(self, mode: bool = True) -> Scaled:
        """Training mode for the network; the origin stays in eval mode, so that f(w0, x) does not move."""
        super().train(mode)
        if self.origin is not None:
            self.origin.eval()
        return self

    def loss(self, value: Tensor) -> Tensor:
        r"""loss / alpha^2: the scaled loss :math:`L_\alpha`, whose time scale in the lazy limit has no alpha in it.

        Divide the loss or the learning rate by alpha^2, never both.
        """
        return value / self.alpha**2

    def extra_repr(self) -> str:
        """The formula with its number."""
        centred = "(f(w, x) - f(w0, x))" if self.origin is not None else "f(w, x)"
        return f"{float(self.alpha):g} * {centred}"


@checked
def scale(module: nn.Module, alpha: float | Tensor, center: bool = True) -> Scaled:
    r"""Place a network between lazy and rich: F(w, x) = alpha * (f(w, x) - f(w0, x)).

    Train it on loss(F, y) / alpha^2 (see :meth:`Scaled.loss`; the engines of ``regimes.train`` divide by
    themselves): large alpha gives lazy training, small alpha feature learning, at any width. The scale never
    changes a decision of a classifier; the centring does.

    Args:
        module: f, any module; it is used, not copied. Its present parameters become w0.
        alpha: the scale, a number or a tensor of shape (), positive and finite.
        center: subtract f(w0, x), from a frozen copy. Without it F at the start is alpha * f(w0, x).

    Returns:
        The scaled module. ``state_dict`` holds the network, its origin and alpha; ``copy.deepcopy`` and
        DistributedDataParallel work as on any module (the origin has no trainable parameters).

    Raises:
        UserError: if alpha is not positive and finite, or the module cannot be copied; at the first call if
            f(w0, x) is not finite.

    Warns:
        UserWarning: at the first call if alpha is above 1000 and f has less than double precision. The engines
            of ``regimes.train`` run such a module in float64 unless they are told not to.

    Source: Chizat, Oyallon, Bach 2019, section 1; Geiger et al. 2020, equation for F and L.

    >>> net = scale(nn.Linear(3, 1), alpha=100.0)
    >>> bool((net(torch.ones(2, 3)) == 0).all())
    True
    """
    number = isinstance(alpha, Real) and not isinstance(alpha, bool)
    number = number or (isinstance(alpha, Tensor) and alpha.dim() == 0 and not alpha.is_complex())
    if not number or not math.isfinite(alpha) or alpha <= 0:
        raise UserError(
            f"`alpha`: got {alpha!r}, expected a positive finite number; 1 leaves the scale as it is"
        )
    if not isinstance(module, nn.Module):
        raise UserError(f"`module`: got {type(module).__name__}, expected a torch.nn.Module")
    if isinstance(module, Scaled):
        raise UserError("`module`: got a module that is scaled already; scale its `.network` instead")
    return Scaled(module, float(alpha), center)


@checked
def unscaled(module: nn.Module) -> tuple[nn.Module, float, nn.Module | None]:
    """f, alpha and the origin of a module: (module, 1, None) if it is not scaled."""
    if isinstance(module, Scaled):
        return module.network, float(module.alpha), module.origin
    return module, 1.0, None


def rescaled(module: nn.Module, network: nn.Module) -> nn.Module:
    """Another network under the scale and the origin of a module, which may have none; all of it is shared."""
    if not isinstance(module, Scaled):
        return network
    found = copy.copy(module)
    found._modules = {**module._modules, "network": network}
    return found


def duplicate(module: nn.Module) -> nn.Module:
    """A deep copy, also of a module that keeps a result of its last call.

    Raises:
        UserError: if the module cannot be copied.
    """
    # Tensors with a graph (activations, the weight of torch.nn.utils.weight_norm) come without it.
    kept = [v for part in module.modules() for v in vars(part).values() if isinstance(v, Tensor)]
    memo = {id(v): v.detach().clone() for v in kept if not v.is_leaf}
    try:
        with (
            torch.no_grad()
        ):  # a scripted module would keep the graph that leads to the parameters it is copied from
            copied = copy.deepcopy(module, memo)
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"`module`: cannot be copied ({str(error).splitlines()[0]}); take that out"
        ) from error
    for own, other in zip(copied.parameters(), module.parameters(), strict=True):
        own.requires_grad_(other.requires_grad)
    return copied


def _frozen(module: nn.Module) -> nn.Module:
    """The module in eval mode, with nothing that trains. A scripted one has no ``requires_grad_``."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()
