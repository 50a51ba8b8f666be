"""Layers that carry a multiplier, alone and stacked."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes.core.activation import Softplus
from regimes.core.derivative import call
from regimes.core.layer import Conv2d, Linear, Scaling, SpatialMean, ToImage, is_stackable

SCALING = Scaling(multiplier=0.3, std=2.0, rate=5.0, bias_rate=7.0)


def linear(seed: int, bias: bool = True) -> Linear:
    layer = Linear(
        6, 4, scaling=SCALING, bias=bias, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    if layer.bias is not None:
        layer.bias.data.normal_()
    return layer


def conv(seed: int, bias: bool = True) -> Conv2d:
    generator = torch.Generator().manual_seed(seed)
    layer = Conv2d(
        2, 3, 3, stride=2, padding=1, scaling=SCALING, bias=bias, generator=generator, dtype=torch.float64
    )
    if layer.bias is not None:
        layer.bias.data.normal_()
    return layer


def stack(layers: list[Linear] | list[Conv2d]) -> dict[str, Tensor]:
    names = [name for name, _ in layers[0].named_parameters()]
    return {
        name: torch.stack([dict(layer.named_parameters())[name].detach() for layer in layers])
        for name in names
    }


@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_its_formula(bias: bool) -> None:
    layer, x = linear(0, bias), torch.randn(5, 6, dtype=torch.float64)
    wanted = 0.3 * x @ layer.weight.T + (layer.bias if layer.bias is not None else 0)
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("bias", [False, True])
def test_conv_is_its_formula(bias: bool) -> None:
    layer, x = conv(0, bias), torch.randn(5, 2, 8, 8, dtype=torch.float64)
    wanted = 0.3 * functional.conv2d(x, layer.weight, None, 2, 1)
    wanted = wanted + layer.bias[:, None, None] if layer.bias is not None else wanted
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("make", [linear, conv])
def test_a_stack_is_its_members(make: object, bias: bool) -> None:
    """Shared inputs or one set for each member; values and gradients."""
    layers = [make(seed, bias) for seed in range(3)]  # pyright: ignore[reportCallIssue]
    shape = (5, 6) if isinstance(layers[0], Linear) else (5, 2, 8, 8)
    for x in (torch.randn(shape, dtype=torch.float64), torch.randn(3, *shape, dtype=torch.float64)):
        x.requires_grad_()
        tree = {name: w.requires_grad_() for name, w in stack(layers).items()}
        out = call(layers[0], tree, x)
        each = [layer(x if x.dim() == len(shape) else x[i]) for i, layer in enumerate(layers)]
        torch.testing.assert_close(out, torch.stack(each), rtol=1e-12, atol=1e-12)
        weight = torch.randn_like(out)
        (mine, at_x) = (
            torch.autograd.grad((out * weight).sum(), list(tree.values()), retain_graph=True),
            torch.autograd.grad((out * weight).sum(), x),
        )
        loss = torch.stack([(a * b).sum() for a, b in zip(each, weight, strict=True)]).sum()
        parameters = [p for layer in layers for p in layer.parameters()]
        plain = torch.autograd.grad(loss, [*parameters, x])
        count = len(tree)
        for k, gradient in enumerate(mine):
            wanted = torch.stack([plain[i * count + k] for i in range(3)])
            torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(at_x[0], plain[-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [3, 40, 200])
def test_a_member_of_a_stack_has_the_bits_it_has_alone(size: int) -> None:
    """Below and above the size at which a batched product gives way to a loop."""
    torch.set_num_threads(1)
    layers = [
        Linear(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in range(3)
    ]
    x = torch.randn(3, 70, size, dtype=torch.float64)
    together = call(layers[0], stack(layers), x)
    for i, layer in enumerate(layers):
        assert torch.equal(call(layer, stack([layer]), x[i : i + 1])[0], together[i])


def test_the_start_is_normal_with_the_standard_deviation_of_the_scaling() -> None:
    wide = Linear(300, 300, scaling=SCALING, bias=True, generator=torch.Generator().manual_seed(0))
    assert wide.weight.std().item() == pytest.approx(2.0, rel=0.02)
    assert abs(wide.weight.mean().item()) < 0.03
    assert wide.bias is not None and bool((wide.bias == 0).all())


def test_the_scaling_survives_copies_and_files() -> None:
    layer = linear(0)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False), layer.float()):
        assert other.scaling == SCALING
    assert set(linear(0).state_dict()) == {"weight", "bias"}


def test_shapes_of_the_small_layers() -> None:
    x = torch.randn(2, 5, 3, 4, 6)
    torch.testing.assert_close(SpatialMean()(x), x.mean((-1, -2)))
    assert ToImage(1, 4, 6)(torch.randn(5, 24)).shape == (5, 1, 4, 6)
    assert torch.equal(
        ToImage(3, 2, 2)(torch.arange(24.0).view(2, 12)).reshape(2, 12), torch.arange(24.0).view(2, 12)
    )


def test_what_can_be_stacked() -> None:
    assert is_stackable(nn.Sequential(linear(0), Softplus(), nn.Sequential(linear(1))))
    assert not is_stackable(nn.Sequential(linear(0), nn.ReLU()))
    assert not is_stackable(nn.Linear(2, 2))

    class Other(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return -x

    assert not is_stackable(Other(2, 2))


def test_repr_shows_the_numbers() -> None:
    assert "6 -> 4, multiplier=0.3, std=2, rate=5" in repr(linear(0))
    assert "2 -> 3, 3x3, stride 2" in repr(conv(0))
    assert "1.404/5 ln(1 + exp(5 x))" in repr(Softplus())
