"""Uses of parameters that a watch over the functions of torch, or over the rows of a batch, can miss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from tests.measure.awkward_case import Case, D, Net, matrix, normal, number, tokens

__all__ = ["CASES"]


def layers(hidden: int = 3, outputs: int = 2) -> dict[str, nn.Module]:
    return {"a": nn.Linear(D, hidden), "b": nn.Linear(hidden, hidden), "out": nn.Linear(hidden, outputs)}


def with_frozen_weight() -> dict[str, nn.Module]:
    parts = layers()
    parts["a"].get_parameter("weight").requires_grad_(False)
    return parts


# Parameters that go where nobody looks


class Scale(torch.autograd.Function):
    """x * w, by a function that torch asks nobody about."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return grads[0] * w, (grads[0] * x).sum(0)


class Double(torch.autograd.Function):
    """2 w, of a parameter alone."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        return 2 * w

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0]


def own_function(net: Any, x: Tensor) -> Tensor:
    return net.out(Scale.apply(net.a(x).tanh(), net.w))


def own_function_of_weight(net: Any, x: Tensor) -> Tensor:
    return net.out(functional.linear(x, Double.apply(net.a.weight), net.a.bias).tanh())


def by_operators(net: Any, x: Tensor) -> Tensor:
    """Operators of torch without the functions around them."""
    h = torch.ops.aten.addmm.default(net.b, x, net.w.t())
    return net.out(torch.ops.aten.tanh(h) * net.b)


def energy_gradient(net: Any, x: Tensor) -> Tensor:
    """Derivatives by the inputs through torch.func, inside the module."""

    def energy(sample: Tensor) -> Tensor:
        return net.out(net.a(sample).tanh()).sum()

    return torch.func.vmap(torch.func.grad(energy))(x)


def other_parameters(net: Any, x: Tensor) -> Tensor:
    """A layer called with parameters that are computed."""
    doubled = {"weight": net.a.weight * 2, "bias": net.b.bias}
    return net.out(torch.func.functional_call(net.a, doubled, (x,)).tanh())


def several_in_one_call(net: Any, x: Tensor) -> Tensor:
    h = torch.einsum("nd,de,ef->nf", x, net.w, net.v)
    return (
        torch.addcmul(net.shift, h, net.gain, value=2) + torch.einsum("nd,de,de->ne", x, net.w, net.w)[:, :2]
    )


def reads_a_number(net: Any, x: Tensor) -> Tensor:
    """A number read from a parameter is a constant."""
    return net.out((net.a(x) * net.t.detach().item() + float(net.t.detach()) * net.t).tanh())


def unregistered() -> nn.Module:
    """A layer in a plain list is none of the module's: its weights are constants."""
    others = [nn.Linear(D, 3).double()]
    return Net(lambda net, x: net.out(net.others[0](x.double()).tanh().to(x)), others=others, **layers())


def cached_inside(net: Any, x: Tensor) -> Tensor:
    """A weight computed once per call and used twice."""
    w = net.a.weight / net.a.weight.norm()
    return net.out(functional.linear(functional.linear(x, w).tanh(), w.T).tanh() @ w.T)


# Changed in place


def weight_changed_through_view(net: Any, x: Tensor) -> Tensor:
    w = net.a.weight.clone()
    w[0].mul_(2)
    return net.out(functional.linear(x, w, net.a.bias).tanh())


def weight_changed(net: Any, x: Tensor) -> Tensor:
    w = net.a.weight * 1
    w[:, 0] *= net.t
    return net.out(functional.linear(x, w.tril_(), net.a.bias).tanh())


def parameters_in_place(net: Any, x: Tensor) -> Tensor:
    h = x @ net.a.weight.T
    h += net.a.bias
    h = h.tanh_() * net.gain
    return net.out(h.add_(net.b.bias))


def token_written(net: Any, x: Tensor) -> Tensor:
    h = x.new_zeros(len(x), 4, 2)
    h[:, 0] = net.token
    h[:, 1:3] = x.view(len(x), 2, 2)
    h[:, 3].add_(net.token * 2)
    return net.out(h.tanh().flatten(1))


