"""Random wirings, moves and loops, with all kinds of things in between: always the plain definition."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes import control, measure
from tests.control.sparse import RULES, SETTINGS, X, assert_same, batches, loss_of, optimiser, plain


class Wired(nn.Module):
    """Layers of one size in a random order of registration; each sums some results before it; some share weights."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.listed = [nn.Linear(3, 3, bias=draw.random() < 0.5).double() for _ in range(draw.randint(2, 6))]
        for layer in self.listed[1:]:
            if draw.random() < 0.25:
                layer.weight = draw.choice(self.listed).weight
        for place in draw.sample(range(len(self.listed)), len(self.listed)):
            self.add_module(f"layer{place}", self.listed[place])
        # The last one before is always among them, so that every layer has a part in the outputs.
        self.taken = [
            {place, *(each for each in range(place) if draw.random() < 0.3)}
            for place in range(len(self.listed))
        ]
        self.transposed = draw.random() < 0.3

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = [x]
        for layer, taken in zip(self.listed, self.taken, strict=True):
            found.append(layer(torch.stack([found[each] for each in taken]).sum(0)).tanh())
        last = found[-1] @ self.listed[0].weight.T if self.transposed else found[-1]
        return last, found[-2]


def moves_of(draw: random.Random, layers: int) -> control.Moves:
    interval = draw.randint(1, 3)
    chances = sorted(draw.random() for _ in range(layers - 1))
    return draw.choice(
        [
            control.Cut(p=draw.random(), top=draw.randint(1, layers), interval=interval),
            control.Cut(p=[*chances, 1.0], interval=interval),
            control.UniformCut(interval=interval),
            control.RandomLayers(count=draw.randint(1, layers), interval=interval),
            control.CyclicBlocks(draw.randint(1, layers), draw.choice(["up", "down", "random"]), interval),
        ]
    )


def between(draw: random.Random, module: nn.Module, policy: control.LayerwiseSparse) -> Callable[[], Any]:
    """Something that must not change what is learnt."""

    def looked() -> None:
        with torch.no_grad():
            module(X)

    def measured() -> None:
        with policy.free():
            measure.ntk(module, X[:2], output=lambda out: out[0])

    return draw.choice(
        [
            looked,
            measured,
            lambda: module(X[:1]),
            lambda: copy.deepcopy(module)(X),
            lambda: policy.load_state_dict(copy.deepcopy(policy.state_dict())),
            policy.begin,
            lambda: torch.manual_seed(0),
            lambda: module.train(draw.random() < 0.5),
        ]
    )


@pytest.mark.parametrize("seed", range(14))
def test_any_loop_is_the_definition(seed: int) -> None:
    draw = random.Random(seed)
    module, other = Wired(seed), Wired(seed)
    kind = draw.choice(list(SETTINGS))
    data = list(batches(X, draw.randint(3, 9), draw.randint(1, 3)))
    count = len(control.layer_plan(module, control.UniformCut(), example=X[:2]).layers)
    optimizer = optimiser(kind, module)
    moves = moves_of(draw, count)
    policy = control.LayerwiseSparse(module, optimizer, moves, example=X[: draw.randint(1, 3)], seed=seed)
    for pieces in data:
        optimizer.zero_grad(set_to_none=draw.random() < 0.5)
        for x in pieces:
            between(draw, module, policy)()
            loss_of(module(x)).backward()
            between(draw, module, policy)()
        optimizer.step()
        between(draw, module, policy)()
    plain(other, policy.plan, data, RULES[kind], SETTINGS[kind][1])
    assert_same(module, other, 1e-10)


def note(graphs: dict[str, bool], layer: str, out: Tensor) -> None:
    graphs.setdefault(layer, out.requires_grad)


@pytest.mark.parametrize("seed", range(40))
def test_below_any_cut_no_layer_has_a_graph_when_it_first_runs(seed: int) -> None:
    module = Wired(seed)
    plan = control.layer_plan(module, control.UniformCut(), example=X[:2])
    own = dict(module.named_parameters())
    for cut in range(len(plan.layers)):
        moving = {name for names in plan.parameters[cut:] for name in names}
        graphs: dict[str, bool] = {}
        hooks = [
            getattr(module, layer).register_forward_hook(
                lambda _, __, out, layer=layer, graphs=graphs: note(graphs, layer, out)
            )
            for layer in plan.layers
        ]
        for name, p in own.items():
            p.requires_grad_(name in moving)
        module(X)
        for hook in hooks:
            hook.remove()
        assert not any(graphs[layer] for layer in plan.layers[:cut])
