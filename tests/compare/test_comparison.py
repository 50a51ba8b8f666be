"""The rule of a comparison where the truth is known: how often it errs, and what it says without a yardstick."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regimes import compare, models
from regimes.compare.linear.comparison import conclude
from regimes.compare.task.criterion import Criterion
from regimes.compare.task.problem import Fit, Problem, Samples
from regimes.compare.task.score import Trial
from regimes.core.loss import squared

N, TRIALS = 400, 40
CRITERION = Criterion(0.05, 0.95)


def problem() -> Problem:
    """Two classes, -1 and +1, that are told apart by their sign."""
    y = torch.ones(N, dtype=torch.float64)
    part = Samples(y[:, None], y)
    return Problem(nn.Identity(), part, part, None, squared, None, 1)


def outputs(wrong: np.ndarray) -> Tensor:
    return torch.from_numpy(1.0 - 2.0 * wrong)[:, None]


def simulated(
    rng: np.random.Generator, errors: dict[str, float], seeds: int, spread: float
) -> compare.Comparison:
    """Models of these true errors, which differ between seeds by ``spread``; half of the samples are hard for all."""
    shared, common = rng.uniform(size=N), rng.uniform(size=N) < 0.5
    trials = []
    for _ in range(seeds):
        fits = []
        for name, error in errors.items():
            level = np.clip(error + spread * rng.normal(), 0, 1)
            wrong = np.where(common, shared, rng.uniform(size=N)) < level
            fits.append(Fit(name, "finished", 0.0, 1.0, outputs(wrong), outputs(wrong)))
        trials.append(Trial(problem(), tuple(fits)))
    return conclude(trials, CRITERION, 0.1, ("batches",))


# name: errors of baselines, network and linear models; the answers that are wrong.
TRUTHS = {
    "equal": ((0.5, 0.2, 0.2, 0.2), {"no"}),
    "at the margin": ((0.5, 0.2, 0.25, 0.25), {"yes", "no"}),
    "worse": ((0.5, 0.2, 0.3, 0.3), {"yes"}),
    "did not learn": ((0.2, 0.2, 0.1, 0.1), {"yes", "no"}),
    "learnt no more than the margin": ((0.25, 0.2, 0.2, 0.3), {"yes", "no"}),
}


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("truth", TRUTHS)
def test_wrong_answers_are_rare(truth: str, seeds: int) -> None:
    """With one seed nothing may differ between seeds, as the page says."""
    (start, network, linear, kernel), wrong = TRUTHS[truth]
    errors = {
        "constant": 0.5,
        "start": start,
        "network": network,
        "linearisation": linear,
        "kernel, to the end": kernel,
    }
    rng = np.random.default_rng(0)
    said = [simulated(rng, errors, seeds, 0.0 if seeds == 1 else 0.02).answer for _ in range(TRIALS)]
    assert sum(answer in wrong for answer in said) / TRIALS <= 1 - CRITERION.level + 0.03


def known(**changed: Fit) -> compare.Comparison:
    """A network without errors, and linear models that are as good, but for what is changed."""
    right, never = outputs(np.zeros(N)), outputs(np.ones(N))
    fits = {name: Fit(name, "finished", 0.0, 1.0, never, never) for name in ("constant", "start")}
    fits |= {
        name: Fit(name, "finished", 0.0, 1.0, right, right) for name in ("network", "linearisation", "kernel")
    }
    trials = [Trial(problem(), tuple((fits | changed).values())), Trial(problem(), tuple(fits.values()))]
    return conclude(trials, CRITERION, 0.1, ("batches",))


def test_a_model_without_a_result_decides_nothing() -> None:
    """Even where it lacks in one seed only."""
    assert known().answer == "yes"
    for name in ("network", "linearisation"):
        found = known(**{name: Fit(name, "diverged", 0.0)})
        assert found.answer == "open" and set(found.difference["answer"]) == {"", "open"}
        assert f"the {name} has no result (diverged in 1 of 2 seeds)" in found.sentence
    found = known(kernel=Fit("kernel", "not converged", 0.0))
    assert (
        found.answer == "yes" and "Without a result: kernel (not converged in 1 of 2 seeds)" in found.sentence
    )
    bad = outputs(np.ones(N))
    worse = Fit("linearisation", "finished", 0.0, 1.0, bad, bad)
    found = known(linearisation=worse, kernel=Fit("kernel", "not converged", 0.0))
    assert found.answer == "open"


def test_outputs_that_are_not_finite_are_no_result() -> None:
    bad = torch.full((N, 1), math.nan, dtype=torch.float64)
    fit = Fit("network", "finished", 0.0, 1.0, bad, bad).checked()
    assert fit.status == "not finite" and fit.test is None
    assert known(network=fit).answer == "open"


def digits_like(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(samples, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, (x[:, :3] + 0.3 * x[:, 3:]).argmax(1)


def test_a_network_that_did_not_learn_is_no_yardstick() -> None:
    """It is trained well already, and a rate that is far too large makes it worse, which the kernel bears."""
    (x, y), (x_test, y_test) = digits_like(60, 0), digits_like(300, 1)
    net = models.mlp(6, 16, 1, 3, activation="relu")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    settings = {"lr": 1e3, "momentum": 0.9, "epochs": 3, "batch_size": 16, "seeds": 2, "reduce": "trace"}
    found = compare.would_linear_do(net, x, y, x_test, y_test, **settings)
    assert found.answer == "open"
    assert "did not learn" in found.sentence or "has no result" in found.sentence


def test_the_best_constant_answer_is_a_yardstick_too() -> None:
    """A start whose outputs decide nothing is always wrong; to answer one class everywhere is no merit over it."""
    base = known()
    assert base.table.index[0] == "constant"
    right = outputs(np.zeros(N))
    found = known(constant=Fit("constant", "finished", 0.0, 0.0, right, right))
    assert found.answer == "open" and "Against a constant answer" in found.sentence


def test_the_numbers_of_the_constant_answer_are_those_of_the_targets() -> None:
    from regimes.compare.task.fit import constant

    y = torch.tensor([2, 0, 2, 1])
    part = Samples(torch.zeros(4, 1), y)
    squares = Problem(nn.Identity(), part, part, None, squared, None, 3)
    assert constant(squares).checked().test is not None
    scores = squares.score(constant(squares).test, y)  # pyright: ignore[reportArgumentType]
    assert scores.error.tolist() == [0, 1, 0, 1]
    real = Samples(torch.zeros(4, 1), torch.tensor([1.0, 2.0, 3.0, 6.0]))
    numbers = replace(squares, train=real, test=real, unit=1.0, outputs=1)
    test = constant(numbers).test
    assert test is not None and test.flatten().tolist() == [3.0] * 4
