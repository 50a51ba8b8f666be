"""What a step costs: with operations for a clock the prediction is exact for any layers, and so are the bytes kept."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from regimes import control, measure, models
from regimes.core.batch import Inputs, feed
from regimes.core.error import UserError
from tests.control.sparse import MODULES, X, loss_of

TOKENS = torch.randint(11, (4, 8), generator=torch.Generator().manual_seed(1))


def images() -> nn.Module:
    """Batch norm and dropout, in training mode."""
    first = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.3))
    second = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(first, second, nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 3))


class Branches(nn.Module):
    """Two ways from the inputs to the outputs, one with a connection around, and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 5))
        self.right, self.last = nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.left(x) * self.right(x).sigmoid() + x.sum(1, keepdim=True)
        return self.last(h) @ self.right.weight.T


class Tokens(nn.Module):
    """Attention, with dropout, and a head that shares the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.block(self.embed(tokens)) @ self.embed.weight.T


def gpt() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 11, "n_positions": 8}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


CASES: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    **{name: (make, X) for name, make in MODULES.items() if name != "linearised"},
    "images": (images, torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(2))),
    "branches": (lambda: Branches().double(), X),
    "tokens": (Tokens, TOKENS),
    "recurrent": (lambda: Recurrent().double(), X),
    "hugging face": (gpt, {"input_ids": TOKENS}),
}


class Recurrent(nn.Module):
    """Used at every step of a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.last = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for _ in range(3):
            h = self.cell(torch.cat([h, x[:, :1]], 1)).tanh()
        return self.last(h)


def loss(outputs: Any, targets: Any) -> Tensor:
    return loss_of(outputs)


def counted(module: nn.Module, batches: list[Any], **more: Any) -> measure.LayerCosts:
    """With multiplications for seconds."""
    with FlopCounterMode(display=False) as counter:
        return measure.layer_costs(
            module, batches, loss, rounds=1, clock=lambda: float(counter.get_total_flops()), **more
        )


def kept(module: nn.Module, x: Inputs) -> int:
    """Bytes of the storages that a pass saves, without parameters and buffers."""
    own = {each.untyped_storage().data_ptr() for each in (*module.parameters(), *module.buffers())}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss_of(feed(module, x))
    assert value.requires_grad
    return sum(each.untyped_storage().nbytes() for each in found.values())


@pytest.mark.parametrize("name", CASES)
def test_cost_and_bytes_of_any_layers_are_those_of_a_step(name: str) -> None:
    make, x = CASES[name]
    module = make()
    costs = counted(module, [(x, None)])
    plan = control.layer_plan(module, control.UniformCut(), example=x)
    own = dict(module.named_parameters())
    draw = random.Random(0)
    for _ in range(12):
        moving = {place for place in range(len(plan.layers)) if draw.random() < draw.choice([0.2, 0.5, 0.9])}
        moving = moving or {draw.randrange(len(plan.layers))}
        for place, names in enumerate(plan.parameters):
            for each in names:
                own[each].requires_grad_(place in moving)
        with FlopCounterMode(display=False) as counter:
            value = loss_of(feed(module, x))
            forward = counter.get_total_flops()
            value.backward()
        found = costs.predict(control.Fixed(names=[plan.layers[place] for place in moving]))
        # A name stands for all layers below it as well.
        if len(control.Fixed(names=[plan.layers[p] for p in moving]).moving(plan.layers, 0, 0)) == len(
            moving
        ):
            assert found.forward == pytest.approx(forward, rel=1e-9)
            assert found.backward == pytest.approx(counter.get_total_flops() - forward, rel=1e-9, abs=1e-9)
            assert found.kept_most == found.kept_mean == kept(module, x)


