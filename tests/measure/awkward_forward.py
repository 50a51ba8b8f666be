"""What a forward may do besides arithmetic: change in place, branch, carry hooks, reorder the samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from regimes import models
from tests.measure.awkward_case import Case, D, Net, normal, tokens

__all__ = ["CASES"]


def layers(hidden: int = 3, outputs: int = 2) -> dict[str, nn.Module]:
    return {"a": nn.Linear(D, hidden), "b": nn.Linear(hidden, hidden), "out": nn.Linear(hidden, outputs)}


# In place


def in_place(net: Any, x: Tensor) -> Tensor:
    h = net.a(x).sigmoid_() * 1.0
    z = net.b(h)
    z += h
    return net.out(z.relu_())


def inputs_in_place(net: Any, x: Tensor) -> Tensor:
    """What the user passed is changed."""
    x.mul_(2).tanh_()
    return net.out(net.a(x).tanh())


def written_into(net: Any, x: Tensor) -> Tensor:
    h = x.new_zeros(len(x), 3)
    h[:, :2] = net.a(x)[:, :2].tanh()
    h[:, 2:] = net.a(x * 2)[:, 2:]
    return net.out(h)


def residual(net: Any, x: Tensor) -> Tensor:
    """A block of a ResNet with group norm."""
    h = functional.relu(net.n1(net.c1(x)), inplace=True)
    h = net.n2(net.c2(h))
    h += net.skip(x)
    return net.out(functional.relu(h, inplace=True).mean((2, 3)))


# Autograd in other ways


def checkpointed(net: Any, x: Tensor) -> Tensor:
    h = checkpoint(net.b, net.a(x).tanh(), use_reentrant=False)
    return net.out(h)


class Cube(torch.autograd.Function):
    """A cube that knows neither forward mode nor vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grads[0]


def own_backward(net: Any, x: Tensor) -> Tensor:
    return net.out(Cube.apply(net.a(x)))