def input_changed_later(net: Any, x: Tensor) -> Tensor:
    """The input of a layer, changed once the layer has seen it."""
    h = x * 1
    z = net.a(h) + (h + net.p)[:, :3].square()
    h.mul_(3)
    return net.out(z.tanh() + net.b(h[:, :3]))


# Rows that are no batch


def row_by_row(net: Any, x: Tensor) -> Tensor:
    """A call of the layer for each sample."""
    return net.out(torch.stack([net.a(row).tanh() for row in x]))


def in_pieces(net: Any, x: Tensor) -> Tensor:
    return net.out(torch.cat([net.a(part).tanh() for part in x.split(2)]))


def token_by_token(net: Any, x: Tensor) -> Tensor:
    h = [net.a(x[:, i]).tanh() for i in range(x.shape[1])]
    return net.out(torch.stack(h, 1).cumsum(1).flatten(1))


def last_tokens(net: Any, ids: Tensor, last: Tensor) -> Tensor:
    """The state at the last token of each, as language models classify."""
    h = net.a(net.words(ids).cumsum(1)).tanh()
    return net.out(h[torch.arange(len(ids)), last])


def pairs_of_rows(net: Any, x: Tensor) -> Tensor:
    """Two samples side by side in one row, where their number is even."""
    padded = torch.cat([x, x[: len(x) % 2]])
    return net.out(net.a(padded.view(-1, 2, D)).tanh().view(-1, 3)[: len(x)])


def quantised(net: Any, x: Tensor) -> Tensor:
    """The nearest of a few trained vectors, passed straight through."""
    h = net.a(x)
    nearest = torch.cdist(h.detach(), net.code.weight.detach()).argmin(1)
    q = net.code(nearest)
    return net.out(h + (q - h).detach()) + net.out(q) * 0.5


def learned_start(net: Any, x: Tensor) -> Tensor:
    start = (net.h.expand(1, len(x), -1), net.c.expand(1, len(x), -1))
    return net.out(net.cell(x, start)[0][:, -1])


def on_packed(net: Any, x: Tensor, lengths: Tensor) -> Tensor:
    """A layer on the tokens of packed sequences: sorted by length, with time running slowest."""
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
    h = PackedSequence(
        net.a(packed.data).tanh(), packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
    )
    return net.out(pad_packed_sequence(h, batch_first=True, total_length=3)[0].flatten(1))


def without_padding(net: Any, x: Tensor, mask: Tensor) -> Tensor:
    """A layer on the tokens that are there."""
    h = x.new_zeros(*mask.shape, 3)
    h[mask] = net.a(x[mask]).tanh()
    return net.out(h.flatten(1))


def of_two_tokens_on_average(n: int) -> Tensor:
    """Lengths: as many tokens as if each sequence had two, but some have one and some three."""
    return torch.tensor([2, 2, 1, 3]).repeat(n)[:n]


def sorted_by_length(net: Any, x: Tensor, lengths: Tensor) -> Tensor:
    """Longest first inside, as recurrent layers used to ask for."""
    order = lengths.argsort(descending=True, stable=True)
    return net.out(net.a(x[order]).tanh())[order.argsort()]


def gated(net: Any, x: Tensor) -> Tensor:
    """A layer in reversed order that gives nothing back for the first samples."""
    return net.out(net.a(x.flip(0)).tanh().flip(0) * (x[:, :1] > 0))


def first_two_off(n: int) -> Tensor:
    x = normal(D)(n)
    x[:, 0] = torch.arange(n) - 1.5
    return x


def chunks_when_large(net: Any, x: Tensor) -> Tensor:
    h = torch.cat([net.a(part) for part in x.split(4)]) if len(x) > 4 else net.a(x)
    return net.out(h.tanh())


def flipped_in_part(net: Any, x: Tensor) -> Tensor:
    h = net.a(x[:, :2].flip(0)).tanh().flip(0)
    return net.out(torch.cat([h, x[:, 2:]], 1))


