"""Would a linear model do? The trained network against its linearisation and the kernel solve, on held-out data."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from regimes import control
from regimes.core.batch import Inputs, check, count, feed, take, tensors, transform
from regimes.core.check import checked
from regimes.core.derivative import Output, check_separable, exact, plain
from regimes.core.error import UserError
from regimes.core.loss import CrossEntropy, Loss, Squared, squared
from regimes.core.tree import trainable
from regimes.study.compare.fit import Protocol, Rate, Tick, flow_time, started, stepped
from regimes.study.compare.kernel import Form, Solver, choose_solver, largest, solved
from regimes.study.compare.task import Columns, Fit, Part, Task, answers, attempt, check_targets, losses
from regimes.study.compare.verdict import Comparison, Rule, judge
from regimes.study.progress import Clock, progress_of
from regimes.train.program import choose_dtype

__all__ = ["would_linear_do"]

# Batches that are looked at for the learning rate, and the samples of each at most.
_BATCHES, _LOOK = 4, 512


@checked
def would_linear_do(
    module: nn.Module,
    x: Inputs,
    y: Tensor,
    x_test: Inputs,
    y_test: Tensor,
    *,
    loss: Loss = squared,
    lr: float | Rate | None = None,
    momentum: float = 0.0,
    batch_size: int | None = 64,
    epochs: int = 100,
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

    Three models start from the network as it is, f(w0, x), fresh or pretrained, and see the same samples:

    - the *network*, trained by SGD: ``train.descent``;
    - the *linearisation* f(w0, x) + J(w0, x)(w - w0), trained by the same steps on the same batches;
    - the *kernel*, which is the linearisation under gradient flow, solved without steps: after the same time
      ("same time": the sum of the learning rates, with momentum mu 1/(1 - mu) of it), and at t = inf ("to the end":
      kernel regression). The first shows what the steps add to the linearisation, the second what it could reach.

    With ``validation`` that share of the training samples is held back, and each model stops where its loss on them is
    least: the first two after the best epoch, the kernel at the best time.

    The *error* is the share of wrong answers for classes (int64, or floats that are all -1 or +1, decided by sign), and
    for other floats the squared error in units of the variance of the training targets. A linear model would do
    ("yes") if the interval of its error less that of the network lies below ``margin``, for one linear model at
    least; it would not ("no") if for all of them the interval lies above; else the question is "open".

    The intervals are those of held-out samples, drawn anew with the trained models as they are; differences are paired,
    sample by sample, and those of the linear models hold together (Bonferroni). Wrong answers: Wilson, and Tango for
    differences; means: Student t. They say nothing of other starts or other batches: for that, call it again.

    Args:
        module: f; it is copied and used in the mode it is in. Only parameters that require grad are trained.
        x: training inputs: a tensor, a tuple for ``module(*x)``, or a mapping for ``module(**x)``.
        y: targets, (n,): class indices, -1 and +1, or floats, these (n, c) where there are c outputs.
        x_test, y_test: held-out data.
        loss: the same for all models. With ``cross_entropy`` the kernel takes adapted steps until the same time or
            until all margins are met, and has no end.
        lr: the learning rate, or a function from step to it. Left out, it is (1 - mu) / (s theta): theta the largest
            eigenvalue of K / b on batches at the start, s = 1 for the squared loss, 1/2 for cross-entropy. That is
            half of what the linearisation can bear.
        momentum, batch_size, epochs, seed: of the steps, as in ``train.descent``; ``batch_size=None`` is all.
        validation: share of the training samples that choose when to stop, below 1.
        ridge: rho of the kernel at its end: (K + rho) c = y - f(w0).
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
        diverges, or a kernel that cannot be solved, is a row that says so.

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
    rule = _rule(margin, level)
    _check_module(module, loss)
    with exact(next(module.parameters(), torch.zeros(())).device), torch.enable_grad():
        task = _task(module, x, y, x_test, y_test, loss, output, validation, seed)
        n, c = len(task.train), answers(task.network, take(task.train.x, slice(0, 1))).shape[1]
        solver = choose_solver(reduce, n, c, memory, ridge, task.valid is not None)
        linear = control.linearize(task.network)
        protocol = _protocol(task, linear, lr, momentum, batch_size, epochs, seed, memory)
        rate = protocol.lr(0) if callable(protocol.lr) else protocol.lr
        return judge(task, _fits(task, linear, protocol, solver, progress), rule, float(rate))


def _fits(task: Task, linear: nn.Module, protocol: Protocol, solver: Solver, progress: bool) -> list[Fit]:
    """All models, one after the other; one that fails does not stop the others."""
    fits = [started(task)]
    clock, done = Clock(), 0.0
    with progress_of("would a linear model do", quiet=not progress) as bar:

        def tick(name: str, epochs: float) -> None:
            nonlocal done
            done += epochs
            clock.add(epochs)
            bar.show(round(done), 2 * protocol.epochs, clock.left(2 * protocol.epochs - done), name)

        for name, network in (("network", task.network), ("linearisation", linear)):
            fits += attempt(name, partial(_alone, name, network, task, protocol, tick))
        tick("kernel", 0.0)
        steps = protocol.epochs * protocol.steps(len(task.train))
        t = flow_time(protocol.lr, protocol.momentum, steps)
        fits += attempt("kernel", lambda: solved(task, solver, t))
    return fits


def _rule(margin: float, level: float) -> Rule:
    """Margin and level, checked."""
    for name, value, most in (("margin", margin, math.inf), ("level", level, 1.0)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < most or (name == "level" and value == 0):
            wanted = (
                "a finite number of 0 or more" if name == "margin" else "a number between 0 and 1, as 0.95"
            )
            raise UserError(f"`{name}`: got {value!r}, expected {wanted}")
    return Rule(float(margin), float(level))


def _alone(name: str, network: nn.Module, task: Task, protocol: Protocol, tick: Tick) -> list[Fit]:
    return [stepped(name, network, task, protocol, tick)]


def _check_module(module: nn.Module, loss: Loss) -> None:
    """Raise unless they are what they should be."""
    if not isinstance(module, nn.Module):
        raise UserError(f"`module`: got {type(module).__name__}, expected a torch.nn.Module")
    if not isinstance(loss, Loss):
        raise UserError(
            f"`loss`: got {type(loss).__name__}, expected a value of regimes.core.loss: squared, cross_entropy"
        )


def _task(
    module: nn.Module,
    x: Inputs,
    y: Tensor,
    x_test: Inputs,
    y_test: Tensor,
    loss: Loss,
    output: Output | None,
    validation: float,
    seed: int,
) -> Task:
    """Network and data, checked and on one device."""
    dtype = choose_dtype([module], None, None)
    network = Columns(copy.deepcopy(module).to(dtype), output)
    check_separable(network)
    like = next(iter([*trainable(network).values(), *network.parameters()]), torch.zeros(())).detach()
    data = []
    for name, inputs in (("x", x), ("x_test", x_test)):
        check(inputs, name)
        data.append(transform(inputs, lambda value: _moved(value, like)))
        if count(inputs) < 2:
            raise UserError(f"`{name}`: got 1 sample, expected at least 2; one sample has no spread")
    _same_samples(x, x_test)
    c = _outputs(network, data[0])
    wanted = [
        check_targets(each, name, count(inputs), c, loss, like)
        for each, name, inputs in ((y, "y", data[0]), (y_test, "y_test", data[1]))
    ]
    unit = _unit(wanted[0], wanted[1], loss)
    train, valid = _split(Part(data[0], wanted[0]), validation, seed)
    return Task(network, train, Part(data[1], wanted[1]), valid, loss, unit)


def _moved(value: Tensor, like: Tensor) -> Tensor:
    """On the device of the parameters; floats in their precision."""
    return plain(value).to(like) if value.is_floating_point() else plain(value).to(like.device)


def _outputs(network: nn.Module, x: Inputs) -> int:
    """c; said in words where the module does not take the inputs."""
    try:
        return answers(network, take(x, slice(0, 2))).shape[1]
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError) as error:
        shapes = ", ".join(f"x{label} {tuple(value.shape)}" for label, value in tensors(x).items())
        reason = str(error).splitlines()[0]
        raise UserError(f"`x`: the module does not take two samples of {shapes}: {reason}") from error


def _same_samples(x: Inputs, x_test: Inputs) -> None:
    """Raise unless the held-out samples have the shapes of the others."""
    one, other = (
        {label: tuple(value.shape[1:]) for label, value in tensors(each).items()} for each in (x, x_test)
    )
    if one != other:
        raise UserError(f"`x_test`: got samples of shapes {other}, expected {one}, as in `x`")


def _unit(y: Tensor, y_test: Tensor, loss: Loss) -> float | None:
    """The variance of the training targets, where they are numbers; None where they are classes."""
    if bool((y == y[0]).all()):
        raise UserError(
            "`y`: all targets are the same, expected at least two values; there is nothing to learn"
        )
    classes = not y.is_floating_point() or bool(
        (y.abs() == 1).all() and (y_test.abs() == 1).all() and y.dim() == 1
    )
    if classes:
        if not bool(torch.isin(y_test, y).any()):
            raise UserError(
                f"`y_test`: has classes {_named(y_test)}, none of those in `y`, {_named(y)}; split the data at random"
            )
        return None
    if not isinstance(loss, Squared):
        raise UserError(
            f"`loss`: got {type(loss).__name__} for targets from {float(y.min()):g} to {float(y.max()):g}, expected "
            "Squared, or targets -1 and +1; 2 * y - 1 makes them of 0 and 1"
        )
    y = y.double().reshape(len(y), -1)
    return float((y - y.mean(0)).square().sum(1).mean())


def _named(y: Tensor) -> str:
    """The first of the classes."""
    found = [f"{value:g}" for value in y.unique().tolist()]
    return ", ".join(found[:10]) + (", ..." if len(found) > 10 else "")


def _split(part: Part, share: float, seed: int) -> tuple[Part, Part | None]:
    """The samples to train on, and those that say when to stop."""
    number = isinstance(share, int | float) and not isinstance(share, bool)
    if not number or not 0 <= share < 1:
        raise UserError(
            f"`validation`: got {share!r}, expected a share of the training samples, from 0 to below 1"
        )
    if share == 0:
        return part, None
    held = round(share * len(part))
    if held < 2 or len(part) - held < 2:
        raise UserError(
            f"`validation`: got {share:g}, which is {held} of {len(part)} training samples, expected at least 2 there "
            "and 2 left"
        )
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed)).to(part.y.device)
    return part.take(order[held:]), part.take(order[:held])


def _protocol(
    task: Task,
    linear: nn.Module,
    lr: float | Rate | None,
    momentum: float,
    batch_size: int | None,
    epochs: int,
    seed: int,
    memory: int | None,
) -> Protocol:
    """The settings of the steps, checked; and the operations of the network, on two samples."""
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise UserError(f"`epochs`: got {epochs!r}, expected a whole number of at least 1")
    protocol = Protocol(0.0 if lr is None else lr, momentum, batch_size, epochs, seed)
    for network in (task.network, linear):
        protocol.descent(network, task)
    two = task.train.take(torch.arange(2))
    losses(task.loss, feed(linear, two.x), two.y).sum().backward()
    linear.zero_grad()
    largest(task.network, two.x, memory)
    return protocol if lr is not None else replace(protocol, lr=_safe_rate(task, protocol, memory))


def _safe_rate(task: Task, protocol: Protocol, memory: int | None) -> float:
    """(1 - mu) / (s theta), theta the largest eigenvalue of K / b that some batches show."""
    curvature = _curvature(task)
    n = len(task.train)
    size = min(protocol.batch_size or n, n, _LOOK)
    generator = torch.Generator().manual_seed(protocol.seed)
    batches = [torch.randperm(n, generator=generator)[:size] for _ in range(_BATCHES if size < n else 1)]
    theta = max(
        largest(task.network, take(task.train.x, index.to(task.train.y.device)), memory) for index in batches
    )
    if not theta > 0 or not math.isfinite(theta):
        raise UserError(
            f"`lr`: left out, and the tangent kernel at the start has the largest eigenvalue {theta:g}, which gives "
            "none; give `lr`, or start where the outputs depend on the weights"
        )
    return (1 - protocol.momentum) / (curvature * theta)


def _curvature(task: Task) -> float:
    """The largest second derivative of the loss."""
    if isinstance(task.loss, Squared):
        return 1.0
    if isinstance(task.loss, CrossEntropy):
        return 0.25 if task.train.y.is_floating_point() else 0.5
    raise UserError(
        f"`lr`: left out for {type(task.loss).__name__}, expected a learning rate: its curvature gives none; or take "
        "squared or cross_entropy"
    )
