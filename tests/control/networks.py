"""Networks that are hard to linearise, with inputs and what picks their outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes.core.batch import Inputs
from tests.measure.awkward import D, build

F64 = torch.float64
X = torch.randn(5, D, generator=torch.Generator().manual_seed(1), dtype=F64)
TOKENS = torch.randint(7, (5, 3), generator=torch.Generator().manual_seed(1))


class NoForward(torch.autograd.Function):
    """x^3 of an older kind: without forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad * 3 * ctx.saved_tensors[0] ** 2


class Cubic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(D, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(NoForward.apply(self.a(x)))


class Tokens(nn.Module):
    """Integer inputs, a transformer layer that has a fused path of its own in eval mode, a scalar output (n,)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.out = nn.Linear(4, 1)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.out(self.layer(self.embed(tokens), src_key_padding_mask=mask)).mean((1, 2))


class Fused(nn.Module):
    """Fused attention by itself, outputs of three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.view(len(x), -1, 2)).unsqueeze(1).chunk(3, -1)
        return functional.scaled_dot_product_attention(q, k, v).squeeze(1)


class Recurrent(nn.Module):
    """A layer that keeps its weights in a list besides."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.GRU(2, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x.view(len(x), -1, 2))[0][:, -1])


class Volumes(nn.Module):
    """Convolutions of one and of three dimensions, with all their settings."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(2, 4, 2, stride=2, padding=1, dilation=2, groups=2, padding_mode="circular")
        self.b = nn.Conv3d(1, 2, (1, 2, 1), padding="valid", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x.view(len(x), 2, -1)).tanh()
        return self.b(h.view(len(x), 1, 2, 2, -1)).tanh().flatten(2).sum(2)


class Pair(nn.Module):
    """Two inputs, a mapping for an output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(D, 3), nn.Linear(D, 3)

    def forward(self, left: Tensor, right: Tensor, *, shift: float = 0.0) -> dict[str, Any]:
        return {"logits": (self.a(left) * self.b(right)).tanh() + shift, "name": "pair"}


def logits(out: Any) -> Tensor:
    return out["logits"]


ORDINARY = (
    "mlp", "mlp with biases and outputs", "relu", "scaled", "scaled linear", "single", "tied", "reused", "two paths",
    "functional", "only functional", "bias as parameter", "bare parameters", "flipped", "in place", "heads",
    "sequences", "attention", "images", "batch norm in eval", "partly frozen", "weight norm",
)  # fmt: skip

NETWORKS: dict[str, tuple[Callable[[], nn.Module], Inputs, Any]] = {
    **{name: (lambda name=name: build(name), X, None) for name in ORDINARY},
    "cubic": (Cubic, X, None),
    "tokens": (lambda: Tokens().eval(), TOKENS, None),
    "tokens with a mask": (lambda: Tokens().eval(), {"tokens": TOKENS, "mask": TOKENS == 3}, None),
    "fused attention": (Fused, X, lambda out: out.flatten(1)),
    "recurrent": (Recurrent, X, None),
    "volumes": (Volumes, X.repeat(1, 3), None),
    "two inputs": (Pair, (X, X.flip(0)), logits),
    "named inputs": (Pair, {"right": X, "left": X.flip(0), "shift": 1.0}, logits),
}
