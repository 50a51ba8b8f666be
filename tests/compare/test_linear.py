"""Would a linear model do: where it must, where it cannot, and where nobody can tell; and mistakes."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes import compare, control, data, measure, models, train
from regimes.compare.linear.kernel import largest
from regimes.core.error import UserError
from regimes.core.estimate import mean
from regimes.core.loss import Loss, cross_entropy, hinge, soft_hinge, squared

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def signs(samples: int, inputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points of the cube and the product of their first two entries."""
    x = draw(samples, inputs, seed=seed).sign()
    return x, x[:, :2].prod(1)


def network(outputs: int = 1, inputs: int = 4, seed: int = 0) -> nn.Module:
    return models.mlp(inputs, 16, 1, outputs, seed=seed)


def small(module: nn.Module | None = None, samples: int = 40, **settings: Any) -> compare.Comparison:
    """On a task of one output."""
    x, y = draw(samples, 4), draw(samples, 4)[:, :2].prod(1)
    x_test = draw(60, 4, seed=1)
    settings = {"epochs": 3, "batch_size": 16, "seeds": 1, **settings}
    return compare.would_linear_do(module or network(), x, y, x_test, x_test[:, :2].prod(1), **settings)


def row(comparison: compare.Comparison, name: str) -> Mapping[str, Any]:
    return comparison.table.loc[name].to_dict()


@pytest.mark.parametrize("classes", [0, 2, 3])
def test_a_linear_model_is_its_own_linearisation(classes: int) -> None:
    """The steps are the same, so that not one held-out sample is told apart."""
    x, x_test = draw(60, 4), draw(800, 4, seed=1)
    if classes == 3:
        y, y_test = x[:, :3].argmax(1), x_test[:, :3].argmax(1)
    else:
        y, y_test = (each[:, 0].sign() if classes else each[:, 0] + 1 for each in (x, x_test))
    module = nn.Linear(4, max(classes - (classes == 2), 1), dtype=F64)
    found = compare.would_linear_do(module, x, y, x_test, y_test, epochs=20, batch_size=16, seeds=2)
    apart = found.difference.loc["linearisation"].to_dict()
    assert max(abs(float(apart[name])) for name in ("error", "loss")) < 1e-12
    assert found.answer == apart["answer"] == "yes"
    assert "A linear model would do" in found.sentence


def test_parity_needs_features() -> None:
    """The product of two signs is no linear function of the gradients of this network at its start."""
    (x, y), (x_test, y_test) = signs(300, 32), signs(1200, 32, seed=1)
    module = models.two_layer(32, 32, scaling="1", tau=0.1, symmetric=True)
    settings = {"epochs": 60, "batch_size": 20, "seeds": 1, "loss": squared}
    found = compare.would_linear_do(module, x, y, x_test, y_test, **settings)
    assert row(found, "network")["error"] < 0.1
    assert row(found, "linearisation")["error"] > 0.3
    assert found.answer == "no" and "would not do" in found.sentence
    assert set(found.difference["answer"]) == {"", "no"}


def test_a_lazy_network_needs_none() -> None:
    (x, y), (x_test, y_test) = signs(60, 6), signs(800, 6, seed=1)
    module = control.scale(models.mlp(6, 32, 1), 1e3)
    found = compare.would_linear_do(
        module, x, y, x_test, y_test, epochs=40, batch_size=10, seeds=1, loss=squared
    )
    assert found.answer == "yes"
    assert abs(found.difference["loss"].to_dict()["linearisation"]) < 1e-2


def test_few_samples_leave_it_open() -> None:
    x, y = draw(40, 4), draw(40, 4)[:, 0].sign()
    found = compare.would_linear_do(nn.Linear(4, 1, dtype=F64), x, y, x[:20], y[:20], epochs=50, seeds=1)
    assert found.answer == "open" and "give more held-out samples" in found.sentence


