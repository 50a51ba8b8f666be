"""No false alarm: 60 healthy runs, of networks in which something never has a gradient, or rows are never seen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop, SparseAdam

from regimes import control, measure, models

STEPS = 3


class Head(nn.Module):
    """Something, averaged over all axes but the first and the last, and a linear layer."""

    def __init__(self, inside: nn.Module, width: int) -> None:
        super().__init__()
        self.inside, self.out = inside, nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inside(x)
        return self.out(h.flatten(1, -2).mean(1) if h.dim() > 2 else h)


class Last(nn.Module):
    """The hidden states of a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


class Keys(nn.Module):
    """Attention with its keys in a layer of their own: the loss does not depend on their bias."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        return scores.softmax(-1) @ self.value(x)


class Tied(nn.Module):
    """A language model whose head is its embedding; most words are never seen."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 4, sparse=sparse)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2 if sparse else 50, bias=False)
        if not sparse:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(x))).mean(1))


class Adapted(nn.Module):
    """A frozen layer with an adapter of low rank, which starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(3, 4).requires_grad_(False)
        self.a, self.b = nn.Linear(3, 2, bias=False), nn.Linear(2, 4, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


class Residual(nn.Module):
    """A convolution with a bias, a batch norm whose weight starts at 0, and the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.norm(self.conv(x))).flatten(2).transpose(1, 2)


def dead() -> nn.Module:
    """Half of the units never fire."""
    first = nn.Linear(3, 8)
    with torch.no_grad():
        first.weight[:4] = 0
        first.bias[:4] = -100
    return nn.Sequential(first, nn.ReLU(), nn.Linear(8, 2))


def vectors() -> Tensor:
    return torch.randn(8, 3)


def sequences() -> Tensor:
    return torch.randn(8, 5, 3)


def images() -> Tensor:
    return torch.randn(8, 3, 4, 4)


def words() -> Tensor:
    return torch.randint(0, 10, (8, 5))


MODULES: Mapping[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (lambda: models.mlp(3, 4, 2, outputs=2, bias=True, dtype=torch.float32), vectors),
    "dead units": (dead, vectors),
    "bias before batch norm": (
        lambda: Head(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()), 4),
        vectors,
    ),
    "residual, batch norm from 0": (lambda: Head(Residual(), 3), images),
    "recurrent": (lambda: Head(Last(), 4), sequences),
    "transformer": (
        lambda: Head(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True), 4),
        lambda: torch.randn(8, 5, 4),
    ),
    "keys with a bias": (lambda: Head(Keys(), 4), sequences),
    "tied words": (Tied, words),
    "adapter": (lambda: Head(Adapted(), 4), vectors),
    "weight norm": (
        lambda: Head(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), 4),
        vectors,
    ),
    "scaled": (lambda: control.scale(models.mlp(3, 4, 1, outputs=2, dtype=torch.float32), 2.0), vectors),
    "linearised": (lambda: control.linearize(models.mlp(3, 4, 1, outputs=2, dtype=torch.float32)), vectors),
}
OPTIMIZERS: Mapping[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.1),
    "momentum": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: Adam(p, lr=1e-3),
    "adamw": lambda p: AdamW(p, lr=1e-3, weight_decay=0.1),
    "rmsprop": lambda p: RMSprop(p, lr=1e-3, momentum=0.5),
}


def train(net: nn.Module, batch: Callable[[], Tensor], optimizers: list[Optimizer]) -> None:
    for _ in range(STEPS):
        for one in optimizers:
            one.zero_grad()
        nn.functional.cross_entropy(net(batch()), torch.arange(8) % 2).backward()
        for one in optimizers:
            one.step()


@pytest.mark.parametrize("module", MODULES)
def test_a_healthy_run_raises_no_alarm(module: str) -> None:
    make, batch = MODULES[module]
    for seed, kind in enumerate(OPTIMIZERS):
        torch.manual_seed(seed)
        net = make()
        optimizer = OPTIMIZERS[kind](p for p in net.parameters() if p.requires_grad)
        before = copy.deepcopy(net.state_dict())
        train(net, batch, [optimizer])
        assert measure.unmoved(net, before, optimizer) == [], kind
        train(net, batch, [optimizer])
        assert measure.unmoved(net, before, optimizer) == [], kind
        assert measure.unmoved(net, before) == [], kind


def test_that_these_are_fifty_runs_and_more() -> None:
    assert len(MODULES) * len(OPTIMIZERS) >= 50


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch's own, in Adagrad
@pytest.mark.parametrize("kind", ["sgd", "adagrad", "sparse adam"])
def test_sparse_embeddings_whose_rows_were_never_seen(kind: str) -> None:
    torch.manual_seed(0)
    net = Tied(sparse=True)
    rest = [*net.mix.parameters(), *net.head.parameters()]
    optimizers: list[Optimizer] = {
        "sgd": lambda: [SGD(net.parameters(), lr=0.1)],
        "adagrad": lambda: [Adagrad(net.parameters(), lr=0.1)],
        "sparse adam": lambda: [SparseAdam(net.embed.parameters(), lr=0.1), Adam(rest)],
    }[kind]()
    before = copy.deepcopy(net.state_dict())
    train(net, words, optimizers)
    assert measure.unmoved(net, before, optimizers) == []
    assert torch.equal(net.embed.weight[10:], before["embed.weight"][10:])
    net.embed.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    train(net, words, optimizers)
    assert [each.name for each in measure.unmoved(net, before, optimizers)] == ["embed.weight"]


def test_the_biases_that_are_left_out_have_no_gradient_to_speak_of() -> None:
    """Some of the runs above hold parameters that stay where they are to the last digit, on which nothing depends."""
    torch.manual_seed(1)
    net = MODULES["bias before batch norm"][0]().double()
    optimizer = SGD(net.parameters(), lr=0.1)
    with torch.no_grad():
        next(net.inside.children()).bias.fill_(1e3)  # type: ignore[attr-defined]
    before = copy.deepcopy(net.state_dict())
    train(net, lambda: vectors().double(), [optimizer])
    assert torch.equal(net.state_dict()["inside.0.bias"], before["inside.0.bias"])
    assert measure.unmoved(net, before, optimizer) == []


@pytest.mark.slow
def test_a_model_of_hugging_face() -> None:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    net = BertForMaskedLM(BertConfig(vocab_size=50, max_position_embeddings=16, **sizes))
    before = copy.deepcopy(net.state_dict())
    optimizer = AdamW(net.parameters(), lr=1e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        net(input_ids=words(), labels=words()).loss.backward()
        optimizer.step()
    assert measure.unmoved(net, before, optimizer) == []
    changes = measure.activity(net.state_dict(), before, module=net)
    assert changes.total == sum(p.numel() for p in net.parameters())
    assert sum(layer.moved for layer in changes.layers.values()) == pytest.approx(1)
    found = measure.reset_test(
        net,
        {"input_ids": words()},
        torch.arange(8),
        origin=before,
        draws=2,
        output=lambda out: out.logits[:, 0],
    )
    assert 0 <= found.end <= 1
