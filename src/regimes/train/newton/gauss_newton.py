"""Damped Gauss-Newton as an optimiser of torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regimes.core.batch import Inputs, tensors
from regimes.core.check import checked
from regimes.core.derivative import Output, check_separable
from regimes.core.error import UserError
from regimes.core.loss import CrossEntropy, Squared
from regimes.core.tree import trainable
from regimes.train.newton.batch import Batch, batch_of
from regimes.train.newton.curvature import curvature_of, model_of
from regimes.train.newton.damping import adapted, trust_ratio
from regimes.train.newton.line_search import search
from regimes.train.newton.record import GaussNewtonStep
from regimes.train.newton.sizes import chosen
from regimes.train.newton.solve import Solution, by_factor, by_products, by_trace

__all__ = ["GaussNewton"]


@final
@checked
class GaussNewton(Optimizer):
    r"""Damped Gauss-Newton steps, each one solve in the space of the outputs of a batch.

    .. math:: \Delta = -\,(J^\top H J + N \lambda)^{-1} J^\top g = -J^\top u, \qquad (H K + N \lambda)\, u = g

    g and H are slope and curvature of the loss by the outputs F, block diagonal over the N terms of the loss, J is the
    Jacobian of F by the parameters that require grad, and K = J J^T the tangent kernel of the batch. Delta is where
    the quadratic model of the loss plus lambda / 2 times the square of its norm is least. For the squared loss H = 1
    and it is -J^T (K + N lambda)^-1 (F - y); for cross-entropy H = diag p - p p^T.

    The loop is ``for x, y in batches: optimizer.step(x, y)``; no ``backward``. The mean of the loss over the batch is
    minimised; outputs (n, tokens, c) with targets (n, tokens) are N = n x tokens terms. The module is one that
    :func:`regimes.measure.ntk` takes: each sample by itself, so no batch norm or dropout in train mode. For a module
    from :func:`regimes.control.scale` the loss is that of F = alpha (f - f0), not divided by alpha^2, and lambda stands
    beside K = alpha^2 K_f: alpha^2 lambda does what lambda does for f.

    Args:
        module: F. What requires grad moves.
        loss: ``squared`` or ``cross_entropy`` of ``regimes.core.loss``.
        lr: the step is lr times Delta, times what the line search leaves of it. Schedulers of torch work.
        damping: lambda at the start, beside the eigenvalues of K / N.
        kernel: "full" forms K and factorises it; "trace" takes K as its mean over the outputs, n x n, times the
            identity, which costs about as much as a network with one output, and its steps are not those of the full
            kernel; "products" is conjugate gradients with products by J, for batches whose kernel does not fit. "auto"
            goes by the sizes alone: full up to n c = 2048, trace up to n = 4096 where a sample has one row of outputs,
            else products.
        adaptive: change lambda after each step by the trust ratio, actual over predicted decrease: doubled below 1/4,
            halved above 3/4 where the line search left the step its length; doubled where it was not taken.
        tolerance: of conjugate gradients, the norm of J^T (g - (H K + N lambda) u) over that of J^T g.
        max_products: the most products with K in a step with "products".
        output: picks the outputs from what the module returns: ``lambda out: out.logits``.
        memory: bytes for the kernel and its factor, and for a pass (default: 2^30).

    Attributes:
        param_groups: one group, with ``lr`` and ``damping``, which is where the present lambda is.

    Raises:
        UserError: if a number is out of range, or the module is random or couples samples.

    Source: Nocedal and Wright 2006, chapter 10; Cai et al. 2019 for the kernel (arXiv:1905.11675); Martens 2010 for
    curvature and conjugate gradients.

    >>> from regimes.core.loss import squared
    >>> net, x = nn.Linear(2, 1).double(), torch.randn(8, 2, dtype=torch.float64)
    >>> step = GaussNewton(net, loss=squared, damping=1e-6).step(x, x[:, 0])
    >>> round(step.ratio, 6), step.kernel
    (1.0, 'full')
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        loss: Squared | CrossEntropy,
        lr: float = 1.0,
        damping: float = 0.1,
        kernel: Literal["auto", "full", "trace", "products"] = "auto",
        adaptive: bool = True,
        tolerance: float = 1e-3,
        max_products: int = 100,
        output: Output | None = None,
        memory: int | None = None,
    ) -> None:
        for name, number in (("lr", lr), ("damping", damping)):
            if not 0 < number < math.inf:
                raise UserError(f"`{name}`: got {number}, expected a positive finite number")
        if not 0 < tolerance < 1:
            raise UserError(f"`tolerance`: got {tolerance}, expected a number between 0 and 1")
        if max_products < 1:
            raise UserError(f"`max_products`: got {max_products}, expected at least 1")
        if memory is not None and not memory > 0:
            raise UserError(f"`memory`: got {memory}, expected a positive number of bytes, or None")
        check_separable(module)
        moving = list(trainable(module).values())
        if not moving:
            raise UserError("`module`: nothing requires grad, so there is nothing to train")
        self.module, self.loss, self.adaptive = module, loss, adaptive
        self.kernel: Literal["auto", "full", "trace", "products"] = kernel
        self.tolerance, self.max_products = tolerance, max_products
        self.output, self.memory = output, memory
        super().__init__(moving, {"lr": float(lr), "damping": float(damping)})

    @checked
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Inputs, y: Tensor, check: tuple[Inputs, Tensor] | None = None
    ) -> GaussNewtonStep:
        """Solve one batch and take the step.

        With ``check``, a batch of other samples, the step is halved until the loss of that batch falls enough (Armijo:
        by 1e-4 of what its slope there promises; at most 8 times), and the trust ratio compares that decrease with the
        one that the quadratic model of the same batch predicts, at the price of two to three passes over it. Without,
        there is no line search, and the trust ratio is that of the solved batch, which small batches with many
        parameters make too good. In both cases a step that does not pass leaves the parameters as they were, bit for
        bit: one whose loss is not finite, that the line search gives up, or (with adaptive damping and no ``check``)
        that raises the loss of the batch it solved.

        Args:
            x: n samples, as the module takes them.
            y: class indices (n,), floats -1 and +1 (n,) for one output, or for the squared loss floats (n,) or (n, c);
                with an axis of tokens after n where the outputs have one.
            check: other samples and targets.

        Returns:
            What was done.

        Raises:
            UserError: as :func:`regimes.measure.ntk`; if targets do not go with the outputs; ``check`` is the batch
                itself; the kernel does not fit ``memory``; or outputs are not finite.
        """
        self._check_parameters()
        check_separable(self.module)
        batch = batch_of(self.module, x, y, self.loss, self.output)
        other = None
        if check is not None:
            _check_other(x, check[0])
            names = ("check[0]", "check[1]")
            other = batch_of(self.module, check[0], check[1], self.loss, self.output, names)
        kind = chosen(self.kernel, batch.shape, batch.width, self.memory)
        group = self.param_groups[0]
        solution, tangent, model = self._solved(batch, kind, float(group["damping"]))
        model = model if other is None else other.model(tangent)
        found = self._moved(other or batch, tangent, model, searched=other is not None)
        eps = torch.finfo(next(iter(tangent.values())).dtype).eps
        ratio = trust_ratio(found.actual, found.predicted, batch.start, eps)
        if self.adaptive:
            judged = ratio if found.passed else -math.inf
            group["damping"] = adapted(solution.damping, judged, found.length == group["lr"])
        length = found.length if found.passed else 0.0
        return GaussNewtonStep(
            batch.start, found.predicted, found.actual, ratio, solution.damping, length,
            kind, solution.products, solution.residual, solution.raised,
        )  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        """All of it, the module too: a copy steps its own. A schedule leaves a ``step`` here that leads to this one."""
        return {name: value for name, value in vars(self).items() if name != "step"}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """None but the one that holds what moves in the module.

        Raises:
            UserError: if there is one already.
        """
        if self.param_groups:
            raise UserError(
                "`param_group`: a step is solved for all parameters together, so there is one group; set requires_grad "
                "in the module and make the optimiser anew"
            )
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where the optimiser was that gave this state: with its damping and learning rate.

        Raises:
            UserError: if it is that of another optimiser.
        """
        groups = state_dict.get("param_groups") or [{}]
        if missing := [name for name in ("lr", "damping") if name not in groups[0]]:
            raise UserError(
                f"`state_dict`: '{missing[0]}' is missing, expected the state_dict() of a GaussNewton"
            )
        if len(groups) != 1 or len(groups[0]["params"]) != len(self.param_groups[0]["params"]):
            raise UserError(
                "`state_dict`: is that of an optimiser for other parameters; make it for the module as it was then"
            )
        super().load_state_dict(dict(state_dict))

    def _check_parameters(self) -> None:
        """Raise if the module has other parameters than when the optimiser was made."""
        held = {id(p) for p in self.param_groups[0]["params"]}
        own = trainable(self.module)
        if strange := [name for name, p in own.items() if id(p) not in held]:
            raise UserError(
                f"`module`: '{strange[0]}' requires grad, and did not when the optimiser was made, or was not there; "
                "make the optimiser anew"
            )
        if not own:
            raise UserError("`module`: nothing requires grad, so there is nothing to train")

    def _solved(
        self, batch: Batch, kind: str, damping: float
    ) -> tuple[Solution, dict[str, Tensor], tuple[float, float]]:
        """The solution, -Delta = J^T u by name, and slope and curvature of the quadratic model along Delta."""
        curvature = curvature_of(self.loss, batch.outputs, batch.targets)
        if kind == "products":
            slopes = batch.slopes(self.memory, together=False)
            found = by_products(slopes.product, curvature, damping, self.tolerance, self.max_products)
            return found, slopes.pull(found.u), found.model
        if kind == "full":
            found = by_factor(batch.kernel("full", self.memory), curvature, damping)
            return found, batch.slopes(self.memory, together=True).pull(found.u), found.model
        found = by_trace(batch.kernel("trace", self.memory), curvature, damping, self.tolerance)
        tangent, pushed = batch.slopes(self.memory, together=True).pull_push(found.u)
        return found, tangent, model_of(curvature, pushed)

    def _moved(
        self, judge: Batch, tangent: Mapping[str, Tensor], model: tuple[float, float], searched: bool
    ) -> _Move:
        """Move along -tangent, or stay where the batch that judges says so."""
        own = trainable(self.module)
        before = {name: own[name].detach().clone() for name in tangent}
        rate, terms, first = float(self.param_groups[0]["lr"]), len(judge.outputs), judge.start

        @torch.no_grad()
        def decrease(length: float) -> float:
            for name, along in tangent.items():
                own[name].copy_(before[name] - rate * length * along)
            fallen = first - judge.now()
            return fallen if math.isfinite(fallen) else math.nan

        if searched:
            length, actual, passed = search(decrease, rate * model[0] / terms)
        else:
            length, actual = 1.0, decrease(1.0)
            eps = torch.finfo(next(iter(tangent.values())).dtype).eps
            passed = actual >= -10 * eps * abs(first) if self.adaptive else math.isfinite(actual)
        length *= rate
        if not passed:
            with torch.no_grad():
                for name, value in before.items():
                    own[name].copy_(value)
        return _Move(length, (length * model[0] - length**2 / 2 * model[1]) / terms, actual, passed)


@dataclass(frozen=True)
class _Move:
    """The length that was tried last, what the loss was to fall by and fell by, and whether that was good enough."""

    length: float
    predicted: float
    actual: float
    passed: bool


def _check_other(x: Inputs, check: Inputs) -> None:
    """Raise if the samples of ``check`` are those of the batch themselves."""
    mine, theirs = tensors(x).values(), tensors(check).values()
    if [_place(each) for each in mine] == [_place(each) for each in theirs]:
        raise UserError(
            "`check`: got the batch that is solved, whose loss falls by more than that of other samples, so that every "
            "step would pass; give other samples, or leave it out"
        )


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()