@pytest.mark.parametrize("reduce", ["full", "trace"])
@pytest.mark.parametrize("law", [control.NTK, control.MUP], ids=lambda law: law.name)
def test_the_kernel_rows_are_kernel_training_by_hand(reduce: Any, law: control.Law) -> None:
    x, x_test = draw(24, 4), draw(30, 4, seed=1)
    y, y_test = x[:, :3].argmax(1), x_test[:, :3].argmax(1)
    net = models.mlp(4, 16, 2, 3, law=law)
    found = compare.would_linear_do(
        net,
        x,
        y,
        x_test,
        y_test,
        lr=0.02,
        momentum=0.5,
        epochs=4,
        batch_size=10,
        reduce=reduce,
        ridge=0.1,
        loss=squared,
        seeds=1,
    )
    t = sum(0.02 * (1 - 0.5**k) / (1 - 0.5) for k in range(1, 13))
    rates = {name.rpartition(".")[0]: rate for name, rate in control.rates(net).items()}
    k, cross = (
        sum(rates[name] * part for name, part in measure.ntk(net, a, x, reduce=reduce, by_layer=True).items())
        for a in (x, x_test)
    )
    assert isinstance(k, Tensor) and isinstance(cross, Tensor)
    with torch.no_grad():
        f0, g0 = net(x), net(x_test)
    for name, when, ridge in (("kernel, same time", t, 0.0), ("kernel, to the end", math.inf, 0.1)):
        state = train.kernel(k, y, start=f0, ridge=ridge).at(when)
        outputs = state.predict(cross, g0)
        assert row(found, name)["time"] == pytest.approx(when, rel=1e-12)
        assert row(found, name)["train_loss"] == pytest.approx(state.loss, rel=1e-8)
        assert row(found, name)["error"] == measure.error_rate(outputs, y_test)
        loss = float(squared.per_sample(outputs, y_test).mean())
        assert row(found, name)["loss"] == pytest.approx(loss, rel=1e-8)


@pytest.mark.parametrize("loss", [squared, cross_entropy])
@pytest.mark.parametrize("batch_size", [None, 10])
def test_the_network_rows_are_descent_by_hand(loss: Loss, batch_size: int | None) -> None:
    x, x_test = draw(24, 4), draw(30, 4, seed=1)
    y, y_test = x[:, :3].argmax(1), x_test[:, :3].argmax(1)
    net = network(3)
    settings = {"lr": 0.1, "momentum": 0.9, "epochs": 5, "batch_size": batch_size, "seed": 3}
    found = compare.would_linear_do(net, x, y, x_test, y_test, loss=loss, seeds=1, **settings)
    for name, module in (("network", net), ("linearisation", control.linearize(net))):
        *_, end = train.descent(module, x, y, loss=loss, **settings)
        with torch.no_grad():
            outputs = end(x_test)
        assert row(found, name)["error"] == measure.error_rate(outputs, y_test)
        assert row(found, name)["loss"] == pytest.approx(
            float(loss.per_sample(outputs, y_test).mean()), rel=1e-9
        )
        assert row(found, name)["train_loss"] == pytest.approx(end.loss, rel=1e-9)


def test_full_batches_of_small_steps_are_the_kernel_at_the_same_time() -> None:
    found = small(lr=0.01, epochs=100, batch_size=None)
    same, steps = row(found, "kernel, same time"), row(found, "linearisation")
    assert same["time"] == pytest.approx(steps["time"]) == pytest.approx(1.0)
    assert same["loss"] == pytest.approx(steps["loss"], rel=1e-2)


