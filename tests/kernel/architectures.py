"""Random small networks, for properties that hold for every one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.measure.awkward_case import F64, Net, matrix, normal, tokens

__all__ = ["Network", "networks"]

Shape = tuple[int, ...]
Step = tuple[str, nn.Module, Shape]


@dataclass(frozen=True)
class Network:
    """A network and what draws samples for it."""

    module: nn.Module
    samples: Callable[[int], Tensor]


def residual(layer: nn.Module) -> nn.Module:
    return Net(lambda net, x: x + net.layer(x), layer=layer)


def twice(layer: nn.Module) -> nn.Module:
    return Net(lambda net, x: net.layer(net.layer(x).tanh()), layer=layer)


def attention(width: int) -> nn.Module:
    layer = nn.MultiheadAttention(width, 1, batch_first=True)
    return Net(lambda net, x: net.layer(x, x, x, need_weights=False)[0], layer=layer)


def scanned(width: int) -> nn.Module:
    return Net(lambda net, x: net.layer(x)[0], layer=nn.GRU(width, width, batch_first=True))


def placed(*shape: int) -> nn.Module:
    return Net(lambda net, x: x + net.places, places=matrix(*shape))


def scaled(*shape: int) -> nn.Module:
    return Net(lambda net, x: x * net.gain, gain=matrix(*shape))


def transposed() -> nn.Module:
    return Net(lambda net, x: x.transpose(1, 2))


def on_any(draw: Callable[[Any], Any], shape: Shape) -> tuple[nn.Module, Shape]:
    """A layer for samples of any shape, on the last axis."""
    d = shape[-1]
    new = draw(st.integers(1, 3))
    bias = draw(st.booleans())
    choices: list[tuple[Callable[[], nn.Module], Shape]] = [
        (lambda: nn.Linear(d, new, bias=bias), (*shape[:-1], new)),
        (lambda: residual(nn.Linear(d, d, bias=bias)), shape),
        (lambda: twice(nn.Linear(d, d)), shape),
        (lambda: scaled(*shape), shape),
        (nn.Tanh, shape),
        (nn.SiLU, shape),
        (lambda: nn.Sequential(nn.Linear(d, d), nn.ReLU(inplace=True)), shape),
        (lambda: nn.RMSNorm(d), shape),
        (lambda: nn.LayerNorm(d, bias=bias), shape),
    ]
    made, after = draw(st.sampled_from(choices))
    return made(), after


def on_sequences(draw: Callable[[Any], Any], shape: Shape) -> tuple[nn.Module, Shape]:
    t, d = shape
    choices: list[tuple[Callable[[], nn.Module], Shape]] = [
        (lambda: attention(d), shape),
        (lambda: nn.Sequential(placed(t, d), residual(attention(d))), shape),
        (lambda: scanned(d), shape),
        (lambda: nn.Conv1d(t, 2, 3, padding=1, padding_mode="circular" if d > 1 else "zeros"), (2, d)),
        (transposed, (d, t)),
        (lambda: nn.InstanceNorm1d(t, affine=True) if d > 1 else nn.Identity(), shape),
    ]
    made, after = draw(st.sampled_from(choices))
    return made(), after


def on_images(draw: Callable[[Any], Any], shape: Shape) -> tuple[nn.Module, Shape]:
    c, h, w = shape
    groups = c if draw(st.booleans()) else 1
    choices: list[tuple[Callable[[], nn.Module], Shape]] = [
        (lambda: nn.Conv2d(c, 2 * c, 3, padding=1, groups=groups), (2 * c, h, w)),
        (
            lambda: nn.Conv2d(c, 2, (2, 1), stride=(1, 2), padding=(1, 0), bias=False),
            (2, h + 1, (w + 1) // 2),
        ),
        (lambda: nn.ConvTranspose2d(c, c, 2, groups=groups), (c, h + 1, w + 1)),
        (lambda: twice(nn.Conv2d(c, c, 3, padding=1)), shape),
        (lambda: nn.GroupNorm(1, c), shape),
        (lambda: nn.BatchNorm2d(c), shape),
        (lambda: nn.PReLU(c), shape),
        (lambda: nn.Flatten(2), (c, h * w)),
    ]
    made, after = draw(st.sampled_from(choices))
    return made(), after


@st.composite
def networks(draw: Callable[[Any], Any]) -> Network:
    """A network in float64 and eval mode, with 1 to 3 outputs; some of its parameters may be frozen."""
    torch.manual_seed(draw(st.integers(0, 9)))
    kind, shape = draw(
        st.sampled_from([("vectors", (3,)), ("sequences", (3, 2)), ("images", (1, 3, 2)), ("tokens", (2, 2))])
    )
    layers: list[nn.Module] = [nn.Embedding(3, 2)] if kind == "tokens" else []
    draw_samples = tokens(2, 3) if kind == "tokens" else normal(*shape)
    for _ in range(draw(st.integers(0, 4))):
        special = {2: on_sequences, 3: on_images}.get(len(shape))
        layer, shape = (special if special and draw(st.booleans()) else on_any)(draw, shape)
        layers.append(layer)
    layers += [nn.Flatten(), nn.Linear(torch.Size(shape).numel(), draw(st.integers(1, 3)))]
    for layer in layers[:-1]:
        for p in layer.parameters():
            p.requires_grad_(draw(st.integers(0, 4)) > 0)
    return Network(nn.Sequential(*layers).eval().to(F64), draw_samples)
