"""Would sampling layers pay? Trials at equal time, converted by the cost model, and memory at the largest step."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regimes import control
from regimes.compare.sampling.payoff import FULL, Payoff, Stakes, Tried, settled
from regimes.compare.task.criterion import criterion_of
from regimes.compare.task.loop import MakeOptimizer, make_optimizer
from regimes.compare.task.prepare import Data, Seeded, generators_kept, made, prepared
from regimes.compare.task.problem import Fit, Problem, answers, losses
from regimes.compare.task.score import Trial
from regimes.core.batch import Inputs, feed, take
from regimes.core.check import checked
from regimes.core.derivative import Output, columns
from regimes.core.error import UserError
from regimes.core.loss import Loss
from regimes.core.progress import progress_of
from regimes.measure.layer_cost import LayerCosts, layer_costs
from regimes.measure.layer_cost_terms import paid
from regimes.train.descent import order

__all__ = ["would_sampling_pay"]

# Batches whose gradients the plan is made from.
_BATCHES = 4


@checked
def would_sampling_pay(
    module: Seeded,
    x: Inputs,
    y: Tensor,
    x_test: Inputs,
    y_test: Tensor,
    *,
    optimizer: MakeOptimizer,
    loss: Loss | None = None,
    batch_size: int = 64,
    epochs: int = 10,
    rates: Sequence[float] = (1.0, 2.5),
    policies: Mapping[str, control.Moves] | None = None,
    layers: Sequence[str] | None = None,
    costs: LayerCosts | None = None,
    seeds: int = 8,
    seed: int = 0,
    margin: float = 0.01,
    saving: float = 0.2,
    level: float = 0.95,
    output: Output | None = None,
    progress: bool = False,
) -> Payoff:
    """Would sampling layers pay, in time or in memory, for this module, these data and this machine?

    Each choice of layers is trained for the same time: that of ``epochs`` epochs of all layers. What a step of it takes
    is predicted by ``measure.layer_costs``, so that a choice whose step takes half as long takes twice as many, and
    nothing hangs on what else the machine does during the trials. The choices are, unless ``policies`` are given:

    - "planned cut": the cut of least gradient variance for a cost halfway between the top alone and all layers;
    - "uniform cut": every depth as likely as another;
    - "one by one": one layer after another in a random order, the one that needs the least memory of these;
    - "top half", "top": the same layers at every step, which is no sampling; they are shown beside it.

    The factor of the learning rate is that of the ``rates`` with the least held-out loss in a first run of each
    choice; it does not count further. Then each choice is trained with ``seeds`` other seeds: order of batches, draws
    of layers, and, if ``module`` is a function from seed to module, the start.

    *In time* it would pay ("yes") if a sampled choice surely errs less than all layers after the same time: the whole
    interval of the difference lies below 0. It would not ("no") if none can gain ``margin``: all intervals lie above
    -``margin``. *In memory* it would pay if a sampled choice needs at most 1 - ``saving`` of the memory and loses less
    than ``margin``, the whole interval; it would not if none needs as little, or all that do lose more. Else the answer
    is "open". A "yes" is open too while all layers are still learning, their training error having fallen by more than
    ``margin`` in the last quarter of the time: what is ahead early is often behind later.

    Memory is the bytes of activations and gradients at the largest step, which decides what has to fit; the state of
    the optimiser is kept for all layers. Intervals hold for new seeds and new held-out samples
    (``core.estimate.two_way``); for a "yes", which picks one choice, those of all sampled ones hold together
    (Bonferroni).

    What is known so far: from scratch, sampling loses at equal time. With few samples the same layers at every step
    win, and :func:`which_layers` finds which.

    Args:
        module: f, or a function from seed to f. It is copied and used in the mode it is in; batch norm and dropout have
            to be in evaluation mode.
        x: training inputs: a tensor, a tuple for ``module(*x)``, or a mapping for ``module(**x)``.
        y: targets, (n,): class indices, -1 and +1, or floats, these (n, c) where there are c outputs.
        x_test, y_test: held-out data.
        optimizer: from parameters to what moves them: ``lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)``.
        loss: what is minimised. Left out, it is cross-entropy for classes and the squared loss for numbers.
        batch_size: of all choices.
        epochs: of all layers, which is the time that each choice has.
        rates: what the learning rate is multiplied by.
        policies: choices of layers by name, in place of those above.
        layers: names of modules that are one layer each; see :func:`regimes.control.layer_plan`.
        costs: of the module, if they were measured before; else they are measured here.
        seeds: how many, at least 2, from ``seed`` + 1 on.
        seed: of the first run of each choice.
        margin: the error that has to be gained, or may be lost.
        saving: the share of the memory that has to be saved.
        level: of all intervals.
        output: what picks outputs, (n,) or (n, c), from what the module returns.
        progress: show a bar with the time left.

    Returns:
        The answers: ``print`` shows a table and sentences; ``.time``, ``.memory``, ``.answer``, ``.table``, ``.costs``.

    Raises:
        UserError: before anything is trained, if data, module and loss do not fit, the module couples samples or is
            random, a choice does not go with the layers, or a setting is out of range.

    Cost: (number of choices + 1) x (number of rates + ``seeds``) times ``epochs`` epochs of full training.

    >>> from regimes import models
    >>> x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> found = would_sampling_pay(
    ...     models.mlp(3, 8, 2, seed=0), x[:40], x[:40, 0].sign(), x[40:], x[40:, 0].sign(),
    ...     optimizer=lambda p: torch.optim.SGD(p, lr=0.1), epochs=1, seeds=2, rates=[1.0],
    ... )
    >>> found.time in ("yes", "no", "open"), found.table.index[0]
    (True, 'all layers')
    """
    criterion = criterion_of(margin, level)
    _check_settings(batch_size, epochs, rates, seeds, seed, saving)
    data = Data(x, y, x_test, y_test, loss, output, 0.0)
    call = _Call(module, data, optimizer, batch_size, epochs, tuple(rates), layers)
    with generators_kept(), torch.enable_grad():
        return call.answer(
            costs, policies, (seeds, seed), Stakes(criterion.margin, saving, criterion.level), progress
        )


@dataclass(frozen=True, eq=False)
class _Call:
    """What was asked for, as in :func:`would_sampling_pay`."""

    source: Seeded
    data: Data
    optimizer: MakeOptimizer
    batch_size: int
    epochs: int
    rates: tuple[float, ...]
    layers: Sequence[str] | None

    def answer(
        self,
        costs: LayerCosts | None,
        policies: Mapping[str, control.Moves] | None,
        seeds: tuple[int, int],
        stakes: Stakes,
        progress: bool,
    ) -> Payoff:
        """Measure, train, and conclude."""
        first = self.problem(seeds[1])
        costs = self.costs(first) if costs is None else self.checked(first, costs)
        moves = self.choices(costs, policies)
        runs = [self.run(first, name, each, costs) for name, each in moves.items()]
        began, done, total = time.monotonic(), 0, len(moves) * (len(self.rates) + seeds[0])
        with progress_of("would sampling pay", quiet=not progress) as bar:

            def tick(name: str) -> None:
                nonlocal done
                left = (time.monotonic() - began) * (total / done - 1) if done else None
                bar.show(done, total, left, name)
                done += 1

            chosen = [self.rated(first, run, moves[run.name], seeds[1], tick) for run in runs]
            trials = []
            for each in range(seeds[1] + 1, seeds[1] + 1 + seeds[0]):
                problem = self.problem(each)
                fits = []
                for run in chosen:
                    tick(run.name)
                    fits.append(self.fit(problem, run, moves[run.name], each))
                trials.append(Trial(problem, tuple(fits)))
        steps = sum(run.steps * (len(self.rates) + seeds[0]) for run in chosen)
        covers = (
            f"Intervals are for new held-out samples ({len(first.test)}) and new seeds ({seeds[0]}). Each choice had "
            f"the time of {self.epochs} epochs of all layers, {chosen[0].steps} steps; {steps} steps and "
            f"{time.monotonic() - began:.1f} s in all."
        )
        return settled(trials, chosen, costs, stakes, covers)

    def problem(self, seed: int) -> Problem:
        """Network and data of a seed, checked."""
        torch.manual_seed(seed)
        return prepared(made(self.source, seed), self.data, seed)

    def costs(self, problem: Problem) -> LayerCosts:
        """What each layer costs, from the first batches."""
        part, module = problem.train, problem.network.get_submodule("module")
        index = order(0, 0, len(part)).to(part.y.device)
        batches = [part.take(each) for each in index.split(self.batch_size)[:_BATCHES]]

        def mean_loss(outputs: object, targets: Tensor) -> Tensor:
            found = outputs if self.data.output is None else self.data.output(outputs)
            return losses(problem.loss, columns(found, len(targets)), targets).mean()

        optimizer = make_optimizer(self.optimizer, module)
        pairs = [(each.x, each.y) for each in batches]
        return layer_costs(module, pairs, mean_loss, optimizer=optimizer, layers=self.layers)

    def checked(self, problem: Problem, costs: LayerCosts) -> LayerCosts:
        """The same, if they are of this module."""
        module = problem.network.get_submodule("module")
        example = take(problem.train.x, slice(0, 2))
        found = control.layer_plan(module, control.UniformCut(), example=example, layers=self.layers)
        if found.layers != costs.layers:
            raise UserError(
                f"`costs`: are those of layers {', '.join(costs.layers)}, expected {', '.join(found.layers)}, those of "
                "the module; leave `costs` out"
            )
        return costs

    def choices(
        self, costs: LayerCosts, policies: Mapping[str, control.Moves] | None
    ) -> dict[str, control.Moves]:
        """The choices of layers by name, all of them first."""
        n = len(costs.layers)
        everything: dict[str, control.Moves] = {FULL: control.Fixed(top=n)}
        if policies is not None:
            if FULL in policies or not policies:
                raise UserError(
                    f"`policies`: got {sorted(policies)}, expected choices by names of their own, at least one; "
                    f"'{FULL}' is there in any case"
                )
            return everything | dict(policies)
        if n < 2:
            raise UserError("`module`: has one layer, expected at least 2; there is nothing to choose")
        top = costs.predict(control.Fixed(top=1)).ratio
        return everything | {
            "planned cut": costs.plan((1 + top) / 2),
            "uniform cut": control.UniformCut(),
            "one by one": control.CyclicBlocks(order="random"),
            **({"top half": control.Fixed(top=math.ceil(n / 2))} if n > 2 else {}),
            "top": control.Fixed(top=1),
        }

    def run(self, problem: Problem, name: str, moves: control.Moves, costs: LayerCosts) -> Tried:
        """What a choice costs, and how many steps it may take."""
        n, epoch = len(costs.layers), -(-len(problem.train) // self.batch_size)
        ratio = costs.predict(moves).ratio
        unit = next(problem.network.parameters()).element_size()

        def memory(moving: frozenset[int]) -> float:
            return paid(costs.kept, moving) + unit * sum(costs.parameters[place] for place in moving)

        shares = moves.shares(costs.layers)
        most = max(map(memory, shares)) / memory(frozenset(range(n)))
        sampled = len(shares) > 1 and all(p > 0 for p in moves.probabilities(costs.layers))
        return Tried(name, sampled, ratio, most, max(1, round(self.epochs * epoch / ratio)), self.rates[0])

    def rated(
        self, problem: Problem, run: Tried, moves: control.Moves, seed: int, tick: Callable[[str], None]
    ) -> Tried:
        """The same with the factor of the learning rate that did best."""
        found = []
        for factor in self.rates:
            tick(run.name)
            one = replace(run, factor=factor)
            fit = self.fit(problem, one, moves, seed)
            scores = math.inf if fit.test is None else _mean_loss(problem, fit.test)
            found.append((scores, len(found), one))
        return min(found)[2]

    def fit(self, problem: Problem, run: Tried, moves: control.Moves, seed: int) -> Fit:
        """A choice of layers, trained."""
        began = time.perf_counter()
        network = copy.deepcopy(problem.network)
        optimizer = make_optimizer(self.optimizer, network)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * run.factor
        example = take(problem.train.x, slice(0, 2))
        inner = network.get_submodule("module")
        policy = control.LayerwiseSparse(
            inner, optimizer, moves, example=example, seed=seed, layers=self.layers
        )
        quarter, before = 3 * run.steps // 4, math.nan
        for step, index in enumerate(_indices(len(problem.train), self.batch_size, run.steps, seed)):
            if step == quarter and run.name == FULL:
                before = _train_error(problem, answers(network, problem.train.x))
            part = problem.train.take(index.to(problem.train.y.device))
            optimizer.zero_grad()
            loss = losses(problem.loss, feed(network, part.x), part.y).mean()
            if not bool(loss.isfinite()):
                return Fit(run.name, "diverged", time.perf_counter() - began)
            loss.backward()
            optimizer.step()
        policy.remove()
        at_train, at_test = (answers(network, part.x) for part in (problem.train, problem.test))
        late, took = before - _train_error(problem, at_train), time.perf_counter() - began
        return Fit(run.name, "finished", took, train=at_train, test=at_test, late=late).checked()


def _mean_loss(problem: Problem, outputs: Tensor) -> float:
    return float(problem.score(outputs, problem.test.y).loss.mean())


def _train_error(problem: Problem, outputs: Tensor) -> float:
    return float(problem.score(outputs, problem.train.y).error.mean())


def _indices(samples: int, batch_size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """The batches of so many steps, epoch by epoch."""
    taken, epoch = 0, 0
    while True:
        for index in order(seed, epoch, samples).split(batch_size):
            if taken == steps:
                return
            yield index
            taken += 1
        epoch += 1


def _check_settings(
    batch_size: int,
    epochs: int,
    rates: Sequence[float],
    seeds: int,
    seed: int,
    saving: float,
) -> None:
    """Raise if a setting is out of range."""
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("epochs", epochs, 1),
        ("seeds", seeds, 2),
        ("seed", seed, 0),
    ):
        if value < least:
            raise UserError(f"`{name}`: got {value}, expected a whole number of at least {least}")
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise UserError(f"`rates`: got {list(rates)}, expected factors above 0, at least one")
    if not 0 < saving < 1:
        raise UserError(f"`saving`: got {saving:g}, expected a number between 0 and 1")
