"""One batch as a step of Gauss-Newton needs it: the loss of its outputs, and products with their Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regimes.core.batch import Inputs, check, check_finite, count, device_of, misfit, take
from regimes.core.derivative import Output, call, columns, exact, jvp, value
from regimes.core.error import UserError
from regimes.core.loss import CrossEntropy, Squared
from regimes.core.noise import alike, noise
from regimes.core.tree import trainable
from regimes.kernel.factor import Reduce
from regimes.kernel.ntk import ntk
from regimes.kernel.products import Jacobian, prepared
from regimes.kernel.request import request
from regimes.train.newton.curvature import curvature_of, model_of
from regimes.train.target import as_targets, mean_loss

__all__ = ["Batch", "Slopes", "batch_of"]

# Samples that are evaluated together where no gradient is asked for.
_TOGETHER = 1024


@dataclass(frozen=True, eq=False)
class Slopes:
    """J for the samples of a batch, by the names of the parameters of the module.

    Attributes:
        jacobian: of what a scaled module scales.
        factor: alpha of it, or 1.
        prefix: from the names of that to the names of the module.
    """

    jacobian: Jacobian
    factor: float
    prefix: str

    def pull(self, u: Float[Tensor, "n c"]) -> dict[str, Tensor]:
        """J^T u."""
        return self._named(self.jacobian.pull(self._rows(u)))

    def pull_push(self, u: Float[Tensor, "n c"]) -> tuple[dict[str, Tensor], Float[Tensor, "n c"]]:
        """J^T u and J J^T u."""
        tangent, pushed = self.jacobian.pull_push(self._rows(u))
        return self._named(tangent), self.factor * pushed.double().reshape(u.shape)

    def product(self, u: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """J J^T u."""
        return self.factor * self.jacobian.square(self._rows(u)).double().reshape(u.shape)

    def _rows(self, u: Tensor) -> Tensor:
        rows = (self.factor * u).reshape(count(self.jacobian.x), -1)
        return rows.to(self.jacobian.network.dtype)

    def _named(self, tree: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"{self.prefix}{name}": each for name, each in tree.items()}


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of samples with targets. Where a sample has several rows of outputs (tokens), each is a term of the loss.

    Attributes:
        module: F.
        x: n samples.
        targets: as the loss takes them, one for each of N terms.
        loss: of each term.
        output: what picks the outputs from what the module returns.
        outputs: F at the parameters of the module when the batch was made, (N, c), float64.
        shape: of the outputs, n and all that a sample has.
    """

    module: nn.Module
    x: Inputs
    targets: Tensor
    loss: Squared | CrossEntropy
    output: Output | None
    outputs: Tensor
    shape: tuple[int, ...]

    @property
    def start(self) -> float:
        """The loss when the batch was made."""
        return mean_loss(self.loss, self.outputs, self.targets)

    @property
    def width(self) -> int:
        """Outputs of a sample, those of all its tokens."""
        return self.outputs.numel() // self.shape[0]

    @property
    def picked(self) -> Output | None:
        """From what the module returns to (n, outputs of a sample), as the kernel engine takes it."""
        return self.output if len(self.shape) < 3 else _flat(self.output)

    def now(self) -> float:
        """The loss at the present parameters."""
        outputs = _outputs(self.module, self.x, self.output)
        return mean_loss(self.loss, outputs.reshape(self.outputs.shape).double(), self.targets)

    def kernel(self, reduce: Reduce, memory: int | None) -> Tensor:
        """K as a matrix, (n c, n c), or K_trace, (n, n)."""
        k = ntk(self.module, self.x, reduce=reduce, output=self.picked, memory=memory)
        size = self.shape[0] * self.width
        return k if k.dim() == 2 else k.permute(0, 2, 1, 3).reshape(size, size)

    def model(self, tangent: Mapping[str, Tensor]) -> tuple[float, float]:
        """g . J t and J t . H J t: how N times the loss falls along -t, and bends; at the present parameters."""
        n, values = self.shape[0], trainable(self.module)
        parts = (take(self.x, slice(i, i + _TOGETHER)) for i in range(0, n, _TOGETHER))
        pushed = [jvp(self.module, values, some, tangent, output=self.picked)[1] for some in parts]
        curvature = curvature_of(self.loss, self.outputs, self.targets)
        return model_of(curvature, torch.cat(pushed).double().reshape(self.outputs.shape))

    def slopes(self, memory: int | None, together: bool) -> Slopes:
        """J.

        Args:
            memory: bytes for a pass.
            together: whether all samples go through the network at once, as the kernel engine found they may.
        """
        with exact(device_of(self.x)):
            asked = request(self.module, self.x, None, "full", self.picked, memory, None, "x")
            jacobian = (
                Jacobian(asked.network, asked.rows, self.shape[0])
                if together
                else prepared(asked.network, asked.rows, asked.memory)[0]
            )
        return Slopes(jacobian, asked.scale**0.5, asked.prefix)