class Pair(nn.Module):
    """Two inputs, a mapping for an output."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, outputs)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"logits": self.b((self.a(left) * right).tanh())}


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("validation", [0.0, 0.25])
def test_inputs_of_all_kinds_and_floats_of_several_outputs(outputs: int, validation: float) -> None:
    module = Pair(outputs)  # float32, on inputs of float64
    left, right = draw(40, 4), draw(40, 8, seed=1)
    y = (left[:, :1] * right[:, :outputs]).squeeze(1) if outputs > 1 else left[:, 0] * right[:, 0]
    found = []
    for x, x_test in (
        ((left, right), (left[:9], right[:9])),
        ({"right": right, "left": left}, {"left": left[:9], "right": right[:9]}),
    ):
        settings = {
            "output": lambda out: out["logits"],
            "epochs": 3,
            "batch_size": 8,
            "validation": validation,
            "seeds": 2,
        }
        one = compare.would_linear_do(module, x, y, x_test, y[:9], **settings)
        found.append(one.table.drop(columns="seconds"))
        assert set(one.table["status"]) == {"finished"}
    assert found[0].equals(found[1])


def test_the_error_of_floats_is_in_units_of_their_variance() -> None:
    """So it does not change with their unit, where the loss does."""
    x, x_test = draw(40, 4), draw(50, 4, seed=1)
    module = nn.Linear(4, 2, dtype=F64)
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    one, other = (
        compare.would_linear_do(module, x, c * x[:, :2], x_test, c * x_test[:, :2], epochs=2, seeds=1)
        for c in (1.0, 10.0)
    )
    for name in ("error", "error_low", "error_high"):
        torch.testing.assert_close(*(torch.tensor(each.table[name].tolist()) for each in (one, other)))
    y = x[:, :2]
    unit = float((y - y.mean(0)).square().sum(1).mean())
    assert row(one, "start")["error"] == pytest.approx(float(x_test[:, :2].square().sum(1).mean()) / unit)
    assert row(one, "start")["loss"] * 2 / unit == pytest.approx(row(one, "start")["error"])


def test_a_model_that_diverges_is_a_row() -> None:
    found = small(lr=1e3, epochs=30)
    assert row(found, "network")["status"] == row(found, "linearisation")["status"] == "diverged"
    assert row(found, "kernel, to the end")["status"] == "finished"
    assert math.isfinite(row(found, "kernel, to the end")["error"]) and math.isnan(
        row(found, "network")["error"]
    )
    assert found.answer == "open" and "the network has no result (diverged)" in found.sentence
    assert set(found.difference["answer"]) == {"", "open"}


def test_the_module_is_left_alone_and_runs_repeat() -> None:
    module = network()
    first = next(module.parameters())
    first.grad = torch.ones_like(first)
    before, random = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    one, other, third = small(module), small(module), small(module, seed=1)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training and torch.equal(first.grad, torch.ones_like(first))
    assert torch.equal(torch.get_rng_state(), random)
    assert one.table.drop(columns="seconds").equals(other.table.drop(columns="seconds"))
    assert one.difference.equals(other.difference) and one.sentence == other.sentence
    assert not one.table.drop(columns="seconds").equals(third.table.drop(columns="seconds"))


def test_differences_are_paired_and_hold_together() -> None:
    """Their values are those of the table; the intervals of three linear models are those of a higher level."""
    x, x_test = draw(40, 4), draw(60, 4, seed=1)
    y, y_test = x[:, :2].prod(1), x_test[:, :2].prod(1)
    found = compare.would_linear_do(network(), x, y, x_test, y_test, epochs=3, level=1 - 3 * 0.04, seeds=1)
    errors = found.table["error"].to_dict()
    for name, apart in found.difference.T.to_dict().items():
        assert apart["error"] == pytest.approx(errors[name] - errors["network"])
    settings = {"loss": squared, "epochs": 3, "batch_size": 64, "lr": found.lr}
    ends = [list(train.descent(m, x, y, **settings))[-1] for m in (network(), control.linearize(network()))]
    one, other = (squared.per_sample(end(x_test).detach(), y_test) for end in ends)
    apart, wanted = found.difference.T.to_dict()["linearisation"], mean((other - one).tolist(), level=0.96)
    assert (apart["loss_low"], apart["loss_high"]) == pytest.approx((wanted.low, wanted.high), rel=1e-6)


def test_an_operator_stands_in_for_a_kernel_that_does_not_fit() -> None:
    dense, multiplied = small(), small(memory=60_000)
    for name in ("error", "loss", "time"):
        assert row(multiplied, "kernel, same time")[name] == pytest.approx(
            row(dense, "kernel, same time")[name], 1e-6
        )
    with pytest.raises(
        UserError, match=r"`memory`: .* n = 30 samples and c = 1 outputs needs 43200 bytes, got 40000"
    ):
        small(memory=40_000, validation=0.25)


def test_validation_chooses_when_to_stop() -> None:
    found = small(validation=0.25, epochs=20)
    assert list(found.table.index) == ["constant", "start", "network", "linearisation", "kernel, best time"]
    assert 0 <= row(found, "network")["time"] <= 20 * found.lr * 2


def test_a_network_that_is_still_learning_is_said() -> None:
    """Its training error, as it is after three and after four epochs, by hand."""
    x, x_test = draw(40, 4), draw(30, 4, seed=1)
    settings = {"lr": 0.1, "batch_size": 16}
    found = compare.would_linear_do(
        network(), x, x[:, 0], x_test, x_test[:, 0], epochs=4, seeds=1, **settings
    )
    unit = float(x[:, 0].var(correction=0)) / 2
    errors = []
    for epochs in (3, 4):
        *_, end = train.descent(network(), x, x[:, 0], loss=squared, epochs=epochs, **settings)
        errors.append(end.loss / unit)
    assert f"fell by {errors[0] - errors[1]:.4f} in the last quarter" in found.sentence


def test_the_largest_eigenvalue_is_that_of_the_kernel() -> None:
    net, x = models.mlp(4, 16, 2, 3, law=control.MUP), draw(10, 4)
    task = largest(net, x)
    rates = {name.rpartition(".")[0]: rate for name, rate in control.rates(net).items()}
    parts = measure.ntk(net, x, by_layer=True)
    k = torch.stack([rates[name] * part for name, part in parts.items()]).sum(0)
    exact = float(torch.linalg.eigvalsh(k.permute(0, 2, 1, 3).reshape(30, 30))[-1]) / 10
    assert task == pytest.approx(exact, rel=0.02)


X, Y = draw(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "module": (
        {"module": torch.ones(2)},
        "`module`: got a tensor .*, expected a torch.nn.Module, or a function",
    ),
    "batch norm": ({"module": nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).double()}, "call .eval()"),
    "frozen": ({"module": network(3).requires_grad_(False)}, "nothing requires grad"),
    "loss": ({"loss": nn.MSELoss()}, "`loss`: got MSELoss.*, expected a regimes.core.loss.Loss"),
    "hinge": ({"loss": hinge}, "`loss`: got Hinge for class indices"),
    "inputs": (
        {"x": draw(6, 5), "x_test": draw(6, 5)},
        r"`x`: the module does not take two samples of x \(6, 5\)",
    ),
    "shapes": (
        {"x_test": draw(6, 3)},
        r"`x_test`: got samples of shapes {'': \(3,\)}, expected {'': \(4,\)}",
    ),
    "nan": ({"x": X * math.nan}, r"`x`: \[0, 0\] is nan"),
    "one sample": ({"x_test": X[:1], "y_test": Y[:1]}, "`x_test`: got 1 sample, expected at least 2"),
    "count": ({"y": Y[:5]}, r"`y`: got torch.int64 \(5,\) for 6 samples and 3 outputs"),
    "int32": ({"y_test": Y.int()}, r"`y_test`: got torch.int32 .*; .long\(\) makes class indices"),
    "range": ({"y": Y + 1}, r"`y`: got torch.int64 \(6,\) from 1 to 3, expected \(6,\) class indices"),
    "floats": ({"y": Y.double()}, r"`y`: got torch.float64 \(6,\) for 6 samples and 3 outputs"),
    "list": ({"y": [0, 1]}, r"`y`: got \[0, 1\], expected a dense tensor"),
    "constant": ({"y": Y * 0}, "`y`: all targets are the same"),
    "classes": (
        {"y": Y.clamp(max=1), "y_test": Y * 0 + 2},
        "`y_test`: has classes 2, none of those in `y`, 0, 1",
    ),
    "margin": ({"margin": -0.1}, "`margin`: got -0.1, expected a finite number of 0 or more"),
    "level": ({"level": 1.0}, "`level`: got 1.0, expected a number between 0 and 1"),
    "reduce": ({"reduce": "diagonal"}, "`reduce`: got 'diagonal', expected one of full, trace"),
    "ridge": ({"ridge": -1.0}, "`ridge`: got -1.0, expected a finite number of 0 or more"),
    "memory": (
        {"memory": 100, "reduce": "trace"},
        "`memory`: the kernel of n = 6 samples needs 1728 bytes, got 100",
    ),
    "epochs": ({"epochs": 0}, "`epochs`: got 0, expected a whole number of at least 1"),
    "seeds": ({"seeds": 0}, "`seeds`: got 0, expected a whole number of at least 1"),
    "seed": ({"seed": -1}, "`seed`: got -1, expected a whole number of at least 0"),
    "maker": ({"module": lambda seed: seed}, "`module`: got int, expected a torch.nn.Module, or a function"),
    "batch": ({"batch_size": 0}, "`batch_size`: got 0"),
    "momentum": ({"momentum": 1.0}, "`momentum`: got 1.0"),
    "lr": ({"lr": -1.0}, "`lr`: got -1.0"),
    "validation": ({"validation": 1.0}, "`validation`: got 1.0, expected a share"),
    "few": ({"validation": 0.1}, "`validation`: got 0.1, which is 1 of 6 training samples"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_named_before_anything_is_trained(name: str) -> None:
    change, message = WRONG[name]
    given: dict[str, Any] = {"module": network(3), "x": X, "y": Y, "x_test": X, "y_test": Y, **change}
    positional = [given.pop(each) for each in ("module", "x", "y", "x_test", "y_test")]
    with pytest.raises(UserError, match=message):
        compare.would_linear_do(*positional, **given)


def test_a_loss_without_a_learning_rate_of_its_own_asks_for_one() -> None:
    x, y = signs(20, 4)
    with pytest.raises(UserError, match="`lr`: left out for SoftHinge"):
        compare.would_linear_do(network(), x, y, x, y, loss=soft_hinge)
    with pytest.raises(UserError, match="`loss`: got CrossEntropy for targets from"):
        compare.would_linear_do(network(), x, x[:, 0] * 2, x, y, loss=cross_entropy)
    found = compare.would_linear_do(network(), x, y, x, y, loss=soft_hinge, lr=0.01, epochs=2, seeds=1)
    assert "kernel, to the end" not in found.table.index


@pytest.mark.slow
def test_on_images_steps_and_flow_of_the_linearisation_meet(real_data: Any) -> None:
    """At a safe learning rate, of a convolutional network in float32; one kernel for all outputs is another model."""
    images = data.load(
        "fashion-mnist", train=100, test=400, size=14, dtype=torch.float32, directory=real_data
    )
    module = models.cnn(1, 16, 10, kernel=3, activation="relu", symmetric=True, dtype=torch.float32)
    part = (images.train.x, images.train.y, images.test.x, images.test.y)
    full, trace = (
        compare.would_linear_do(module, *part, epochs=40, batch_size=25, reduce=form, seeds=1, loss=squared)
        for form in ("full", "trace")
    )
    steps, flow = row(full, "linearisation"), row(full, "kernel, same time")
    for name in ("loss", "train_loss"):
        assert flow[name] == pytest.approx(steps[name], rel=0.01)
        assert row(trace, "linearisation")[name] == steps[name]
    assert row(trace, "kernel, same time")["train_loss"] < 0.9 * flow["train_loss"]
