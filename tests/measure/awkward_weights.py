"""Weights that are frozen, computed, or used without a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from tests.measure.awkward_case import Case, D, Net, matrix, normal, number, tokens
from tests.measure.awkward_shared import Tied

__all__ = ["CASES"]


def two_layers(hidden: int = 3, outputs: int = 2) -> dict[str, nn.Module]:
    return {"a": nn.Linear(D, hidden), "out": nn.Linear(hidden, outputs)}


# Used bare


def bare(net: Any, x: Tensor) -> Tensor:
    """Also an unused layer, and outputs (n,)."""
    return (net.a(x * net.scale).tanh() ** 2).sum(1)


def temperature(net: Any, x: Tensor) -> Tensor:
    return net.t * net.out(net.a(x / net.s.exp()).tanh())


def products(net: Any, x: Tensor) -> Tensor:
    h = (x @ net.w + net.b).tanh()
    h = (h @ net.v.T).tanh()
    return (net.u @ h[:, :, None]).squeeze(2)


def scaled_weight(net: Any, x: Tensor) -> Tensor:
    return net.out(functional.linear(x, net.w / 3.0, 2 * net.b).tanh())


def einsums(net: Any, x: Tensor) -> Tensor:
    h = torch.einsum("ntd,hde->nhte", x.view(len(x), 2, 2), net.w).tanh()
    return torch.einsum("nhte,hec->nc", h, net.v)


def addmm(net: Any, x: Tensor) -> Tensor:
    """The Conv1D of GPT-2."""
    rows = x.view(-1, 2)
    h = torch.addmm(net.b, rows, net.w).view(len(x), -1, 3).tanh()
    return torch.addmm(net.c, h.mean(1), net.v)


def batched_products(net: Any, x: Tensor) -> Tensor:
    h = torch.bmm(x.view(len(x), 2, 2), net.w.expand(len(x), -1, -1)).tanh()
    return torch.baddbmm(net.b.expand(len(x), 1, 2), h.mean(1, keepdim=True), net.v.expand(len(x), -1, -1))[
        :, 0
    ]


def columns(net: Any, x: Tensor) -> Tensor:
    """Samples behind: W x^T."""
    h = (net.w @ x.T + net.b[:, None]).tanh()
    return (net.v @ h).T


def swapped(net: Any, x: Tensor) -> Tensor:
    """The weight where the inputs belong, and the inputs where the weight belongs."""
    return net.out(functional.linear(net.w, x).tanh().T)


def filters(net: Any, x: Tensor) -> Tensor:
    """A trained signal, filtered by the samples."""
    return net.out(functional.conv1d(net.signal, x[:, None])[0].tanh())


def samples_as_groups(net: Any, x: Tensor) -> Tensor:
    n = len(x)
    h = functional.conv1d(x.reshape(1, n, D), net.w.repeat(n, 1, 1), net.b.repeat(n), groups=n)
    return net.out(h.view(n, -1).tanh())


def vmapped(net: Any, x: Tensor) -> Tensor:
    """An ensemble by vmap inside the module."""
    members = torch.vmap(lambda w, b: functional.linear(x, w, b).tanh())(net.w, net.b)
    return net.out(members.mean(0))


def slices(net: Any, x: Tensor) -> Tensor:
    h = (
        functional.linear(x, net.w[:3], net.b[:3]).tanh()
        * functional.linear(x, net.w[3:], net.b[3:]).sigmoid()
    )
    return net.out(h)


def indexed(net: Any, ids: Tensor) -> Tensor:
    h = net.table[ids].tanh() + net.table.index_select(0, ids.flatten()).view(*ids.shape, -1)
    return net.out((h + functional.one_hot(ids, 5).to(h) @ net.w).flatten(1))


def masked(net: Any, x: Tensor) -> Tensor:
    return net.out(net.a(torch.where(x > 0, x, net.token)).tanh())


def routed(net: Any, x: Tensor) -> Tensor:
    """A mixture of experts: a weight for each sample, chosen by its largest score."""
    scores = net.gate(x).softmax(1)
    best = scores.argmax(1)
    h = torch.einsum("nd,nde->ne", x, net.experts[best]).tanh()
    return net.out(h * scores.gather(1, best[:, None]))


def mixed(net: Any, x: Tensor) -> Tensor:
    """Lists and dicts of parameters; the weights of a mix are trained."""
    share = net.shares.softmax(0)
    h = torch.stack([functional.linear(x, w) for w in net.weights])
    return torch.einsum("m,mne->ne", share, h) * net.by_name["gain"] + net.by_name["shift"]


def one_storage() -> nn.Module:
    """Two parameters that lie in one piece of memory, one of them transposed."""
    flat = torch.randn(D * 3 + 3 * 2)
    w, v = flat[: D * 3].view(3, D), flat[D * 3 :].view(3, 2).T
    return Net(
        lambda net, x: functional.linear(functional.linear(x, net.w).tanh(), net.v),
        w=nn.Parameter(w), v=nn.Parameter(v),
    )  # fmt: skip


# Computed from other parameters


def standardised(net: Any, x: Tensor) -> Tensor:
    w = net.a.weight
    w = (w - w.mean((1, 2, 3), True)) / (w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
    return net.out(functional.conv2d(x, w, net.a.bias, padding=1).tanh().flatten(1))


def low_rank(net: Any, x: Tensor) -> Tensor:
    """A frozen weight with a trained correction of rank one."""
    return net.out(functional.linear(x, net.a.weight + net.up @ net.down, net.a.bias).tanh())


def hypernetwork(net: Any, x: Tensor) -> Tensor:
    weights = net.a(x).view(len(x), 2, D)
    return torch.bmm(weights.tanh(), x[:, :, None])[:, :, 0]


def gemma_norm(net: Any, x: Tensor) -> Tensor:
    h = functional.layer_norm(x, (D,), net.w + 1, net.b)
    return net.out(functional.rms_norm(h, (D,), 1 + net.w).tanh())


def pruned() -> nn.Module:
    net = nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, 2))
    prune.l1_unstructured(net[0], "weight", amount=0.5)
    return net


def spectral() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(D, 3)), nn.Tanh(), nn.Linear(3, 2)).eval()


# Frozen


def partly_frozen() -> nn.Module:
    """A layer with a frozen weight, one with a frozen bias, one wholly frozen."""
    layers = [nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 2)]
    layers[0].weight.requires_grad_(False)
    layers[2].bias.requires_grad_(False)
    layers[4].requires_grad_(False)
    return nn.Sequential(*layers)


def tied_to_frozen() -> nn.Module:
    """A frozen weight used by two layers, with biases that train."""
    net = Tied()
    net.a.weight.requires_grad_(False)
    return net


def frozen_start() -> nn.Module:
    net = nn.Sequential(
        nn.Conv1d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 2)
    )
    net[0].requires_grad_(False)
    return nn.Sequential(nn.Unflatten(1, (1, D)), net)


def without_gradient(net: Any, x: Tensor) -> Tensor:
    """A layer that is used once with a gradient and once without."""
    with torch.no_grad():
        start = net.a(x)
    return net.out(net.a(x).tanh() - start.tanh() * 0.5)


BARE: dict[str, Case] = {
    "bare parameters": Case(lambda: Net(bare, scale=matrix(D), a=nn.Linear(D, 3), unused=nn.Linear(2, 2))),
    "temperature": Case(lambda: Net(temperature, t=number(1.5), s=number(0.2), **two_layers())),
    "products": Case(lambda: Net(products, w=matrix(D, 3), b=matrix(3), v=matrix(5, 3), u=matrix(2, 5))),
    "scaled weight": Case(lambda: Net(scaled_weight, w=matrix(3, D), b=matrix(3), out=nn.Linear(3, 2))),
    "einsum": Case(lambda: Net(einsums, w=matrix(3, 2, 3), v=matrix(3, 3, 2))),
    "addmm": Case(lambda: Net(addmm, w=matrix(2, 3), b=matrix(3), v=matrix(3, 2), c=matrix(2))),
    "batched products": Case(lambda: Net(batched_products, w=matrix(2, 3), b=matrix(2), v=matrix(3, 2))),
    "columns": Case(lambda: Net(columns, w=matrix(5, D), b=matrix(5), v=matrix(2, 5))),
    "swapped": Case(lambda: Net(swapped, w=matrix(3, D), out=nn.Linear(3, 2))),
    "filters": Case(lambda: Net(filters, signal=matrix(1, 1, 6), out=nn.Linear(3, 2))),
    "samples as groups": Case(
        lambda: Net(samples_as_groups, w=matrix(2, 1, 2), b=matrix(2), out=nn.Linear(6, 2))
    ),
    "vmap inside": Case(lambda: Net(vmapped, w=matrix(3, 2, D), b=matrix(3, 2), out=nn.Linear(2, 2))),
    "slices": Case(lambda: Net(slices, w=matrix(6, D), b=matrix(6), out=nn.Linear(3, 2))),
    "indexed": Case(
        lambda: Net(indexed, table=matrix(5, 3), w=matrix(5, 3), out=nn.Linear(6, 2)), tokens(2, 5)
    ),
    "token in place of entries": Case(lambda: Net(masked, token=matrix(D), **two_layers())),
    "routed": Case(lambda: Net(routed, gate=nn.Linear(D, 3), experts=matrix(3, D, 2), out=nn.Linear(2, 2))),
    "lists of parameters": Case(
        lambda: Net(
            mixed,
            shares=matrix(3),
            weights=nn.ParameterList([matrix(2, D) for _ in range(3)]),
            by_name=nn.ParameterDict({"gain": number(0.7), "shift": matrix(2)}),
        )
    ),
    "one storage": Case(one_storage),
    "bias alone": Case(lambda: Net(lambda net, x: net.b.expand(len(x), -1), b=matrix(2))),
    "number alone": Case(lambda: Net(lambda net, x: net.b * x[:, 0], b=number(2.0))),
}

COMPUTED: dict[str, Case] = {
    "weight norm": Case(
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(D, 3)), nn.Tanh(), nn.Linear(3, 1))
    ),
    "weight norm of a conv": Case(
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Conv1d(1, 2, 2), dim=1), nn.Tanh(), nn.Flatten(), nn.Linear(6, 2)
        ),
        normal(1, D),
    ),
    "spectral norm in eval": Case(spectral),
    "orthogonal": Case(
        lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(D, 3)), nn.Tanh(), nn.Linear(3, 1))
    ),
    "pruned": Case(pruned),
    "weight standardisation": Case(
        lambda: Net(standardised, a=nn.Conv2d(1, 2, 3), out=nn.Linear(18, 2)), normal(1, 3, 3)
    ),
    "low rank": Case(
        lambda: Net(
            low_rank,
            a=nn.Linear(D, 3).requires_grad_(False),
            up=matrix(3, 1),
            down=matrix(1, D),
            out=nn.Linear(3, 2),
        )
    ),
    "hypernetwork": Case(lambda: Net(hypernetwork, a=nn.Linear(D, 2 * D))),
    "functional norms": Case(lambda: Net(gemma_norm, w=matrix(D), b=matrix(D), out=nn.Linear(D, 2))),
}

FROZEN: dict[str, Case] = {
    "partly frozen": Case(partly_frozen),
    "frozen and tied": Case(tied_to_frozen),
    "frozen start": Case(frozen_start),
    "without gradient": Case(lambda: Net(without_gradient, **two_layers())),
    "detached": Case(
        lambda: Net(
            lambda net, x: net.out(x) + net.b(net.a(x).tanh().detach()),
            a=nn.Linear(D, 3),
            b=nn.Linear(3, 2),
            out=nn.Linear(D, 2),
        )
    ),
    "detached weight": Case(
        lambda: Net(
            lambda net, x: net.out(functional.linear(net.a(x).tanh(), net.a.weight.detach())),
            **two_layers(D, 1),
        )
    ),
    "constant": Case(lambda: Net(lambda net, x: x[:, :1] * 2, a=nn.Linear(D, 1))),
}

CASES: dict[str, Case] = {**BARE, **COMPUTED, **FROZEN}
