"""How many feature updates: each rung is training by hand, what must be answered is, and mistakes."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes import compare, control, measure, models, train
from regimes.compare.task.fit import Protocol, answers_of, ran
from regimes.compare.task.prepare import Data, prepared
from regimes.compare.updates.rungs import Rung, ladder_of
from regimes.core.error import UserError
from regimes.core.loss import Loss, cross_entropy, squared
from regimes.train.descent import order

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


X, X_TEST = draw(24, 4), draw(60, 4, seed=1)
Y, Y_TEST = X[:, :3].argmax(1), X_TEST[:, :3].argmax(1)


def network(outputs: int = 3, seed: int = 0) -> nn.Module:
    return models.mlp(4, 6, 1, outputs, seed=seed)


def asked(module: Any = None, *part: Any, **settings: Any) -> compare.FeatureUpdates:
    good = {"ladder": [1, 3], "epochs": 3, "batch_size": 10, "lr": 0.1, "rates": [1.0], "seeds": 1}
    good |= {"stable": None}
    given = part or (X, Y, X_TEST, Y_TEST)
    return compare.how_many_feature_updates(module or network(), *given, **(good | settings))


def rows(found: compare.FeatureUpdates) -> dict[str, Mapping[str, Any]]:
    return {str(name): row for name, row in found.table.to_dict("index").items()}


def settled(found: compare.FeatureUpdates) -> Any:
    return found.table.drop(columns="seconds")


def by_hand(rung: Rung, lr: float, momentum: float, loss: Loss) -> control.Linearized:
    """A loop of PyTorch on a linearised module, which is linearised anew before the steps of the plan."""
    linear = control.linearize(network())
    optimizer = torch.optim.SGD(linear.parameters(), lr=lr, momentum=momentum)
    batches = [index for epoch in range(3) for index in order(5, epoch, 24).split(10)]
    for step, index in enumerate(batches):
        if step in rung.moments():
            linear.relinearize()
        optimizer.zero_grad()
        loss.per_sample(linear(X[index]), Y[index]).mean().backward()
        optimizer.step()
    return linear


@pytest.mark.parametrize(("loss", "momentum"), [(cross_entropy, 0.9), (squared, 0.0)])
def test_every_rung_is_training_by_hand(loss: Loss, momentum: float) -> None:
    """Never renewed, renewed twice, and plain training; the loss on the training set tells more than an error."""
    net = network()
    problem = prepared(net, Data(X, Y, X_TEST, Y_TEST, loss, None, 0.0), 0)
    protocol = Protocol(0.1, momentum, 10, 3, 5)
    found = asked(net, loss=loss, momentum=momentum, seed=5)
    assert found.steps == 9 and found.table["updates"].tolist() == [1, 3, 9]
    for updates, name in ((1, "1 update"), (3, "3 updates")):
        rung = Rung(name, updates, 9)
        linear = by_hand(rung, 0.1, momentum, loss)
        own = rung.protocol(protocol, len(X))
        end = ran(name, own.states(problem.network, problem), problem, own, lambda *_: None).state
        assert end is not None
        with torch.no_grad():
            for nonlinear, model in ((False, linear), (True, linear.nonlinear)):
                outputs = answers_of(end, problem.test, nonlinear=nonlinear)
                torch.testing.assert_close(outputs, model(X_TEST), rtol=1e-10, atol=1e-12)
            row = rows(found)[name]
            assert row["error"] == measure.error_rate(linear(X_TEST), Y_TEST)
            assert row["network_error"] == measure.error_rate(linear.nonlinear(X_TEST), Y_TEST)
            assert row["spent"] == updates
    *_, end = train.descent(net, X, Y, loss=loss, lr=0.1, momentum=momentum, batch_size=10, epochs=3, seed=5)
    with torch.no_grad():
        assert rows(found)["plain training"]["error"] == measure.error_rate(end(X_TEST), Y_TEST)


@pytest.mark.parametrize("kind", ["classes", "signs", "numbers", "several numbers"])
def test_anchors_at_every_step_are_plain_training(kind: str) -> None:
    y = {"classes": Y, "signs": X[:, 0].sign(), "numbers": X[:, 0], "several numbers": X[:, :3]}[kind]
    net = network(1 if y.dim() == 1 and kind != "classes" else 3)
    problem = prepared(net, Data(X, y, X, y, None, None, 0.0), 0)
    ends = []
    for anchor in (None, control.Every(1)):
        protocol = Protocol(0.1, 0.9, 10, 3, 0, anchor=anchor)
        run = ran("", protocol.states(problem.network, problem), problem, protocol, lambda *_: None)
        assert run.state is not None
        ends.append(answers_of(run.state, problem.test, nonlinear=True))
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-12)


def test_a_model_that_is_linear_needs_its_first_features_alone() -> None:
    """Not one sample is told apart, whatever the seed."""
    for y, y_test in ((X[:, 0], X_TEST[:, 0]), (Y, Y_TEST)):
        module = nn.Linear(4, 1 if y.is_floating_point() else 3, dtype=F64)
        found = asked(module, X, y, X_TEST, y_test, epochs=20, rates=[1.0, 0.5], seeds=2, margin=0.1)
        assert found.answer == found.against_best == 1
        assert max(abs(row["difference"]) for name, row in rows(found).items() if "update" in name) < 1e-12
        assert "1 feature update is enough" in str(found)


@pytest.mark.slow
def test_a_lazy_network_needs_its_first_features_alone() -> None:
    """Of a linear teacher, with other batches."""
    y, y_test = X[:, 0], X_TEST[:, 0]
    module = control.scale(models.mlp(4, 16, 1, 1), 1e3)
    found = asked(module, X, y, X_TEST, y_test, epochs=20, lr=None, seeds=2, margin=0.2)
    assert found.answer == 1


@pytest.mark.slow
def test_parity_needs_features() -> None:
    """The product of two signs is no linear function of the features of this network at its start."""
    x = draw(700, 16).sign()
    y = x[:, :2].prod(1)
    module = models.two_layer(16, 24, scaling="1", tau=0.1, symmetric=True)
    settings = {"loss": squared, "batch_size": 20, "epochs": 30, "lr": None, "ladder": [1, 30]}
    found = asked(module, x[:150], y[:150], x[150:], y[150:], **settings)
    table = rows(found)
    assert table["plain training"]["error"] < 0.1 and table["1 update"]["difference_low"] > 0.1
    assert found.answer in (30, "no", "open") and found.answer != 1


def test_few_samples_leave_it_open() -> None:
    found = asked(None, X, Y, X_TEST[:9], Y_TEST[:9], epochs=10, lr=1.0)
    assert found.answer == "open" and "cannot tell" in str(found).lower()


def test_what_diverges_is_a_row() -> None:
    """Far beyond the bound: with its rate lowered a block ends all the same, and without it is left out, by name."""
    settings = {"loss": squared, "lr": 5.0, "ladder": [1]}
    mended, wild = (asked(stable=stable, **settings) for stable in ("lower", None))
    one, other = (rows(found)["1 update"] for found in (mended, wild))
    assert one["status"] == "finished" and one["mended"] == 1 and one["bound"] < 5
    assert "1 update (1)" in mended.sentences[-1]
    assert other["status"] == "diverged" and math.isnan(other["error"]) and wild.answer == "open"
    assert rows(wild)["plain training"]["status"] == "diverged"
    assert "plain training has no result (diverged)" in str(wild)


def test_the_rate_is_half_of_what_a_block_bears_along_plain_training() -> None:
    """At the start where it is given; else looked at again by hand, at the rate that was found."""
    net, settings = network(), {"momentum": 0.5, "batch_size": 10}
    bound = control.stable_rate(net, X, Y, cross_entropy, batches=4, **settings).rate
    assert asked(net, momentum=0.5).bound == pytest.approx(bound, rel=1e-6)
    found = asked(net, lr=None, momentum=0.5, epochs=20, stable="lower")
    assert 0 < found.lr <= found.bound / 2 * (1 + 1e-9) and found.bound <= bound * (1 + 1e-9)
    path = train.descent(net, X, Y, loss=cross_entropy, lr=found.lr, epochs=20, **settings)
    seen = [
        control.stable_rate(state.materialize(), X, Y, cross_entropy, batches=4, **settings).rate
        for state in path
        if state.step in (60 // 16, 60 // 4, 60)
    ]
    assert found.bound == pytest.approx(min([bound, *seen]), rel=1e-3)


@pytest.mark.slow
def test_rates_are_tried_by_plain_training_or_by_each_rung() -> None:
    one = asked(rates=[1.0, 3.0, 1e-6], epochs=5)
    assert one.table.index.tolist() == ["1 update", "3 updates", "plain training", "plain, best rate"]
    assert one.table["lr"].tolist() == pytest.approx([0.1, 0.1, 0.1, 0.3])
    assert "Of 0.1, 0.3, 1e-07, plain training did best at 0.3." in one.sentences[-1]
    same = asked(rates=[1.0, 1e-6], epochs=5)
    assert same.table.index.tolist() == ["1 update", "3 updates", "plain training"]
    each = asked(rates=[1e-6, 1.0, 1e9], epochs=5, tune=True)
    assert each.table.index.tolist() == same.table.index.tolist() and each.answer == each.against_best
    assert settled(each).equals(settled(same))


def test_time_that_is_over_gives_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = asked(max_seconds=0.0)
    assert nothing.answer == "open" and set(nothing.table["status"]) == {"out of time"}
    assert nothing.seeds == 1 and "out of time" in str(nothing)
    # The clock goes on by a second at each look at it.
    ticks = iter(range(10**6))
    monkeypatch.setattr("time.monotonic", lambda: float(next(ticks)))
    short = asked(seeds=99, max_seconds=20.0)
    assert short.seeds == 1 and "time was over" in short.covers
    assert settled(short)["error"].equals(settled(asked(seeds=1))["error"])


def test_it_changes_nothing_and_answers_the_same_again() -> None:
    module = network()
    before, random = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    settings = {"seeds": 2, "rates": [1.0, 2.0], "ladder": [2], "epochs": 2}
    one = asked(module, **settings)
    assert torch.equal(torch.get_rng_state(), random)
    torch.rand(3)
    other, third = asked(module, **settings), asked(module, **settings, seed=1)
    assert settled(one).equals(settled(other)) and one.sentences == other.sentences
    assert not settled(one).equals(settled(third))
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_seeds_are_paired_and_may_differ_in_their_start() -> None:
    """Two seeds together are the mean of each alone."""
    both = asked(lambda seed: network(3, seed), seeds=2, ladder=[2])
    alone = [asked(network(3, seed), seed=seed, ladder=[2]) for seed in (0, 1)]
    for name in ("error", "difference", "network_error", "train_error"):
        mean = [sum(each) / 2 for each in zip(*(each.table[name] for each in alone), strict=True)]
        assert both.table[name].tolist() == pytest.approx(mean, nan_ok=True)
    assert "new seeds (2: starts, batches)" in both.covers
    assert asked(batch_size=None, seeds=4, ladder=[1]).seeds == 1


class Pair(nn.Module):
    """Two inputs, a mapping for an output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"logits": self.b((self.a(left) * right).tanh())}


