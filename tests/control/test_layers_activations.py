"""Below the lowest layer that moves nothing is kept for the backward pass: bytes, counted by hooks on saved tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regimes import control, models
from regimes.core.error import UserError
from tests.control.sparse import X, loss_of, train


def kept(module: nn.Module, call: Callable[[], object]) -> int:
    """The bytes of the activations that a call saves: storages once each, those of parameters and buffers not."""
    own = {each.untyped_storage().data_ptr() for each in (*module.parameters(), *module.buffers())}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor  # held, lest another has its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    assert result is not None
    return sum(each.untyped_storage().nbytes() for each in found.values())


def nodes(outputs: Tensor) -> int:
    """How many nodes the graph of an output has."""
    seen: set[object] = set()
    waiting = [outputs.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [each for each, _ in node.next_functions]
    return len(seen)


def mlp() -> nn.Sequential:
    layers = [each for _ in range(4) for each in (nn.Linear(6, 6), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(6, 2))


def cnn() -> nn.Sequential:
    blocks = [nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(2 * 25, 2))


class Residual(nn.Module):
    """Connections around every block, and from the start to the end."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = [nn.Linear(6, 6) for _ in range(4)]
        self.blocks, self.out = nn.ModuleList(self.listed), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        start = x
        for block in self.listed:
            x = x + block(x).tanh()
        return self.out(x + start)

    def upper(self, x: Tensor, place: int) -> Tensor:
        """The same with all blocks below a place under no_grad."""
        start = x
        with torch.no_grad():
            for block in self.listed[:place]:
                x = x + block(x).tanh()
        for block in self.listed[place:]:
            x = x + block(x).tanh()
        return self.out(x + start)


@pytest.mark.parametrize(
    ("make", "x"),
    [(mlp, torch.randn(7, 6)), (cnn, torch.randn(7, 2, 5, 5))],
)
def test_what_is_kept_is_what_the_upper_part_alone_keeps(
    make: Callable[[], nn.Sequential], x: Tensor
) -> None:
    module = make()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    policy = control.LayerwiseSparse(module, optimizer, control.UniformCut(), example=x, layers=["?"])
    seen: set[int] = set()
    for _ in range(30):
        lowest = int(policy.moving[0])
        with torch.no_grad():
            middle = module[:lowest](x)
        policy.begin()
        expected = kept(module, lambda middle=middle, lowest=lowest: loss_of(module[lowest:](middle)))
        found = kept(module, lambda: loss_of(module(x)))
        assert found == expected
        seen.add(lowest)
        train(module, optimizer, [[x]])
    assert len(seen) == len(policy.plan.layers)


def test_connections_around_the_cut_keep_nothing_below_it() -> None:
    module, x = Residual(), torch.randn(7, 6)
    full = kept(module, lambda: loss_of(module(x)))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    policy = control.LayerwiseSparse(module, optimizer, control.CyclicBlocks(), example=x)
    for _ in range(5):
        policy.begin()
        lowest = policy.plan.layers.index(policy.moving[0])
        found = kept(module, lambda: loss_of(module(x)))
        assert found == kept(module, lambda lowest=lowest: loss_of(module.upper(x, lowest))) <= full
        train(module, optimizer, [[x]])


def test_a_tied_layer_is_free_below_what_moves() -> None:
    """Its second use, above the cut, needs the activations of what is above alone."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body = nn.Embedding(11, 6), nn.Linear(6, 6)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.body(self.embed(tokens)).tanh() @ self.embed.weight.T

    module, tokens = Tied(), torch.randint(11, (5,))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    policy = control.LayerwiseSparse(module, optimizer, control.Fixed(top=1), example=tokens)
    assert policy.plan.layers == ("embed", "body")
    policy.begin()
    out = module(tokens)
    grads = torch.autograd.grad(loss_of(out), list(module.body.parameters()))
    module.requires_grad_(True)
    expected = torch.autograd.grad(loss_of(module(tokens)), list(module.body.parameters()))
    for one, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(one, other)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.listed = [nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(3)]
        self.blocks, self.out = nn.ModuleList(self.listed), nn.Linear(3, 1)
        self.on = True

    def forward(self, x: Tensor) -> Tensor:
        for block in self.listed:
            x = checkpoint(block, x, use_reentrant=False) if self.on else block(x)
        return self.out(x)


def test_activation_checkpoints_change_nothing() -> None:
    nets = []
    for on in (True, False):
        torch.manual_seed(0)
        module = Checkpointed().double()
        module.on = on
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
        policy = control.LayerwiseSparse(module, optimizer, control.UniformCut(), example=X)
        train(module, optimizer, [[X, X[:5]]] * 8)
        assert policy.step == 8
        nets.append(module)
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(one, other)


def test_a_scaled_module_keeps_less_too() -> None:
    module = control.scale(models.mlp(3, 5, 2), 2.0)
    full = kept(module, lambda: loss_of(module(X)))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    policy = control.LayerwiseSparse(module, optimizer, control.Fixed(top=1), example=X)
    policy.begin()
    assert kept(module, lambda: loss_of(module(X))) < full / 2


def test_a_linearised_module_has_no_graph_below_what_moves() -> None:
    """It takes no hooks on saved tensors; its nodes are counted."""
    module = control.linearize(models.mlp(3, 5, 2))
    full = nodes(module(X))
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    policy = control.LayerwiseSparse(module, optimizer, control.UniformCut(), example=X)
    counts: dict[int, int] = {}
    for _ in range(20):
        policy.begin()
        counts[len(policy.moving)] = nodes(module(X))
        train(module, optimizer, [[X]])
    assert counts[1] < counts[2] < counts[3] == full


def test_inputs_that_require_grad_are_the_users_own() -> None:
    """Their gradient is asked for, and costs what it costs; that of the layers is the same."""
    module, twin = (models.mlp(3, 5, 2, seed=1) for _ in range(2))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    control.LayerwiseSparse(module, optimizer, control.Fixed(top=1), example=X.clone().requires_grad_())
    x = X.clone().requires_grad_()
    loss_of(module(x)).backward()
    loss_of(twin(X)).backward()
    *_, (_, mine) = module.named_parameters()
    *_, (_, theirs) = twin.named_parameters()
    assert mine.grad is not None and theirs.grad is not None and x.grad is not None
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_activations_that_require_grad_are_refused() -> None:
    module = mlp()
    module[0].register_forward_hook(lambda _, __, out: out.requires_grad_(True))
    with pytest.raises(UserError, match="`module`: the outputs of '0' require grad where nothing moves"):
        control.LayerwiseSparse(
            module,
            torch.optim.SGD(module.parameters(), lr=0.1),
            control.Fixed(top=1),
            example=torch.randn(2, 6),
        )
