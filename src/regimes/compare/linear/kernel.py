"""The tangent kernel in a comparison: the largest eigenvalue, for the learning rate, and the linear model it solves."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from functools import reduce as fold
from operator import add
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from regimes import control, measure, train
from regimes.compare.task.problem import Fit, Problem, Samples, answers, pieces, tried
from regimes.core.batch import Inputs, count, take, transform
from regimes.core.derivative import jvp, vjp
from regimes.core.error import UserError, nearest
from regimes.core.loss import Loss, Squared, squared
from regimes.core.tree import trainable

__all__ = ["Form", "Solver", "choose_solver", "largest", "solved"]

Form = Literal["full", "trace"]

# Working memory where the caller names none, bytes.
_MEMORY = 1 << 30
# Float64 matrices of the size of the kernel that a decomposition holds.
_COPIES = 6
# Samples that show the largest eigenvalue.
_LOOK = 512
# Lanczos: of functions exp(-K t), so many products times sqrt(lambda t) leave an error of 1e-9
# (Hochbruck, Lubich 1997, theorem 2), and a few more for short times.
_PRODUCTS, _FEW = 6, 30
# Products with an operator for the end of the squared loss, and steps of the flow of another loss, at most.
_END, _STEPS = 200, 10_000


@dataclass(frozen=True)
class Solver:
    """How the kernel is solved.

    Attributes:
        form: "full", the linearised network; "trace", one kernel (the mean over outputs) for all outputs.
        dense: whether the kernel is formed, or only multiplied.
        memory: bytes.
        ridge: of the end of the training.
    """

    form: Form
    dense: bool
    memory: int
    ridge: float


def choose_solver(form: str, n: int, c: int, memory: int | None, ridge: float, validated: bool) -> Solver:
    """Form the kernel where it fits, else multiply with it.

    Raises:
        UserError: if a setting is out of range, or the kernel has to be formed and does not fit.
    """
    if form not in (known := get_args(Form)):
        raise UserError(
            f"`reduce`: got {form!r}, expected one of {', '.join(known)}{nearest(str(form), known)}"
        )
    if memory is not None and not memory > 0:
        raise UserError(f"`memory`: got {memory}, expected a positive number of bytes, or None")
    if isinstance(ridge, bool) or not isinstance(ridge, int | float) or not 0 <= ridge < math.inf:
        raise UserError(f"`ridge`: got {ridge!r}, expected a finite number of 0 or more")
    room = memory or _MEMORY
    side = n * c if form == "full" else n
    needed = 8 * _COPIES * side**2
    if needed > room and (form == "trace" or validated):
        what = f"`memory`: the kernel of n = {n} samples" + (
            f" and c = {c} outputs" if form == "full" else ""
        )
        way = 'give `memory`, fewer samples, or reduce="full", which is solved without forming it'
        if validated:
            way = "give `memory` or fewer samples" + (
                '; reduce="trace" takes c^2 less' if form == "full" else ""
            )
        raise UserError(f"{what} needs {needed} bytes, got {room}; {way}")
    return Solver("full" if form == "full" else "trace", needed <= room, room, float(ridge))


def _by_rate(network: nn.Module) -> list[tuple[float, nn.Module]]:
    """The network once for each rate that its law of width gives, with the parameters of that rate alone."""
    by_name = control.rates(network)
    values = sorted(set(by_name.values()))
    if len(values) == 1:
        return [(values[0], network)]
    found = []
    for rate in values:
        part = copy.deepcopy(network)
        for name, parameter in trainable(part).items():
            parameter.requires_grad_(by_name[name] == rate)
        found.append((rate, part))
    return found


def _kernel(problem: Problem, form: Form, x1: Inputs, x2: Inputs | None, memory: int) -> Tensor:
    """The kernel, each layer with its rate."""
    parts = (
        rate * measure.ntk(part, x1, x2, reduce=form, memory=memory)
        for rate, part in _by_rate(problem.network)
    )
    return fold(add, parts)


def _operator(network: nn.Module, x: Inputs, memory: int) -> LinearOperator:
    """The same, to multiply with."""
    parts = [(rate, measure.ntk_operator(part, x, memory=memory)) for rate, part in _by_rate(network)]
    if len(parts) == 1 and parts[0][0] == 1:
        return parts[0][1]

    def product(v: np.ndarray) -> np.ndarray:
        return np.sum([rate * operator.matvec(v) for rate, operator in parts], axis=0, dtype=v.dtype)

    first = parts[0][1]
    return LinearOperator(shape=first.shape, matvec=product, rmatvec=product, dtype=first.dtype)  # pyright: ignore[reportCallIssue]


def largest(network: nn.Module, x: Inputs, memory: int | None = None) -> float:
    """The largest eigenvalue of K / n on these samples, to some per cent, by power iteration."""
    operator = _operator(network, x, memory or _MEMORY)
    v = np.random.default_rng(0).standard_normal(operator.shape[0]).astype(operator.dtype)
    value = before = 0.0
    for _ in range(100):
        v /= max(float(np.linalg.norm(v)), 1e-30)
        image = operator.matvec(v)
        value, v = float(np.linalg.norm(image)), image
        if value - before <= 1e-3 * value:
            break
        before = value
    return value / count(x)


def _doubled(problem: Problem) -> Problem:
    """The same in float64, in which small eigenvalues are more than rounding; as it is where the module insists."""
    network = copy.deepcopy(problem.network).to(torch.float64)

    def part(old: Samples | None) -> Any:
        wide = partial(transform, function=lambda v: v.double() if v.is_floating_point() else v)
        return None if old is None else Samples(wide(old.x), old.y)

    try:
        answers(network, take(part(problem.train).x, slice(0, 2)))
    except RuntimeError:
        return problem
    return replace(
        problem,
        network=network,
        train=part(problem.train),
        test=part(problem.test),
        valid=part(problem.valid),
    )


def solved(problem: Problem, solver: Solver, t: float) -> list[Fit]:
    """The linear model, without steps.

    Under gradient flow of the loss after the time t ("same time", where there is one), or at the best time on
    validation data; and kernel regression, t = inf of the squared loss: the end of the same flow ("to the end"), or
    under another loss, which has no end, a model of its own ("squared loss").
    """
    began = time.perf_counter()
    problem = _doubled(problem)
    at_train, at_test = (answers(problem.network, part.x) for part in (problem.train, problem.test))
    x, memory = problem.train.x, solver.memory
    if solver.dense:
        kernel, products = _kernel(problem, solver.form, x, None, memory), math.inf
    else:
        kernel = _operator(problem.network, x, memory)
        speed = largest(problem.network, take(x, slice(0, _LOOK)), memory)
        products = math.ceil(_FEW + _PRODUCTS * math.sqrt(speed * t)) if math.isfinite(t) else _FEW

    def path(loss: Loss, ridge: float, least: int) -> train.KernelPath:
        steps = max(products, least) if isinstance(loss, Squared) else _STEPS
        return train.kernel(kernel, problem.train.y, loss=loss, start=at_train, ridge=ridge, max_steps=steps)

    flow = path(problem.loss, 0.0, _FEW)
    again = problem.is_squared and solver.dense and not solver.ridge
    shared = time.perf_counter() - began

    def fit(name: str, state_of: Callable[[], train.KernelState]) -> list[Fit]:
        began = time.perf_counter()
        state = state_of()
        outputs = _predict(problem, solver, state, at_test)
        seconds = shared + time.perf_counter() - began
        lost = {"diverged": "diverged", "stopped": "not converged"}
        if state.status in lost:
            return [Fit(name, lost[state.status], seconds, state.time)]
        return [Fit(name, "finished", seconds, state.time, state.outputs, outputs)]

    wanted: dict[str, Callable[[], train.KernelState]] = {}
    if problem.valid is not None:
        wanted["kernel, best time"] = lambda: _best(problem, solver, flow)
    else:
        if math.isfinite(t):
            wanted["kernel, same time"] = lambda: flow.at(t)
        name = "kernel, to the end" if problem.is_squared else "kernel, squared loss"
        end = partial(path, squared, solver.ridge, _END)
        wanted[name] = lambda: (flow if again else end()).at(math.inf)
    return [each for name, state in wanted.items() for each in tried(name, partial(fit, name, state))]


def _best(problem: Problem, solver: Solver, path: train.KernelPath) -> train.KernelState:
    """The state of the least loss on the validation data."""
    valid = problem.valid
    assert valid is not None
    cross = _kernel(problem, solver.form, valid.x, problem.train.x, solver.memory)
    return path.best(cross, valid.y, answers(problem.network, valid.x))


def _predict(problem: Problem, solver: Solver, state: train.KernelState, start: Tensor) -> Tensor:
    """F on the test points: f + J v with v = J^T c on the training points, or from the kernel between the two."""
    test = problem.test.x
    if solver.form == "trace":
        size = max(1, solver.memory // (32 * len(problem.train)))
        tiles = [slice(i, i + size) for i in range(0, count(test), size)]
        return torch.cat(
            [
                state.predict(
                    _kernel(problem, "trace", take(test, s), problem.train.x, solver.memory), start[s]
                )
                for s in tiles
            ]
        )
    parameters, by_name = trainable(problem.network), control.rates(problem.network)
    coefficients = state.coefficients.to(start)
    moved = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for piece in pieces(len(problem.train)):
        pulled = vjp(problem.network, parameters, take(problem.train.x, piece), coefficients[piece])[1]
        moved = {name: value + by_name[name] * pulled[name] for name, value in moved.items()}
    pushed = [jvp(problem.network, parameters, take(test, piece), moved)[1] for piece in pieces(count(test))]
    return start.double() + torch.cat(pushed).double()
