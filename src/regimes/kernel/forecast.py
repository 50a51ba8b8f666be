"""What a tangent kernel will cost, before it is computed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regimes.core.batch import Inputs, check, count, device_of, take
from regimes.core.check import checked
from regimes.core.derivative import Output, exact
from regimes.kernel.build import Builder
from regimes.kernel.cost import pairing
from regimes.kernel.factor import Reduce
from regimes.kernel.machine import speeds
from regimes.kernel.ntk import assembly_of, planned
from regimes.kernel.plan import Plan, by_jacobian
from regimes.kernel.request import request
from regimes.kernel.site import IrregularError
from regimes.kernel.tiles import Assembly

__all__ = ["KernelForecast", "LayerForecast", "ntk_forecast"]

# Samples that are sent through the network to time it.
_SAMPLES = 128


@dataclass(frozen=True)
class LayerForecast:
    """The plan for some parameters of one layer.

    Attributes:
        layer: the module that owns them.
        parameters: their names.
        order: "gram" (products of inputs, and of gradients, first), "explicit" (gradients of each sample, then one
            product), "one-sided", "head" (the last layer: nothing flows back to it), "jacobian" (rows of the Jacobian
            by autograd, where no rule applies).
        size: the number of parameters.
        seconds: of the products between pairs of samples.
    """

    layer: str
    parameters: tuple[str, ...]
    order: str
    size: int
    seconds: float


@dataclass(frozen=True)
class KernelForecast:
    """What a kernel will cost.

    Attributes:
        seconds: of it all.
        bytes: of working memory, besides the result.
        result_bytes: of the result.
        passes: samples that go forward through the network, counted as often as they do.
        tile: samples whose factors are held together.
        layers: the plan.
    """

    seconds: float
    bytes: int
    result_bytes: int
    passes: int
    tile: int
    layers: tuple[LayerForecast, ...]

    def __str__(self) -> str:
        width = max([5, *(len(layer.layer) for layer in self.layers)])
        lines = [
            f"{self.seconds:.3g} s, {self.bytes / 2**20:.1f} MiB of working memory, result "
            f"{self.result_bytes / 2**20:.1f} MiB; tiles of {self.tile} samples, {self.passes} sample passes",
            f"{'layer':{width}}  order      parameters  seconds",
        ]
        lines += [
            f"{each.layer:{width}}  {each.order:9}  {each.size:10}  {each.seconds:.2g}"
            for each in self.layers
        ]
        return "\n".join(lines)


@checked
def ntk_forecast(
    module: nn.Module,
    x1: Inputs,
    x2: Inputs | None = None,
    *,
    reduce: Reduce = "full",
    output: Output | None = None,
    memory: int | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> KernelForecast:
    """What :func:`ntk` will cost: seconds, bytes, and the plan for each layer.

    The network is looked at on two samples, and timed on one pass of up to 128; nothing larger runs. The speeds of
    the machine are measured once and kept (``REGIMES_CACHE``).

    Args:
        module: f.
        x1: n1 samples, as for :func:`ntk`.
        x2: n2 samples (default: x1).
        reduce: the form.
        output: as for :func:`ntk`.
        memory: as for :func:`ntk`.
        parameters: as for :func:`ntk`.

    Returns:
        The forecast; ``print`` shows it as a table. The seconds are good to a factor of two on a quiet machine.

    Raises:
        UserError: as :func:`ntk`.

    >>> ntk_forecast(nn.Linear(3, 2), torch.ones(4, 3)).layers[0].order
    'head'
    """
    check(x1, "x1")
    with exact(device_of(x1)), torch.no_grad():
        asked = request(module, x1, x2, reduce, output, memory, parameters)
        began = time.perf_counter()
        plan = planned(asked)
        planning = time.perf_counter() - began
        assembly = assembly_of(asked, plan, by_layer=False, stored=False)
        try:
            each = _building(assembly, plan)
        except IrregularError:
            plan = by_jacobian(asked.network, plan)
            assembly = assembly_of(asked, plan, by_layer=False, stored=False)
            each = _building(assembly, plan)
        n1, n2 = asked.shape
        pairs = n1 * (n1 + 1) // 2 if asked.columns is None else n1 * n2
        layers = _layers(assembly, pairs, asked.prefix)
        passes = assembly.tiling.samples(n1, None if asked.columns is None else n2)
        seconds = planning + each * passes + sum(layer.seconds for layer in layers)
        entries = n1 * n2 * {"full": len(plan.asked) ** 2, "diagonal": len(plan.asked), "trace": 1}[reduce]
        item = asked.network.dtype.itemsize
        machine = speeds(asked.network.device, asked.network.dtype)
        seconds += 3 * entries * item / machine.traffic
        return KernelForecast(
            seconds, assembly.tiling.bytes, entries * item, passes, assembly.tiling.tile, layers
        )


def _layers(assembly: Assembly, pairs: int, prefix: str) -> tuple[LayerForecast, ...]:
    network, plan = assembly.network, assembly.plan
    machine = speeds(network.device, network.dtype)
    found = []
    for term in plan.terms:
        form: Reduce = (
            "full" if plan.lift is not None and term.order not in ("head", "jacobian") else plan.reduce
        )
        r = plan.width if term.order not in ("head", "jacobian") else len(plan.asked)
        each = pairing(term.shape, term.order, form, r, machine, network.dtype.itemsize)
        owner = f"{prefix}{term.owner}".removesuffix(".")
        names = tuple(f"{prefix}{name}" for name in term.names)
        found.append(LayerForecast(owner, names, term.order, term.shape.numel, each * pairs))
    return tuple(found)


def _building(assembly: Assembly, plan: Plan) -> float:
    """Seconds per sample to form the factors of a group, timed on a few; the first run only warms up."""
    tiling = assembly.tiling
    x = take(assembly.rows, slice(0, min(_SAMPLES, tiling.micro, tiling.tile)))
    times = []
    for group in tiling.groups:
        builder = Builder(
            assembly.network, plan, group, tiling.directions[0], tiling.micro, tiling.room, assembly.by_owner
        )
        builder(x)
        began = time.perf_counter()
        builder(x)
        times.append(time.perf_counter() - began)
    return sum(times) / len(times) / count(x)