def agreeing_in_part(n: int) -> Tensor:
    """The first samples look alike to a layer that sees half of them."""
    x = normal(D)(n)
    x[:2, :2] = x[0, :2].clone()
    return x


def whole_numbers() -> nn.Module:
    """A parameter that holds whole numbers and does not train."""
    order = nn.Parameter(torch.tensor([2, 0, 1]), requires_grad=False)
    return Net(lambda net, x: net.out(net.a(x).tanh()[:, net.order]), order=order, **layers())


UNSEEN: dict[str, Case] = {
    "own function": Case(lambda: Net(own_function, w=matrix(3), **layers())),
    "own function of a weight": Case(lambda: Net(own_function_of_weight, **layers())),
    "operators": Case(lambda: Net(by_operators, w=matrix(3, D), b=matrix(3), out=nn.Linear(3, 2))),
    "gradient by torch.func": Case(lambda: Net(energy_gradient, a=nn.Linear(D, 3), out=nn.Linear(3, 1))),
    "called with other parameters": Case(lambda: Net(other_parameters, **layers())),
    "several in one call": Case(
        lambda: Net(several_in_one_call, w=matrix(D, 3), v=matrix(3, 2), shift=matrix(2), gain=matrix(2))
    ),
    "number read from a parameter": Case(lambda: Net(reads_a_number, t=number(0.7), **layers())),
    "layer in a plain list": Case(unregistered),
    "normalised weight used twice": Case(lambda: Net(cached_inside, **layers())),
}

CHANGED: dict[str, Case] = {
    "weight changed through a view": Case(lambda: Net(weight_changed_through_view, **layers())),
    "weight changed": Case(lambda: Net(weight_changed, t=number(0.7), **layers())),
    "parameters in place": Case(lambda: Net(parameters_in_place, gain=matrix(3), **layers())),
    "token written": Case(lambda: Net(token_written, token=matrix(2), out=nn.Linear(8, 2))),
    "input changed later": Case(lambda: Net(input_changed_later, p=matrix(D), **with_frozen_weight())),
}

ROWS: dict[str, Case] = {
    "row by row": Case(lambda: Net(row_by_row, **layers())),
    "in pieces": Case(lambda: Net(in_pieces, **layers())),
    "token by token": Case(lambda: Net(token_by_token, a=nn.Linear(2, 2), out=nn.Linear(6, 2)), normal(3, 2)),
    "last tokens": Case(
        lambda: Net(last_tokens, words=nn.Embedding(5, D), **layers()),
        lambda n: (tokens(3, 5)(n), torch.arange(n) * 2 % 3),
    ),
    "two samples in a row": Case(lambda: Net(pairs_of_rows, **layers())),
    "quantised": Case(lambda: Net(quantised, code=nn.Embedding(5, 3), **layers())),
    "learned start": Case(
        lambda: Net(
            learned_start, cell=nn.LSTM(2, 3, batch_first=True), h=matrix(3), c=matrix(3), out=nn.Linear(3, 2)
        ),
        normal(3, 2),
    ),
    "on packed sequences": Case(
        lambda: Net(on_packed, a=nn.Linear(2, 3), out=nn.Linear(9, 2)),
        lambda n: (normal(3, 2)(n), of_two_tokens_on_average(n)),
    ),
    "without padding": Case(
        lambda: Net(without_padding, a=nn.Linear(2, 3), out=nn.Linear(9, 2)),
        lambda n: (normal(3, 2)(n), torch.arange(3) < of_two_tokens_on_average(n)[:, None]),
    ),
    "sorted by length": Case(
        lambda: Net(sorted_by_length, **layers()), lambda n: (normal(D)(n), of_two_tokens_on_average(n))
    ),
    "gated": Case(lambda: Net(gated, **layers()), first_two_off),
    "chunks when large": Case(lambda: Net(chunks_when_large, **layers())),
    "flipped in part": Case(
        lambda: Net(flipped_in_part, a=nn.Linear(2, 3), out=nn.Linear(5, 2)), agreeing_in_part
    ),
    "whole numbers as parameters": Case(whole_numbers),
}

CASES: dict[str, Case] = {**UNSEEN, **CHANGED, **ROWS}
