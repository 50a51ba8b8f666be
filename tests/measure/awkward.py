"""Modules that a fast tangent kernel gets wrong, unless it looks at what they do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from regimes import control, models
from regimes.control import width

D = 4  # inputs of every module here
F64 = torch.float64


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, 2)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(self.a(x).tanh()).tanh())


class Reused(nn.Module):
    """One layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(D, D), nn.Linear(D, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(self.a(x).tanh()).tanh())


class TwoPaths(nn.Module):
    """One layer that two names lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(D, D)
        self.b = nn.Sequential(self.a, nn.Tanh())
        self.out = nn.Linear(D, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(self.a(x).tanh()))


class Functional(nn.Module):
    """A weight used by its layer and once more by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(D, D), nn.Linear(D, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(functional.linear(self.a(x).tanh(), self.a.weight.T))


class OnlyFunctional(nn.Module):
    """A layer whose call is thrown away while its weight is used by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(D, D), nn.Linear(D, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.a(x)
        return self.out(functional.linear(x * 2, self.a.weight).tanh())


class Penalised(nn.Module):
    """A bias that enters the output on its own, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(D, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).tanh()) + self.a.bias.square().sum()


class Bare(nn.Module):
    """Parameters that belong to no layer, an unused layer, and a scalar output (n,)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(D))
        self.a, self.unused = nn.Linear(D, 3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return (self.a(x * self.scale).tanh() ** 2).sum(1)


class Flipped(nn.Module):
    """Rows of a layer that belong to other samples than those of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(D, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x.flip(0)).tanh().flip(0))


class InPlace(nn.Module):
    """Outputs and inputs of layers changed in place after the call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(D, 3), nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).sigmoid_() * 1.0
        z = self.b(h)
        z += h
        return self.out(z.relu_())


class Heads(nn.Module):
    """One layer per output: each gives nothing back for the others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(D, 1), nn.Linear(D, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x).tanh(), self.b(x).exp()], 1)


class Sequences(nn.Module):
    """Linear layers on tokens, (n, t, d), then on (n t, d)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.a(x.view(len(x), -1, 2)).tanh()
        flat = self.b(tokens.reshape(-1, 3)).tanh()
        return self.out(flat.view(len(x), -1, 3).mean(1))


class Attention(nn.Module):
    """Fused projections that no hook of a layer sees."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True)
        self.out = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.view(len(x), -1, 2)
        return self.out(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


class Branching(nn.Module):
    """A branch on the value of the input: vmap cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out, self.scale = nn.Linear(D, 3), nn.Linear(3, 1), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).tanh()
        h = torch.stack([row * self.scale if row[0].item() > 0 else row for row in h])
        return self.out(h)


class Checkpointed(nn.Module):
    """A layer whose forward runs again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(D, 3), nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).tanh()
        z = checkpoint(self.b, h, use_reentrant=False)
        assert isinstance(z, Tensor)
        return self.out(z)


class Constant(nn.Module):
    """Outputs that depend on no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(D, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] * 2


def images() -> nn.Module:
    """A small convolutional network on the inputs as 2 x 2 images."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.GroupNorm(1, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(27, 2),
    )  # fmt: skip


def normed() -> nn.Module:
    """Batch norm with frozen statistics."""
    return nn.Sequential(nn.Linear(D, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1)).eval()


def partly_frozen() -> nn.Module:
    """A layer with a frozen weight, one with a frozen bias, one wholly frozen."""
    layers = [nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 2)]
    layers[0].weight.requires_grad_(False)
    layers[2].bias.requires_grad_(False)
    layers[4].requires_grad_(False)
    net = nn.Sequential(*layers)
    return net


def hooked() -> nn.Module:
    """A hook of the user that changes what a layer puts out."""

    def tripled(_layer: nn.Module, _args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out * 3

    net = nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, 1))
    net[0].register_forward_hook(tripled)
    return net


def weight_normed() -> nn.Module:
    """A weight that is computed from other parameters."""
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(D, 3)), nn.Tanh(), nn.Linear(3, 1))


def hooked_mlp() -> nn.Module:
    """A layer of ours with a hook on its input."""
    net = models.mlp(D, 3, 1, bias=True)
    net[2].register_forward_pre_hook(lambda _layer, args: (args[0] * 2,))
    return net


MODULES: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: models.mlp(D, 5, 2),
    "mlp with biases and outputs": lambda: models.mlp(D, 5, 2, outputs=3, bias=True, law=width.MUP),
    "relu": lambda: models.mlp(D, 5, 1, activation="relu", law=width.MEAN_FIELD),
    "scaled": lambda: control.scale(models.mlp(D, 5, 2, bias=True), alpha=7.0),
    "scaled linear": lambda: control.scale(nn.Linear(D, 2), alpha=0.3, center=False),
    "single": lambda: nn.Linear(D, 1),
    "tied": Tied,
    "reused": Reused,
    "two paths": TwoPaths,
    "functional": Functional,
    "only functional": OnlyFunctional,
    "bias as parameter": Penalised,
    "bare parameters": Bare,
    "flipped": Flipped,
    "in place": InPlace,
    "heads": Heads,
    "sequences": Sequences,
    "attention": Attention,
    "branching": Branching,
    "checkpoint": Checkpointed,
    "constant": Constant,
    "images": images,
    "batch norm in eval": normed,
    "partly frozen": partly_frozen,
    "hooked": hooked,
    "hooked mlp": hooked_mlp,
    "weight norm": weight_normed,
}


def build(name: str) -> nn.Module:
    """The module of that name in float64, the same at every call."""
    torch.manual_seed(1)
    return MODULES[name]().to(F64)
