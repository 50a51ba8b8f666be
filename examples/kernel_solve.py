"""Where training is lazy, a kernel solve replaces it: the same test predictions, and the time of both.

A network of two hidden layers learns odd against even digits under an output scale alpha, F = alpha (f(w) - f(w0)) on
loss(F, y) / alpha^2: on the squared loss by descent with momentum until it fits, and on the soft-hinge by gradient flow
until every margin is met. Beside each run stands the same training of the frozen kernel of w0: in closed form, and with
the flow's own steps. The predictions on test points, of order 1, differ because the kernel of the network changes while
it trains, and that by 1/alpha (Chizat, Oyallon, Bach 2019, theorems 2.4 and 2.2). So 1/alpha, times a number that alpha
does not change, is the tolerance within which one replaces the other.

    python examples/kernel_solve.py
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from regimes import control, data, measure, models, train
from regimes.core.loss import Loss, soft_hinge, squared

ALPHAS = (1e4, 1e5)
STEPS = 700

torch.set_num_threads(1)
digits = data.load("digits", task="parity", train=200, test=500, flat=True)
x, y, test = digits.train.x, digits.train.y, digits.test
network = models.mlp(64, width=64, depth=2, seed=0)


def solve(loss: Loss) -> Tensor:
    """Predictions of the frozen kernel at the end of its training, from nothing."""
    kernel = measure.ntk(network, x, reduce="trace")
    cross = measure.ntk(network, test.x, x, reduce="trace")
    return train.kernel(kernel, y, loss=loss).at(math.inf).predict(cross)


def best_descent() -> tuple[float, float]:
    """The step and the momentum that fit a linear model the fastest, by the extreme eigenvalues of K / n."""
    values = torch.linalg.eigvalsh(measure.ntk(network, x, reduce="trace")) / len(x)
    low, high = math.sqrt(float(values[0])), math.sqrt(float(values[-1]))
    return (2 / (high + low)) ** 2, ((high - low) / (high + low)) ** 2


def learn(loss: Loss, alpha: float) -> tuple[Tensor, int]:
    """Predictions of the scaled network at the end of its training, and the steps that took."""
    module = control.scale(network, alpha)
    if loss is squared:
        run = train.descent(module, x, y, loss=loss, lr=rate, momentum=momentum, steps=STEPS)
    else:
        run = train.flow(module, x, y, loss=loss)
    *_, end = run
    with torch.no_grad():
        return end(test.x), end.step


# The first gradient of a process makes torch import more of itself: here, where no clock runs.
rate, momentum = best_descent()
print(
    "loss         alpha   steps  training/s  kernel/s  ratio  difference  alpha*difference   error  kernel's"
)
for name, loss in {"squared": squared, "soft-hinge": soft_hinge}.items():
    scaled = []
    for alpha in ALPHAS:
        began = time.perf_counter()
        expected = solve(loss)
        between = time.perf_counter()
        found, steps = learn(loss, alpha)
        slow, fast = time.perf_counter() - between, between - began
        difference = float((found - expected).abs().max())
        scaled.append(alpha * difference)
        error, other = measure.error_rate(found, test.y), measure.error_rate(expected, test.y)
        print(
            f"{name:10} {alpha:7g} {steps:7d} {slow:11.2f} {fast:9.3f} {slow / fast:6.0f}"
            f" {difference:11.2e} {scaled[-1]:17.2f} {error:7.3f} {other:9.3f}"
        )
        assert abs(error - other) <= 0.01
    assert math.isclose(*scaled, rel_tol=0.1), "the difference is not of order 1/alpha"