@pytest.mark.parametrize("y", [Y, X[:, :3]], ids=["classes", "several numbers"])
def test_inputs_of_all_kinds(y: Tensor) -> None:
    torch.manual_seed(0)
    module, right = Pair(), draw(24, 8, seed=1)  # float32, on inputs of float64
    found = [
        asked(module, x, y, x, y, output=lambda out: out["logits"], ladder=[1], stable="lower")
        for x in ((X, right), {"right": right, "left": X})
    ]
    assert settled(found[0]).equals(settled(found[1]))
    assert set(found[0].table["status"]) == {"finished"}


def test_the_ladder_where_none_is_given() -> None:
    assert ladder_of(None, 4000) == [1, 3, 10, 30, 100, 300, 1000]
    assert ladder_of(None, 2) == [1] and ladder_of([1, 2, 5], 6) == [1, 2, 5]
    for steps in (2, 7, 60):
        for updates in range(1, steps):
            rung = Rung("", updates, steps)
            ends = [0, *rung.moments(), steps]
            lengths = [b - a for a, b in itertools.pairwise(ends)]
            assert len(lengths) == updates and min(lengths) >= 1 and max(lengths) <= rung.block


WRONG: Mapping[str, tuple[dict[str, Any], str]] = {
    "ladder": (
        {"ladder": [0, 3]},
        r"`ladder`: got \[0, 3\] for 9 steps, expected numbers of feature updates",
    ),
    "all steps": ({"ladder": [9]}, r"`ladder`: got \[9\] for 9 steps"),
    "falling": ({"ladder": [3, 1]}, r"`ladder`: got \[3, 1\]"),
    "no rung": ({"ladder": []}, r"`ladder`: got \[\]"),
    "rates": ({"rates": []}, r"`rates`: got \[\], expected factors"),
    "rate": ({"rates": [1.0, -1.0]}, r"`rates`: got \[1.0, -1.0\]"),
    "lr": ({"lr": -1.0}, "`lr`: got -1.0"),
    "momentum": ({"momentum": 1.0}, "`momentum`: got 1.0"),
    "epochs": ({"epochs": 0}, "`epochs`: got 0"),
    "seeds": ({"seeds": 0}, "`seeds`: got 0"),
    "margin": ({"margin": -1.0}, "`margin`: got -1.0"),
    "level": ({"level": 1.0}, "`level`: got 1.0"),
    "seconds": ({"max_seconds": -1.0}, "`max_seconds`: got -1.0"),
    "stable": ({"stable": "never"}, "`stable`: got 'never'"),
    "linear": ({"module": control.linearize(network())}, "`module`: is linearised already"),
    "one step": ({"batch_size": None, "epochs": 1}, r"`ladder`: got \[1, 3\] for 1 step"),
    "dead": (
        {"module": nn.Sequential(nn.Linear(4, 3), nn.Dropout()), "lr": None},
        "draws random numbers|`module`",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_named_before_anything_is_trained(name: str) -> None:
    change, message = WRONG[name]
    change = dict(change)
    with pytest.raises(UserError, match=message):
        asked(change.pop("module", None), **change)
