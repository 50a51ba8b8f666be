"""The runs of the rich-regime study: each against a plain loop in float64, and its counts against those of torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from regimes import control, data, measure, models
from regimes.core.error import UserError
from regimes.papers.rich_regime.runs import (
    ABOVE,
    ActivityRun,
    ConvActivityRun,
    ConvSparseRun,
    SparseRun,
    backward_products,
    forward_products,
)
from regimes.papers.rich_regime.runs.network import ImageMlp, Images
from regimes.study import Run
from regimes.train.descent import order

COMMON: dict[str, Any] = {
    "n": 52,
    "n_test": 41,
    "width": 10,
    "batch_size": 20,
    "epochs": 3,
    "dtype": "float64",
}
ACTIVITY = ActivityRun(**COMMON, lr=0.1, momentum=0.5, seed=3)
POLICIES = ("all", "top", "ends", "sampled")


CONV_ACTIVITY = ConvActivityRun(**{**COMMON, "width": 8}, lr=0.1, momentum=0.5, seed=3)


def sparse(policy: str, **given: Any) -> SparseRun:
    return SparseRun(policy=policy, p=0.4, **{**COMMON, "lr": 0.1, "momentum": 0.5, "seed": 3, **given})  # pyright: ignore[reportArgumentType]


def conv(policy: str, **given: Any) -> ConvSparseRun:
    fields = {**COMMON, "width": 8, "lr": 0.1, "momentum": 0.5, "seed": 3, **given}
    return ConvSparseRun(policy=policy, p=0.4, **fields)  # pyright: ignore[reportArgumentType]


def rows_of(run: Run) -> list[dict[str, Any]]:
    ((found, rows),) = type(run).perform([run], None, lambda text: None)
    assert found == run
    return rows


class Loop:
    """The training of a run by hand: autograd, requires_grad set layer by layer, ``torch.optim.SGD``.

    Attributes:
        products: half the floating-point operations of the backward passes, as torch counts them.
        accuracy: of the test images after each step.
        losses: of the batch of each step.
    """

    def __init__(self, run: Images) -> None:
        flat = isinstance(run, ImageMlp)
        self.data = data.load("digits", train=run.n, test=run.n_test, flat=flat)
        start: dict[str, Any] = {
            "law": control.law(run.law), "activation": "relu", "seed": run.seed, "dtype": torch.float64
        }  # fmt: skip
        if isinstance(run, ImageMlp):
            self.net = models.mlp(64, run.width, run.depth, 10, **start)
        else:
            self.net = models.cnn(1, run.width, 10, kernel=3, padding=1, **start)
        self.start = {name: p.detach().clone() for name, p in self.net.named_parameters()}
        self.products, self.accuracy, self.losses = 0, [], []
        rates = control.rates(self.net)
        optimiser = torch.optim.SGD(
            [{"params": [p], "lr": run.lr * rates[name]} for name, p in self.net.named_parameters()],
            momentum=run.momentum,
        )
        layers = [part for part in self.net.children() if list(part.parameters())]
        step = 0
        for epoch in range(run.epochs):
            for part in order(run.seed, epoch, run.n).split(run.batch_size):
                moving = _moving(run, len(layers), step)
                for place, layer in enumerate(layers):
                    layer.requires_grad_(place in moving)
                optimiser.zero_grad()
                x, y = self.data.train.x[part], self.data.train.y[part]
                loss = nn.functional.cross_entropy(self.net(x), y)
                with FlopCounterMode(display=False) as counter:
                    loss.backward()
                self.products += counter.get_total_flops() // 2
                optimiser.step()
                self.losses.append(float(loss.detach()))
                self.accuracy.append(self._accuracy())
                step += 1

    def _accuracy(self) -> float:
        with torch.no_grad():
            wrong = self.net(self.data.test.x).argmax(1) != self.data.test.y
        return 1 - float(wrong.double().mean())

    @property
    def moved(self) -> list[float]:
        """The share of each parameter in the squared movement."""
        far = [
            float((p.detach() - self.start[name]).square().sum()) for name, p in self.net.named_parameters()
        ]
        return [each / sum(far) for each in far]

    @property
    def end(self) -> float:
        """The loss of the training set at the end."""
        with torch.no_grad():
            return float(nn.functional.cross_entropy(self.net(self.data.train.x), self.data.train.y))


def _moving(run: Images, layers: int, step: int) -> set[int]:
    if not isinstance(run, SparseRun | ConvSparseRun) or run.policy == "all":
        return set(range(layers))
    if run.policy == "ends":
        return {0, layers - 1}
    drawn = control.Cut(run.p).moving([str(place) for place in range(layers)], run.seed, step)
    return {layers - 1} if run.policy == "top" else set(drawn)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("depth", [1, 3])
def test_a_policy_trains_and_costs_as_a_plain_loop_does(policy: str, depth: int) -> None:
    """Accuracies at every look, and the products that torch counts in the backward passes, last short batch too."""
    run = sparse(policy, depth=depth)
    rows, loop = rows_of(run), Loop(run)
    assert rows[-1]["status"] == "finished" and rows[-1]["step"] == 9
    assert [row["test_accuracy"] for row in rows] == [loop.accuracy[row["step"] - 1] for row in rows]
    assert [row["loss_end"] for row in rows] == pytest.approx(
        [*(loop.losses[row["step"]] for row in rows[:-1]), loop.end], rel=1e-9
    )
    assert rows[-1]["products"] == loop.products
    assert rows[-1]["speedup"] == rows[-1]["full_products"] / rows[-1]["products"]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_of_a_convolutional_network_trains_and_costs_as_a_plain_loop_does(policy: str) -> None:
    run = conv(policy)
    rows, loop = rows_of(run), Loop(run)
    assert [row["test_accuracy"] for row in rows] == [loop.accuracy[row["step"] - 1] for row in rows]
    assert rows[-1]["loss_end"] == pytest.approx(loop.end, rel=1e-9)
    assert rows[-1]["products"] == loop.products
    assert rows[-1]["layer_moved"] == pytest.approx(loop.moved, rel=1e-9)


def test_forward_products_are_those_torch_counts() -> None:
    """Half the floating-point operations of a pass, strides and odd sides included; the same for all policies."""
    net = models.cnn(2, 3, 10, kernel=3, seed=1)
    x = torch.ones(1, 2, 11, 9, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        net(x)
    assert sum(forward_products(net, x, ["0", "2", "4", "6", "9"])) == counter.get_total_flops() // 2
    assert len({rows_of(conv(policy))[-1]["forward_products"] for policy in POLICIES}) == 1


def test_all_policies_end_at_the_same_step_with_the_same_whole() -> None:
    ends = {policy: rows_of(sparse(policy))[-1] for policy in POLICIES}
    assert (
        len({end["step"] for end in ends.values()})
        == len({end["full_products"] for end in ends.values()})
        == 1
    )
    assert ends["all"]["products"] == ends["all"]["full_products"]
    costs = {policy: end["products"] for policy, end in ends.items()}
    assert costs["top"] < costs["sampled"] < costs["all"] and costs["top"] < costs["ends"] < costs["all"]


def test_the_formula_is_what_the_count_comes_to() -> None:
    """1 / (p + (1 - p) r), up to what was drawn: exact at p = 0 and 1, within its own scatter between."""
    for policy in ("all", "top"):
        end = rows_of(sparse(policy))[-1]
        assert end["speedup"] == pytest.approx(end["expected_speedup"], rel=1e-12)
    end = rows_of(sparse("sampled", epochs=100, batch_size=26))[-1]
    p, steps = 0.4, end["step"]
    sizes = [640, 100, 100, 100]
    r = backward_products(sizes, {3}) / backward_products(sizes, range(4))
    assert end["expected_speedup"] == pytest.approx(1 / (p + (1 - p) * r), rel=1e-12)
    scatter = (1 - r) * math.sqrt(p * (1 - p) / steps)
    assert abs(1 / end["speedup"] - (p + (1 - p) * r)) < 5 * scatter
    assert math.isnan(rows_of(sparse("ends"))[-1]["expected_speedup"])


def test_backward_products_of_sets_that_are_none() -> None:
    for moving in ((), (3,), (-1,)):
        with pytest.raises(UserError, match="`moving`"):
            backward_products([4, 2, 1], moving)


@pytest.mark.parametrize("looked", [ACTIVITY, CONV_ACTIVITY], ids=["mlp", "cnn"])
@pytest.mark.parametrize("law", ["standard", "mup"])
def test_the_activity_of_a_plain_loop(law: str, looked: Images) -> None:
    """Layers, the most active, and the distribution of changes, from the weights that a plain loop ends at."""
    run = looked.model_copy(update={"law": law})
    (row,), loop = rows_of(run), Loop(run)
    changes = {name: (p.detach() - loop.start[name]).abs() for name, p in loop.net.named_parameters()}
    relative = {name: each / loop.start[name].square().mean().sqrt() for name, each in changes.items()}
    flat, bare = (torch.cat([each.reshape(-1) for each in part.values()]) for part in (relative, changes))
    count = round(0.01 * len(flat))
    top = flat.topk(count).indices
    assert row["top_moved"] == pytest.approx(float(bare[top].square().sum() / bare.square().sum()), rel=1e-9)
    assert row["median_change"] == pytest.approx(float(flat.median()), rel=1e-9)
    sizes = [each.numel() for each in changes.values()]
    inside = [int(part.sum()) for part in _mask(len(flat), top).split(sizes)]
    enriched = [inside[k] / count / (sizes[k] / len(flat)) for k in range(len(sizes))]
    assert row["layer_enrichment"] == pytest.approx(enriched, rel=1e-12)
    moved = [float(each.norm() / loop.start[name].norm()) for name, each in changes.items()]
    assert row["layer_change"] == pytest.approx(moved, rel=1e-9)
    ordered = np.sort(flat.numpy())[::-1]
    for share, far in zip(ABOVE, row["changes"], strict=True):
        assert (
            (ordered >= far * (1 - 1e-9)).mean()
            >= share
            > (ordered > far * (1 + 1e-9)).mean() - 1 / len(ordered)
        )
    assert row["test_accuracy"] == loop.accuracy[-1]
    assert row["loss_end"] == pytest.approx(loop.end, rel=1e-9)


def _mask(length: int, places: Tensor) -> Tensor:
    found = torch.zeros(length, dtype=torch.bool)
    found[places] = True
    return found


@pytest.mark.parametrize("run", [ACTIVITY, CONV_ACTIVITY], ids=["mlp", "cnn"])
def test_the_reset_test_of_a_plain_loop(run: Images) -> None:
    (row,), loop = rows_of(run), Loop(run)
    end = {name: p.detach().clone() for name, p in loop.net.named_parameters()}
    relative = torch.cat(
        [((end[name] - w).abs() / w.square().mean().sqrt()).reshape(-1) for name, w in loop.start.items()]
    )
    count = round(0.01 * len(relative))
    test = loop.data.test

    def error(places: Tensor) -> float:
        masks = _mask(len(relative), places).split([w.numel() for w in end.values()])
        with torch.no_grad():
            for (name, p), mask in zip(loop.net.named_parameters(), masks, strict=True):
                p.copy_(torch.where(mask.view(p.shape), loop.start[name], end[name]))
            return float((loop.net(test.x).argmax(1) != test.y).double().mean())

    assert row["reset_none"] == error(torch.tensor([], dtype=torch.int64))
    assert row["reset_all"] == error(torch.arange(len(relative)))
    assert row["reset_active"] == error(relative.topk(count).indices)
    assert row["reset_least"] == error(relative.topk(count, largest=False).indices)
    assert 0 <= row["reset_random"] <= 1 and 0 <= row["reset_layered"] <= 1


@pytest.mark.parametrize("run", [ACTIVITY, sparse("sampled")], ids=["activity", "sparse"])
def test_a_run_is_the_same_twice_and_after_others(run: ActivityRun | SparseRun) -> None:
    """Bit for bit but for the time it took, whatever other runs were in between and the global generator."""
    first = rows_of(run)
    torch.manual_seed(17)
    rows_of(run.model_copy(update={"width": 7, "seed": 0}))
    again = rows_of(run)
    for mine, ours in zip(first, again, strict=True):
        assert repr({**mine, "seconds": 0}) == repr({**ours, "seconds": 0})


def test_a_run_is_a_program_of_its_own() -> None:
    """Seeds share neither batches nor draws of layers, so that no two runs may be members of one program."""
    for run in (ACTIVITY, sparse("sampled")):
        assert run.batch != run.model_copy(update={"seed": 4}).batch
    plans = [
        run.plan(Loop(run).net, torch.ones(2, 64, dtype=torch.float64))
        for run in (sparse("sampled"), sparse("sampled", seed=4))
    ]
    assert [plans[0].places(step) for step in range(30)] != [plans[1].places(step) for step in range(30)]


@pytest.mark.parametrize(
    "field", [{"momentum": 1.0}, {"momentum": -0.1}, {"p": 1.5}, {"top": 0}, {"policy": "bottom"}]
)
def test_a_field_that_is_none_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"`{next(iter(field))}`"):
        SparseRun(**field)


def test_more_top_layers_than_there_are_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="`top`: got 5"):
        rows_of(sparse("top", top=5))


def test_a_run_that_diverges_says_so() -> None:
    (row,) = rows_of(ActivityRun(**{**COMMON, "epochs": 20}, lr=1e200))
    assert row["status"] == "diverged"
    end = rows_of(sparse("all", lr=1e200, epochs=20))[-1]
    assert end["status"] == "diverged"
    assert end["products"] == end["full_products"]


def test_the_columns_are_those_of_the_probes() -> None:
    assert {"changes", "reset_active", "layer_enrichment", "top_moved"} <= set(ActivityRun.columns)
    assert {"products", "speedup", "expected_speedup", "test_accuracy"} <= set(SparseRun.columns)
    assert set(measure.Activity().columns) <= set(ActivityRun.columns)
