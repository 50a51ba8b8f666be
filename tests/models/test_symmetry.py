"""Mirrored starts: nothing at the start, and the slopes of an ordinary network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from regimes import control, measure, models, train
from regimes.core.error import UserError
from regimes.core.layer import is_stackable
from regimes.core.loss import squared

F64 = torch.float64
X = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
IMAGES = torch.randn(3, 2, 19, 19, generator=torch.Generator().manual_seed(0), dtype=F64)

NETWORKS: dict[str, tuple[Callable[[bool], nn.Module], Tensor]] = {
    "one layer": (lambda s: models.mlp(4, 12, 1, symmetric=s), X),
    "biases": (lambda s: models.mlp(4, 12, 2, 3, bias=True, symmetric=s), X),
    "deep relu": (lambda s: models.mlp(4, 12, 4, activation="relu", symmetric=s), X),
    "muP": (lambda s: models.mlp(4, 12, 3, law=control.MUP, symmetric=s), X),
    "two layers": (lambda s: models.two_layer(4, 12, symmetric=s), X),
    "cnn": (lambda s: models.cnn(2, 6, 2, symmetric=s), IMAGES),
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_says_nothing_at_the_start(name: str) -> None:
    build, x = NETWORKS[name]
    loud, silent = (build(symmetric)(x).detach() for symmetric in (False, True))
    assert float(silent.abs().max()) < 1e-13 * float(loud.abs().max())


@pytest.mark.parametrize("name", list(NETWORKS))
def test_is_the_same_architecture(name: str) -> None:
    build, _ = NETWORKS[name]
    plain, mirrored = build(False), build(True)
    assert is_stackable(plain) and is_stackable(mirrored)
    assert repr(plain) == repr(mirrored)
    for one, other in zip(plain.parameters(), mirrored.parameters(), strict=True):
        assert one.shape == other.shape
        kept = (one == other).double().mean()
        assert kept >= 0.5, "entries that were not drawn"


@pytest.mark.parametrize("name", list(NETWORKS))
def test_halves_say_the_same_and_pull_apart(name: str) -> None:
    """Swapping the halves of all hidden units flips the output, and so the sign of every slope."""
    build, x = NETWORKS[name]
    net = build(True)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    grads = torch.autograd.grad(net(x).sum(), list(net.parameters()))
    last = len([p for p in before.values() if p.dim() > 1]) - 1
    level = -1
    for (key, start), grad in zip(before.items(), grads, strict=True):
        if key.endswith("bias"):
            if level < last:
                torch.testing.assert_close(grad.roll(len(grad) // 2), -grad)
            continue
        level += 1
        swapped, turned = start, grad
        if level < last:
            swapped, turned = (each.roll(len(start) // 2, 0) for each in (swapped, turned))
        if level > 0:
            swapped, turned = (each.roll(start.shape[1] // 2, 1) for each in (swapped, turned))
        assert torch.equal(swapped, -start if level == last else start)
        torch.testing.assert_close(turned, grad if level == last else -grad)


def test_every_layer_keeps_its_part_of_the_kernel() -> None:
    """Copies of the last hidden layer alone would leave the layers below it without slope."""

    def parts(symmetric: bool) -> Tensor:
        kernels = []
        for seed in range(60):
            net = models.mlp(4, 128, 3, symmetric=symmetric, seed=seed)
            by_layer = measure.ntk(net, X, reduce="trace", by_layer=True)
            kernels.append(torch.stack(list(by_layer.values())).detach())
        return torch.stack(kernels).mean(0)

    plain, mirrored = parts(False), parts(True)
    assert len(plain) == 4
    for one, other in zip(plain, mirrored, strict=True):
        assert float((one - other).norm() / one.norm()) < 0.2


PICTURES = torch.randn(3, 1, 12, 12, generator=torch.Generator().manual_seed(0), dtype=F64)
DEEP: dict[str, Callable[[bool], nn.Module]] = {
    "vgg": lambda s: models.vgg(1, 3, size=12, width_factor=1 / 8, symmetric=s),
    "resnet": lambda s: models.resnet(1, 3, width_factor=1 / 8, symmetric=s),
    "groups": lambda s: models.resnet(1, 3, width_factor=1 / 4, norm="group", symmetric=s),
}


@pytest.mark.parametrize("name", list(DEEP))
def test_deep_networks_say_nothing_and_learn_in_every_layer(name: str) -> None:
    """Through pools, skips and norms; the parts of the kernel are those of an ordinary start, up to chance."""
    plain, mirrored = DEEP[name](False), DEEP[name](True)
    loud, silent = plain(PICTURES).detach(), mirrored(PICTURES).detach()
    assert float(silent.abs().max()) < 1e-12 * float(loud.abs().max())
    parts = [measure.ntk(net, PICTURES, reduce="trace", by_layer=True) for net in (plain, mirrored)]
    for layer, usual in parts[0].items():
        assert 0.1 < float(parts[1][layer].trace() / usual.trace()) < 10, layer


def test_members_train_as_one_stack() -> None:
    y = X[:, 0].sign()
    nets = [models.mlp(4, 8, 2, symmetric=True, seed=seed) for seed in range(3)]
    together = {s.member: s.outputs for s in train.flow(nets, X, y, loss=squared, max_steps=5)}
    alone = list(train.flow(nets[1], X, y, loss=squared, max_steps=5))[-1].outputs
    assert alone is not None and bool(alone.abs().max() > 0)
    assert torch.equal(together[1], alone)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("build", [lambda: models.mlp(4, 7, 2, symmetric=True),
                                   lambda: models.cnn(1, 7, symmetric=True),
                                   lambda: models.two_layer(4, 7, symmetric=True)])  # fmt: skip
def test_an_odd_width_is_named(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(
        UserError, match=r"`width`: got 7 with symmetric=True, expected an even number.*take 8"
    ):
        build()
