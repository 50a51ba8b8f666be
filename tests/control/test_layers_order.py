"""The order of layers by depth, found from a pass: any wiring, no names of classes, nothing disturbed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regimes import control, models
from regimes.control.layers.order import outputs_of
from regimes.core.batch import Inputs, feed
from regimes.core.error import UserError
from tests.measure.awkward import CASES, build, samples

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
MOVES = control.UniformCut()


class Shuffled(nn.Module):
    """Layers that are registered from the top to the bottom, with a connection around two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.z_first: nn.Module
        self.a_last, self.middle, self.z_first = nn.Linear(4, 1), nn.Linear(4, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.z_first(x).tanh()
        return self.a_last(h + self.middle(h).tanh())


class Prepared(nn.Module):
    """All weights are made from their parameters before any is used, the topmost first."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = [nn.Linear(3, 3, bias=False) for _ in range(4)]
        self.layers = nn.ModuleList(self.listed)

    def forward(self, x: Tensor) -> Tensor:
        weights = [layer.weight.exp() for layer in reversed(self.listed)]
        for weight in reversed(weights):
            x = (x @ weight).tanh()
        return x


class TiedHead(nn.Module):
    """The head is registered first, and shares its weight with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body, self.embed = nn.Linear(3, 7), nn.Linear(3, 3), nn.Embedding(7, 3)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embed(tokens)).tanh())