def everything(module: nn.Module) -> list[Any]:
    """All that a measurement might change."""
    hooks = [len(each._forward_pre_hooks) + len(each._forward_hooks) for each in module.modules()]
    flags = [(p.requires_grad, p.grad) for p in module.parameters()]
    return [hooks, flags, [each.training for each in module.modules()]]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_it_leaves_everything_as_it_was(kind: Callable[..., torch.optim.Optimizer]) -> None:
    module, x = images(), CASES["images"][1]
    module[3].requires_grad_(False)  # pyright: ignore[reportIndexIssue]
    optimizer = kind(module.parameters(), lr=0.1, weight_decay=0.1)
    loss_of(feed(module, x)).backward()
    optimizer.step()
    before = copy.deepcopy((module.state_dict(), optimizer.state_dict()))
    rest, state = everything(module), torch.get_rng_state()
    grads = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
    costs = measure.layer_costs(module, [(x, None)] * 2, loss, optimizer=optimizer, rounds=1)
    assert costs.layers == ("0.0", "0.1", "1.0", "1.1", "5")
    assert everything(module) == rest and torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close((module.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)
    for p, grad in zip(module.parameters(), grads, strict=True):
        assert grad is None or torch.equal(p.grad, grad)  # pyright: ignore[reportArgumentType]


def test_of_data_that_a_batch_is_a_part_of_the_batch_counts() -> None:
    module, x = models.mlp(3, 5, 2, seed=1), torch.cat([X, X, X])
    assert counted(module, [(x[:12], None)]).kept == counted(module, [(x[:12].clone(), None)]).kept


def test_squared_norms_are_means_over_batches() -> None:
    module = models.mlp(3, 5, 2, seed=1)
    batches = [(X[:6], None), (X[6:], None), (X[3:9], None)]
    costs = counted(module, batches)
    for place, name in enumerate(costs.layers):
        layer = list(module.get_submodule(name).parameters())
        squares = [
            sum(float(g.square().sum()) for g in torch.autograd.grad(loss_of(module(x)), layer))
            for x, _ in batches
        ]
        assert costs.squared_norms[place] == pytest.approx(sum(squares) / 3, rel=1e-12)


def test_a_cut_costs_the_mean_of_its_sets() -> None:
    costs = counted(models.mlp(3, 5, 3, seed=1), [(X, None)])
    full, top = (costs.predict(control.Fixed(top=count)) for count in (4, 1))
    assert full.ratio == full.variance == 1 and math.isinf(top.variance)
    mixed = costs.predict(control.Cut(p=0.3))
    for part in ("forward", "backward", "optimizer", "step", "kept_mean", "ratio"):
        assert getattr(mixed, part) == pytest.approx(0.3 * getattr(full, part) + 0.7 * getattr(top, part))
    assert mixed.kept_most == full.kept_most
    shares = torch.tensor(costs.squared_norms) / sum(costs.squared_norms)
    assert mixed.variance == pytest.approx(float(shares[:3].sum() / 0.3 + shares[3]))


def test_going_down_never_costs_less() -> None:
    costs = counted(images(), [(CASES["images"][1], None)])
    found = [costs.predict(control.Fixed(top=count + 1)) for count in range(len(costs.layers))]
    for one, more in pairwise(found):
        assert one.step <= more.step and one.kept_most <= more.kept_most
    sums = {str(name): float(costs.table[name].to_numpy().sum()) for name in costs.table.columns}
    # A step where nothing moves is a forward pass.
    assert sums["adds"] == pytest.approx(found[-1].step - costs.times.forward)
    assert sums["kept"] == found[-1].kept_most
    assert sums["forward"] == pytest.approx(found[-1].forward)
    assert sums["weights"] + sums["through"] <= found[-1].backward * (1 + 1e-9)


@pytest.mark.parametrize("cost", [0.6, 0.8, 1.0])
def test_a_plan_costs_what_it_was_asked_to(cost: float) -> None:
    costs = counted(images(), [(CASES["images"][1], None)])
    found = costs.predict(costs.plan(cost))
    assert found.ratio == pytest.approx(cost, rel=1e-9)
    low, high = 0.0, 1.0  # the two-level cut of that cost
    for _ in range(60):
        p = (low + high) / 2
        low, high = (p, high) if costs.predict(control.Cut(p=p)).ratio < cost else (low, p)
    assert found.variance <= costs.predict(control.Cut(p=high)).variance * (1 + 1e-9)
    assert costs.plan(cost, interval=5).interval == 5


def test_the_table_is_printed() -> None:
    costs = counted(models.mlp(3, 5, 1, seed=1), [(X, None)])
    text = str(costs)
    assert "pass on" in text and "All layers: step" in text and "The top alone" in text
    assert [line.split()[0] for line in text.splitlines()[1:3]] == ["2", "0"]


def test_seconds_of_the_optimiser_are_measured() -> None:
    """A clock that runs while it steps alone."""
    ticks = [0.0]

    class Slow(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            super().step(closure)
            every = [p for group in self.param_groups for p in group["params"]]
            ticks[0] += 2.0 + sum(0.5 + 0.01 * p.numel() for p in every if p.grad is not None)

    module = models.mlp(3, 5, 3, seed=1)
    optimizer = Slow(module.parameters(), lr=0.1)
    costs = measure.layer_costs(
        module, [(X, None)], loss, optimizer=optimizer, rounds=1, clock=lambda: ticks[0]
    )
    for count in range(1, 5):
        moving = list(module.parameters())[-count:]
        expected = 2.0 + sum(0.5 + 0.01 * p.numel() for p in moving)
        assert costs.predict(control.Fixed(top=count)).optimizer == pytest.approx(expected, rel=1e-6)


def plain(**change: Any) -> dict[str, Any]:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    good = {"module": net, "batches": [(torch.ones(4, 3), torch.ones(4, 2))], "loss": functional.mse_loss}
    return good | change


def watched() -> nn.Module:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    control.LayerwiseSparse(net, optimizer, control.Fixed(top=1), example=torch.ones(2, 3))
    return net


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batches": []}, "`batches`: got none"),
        ({"batches": [(torch.ones(0, 3), None)]}, "`batches[0][0]`: got shape (0, 3)"),
        ({"batches": [(torch.ones(4, 5), torch.ones(4, 2))]}, "which the module does not take"),
        ({"batches": [(torch.ones(4, 3), "a")]}, "`loss`: failed for the outputs and `batches[0][1]`, 'a'"),
        ({"loss": lambda out, y: out}, "`loss`: gave a tensor of torch.float32 (4, 2)"),
        ({"loss": lambda out, y: out.sum().detach()}, "expected a tensor of shape () that depends on"),
        ({"loss": lambda out, y: out.sum() / 0}, "expected a finite number"),
        ({"rounds": 0}, "`rounds`: got 0"),
        ({"layers": ["nope"]}, "`layers`: got 'nope'"),
        ({"module": watched()}, "`module`: has a policy already"),
        ({"module": control.linearize(nn.Linear(3, 2))}, "`module`: holds a linearisation"),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)}, "does not hold '0.weight'"),
    ],
)
def test_what_cannot_be_measured_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        measure.layer_costs(**plain(**change))
    assert words in str(caught.value)


def test_an_optimiser_with_a_closure_is_refused() -> None:
    net = nn.Linear(3, 2)
    with pytest.raises(UserError, match="LBFGS does not step without a closure"):
        measure.layer_costs(**plain(module=net, optimizer=torch.optim.LBFGS(net.parameters())))


def test_a_cost_that_cannot_be_met_is_refused() -> None:
    costs = counted(models.mlp(3, 5, 1, seed=1), [(X, None)])
    for cost in (0.01, 1.01):
        with pytest.raises(UserError, match=r"^`cost`: got .* the share of a full step"):
            costs.plan(cost)
    with pytest.raises(UserError, match=r"^`top`: got 5, expected from 1 to 2"):
        costs.plan(0.9, top=5)