def batch_of(
    module: nn.Module,
    x: Inputs,
    y: Tensor,
    loss: Squared | CrossEntropy,
    output: Output | None,
    names: tuple[str, str] = ("x", "y"),
) -> Batch:
    """The batch, checked.

    Args:
        module: F.
        x: samples.
        y: targets.
        loss: of each term.
        output: what picks the outputs.
        names: of samples and targets in errors.

    Raises:
        UserError: if there are no samples, the module does not take them, targets do not go with the outputs, or
            the loss is not finite.
    """
    check(x, names[0])
    try:
        outputs = _outputs(module, x, output)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        found = None if isinstance(error, UserError) else misfit(module, x, names[0])
        if found is None:
            raise
        raise found from error
    shape, flat = tuple(outputs.shape), outputs.reshape(-1, outputs.shape[-1] if outputs.dim() > 1 else 1)
    targets = y
    if outputs.dim() > 2 and y.shape == outputs.shape[: y.dim()]:
        targets = y.reshape(len(flat), -1) if y.dim() == outputs.dim() else y.reshape(-1)
    try:
        wanted = as_targets(targets, len(flat), flat.shape[1], loss).to(flat.device)
    except UserError as error:
        raise UserError(str(error).replace("`targets`", f"`{names[1]}`")) from error
    check_finite(flat, "`module`: the outputs", "start from finite parameters, or load earlier ones")
    _check_alone(module, x, output, outputs)
    return Batch(module, x, wanted, loss, output, flat.double(), shape)


def _outputs(module: nn.Module, x: Inputs, output: Output | None) -> Tensor:
    """F, (n,), (n, c) or (n, ..., c), without a graph."""
    n, found = count(x), []
    with exact(device_of(x)):
        for start in range(0, n, _TOGETHER):
            some = take(x, slice(start, start + _TOGETHER))
            out = value(module, dict(module.named_parameters()), some, output)
            if not isinstance(out, Tensor) or out.dim() < 3 or len(out) != count(some) or 0 in out.shape:
                columns(out, count(some), "`module`" if output is None else "`output`")
            found.append(out)
    return torch.cat(found)


def _check_alone(module: nn.Module, x: Inputs, output: Output | None, outputs: Tensor) -> None:
    """Raise if the outputs of the first sample are others without the rest of the batch."""
    one = take(x, slice(0, 1))
    values = {name: p for name, p in module.named_parameters() if p.is_floating_point()}
    rounding = partial(noise, lambda tree: call(module, tree, one, output), values)
    if not alike(_outputs(module, one, output), outputs[:1], rounding):
        raise UserError(
            "`module`: gives a sample other outputs in a batch than alone: it couples samples, or is random; a step "
            "needs outputs that depend on their own sample only"
        )


def _flat(output: Output | None) -> Output:
    """The outputs of a sample in one row."""
    pick: Callable[..., Tensor] = (lambda found: found) if output is None else output
    return lambda found: pick(found).flatten(1)