class Towers(nn.Module):
    """An encoder, and a decoder that looks at what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.encoder = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, list[Tensor]]:
        for layer in self.encoder:
            x = layer(x).tanh()
        for layer in self.decoder:
            y = layer(y + x).tanh()
        return {"all": [y, x]}


def order(module: nn.Module, example: Inputs, layers: list[str] | None = None) -> tuple[str, ...]:
    return control.layer_plan(module, MOVES, example=example, layers=layers).layers


@pytest.mark.parametrize(
    ("make", "example", "expected"),
    [
        (Shuffled, X.float(), ("z_first", "middle", "a_last")),
        (TiedHead, torch.tensor([[1, 2]]), ("embed", "body", "head")),
        (Towers, (X.float(), X.float()), ("encoder.0", "encoder.1", "decoder.0", "decoder.1")),
        (lambda: models.mlp(3, 4, 2), X, ("0", "2", "4")),
        (lambda: control.scale(models.mlp(3, 4, 2), 3.0), X, ("network.0", "network.2", "network.4")),
        (lambda: control.linearize(models.mlp(3, 4, 2)), X, ("0", "2", "4")),
        (lambda: control.scale(control.linearize(models.mlp(3, 4, 1)), 3.0), X, ("network.0", "network.2")),
        (lambda: nn.Linear(3, 1).double(), X, ("",)),
    ],
)  # fmt: skip
def test_layers_are_ordered_by_use(
    make: Callable[[], nn.Module], example: Inputs, expected: tuple[str, ...]
) -> None:
    assert order(make(), example) == expected


def test_weights_that_are_prepared_count_where_they_are_used() -> None:
    """Of the two at the bottom it cannot be told which is the lower one; they meet nothing else before each other."""
    assert order(Prepared(), X.float())[2:] == ("layers.2", "layers.3")


def test_a_parametrized_layer_is_one_layer() -> None:
    first = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    assert order(nn.Sequential(first, nn.Tanh(), nn.Linear(4, 1)), X.float()) == ("0", "2")


def test_blocks_are_named_by_patterns() -> None:
    net = nn.Sequential(nn.Linear(3, 3), *(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(2)))
    assert order(net, X.float()) == ("0", "1.0", "1.1", "2.0", "2.1")
    assert order(net, X.float(), ["[12]"]) == ("0", "1", "2")
    assert order(net, X.float(), ["1"]) == ("0", "1", "2.0", "2.1")
    assert order(net, X.float(), ["*"]) == ("0", "1", "2")
    plan = control.layer_plan(net, control.Fixed(names=["2"]), example=X.float())
    assert plan(0) == {"2.0.weight", "2.0.bias", "2.1.weight", "2.1.bias"}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_disturbed_and_nothing_lost(name: str) -> None:
    """Parameters, buffers, flags and generators are as they were; every parameter is in one layer, or is named."""
    module, x = build(name), samples(name, 2)
    values = copy.deepcopy(module.state_dict())
    flags = {key: p.requires_grad for key, p in module.named_parameters()}
    random = torch.get_rng_state()
    try:
        plan = control.layer_plan(module, MOVES, example=x)
    except UserError as error:
        assert "has no part in the outputs" in str(error) or "require grad where nothing moves" in str(error)
        plan = None
    assert torch.equal(torch.get_rng_state(), random)
    assert {key: p.requires_grad for key, p in module.named_parameters()} == flags
    for key, value in module.state_dict().items():
        assert value is values[key] or torch.equal(value, values[key])
    if plan is not None:
        names = [each for layer in plan.parameters for each in layer]
        assert sorted(names) == sorted(key for key, flag in flags.items() if flag)
        assert plan == control.layer_plan(module, MOVES, example=x)


def graph_free(module: nn.Module, x: Inputs, moving: frozenset[str]) -> set[str]:
    """The modules whose outputs have no graph when these parameters move."""
    found: set[str] = set()
    own = dict(module.named_parameters())
    flags = {name: p.requires_grad for name, p in own.items()}

    def look(name: str, value: object) -> None:
        if not any(each.requires_grad for each in outputs_of(value)):
            found.add(name)

    hooks = [
        m.register_forward_hook(lambda _, __, value, n=n: look(n, value)) for n, m in module.named_modules()
    ]
    for name, p in own.items():
        p.requires_grad_(name in moving)
    feed(module, x)
    for name, p in own.items():
        p.requires_grad_(flags[name])
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("make", [Shuffled, lambda: models.mlp(3, 4, 3).float()])
def test_below_a_cut_there_is_no_graph(make: Callable[[], nn.Module]) -> None:
    module = make()
    plan = control.layer_plan(module, MOVES, example=X.float())
    for place, layer in enumerate(plan.layers):
        moving = frozenset(name for each in plan.parameters[place:] for name in each)
        free = graph_free(module, X.float(), moving)
        assert set(plan.layers[:place]) <= free and layer not in free


def test_batch_norm_and_dropout_are_left_as_they_are() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)).train()
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    assert order(net, X.float()) == ("0", "1", "3")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and net.training


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.a, self.b, self.reentrant = nn.Linear(3, 3), nn.Linear(3, 1), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.b(checkpoint(lambda h: self.a(h).tanh(), x, use_reentrant=self.reentrant))


def required_grad(module: nn.Module) -> nn.Module:
    """As ``enable_input_require_grads`` of Hugging Face does it."""
    module.get_submodule("0").register_forward_hook(lambda _, __, out: out.requires_grad_(True))
    return module


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    ("make", "layers", "words"),
    [
        (lambda: nn.Linear(3, 1).requires_grad_(False), None, "`module`: has no parameter that requires grad"),
        (lambda: nn.ReLU(), None, "`module`: has no parameter"),
        (lambda: required_grad(nn.Sequential(nn.Linear(3, 3), nn.ReLU())), None, "the outputs of '0' require grad"),
        (lambda: Checkpointed(True), None, "'a.weight' of layer 'a' has no part .* use_reentrant=True"),
        (lambda: nn.Sequential(nn.Linear(3, 1)), ["0", "l"], r"`layers`: got 'l', expected names of modules"),
        (lambda: nn.Sequential(nn.Linear(3, 1), nn.ReLU()), ["1"], r"`layers`: got '1', .* that have parameters"),
    ],
)  # fmt: skip
def test_what_cannot_be_ordered_is_named(
    make: Callable[[], nn.Module], layers: list[str] | None, words: str
) -> None:
    module = make()
    flags = [p.requires_grad for p in module.parameters()]
    with pytest.raises(UserError, match=words):
        order(module, X.float(), layers)
    assert [p.requires_grad for p in module.parameters()] == flags


def test_checkpoints_without_reentry_are_ordered() -> None:
    assert order(Checkpointed(False), X.float()) == ("a", "b")
