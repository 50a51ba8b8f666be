"""The reset test: what a trained network loses where some of its parameters go back to their start."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from regimes.control.linear import Linearized
from regimes.control.scale import Scaled, duplicate
from regimes.core.batch import Inputs, check, check_finite, count, device_of, take
from regimes.core.check import checked
from regimes.core.decision import wrong
from regimes.core.derivative import Output, columns, exact, value
from regimes.core.error import UserError
from regimes.core.estimate import Estimate, mean
from regimes.core.loss import Loss
from regimes.core.stream import generator
from regimes.core.tree import Tree, by_layer, named_pair, trainable
from regimes.measure.activity import ActiveSet, activity

__all__ = ["Reset", "reset_test"]


@dataclass(frozen=True)
class Reset:
    """The error, or the loss, with some parameters back at their start: what :func:`reset_test` gives.

    Attributes:
        count: K, how many were reset.
        share: K / N.
        end: with none of them reset.
        start: with all of them reset.
        active: with the active set reset.
        least: with the K least changed ones reset.
        random: with K random ones reset, over the draws.
        layered: with random ones reset, as many in each layer as the active set has there, over the draws.
        excess: ``active`` minus ``layered``: above 0, it matters which parameters of a layer are reset, not only in
            which layers they lie.
    """

    count: int
    share: float
    end: float
    start: float
    active: float
    least: float
    random: Estimate
    layered: Estimate
    excess: Estimate


@checked
def reset_test(
    module: nn.Module,
    x: Inputs,
    y: Tensor,
    *,
    origin: Tree,
    parameters: Tree | None = None,
    active: ActiveSet | None = None,
    statistics: Inputs | None = None,
    loss: Loss | None = None,
    draws: int = 10,
    seed: int = 0,
    batch_size: int = 256,
    output: Output | None = None,
    level: float = 0.95,
) -> Reset:
    r"""Put the active parameters back to their start, keep the rest, and measure the error: are they what was learnt?

    With :math:`S` the active set of K parameters and R the error, or the mean loss, on (x, y):

    .. math:: R\big(w + 1_S (w_0 - w)\big)

    beside three controls of equal size: K random parameters; random ones with as many in each layer as S has; the
    least changed ones. Random sets are drawn from all parameters, those of S among them, several times. Their
    intervals are over the draws alone: data, network and training stay the same.

    Evaluated is a copy in evaluation mode, so that the module keeps its parameters, buffers, mode and hooks, and
    generators their states. The running statistics of batch norm belong to the weights: where there are any, they are
    computed again for each set of weights, from one pass over ``statistics`` with equal weight for each batch; for the
    end and the start as well, so that all numbers differ by their weights alone. What a scaled module subtracts, and
    the inside of a linearised one, keep theirs. Cost: 4 + 2 ``draws`` passes over x, as many over ``statistics``, and a
    copy of the module.

    Args:
        module: F.
        x: inputs, (n, ...).
        y: targets, (n,): class indices, or -1 and +1.
        origin: w0 by name, or a state dict.
        parameters: w by name (default: those of the module).
        active: S (default: the 1 % with the largest change relative to their layer, ``activity(...).top()``).
        statistics: inputs for the statistics of batch norm, from the training set.
        loss: a loss of ``regimes.core.loss``, whose mean is measured in place of the error rate.
        draws: random sets of each kind.
        seed: of the random sets; the global generator is left alone.
        batch_size: samples at a time.
        output: what picks the outputs (n, c) from what the module returns.
        level: coverage of the intervals.

    Raises:
        UserError: if names or shapes differ, a value is not finite, the set is not one of this module, or there is
            batch norm and no ``statistics``.

    Source: Li, Banerjee 2021, arXiv:2102.13522: resetting the active parameters to their initial values makes
    generalisation worse. The controls and their intervals are those of this library.

    >>> net = nn.Linear(2, 1, bias=False)
    >>> start = {"weight": torch.tensor([[0.0, 1.0]])}
    >>> net.load_state_dict({"weight": torch.tensor([[9.0, 1.0]])})
    <All keys matched successfully>
    >>> x, y = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.tensor([1.0, -1.0])
    >>> found = reset_test(net, x, y, origin=start)
    >>> found.count, found.end, found.active, found.least
    (1, 0.0, 1.0, 0.0)
    """
    check(x, "x")
    check_finite(y, "`y`", "drop that sample, or mend it")
    if draws < 1 or batch_size < 1:
        name, came = ("draws", draws) if draws < 1 else ("batch_size", batch_size)
        raise UserError(f"`{name}`: got {came}, expected at least 1")
    if not 0 < level < 1:
        raise UserError(f"`level`: got {level}, expected a number between 0 and 1, such as 0.95")
    now, start = named_pair(module, parameters, origin)
    chosen = activity(now, start, module=module).top() if active is None else active
    _check_set(chosen, module)
    copied = duplicate(module).eval()
    norms = _norms(copied)
    _check_statistics(norms, statistics)
    trial = _Trial(copied, now, start, x, y, norms, statistics, loss, batch_size, output)
    with torch.random.fork_rng(devices=_devices(copied)), exact(device_of(x)):
        return _compared(trial, chosen, draws, seed, level)


def _compared(trial: _Trial, active: ActiveSet, draws: int, seed: int, level: float) -> Reset:
    """All rows of the test."""
    every = {name: torch.ones_like(mask) for name, mask in active.masks.items()}
    found = trial.score(active.masks)
    drawn = [_drawn(active.masks, generator(seed, "reset", "random", i)) for i in range(draws)]
    layered = [_layered(active.masks, generator(seed, "reset", "layered", i)) for i in range(draws)]
    scores = [trial.score(masks) for masks in layered]
    least = active.changes.bottom(active.share, relative_to=active.relative_to)
    return Reset(
        count=active.count,
        share=active.share,
        end=trial.score({}),
        start=trial.score(every),
        active=found,
        least=trial.score(least.masks if active.count else {}),
        random=_mean([trial.score(masks) for masks in drawn], level),
        layered=_mean(scores, level),
        excess=_mean([found - score for score in scores], level),
    )


def _mean(scores: list[float], level: float) -> Estimate:
    """The mean over draws; nan where one of them is."""
    method = f"mean over {len(scores)} draws; Student t, {100 * level:g} %"
    if not all(map(math.isfinite, scores)):
        return Estimate(math.nan, math.nan, math.nan, len(scores), method)
    return replace(mean(scores, level=level), method=method)


def _drawn(masks: Tree, draw: Generator) -> dict[str, Tensor]:
    """As many entries at random."""
    sizes = [mask.numel() for mask in masks.values()]
    chosen = torch.zeros(sum(sizes), dtype=torch.bool)
    chosen[torch.randperm(len(chosen), generator=draw)[: sum(int(mask.sum()) for mask in masks.values())]] = (
        True
    )
    parts = zip(masks.items(), chosen.split(sizes), strict=True)
    return {name: part.view(mask.shape) for (name, mask), part in parts}


def _layered(masks: Tree, draw: Generator) -> dict[str, Tensor]:
    """As many entries at random in each layer."""
    return {name: mask for part in by_layer(masks).values() for name, mask in _drawn(part, draw).items()}


@dataclass(frozen=True, eq=False)
class _Trial:
    """A copy of the module, and what is measured of it."""

    module: nn.Module
    end: Tree
    start: Tree
    x: Inputs
    y: Tensor
    norms: list[_NormBase]
    statistics: Inputs | None
    loss: Loss | None
    batch_size: int
    output: Output | None

    def score(self, masks: Tree) -> float:
        """The error rate, or the mean loss, with the entries of the masks at their start."""
        with torch.no_grad():
            for name, own in self.module.named_parameters():
                if name in self.end:
                    own.copy_(self._mixed(name, masks.get(name)))
        if self.norms and self.statistics is not None:
            self._renew(self.statistics)
        parts = [value(self.module, {}, part, self.output) for part in _parts(self.x, self.batch_size)]
        outputs = columns(torch.cat(parts), count(self.x))
        if self.loss is None:
            return float(wrong(outputs, self.y, "`y`").double().mean())
        return float(self.loss.per_sample(outputs, self.y).double().mean())

    def _mixed(self, name: str, mask: Tensor | None) -> Tensor:
        end, start = self.end[name], self.start[name]
        return end if mask is None else torch.where(mask.to(end.device), start.to(end.device), end)

    def _renew(self, inputs: Inputs) -> None:
        """The statistics of batch norm at these weights."""
        for norm in self.norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch then takes the mean over batches
            norm.train()
        for part in _parts(inputs, self.batch_size):
            value(self.module, {}, part)
        for norm in self.norms:
            norm.eval()


def _parts(x: Inputs, size: int) -> Iterator[Any]:
    """Parts of about equal size, none above it: no last one of a single sample, of which batch norm makes nothing."""
    n = count(x)
    parts = -(-n // size)
    for i in range(parts):
        yield take(x, slice(i * n // parts, (i + 1) * n // parts))


def _norms(module: nn.Module) -> list[_NormBase]:
    """The layers with running statistics that belong to the weights that train."""
    fixed: set[int] = set()
    for sub in module.modules():
        inside = sub.origin if isinstance(sub, Scaled) else sub if isinstance(sub, Linearized) else None
        fixed |= set() if inside is None else set(map(id, inside.modules()))
    found = [sub for sub in module.modules() if isinstance(sub, _NormBase) and id(sub) not in fixed]
    return [norm for norm in found if norm.running_mean is not None]


def _check_statistics(norms: list[_NormBase], statistics: Inputs | None) -> None:
    if statistics is not None:
        check(statistics, "statistics")
    elif norms:
        raise UserError(
            f"`statistics`: got None, but the module has {type(norms[0]).__name__}, whose running statistics are those "
            "of the end; give training inputs, on which they are computed for the weights that are reset"
        )


def _check_set(active: ActiveSet, module: nn.Module) -> None:
    own: Mapping[str, Tensor] = trainable(module)
    for name, mask in active.masks.items():
        if name not in own or own[name].shape != mask.shape:
            came = f"'{name}' of shape {tuple(mask.shape)}"
            raise UserError(
                f"`active`: got {came}, which is no parameter of the module that requires grad; "
                "give module= to measure.activity"
            )


def _devices(module: nn.Module) -> list[torch.device]:
    """The CUDA devices whose generators the module may draw from."""
    found = {tensor.device for tensor in [*module.parameters(), *module.buffers()]}
    return sorted((device for device in found if device.type == "cuda"), key=str)