def straight_through(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    return net.out(h + (h.sign() - h).detach())


def force(net: Any, x: Tensor) -> Tensor:
    """Minus the gradient of an energy by the inputs."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        energy = net.out(net.a(at).tanh()).sum()
        return -torch.autograd.grad(energy, at, create_graph=True)[0]


def gradient_changed(net: Any, x: Tensor) -> Tensor:
    h = net.a(x).tanh()
    if h.requires_grad:
        h.register_hook(lambda grad: 2 * grad)
    return net.out(h)


# Hooks


def hooked() -> nn.Module:
    """A hook of the user that changes what a layer puts out."""

    def tripled(_layer: nn.Module, _args: Any, out: Tensor) -> Tensor:
        return out * 3

    net = nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, 1))
    net[0].register_forward_hook(tripled)
    return net


def hooked_mlp() -> nn.Module:
    """A layer of ours with a hook on its input."""
    net = models.mlp(D, 3, 1, bias=True)
    net[2].register_forward_pre_hook(lambda _layer, args: (args[0] * 2,))
    return net


def hooked_backward() -> nn.Module:
    """A hook that changes what flows back."""
    net = nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, 2))
    net[1].register_full_backward_hook(lambda _layer, to_inputs, _grads: (to_inputs[0] * 3,))
    return net


def forward_replaced() -> nn.Module:
    """A layer whose forward was put in its place by hand."""
    first = nn.Linear(D, 3)
    first.forward = lambda input: functional.linear(input, first.weight * 2, first.bias)
    return nn.Sequential(first, nn.Tanh(), nn.Linear(3, 2))


# Samples in other places


def flipped(net: Any, x: Tensor) -> Tensor:
    """Rows of a layer that belong to other samples than those of the batch."""
    return net.out(net.a(x.flip(0)).tanh().flip(0))


def ordered(net: Any, x: Tensor) -> Tensor:
    """Samples in another order inside, by their values."""
    order = x.sum(1).argsort()
    return net.out(net.a(x[order]).tanh())[order.argsort()]


def tokens_into_batch(net: Any, x: Tensor) -> Tensor:
    """Linear layers on tokens, (n, t, d), then on (n t, d)."""
    h = net.a(x.view(len(x), -1, 2)).tanh()
    flat = net.b(h.reshape(-1, 3)).tanh()
    return net.out(flat.view(len(x), -1, 3).mean(1))


def time_first(net: Any, x: Tensor) -> Tensor:
    h = net.a(x.transpose(0, 1)).tanh()
    return net.out(net.b(h).tanh() * h).mean(0)


def tokens_first_and_flat(net: Any, x: Tensor) -> Tensor:
    """Rows (t n, d): those of one sample lie n apart."""
    h = net.a(x.transpose(0, 1).reshape(-1, x.shape[2])).tanh()
    return net.out(h.view(x.shape[1], len(x), -1).prod(0))


def permuted(net: Any, x: Tensor) -> Tensor:
    """A mixer: layers over tokens, then over features, of tokens in another order."""
    h = net.a(x.flip(1).transpose(1, 2)).tanh()
    return net.out(net.b(h.transpose(1, 2)).tanh().flatten(1))


def frames(net: Any, x: Tensor) -> Tensor:
    """Images of a film, (n t, c, h, w)."""
    h = net.a(x.flatten(0, 1)).tanh()
    return net.out(h.view(*x.shape[:2], -1).flatten(1))


def heads(net: Any, x: Tensor) -> Tensor:
    """One layer per output: each gives nothing back for the others."""
    return torch.cat([net.a(x).tanh(), net.b(x).exp()], 1)


def set_of_points(net: Any, x: Tensor) -> Tensor:
    h = net.a(x).relu()
    return net.out(torch.cat([h.amax(1), h.logsumexp(1)], 1))


# Branches that do not look at the numbers of the samples


def by_parameter(net: Any, x: Tensor) -> Tensor:
    h = net.a(x).tanh()
    if net.a.bias[0].item() > -10 and bool(net.b.weight.sum() < 1e6):
        h = net.b(h).tanh()
    return net.out(h)


def by_buffer(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    for _ in range(int(net.times)):
        h = net.b(h.tanh())
    return net.out(h)


def by_shape(net: Any, x: Tensor) -> Tensor:
    h = net.a(x) if x.shape[-1] == D and x.dim() == 2 else x
    return net.out(h.tanh())


def by_tokens(net: Any, ids: Tensor) -> Tensor:
    """A shorter way where no token is padding."""
    h = net.words(ids)
    if (ids == 0).any():
        h = h * (ids != 0)[:, :, None]
    return net.out(h.tanh().sum(1))


@dataclass
class Result:
    """What a module returns where it returns several things."""

    logits: Tensor
    hidden: Tensor | None = None


def several_results(net: Any, x: Tensor) -> Result:
    h = net.a(x).tanh()
    return Result(net.out(net.b(h).tanh()), h)


IN_PLACE: dict[str, Case] = {
    "in place": Case(lambda: Net(in_place, **layers(3, 1))),
    "in-place layers": Case(
        lambda: nn.Sequential(
            nn.Linear(D, 3), nn.ReLU(inplace=True), nn.Linear(3, 3), nn.SiLU(inplace=True), nn.Linear(3, 2)
        )
    ),
    "outputs in place": Case(lambda: nn.Sequential(nn.Linear(D, 3), nn.ELU(inplace=True))),
    "inputs in place": Case(lambda: Net(inputs_in_place, **layers())),
    "written into": Case(lambda: Net(written_into, **layers())),
    "residual": Case(
        lambda: Net(
            residual,
            c1=nn.Conv2d(1, 2, 3, padding=1, bias=False),
            n1=nn.GroupNorm(1, 2),
            n2=nn.GroupNorm(2, 2),
            c2=nn.Conv2d(2, 2, 3, padding=1, bias=False),
            skip=nn.Conv2d(1, 2, 1),
            out=nn.Linear(2, 3),
        ),
        normal(1, 3, 3),
    ),
}

AUTOGRAD: dict[str, Case] = {
    "checkpoint": Case(lambda: Net(checkpointed, **layers(3, 1))),
    "own backward": Case(lambda: Net(own_backward, **layers())),
    "straight through": Case(lambda: Net(straight_through, **layers())),
    "force": Case(lambda: Net(force, a=nn.Linear(D, 3), out=nn.Linear(3, 1))),
    "gradient changed": Case(lambda: Net(gradient_changed, **layers())),
    "hooked": Case(hooked),
    "hooked mlp": Case(hooked_mlp),
    "hooked backward": Case(hooked_backward),
    "forward replaced": Case(forward_replaced),
}

PLACES: dict[str, Case] = {
    "flipped": Case(lambda: Net(flipped, **layers(3, 1))),
    "ordered": Case(lambda: Net(ordered, **layers())),
    "sequences": Case(
        lambda: Net(tokens_into_batch, a=nn.Linear(2, 3), b=nn.Linear(3, 3), out=nn.Linear(3, 2))
    ),
    "time first": Case(lambda: Net(time_first, **layers()), normal(3, D)),
    "time first, as long as the batch": Case(lambda: Net(time_first, **layers()), normal(5, D)),
    "time first and flat": Case(lambda: Net(tokens_first_and_flat, **layers()), normal(3, D)),
    "mixer": Case(
        lambda: Net(permuted, a=nn.Linear(3, 3), b=nn.Linear(2, 3), out=nn.Linear(9, 2)), normal(3, 2)
    ),
    "frames": Case(lambda: Net(frames, a=nn.Conv2d(1, 2, 2), out=nn.Linear(12, 2)), normal(3, 1, 2, 3)),
    "heads": Case(lambda: Net(heads, a=nn.Linear(D, 1), b=nn.Linear(D, 1))),
    "set": Case(lambda: Net(set_of_points, a=nn.Linear(2, 3), out=nn.Linear(6, 2)), normal(5, 2)),
}

BRANCHES: dict[str, Case] = {
    "branch on a parameter": Case(lambda: Net(by_parameter, **layers())),
    "branch on a buffer": Case(lambda: Net(by_buffer, times=torch.tensor(2), **layers())),
    "branch on a shape": Case(lambda: Net(by_shape, **layers())),
    "branch on tokens": Case(
        lambda: Net(by_tokens, words=nn.Embedding(5, 3), out=nn.Linear(3, 2)), tokens(3, 5)
    ),
    "buffers": Case(
        lambda: Net(
            lambda net, x: net.out((net.a(x) * net.gain + net.shift).tanh()),
            gain=torch.rand(3),
            shift=torch.rand(1, 3),
            **layers(),
        )
    ),
}

OUTPUTS: dict[str, Case] = {
    "output of a result": Case(lambda: Net(several_results, **layers()), output=lambda out: out.logits),
    "output of a pair": Case(
        lambda: Net(lambda net, x: (net.out(net.a(x).tanh()), net.b), **layers()), output=lambda out: out[0]
    ),
    "output of one column": Case(lambda: nn.Linear(D, 3), output=lambda out: out[:, 1]),
    "output computed": Case(
        lambda: nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, 5)),
        output=lambda out: out.log_softmax(1)[:, :2],
    ),
    "output of a grid": Case(lambda: nn.Conv2d(1, 2, 2), normal(1, 3, 3), output=lambda out: out.flatten(1)),
}

CASES: dict[str, Case] = {**IN_PLACE, **AUTOGRAD, **PLACES, **BRANCHES, **OUTPUTS}
