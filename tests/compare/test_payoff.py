"""Whether sampled layers pay: the answers for known errors and memory, yes, no and open."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regimes.compare.sampling.payoff import FULL, Payoff, Stakes, Tried, settled
from regimes.compare.task.problem import Fit, Problem, Samples
from regimes.compare.task.score import Trial
from regimes.core.loss import cross_entropy
from regimes.measure.layer_cost import LayerCosts
from regimes.measure.layer_cost_time import StepTimes

N, SEEDS = 2000, 5
COSTS = LayerCosts(("a",), (1,), (1.0,), StepTimes(1.0, 0.0, (1.0,), {}, 0.0, (0.0,)), {})


def trials(wrong: dict[str, float | None], late: float = 0.0) -> list[Trial]:
    """Choices of which about this share of the samples is wrong, mostly the same ones for all; None diverged."""
    y = torch.ones(N, dtype=torch.float64)
    problem = Problem(
        nn.Linear(1, 1), Samples(y[:4, None], y[:4]), Samples(y[:, None], y), None, cross_entropy, None, 1
    )
    found = []
    for seed in range(SEEDS):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
        noise = torch.randn(N, generator=torch.Generator().manual_seed(seed + 1))
        rank = (order + 10 * noise).argsort().argsort()
        fits = []
        for name, share in wrong.items():
            if share is None:
                fits.append(Fit(name, "diverged", 0.0))
                continue
            outputs = torch.where(rank < round(share * N), -1.0, 1.0).double()[:, None]
            fits.append(Fit(name, "finished", 0.0, train=torch.ones(4, 1).double(), test=outputs, late=late))
        found.append(Trial(problem, tuple(fits)))
    return found


def answer(wrong: dict[str, float | None], memory: dict[str, float], margin: float = 0.01) -> Payoff:
    """Those that are named "fixed" are not sampled."""
    runs = [Tried(name, name not in (FULL, "fixed"), 1.0, memory.get(name, 1.0), 10, 1.0) for name in wrong]
    return settled(trials(wrong), runs, COSTS, Stakes(margin, 0.2, 0.95), "Made up.")


@pytest.mark.parametrize(
    ("wrong", "memory", "time", "saved"),
    [
        ({FULL: 0.2, "cut": 0.1}, {}, "yes", "no"),
        ({FULL: 0.2, "cut": 0.3}, {"cut": 0.5}, "no", "no"),
        ({FULL: 0.2, "cut": 0.201}, {"cut": 0.5}, "no", "yes"),
        ({FULL: 0.2, "cut": 0.2}, {"cut": 0.9}, "no", "no"),
        ({FULL: 0.2, "cut": 0.1, "one": 0.2}, {"one": 0.5}, "yes", "yes"),
        ({FULL: 0.2, "cut": None}, {"cut": 0.5}, "no", "no"),
        ({FULL: None, "cut": 0.1}, {"cut": 0.5}, "open", "open"),
        ({FULL: None, "cut": 0.1}, {}, "open", "no"),
        ({FULL: 0.2, "fixed": 0.1, "cut": 0.3}, {"fixed": 0.1}, "no", "no"),
    ],
)
def test_answers(wrong: dict[str, float | None], memory: dict[str, float], time: str, saved: str) -> None:
    found = answer(wrong, memory)
    assert (found.time, found.memory) == (time, saved)
    assert found.answer == ("yes" if "yes" in (time, saved) else "open" if "open" in (time, saved) else "no")
    said = str(found)
    assert all(name in said for name in wrong) and "Made up." in said
    assert ("the same layers at every step" in said) == ("fixed" in wrong)


def test_between_the_ends_it_is_open() -> None:
    """A gain, or a loss, of the margin itself."""
    assert answer({FULL: 0.2, "cut": 0.21}, {"cut": 0.5}).memory == "open"
    one, other = (trials({FULL: share, "cut": 0.2}) for share in (0.21, 0.19))
    runs = [Tried(name, name != FULL, 1.0, 0.5, 10, 1.0) for name in (FULL, "cut")]
    # Seeds that do not agree.
    mixed = [*one[:3], *other[3:]]
    found = settled(mixed, runs, COSTS, Stakes(0.005, 0.2, 0.95), "")
    assert (found.time, found.memory) == ("open", "open") and "cannot tell" in str(found)


def test_what_is_still_learning_makes_a_yes_open() -> None:
    runs = [Tried(name, name != FULL, 1.0, memory, 10, 1.0) for name, memory in ((FULL, 1.0), ("cut", 0.5))]
    for share, late, expected in ((0.1, 0.02, "open"), (0.1, 0.005, "yes"), (0.3, 0.02, "no")):
        found = settled(trials({FULL: 0.2, "cut": share}, late), runs, COSTS, Stakes(0.01, 0.2, 0.95), "")
        assert found.time == found.memory == expected
        assert ("give more `epochs`" in str(found)) == (expected == "open")


def test_a_choice_that_is_picked_has_a_wider_interval() -> None:
    """Among many choices a gain has to be surer."""
    many: dict[str, float | None] = {FULL: 0.2, "cut": 0.19, **{f"cut {i}": 0.3 for i in range(30)}}
    alone = answer({FULL: 0.2, "cut": 0.19}, {}).sentences[0]
    among = answer(many, {}).sentences[0]
    low = [float(said.split("(")[1].split()[0]) for said in (alone, among)]
    assert '"cut" errs' in alone and '"cut" errs' in among and low[1] < low[0]


def test_differences_are_those_of_the_errors() -> None:
    table = answer({FULL: 0.2, "cut": 0.25}, {}).table
    assert table["difference"].tolist()[1] == pytest.approx(0.05)
    assert table["error"].tolist() == pytest.approx([0.2, 0.25])
