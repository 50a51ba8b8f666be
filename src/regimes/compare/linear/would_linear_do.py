"""Would a linear model do? The trained network against its linearisation and the kernel solve, on held-out data."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from regimes import control
from regimes.compare.linear.comparison import Comparison, conclude
from regimes.compare.linear.kernel import Form, Solver, choose_solver, largest, solved
from regimes.compare.task.criterion import Criterion, criterion_of
from regimes.compare.task.fit import Listener, Protocol, constant, started, stepped
from regimes.compare.task.loop import MakeOptimizer
from regimes.compare.task.prepare import Data, Seeded, generators_kept, made, prepared
from regimes.compare.task.problem import Fit, Problem, losses, tried
from regimes.compare.task.score import Trial
from regimes.core.batch import Inputs, feed, take
from regimes.core.check import checked
from regimes.core.derivative import Output, exact
from regimes.core.error import UserError
from regimes.core.loss import CrossEntropy, Loss, Squared
from regimes.core.progress import progress_of
from regimes.train.descent import Rate

__all__ = ["would_linear_do"]

# Batches that are looked at for the learning rate, and the samples of each at most.
_BATCHES, _LOOK = 4, 512


@checked
def would_linear_do(
    module: Seeded,
    x: Inputs,
    y: Tensor,
    x_test: Inputs,
    y_test: Tensor,
    *,
    loss: Loss | None = None,
    lr: float | Rate | None = None,
    momentum: float = 0.0,
    optimizer: MakeOptimizer | None = None,
    batch_size: int | None = 64,
    epochs: int = 100,
    seeds: int = 5,
    seed: int = 0,
    validation: float = 0.0,
    ridge: float = 0.0,
    reduce: Form = "full",
    margin: float = 0.01,
    level: float = 0.95,
    output: Output | None = None,
    memory: int | None = None,
    progress: bool = False,
) -> Comparison:
    r"""Would a linear model do? Train a network and its linearisation, solve its kernel, compare on held-out data.

    The models start from the network as it is, f(w0, x), fresh or pretrained, and see the same samples:

    - the *network*, trained by SGD (``train.descent``) or by an ``optimizer``;
    - the *linearisation* f(w0, x) + J(w0, x)(w - w0), trained by the same steps on the same batches;
    - the *kernel*: the linearisation under gradient flow of the same loss, solved without steps, after the same time
      ("same time": the sum of the learning rates, with momentum mu 1/(1 - mu) of it; an ``optimizer`` has none), and
      kernel regression, which is the flow of the squared loss at t = inf: "to the end", or where the loss is another
      one, "squared loss". The first shows what the steps add to the linearisation, the second what it could reach.

    All of it is done for each of the ``seeds``: the order of the batches, which samples are held back for validation,
    and, if ``module`` is a function from seed to module, the start. With ``validation`` that share of the training
    samples is held back, and each model stops where its loss on them is least.

    The *error* is the share of wrong answers for classes (int64, or floats that are all -1 or +1; see
    :func:`regimes.core.decision.wrong`), and for other floats the squared error in units of the variance of the
    training targets. A linear model would do ("yes") if the interval of its error less that of the network lies below
    ``margin``, for one linear model at least; it would not ("no") if for all of them the interval lies above; else the
    question is "open". It is open as well where there is no yardstick: a network or a linearisation has diverged, or
    the network did not learn. It has learnt if the whole interval of what it gained lies above ``margin``, over its
    start and over the best constant answer.

    The intervals hold for new seeds and new held-out samples together (``core.estimate.two_way``), given the training
    samples; with one seed, or where nothing depends on the seed, for new held-out samples alone, which the printed
    table says. Differences are paired, and those of the linear models hold together (Bonferroni).

    Args:
        module: f, or a function from seed to f (``lambda seed: models.mlp(8, 64, 2, seed=seed)``). It is copied and
            used in the mode it is in. Only parameters that require grad are trained.
        x: training inputs: a tensor, a tuple for ``module(*x)``, or a mapping for ``module(**x)``.
        y: targets, (n,): class indices, -1 and +1, or floats, these (n, c) where there are c outputs.
        x_test, y_test: held-out data.
        loss: the same for all models. Left out, it is cross-entropy for classes (for -1 and +1 the logistic loss) and
            the squared loss for numbers. The kernel under cross-entropy takes adapted steps until the same time, or
            until all margins are met.
        lr: the learning rate, or a function from step to it. Left out, it is (1 - mu) / (s theta): theta the largest
            eigenvalue of K / b on batches at the start, s = 1 for the squared loss, 1/2 for cross-entropy (1/4 with two
            classes -1 and +1). That is half of what the linearisation can bear.
        momentum, batch_size, epochs: of the steps, as in ``train.descent``; ``batch_size=None`` is all.
        optimizer: in place of ``lr`` and ``momentum``, from parameters to what moves them:
            ``lambda p: torch.optim.AdamW(p, lr=1e-3)``. Each model gets one of its own.
        seeds: how many, from ``seed`` on. The time grows with them; a kernel that no seed changes is solved once.
        seed: the first.
        validation: share of the training samples that choose when to stop, below 1.
        ridge: rho of kernel regression: (K + rho) c = y - f(w0).
        reduce: "full", the linearised network; "trace" the mean over outputs, one kernel for all: c^2 times smaller,
            the same for one output, and in general another linear model.
        margin: the error that may be lost.
        level: of all intervals.
        output: what picks outputs, (n,) or (n, c), from what the module returns: ``lambda out: out.logits``.
        memory: bytes of working memory for the kernel (default: 2^30). A full kernel that does not fit is multiplied,
            not formed.
        progress: show a bar with the time left.

    Returns:
        The comparison: ``print`` shows tables and a sentence; ``.answer``, ``.table``, ``.difference``. A model that
        diverges, or a kernel that cannot be solved, is a row that says so. Neither the module nor torch's generators
        of random numbers are changed.

    Raises:
        UserError: before anything is trained, if data, module and loss do not fit, the module couples samples or is
            random, a setting is out of range, or a kernel that must be formed does not fit into ``memory``.

    Source: Chizat, Oyallon, Bach 2019, section 3.2; Fort et al. 2020 for the comparison at equal steps.

    >>> from regimes import models
    >>> x = torch.randn(1200, 3, generator=torch.Generator().manual_seed(0))
    >>> y = x[:, 0]
    >>> would_linear_do(nn.Linear(3, 1), x[:200], y[:200], x[200:], y[200:], epochs=5).answer
    'yes'
    """
    criterion = criterion_of(margin, level)
    for name, value, least in (("epochs", epochs, 1), ("seeds", seeds, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"`{name}`: got {value!r}, expected a whole number of at least {least}")
    if optimizer is not None and (lr is not None or momentum):
        given = f"lr = {lr}" if lr is not None else f"momentum = {momentum}"
        raise UserError(
            f"`optimizer`: got one and {given}, expected one of the two; it has settings of its own"
        )
    data = Data(x, y, x_test, y_test, loss, output, validation)
    protocol = Protocol(0.0 if lr is None else lr, momentum, batch_size, epochs, seed, optimizer)
    call = _Call(module, data, protocol, lr is None and optimizer is None, reduce, memory, ridge)
    with generators_kept(), torch.enable_grad():
        return _concluded(call, criterion, seeds, progress)


@dataclass(frozen=True, eq=False)
class _Call:
    """What was asked for.

    Attributes:
        source: the module, or what makes it.
        data: the samples and the loss.
        protocol: of the first seed.
        unrated: whether the learning rate was left out.
        reduce, memory, ridge: of the kernel.
    """

    source: Seeded
    data: Data
    protocol: Protocol
    unrated: bool
    reduce: Form
    memory: int | None
    ridge: float

    def ready(self, seed: int) -> _Ready:
        """All that is trained with a seed, checked."""
        torch.manual_seed(seed)
        source = self.source
        module = made(source, seed)
        with exact(next(module.parameters(), torch.zeros(())).device):
            return self._of(module, seed)

    def _of(self, module: nn.Module, seed: int) -> _Ready:
        problem = prepared(module, self.data, seed)
        n = len(problem.train)
        solver = choose_solver(
            self.reduce, n, problem.outputs, self.memory, self.ridge, problem.valid is not None
        )
        linear = control.linearize(problem.network)
        protocol = replace(self.protocol, seed=seed)
        _check_steps(problem, linear, protocol, self.memory)
        if self.unrated:
            protocol = replace(protocol, lr=_safe_rate(problem, protocol, self.memory))
        return _Ready(problem, linear, protocol, solver)


@dataclass(frozen=True, eq=False)
class _Ready:
    """The models of one seed, untrained."""

    problem: Problem
    linear: nn.Module
    protocol: Protocol
    solver: Solver


def _concluded(call: _Call, criterion: Criterion, seeds: int, progress: bool) -> Comparison:
    """Train all models with all seeds, and compare them."""
    fixed = isinstance(call.source, nn.Module)
    first = call.ready(call.protocol.seed)
    if fixed:
        # The rate belongs to the module: with another draw of batches it would be another protocol.
        call = replace(call, protocol=first.protocol, unrated=False)
    varies = ("batches",) if first.protocol.draws(first.problem) else ()
    varies = varies if fixed else ("starts", *varies)
    count = seeds if varies else 1
    trials: list[Trial] = []
    began, done, total = time.monotonic(), 0.0, 2 * first.protocol.epochs * count
    with progress_of("would a linear model do", quiet=not progress) as bar:

        def tick(name: str, epochs: float) -> None:
            nonlocal done
            done += epochs
            left = (time.monotonic() - began) * (total / done - 1) if done else None
            bar.show(round(done), total, left, name)

        for k in range(count):
            ready = first if k == 0 else call.ready(first.protocol.seed + k)
            again = fixed and ready.problem.valid is None and trials
            kernel = _free(trials[0]) if again else None
            trials.append(Trial(ready.problem, tuple(_fits(ready, tick, kernel))))
    rate = first.protocol.first_rate(first.problem.network)
    return conclude(trials, criterion, rate, varies)


def _free(trial: Trial) -> list[Fit]:
    """The kernel rows of a trial, for another seed that has the same: they cost nothing more."""
    return [replace(fit, seconds=0.0) for fit in trial.fits if fit.name.startswith("kernel")]


def _fits(ready: _Ready, tick: Listener, kernel: list[Fit] | None) -> Iterator[Fit]:
    """All models, one after the other; one that fails does not stop the others."""
    problem, protocol = ready.problem, ready.protocol
    with exact(problem.train.y.device):
        yield constant(problem)
        yield from tried("start", lambda: [started(problem)])
        for name, network in (("network", problem.network), ("linearisation", ready.linear)):
            yield from tried(name, partial(_alone, name, network, problem, protocol, tick))
        tick("kernel", 0.0)
        if kernel is not None:
            yield from kernel
            return
        t = protocol.time(protocol.epochs * protocol.steps(len(problem.train)))
        yield from tried("kernel", lambda: solved(problem, ready.solver, t))


def _alone(name: str, network: nn.Module, problem: Problem, protocol: Protocol, tick: Listener) -> list[Fit]:
    return [stepped(name, network, problem, protocol, tick)]


def _check_steps(problem: Problem, linear: nn.Module, protocol: Protocol, memory: int | None) -> None:
    """Check the settings of the steps; and the operations of the network, on two samples."""
    for network in (problem.network, linear):
        protocol.states(network, problem)
    two = problem.train.take(torch.arange(2))
    losses(problem.loss, feed(linear, two.x), two.y).sum().backward()
    linear.zero_grad()
    largest(problem.network, two.x, memory)


def _safe_rate(problem: Problem, protocol: Protocol, memory: int | None) -> float:
    """(1 - mu) / (s theta), theta the largest eigenvalue of K / b that some batches show."""
    curvature = _curvature(problem)
    n = len(problem.train)
    size = min(protocol.batch_size or n, n, _LOOK)
    generator = torch.Generator().manual_seed(protocol.seed)
    batches = [torch.randperm(n, generator=generator)[:size] for _ in range(_BATCHES if size < n else 1)]
    theta = max(
        largest(problem.network, take(problem.train.x, index.to(problem.train.y.device)), memory)
        for index in batches
    )
    if not theta > 0 or not math.isfinite(theta):
        raise UserError(
            f"`lr`: left out, and the tangent kernel at the start has the largest eigenvalue {theta:g}, which gives "
            "none; give `lr`, or start where the outputs depend on the weights"
        )
    return (1 - protocol.momentum) / (curvature * theta)


def _curvature(problem: Problem) -> float:
    """The largest second derivative of the loss."""
    if isinstance(problem.loss, Squared):
        return 1.0
    if isinstance(problem.loss, CrossEntropy):
        return 0.25 if problem.train.y.is_floating_point() else 0.5
    raise UserError(
        f"`lr`: left out for {type(problem.loss).__name__}, expected a learning rate: its curvature gives none; or "
        "take squared or cross_entropy"
    )
