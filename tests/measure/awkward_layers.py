"""Layers of torch and of this library, in the shapes and with the options they come in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from regimes import control, models
from regimes.control import width
from regimes.core.layer import Conv2d, Linear, Scaling
from tests.measure.awkward_case import F64, Case, D, Net, Samples, matrix, normal, tokens

__all__ = ["CASES", "read"]


def read(layer: Callable[[], nn.Module], samples: Samples, outputs: int = 2) -> Case:
    """A layer in eval mode, tanh, and a read-out with a weight for each number."""

    def build() -> nn.Module:
        body = nn.Sequential(layer(), nn.Tanh(), nn.Flatten()).eval().to(F64)
        return nn.Sequential(body, nn.Linear(body(samples(1)).shape[1], outputs))

    return Case(build, samples)


def bag(net: Any, ids: Tensor, weights: Tensor) -> Tensor:
    return net.out(net.bag(ids, per_sample_weights=weights))


def weighted_tokens(n: int) -> tuple[Tensor, Tensor]:
    return tokens(3, 5)(n), torch.randn(n, 3, dtype=F64, generator=torch.Generator().manual_seed(n))


def positions(net: Any, ids: Tensor) -> Tensor:
    places = torch.arange(ids.shape[1], device=ids.device)
    return net.out((net.words(ids) + net.places(places)).tanh().flatten(1))


def positions_per_sample(net: Any, ids: Tensor) -> Tensor:
    places = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
    return net.out((net.words(ids) + net.places(places)).tanh().flatten(1))


def last_state(net: Any, x: Tensor) -> Tensor:
    return net.out(net.cell(x)[0][:, -1])


def last_state_time_first(net: Any, x: Tensor) -> Tensor:
    return net.out(net.cell(x.transpose(0, 1))[0][-1])


def cell_by_cell(net: Any, x: Tensor) -> Tensor:
    state = None
    for step in x.unbind(1):
        state = net.cell(step, state)
    assert state is not None
    return net.out(state[0])


def packed(net: Any, x: Tensor, lengths: Tensor) -> Tensor:
    cut = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
    return net.out(net.cell(cut)[1][0])


def of_length(n: int) -> tuple[Tensor, Tensor]:
    return normal(3, 2)(n), 1 + torch.arange(n) * 2 % 3


def own_convolution(net: Any, x: Tensor) -> Tensor:
    patches = functional.unfold(x, 2)
    return net.out((net.w @ patches + net.b).tanh().flatten(1))


def fourier(net: Any, x: Tensor) -> Tensor:
    modes = torch.fft.rfft(x) * torch.view_as_complex(net.w)
    return net.out(torch.fft.irfft(modes, x.shape[-1]).tanh())


def excited(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    return net.out((h * net.gate(h.mean((2, 3))).sigmoid()[:, :, None, None]).tanh().flatten(1))


def u_shaped(net: Any, x: Tensor) -> Tensor:
    h = net.a(x).tanh()
    low = net.down(functional.max_pool2d(h, 2)).tanh()
    return net.out(torch.cat([h, functional.interpolate(low, scale_factor=2.0)], 1)).mean((2, 3))


def last_channel() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Conv2d(3, 3, 2), nn.Flatten(), nn.Linear(12, 2))
    for p in net.parameters():
        if p.dim() == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    return net


def channels_last(n: int) -> Tensor:
    return normal(2, 4, 4)(n).contiguous(memory_format=torch.channels_last)


def images() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.GroupNorm(1, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(27, 2),
    )  # fmt: skip


def statistics(norm: Any) -> Any:
    """Running statistics and weights that are not 0 and 1."""
    for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        if tensor is not None:
            tensor.data.uniform_(0.5, 2.0)
    return norm


def drawn(norm: Any) -> Any:
    """Weights that are not 1 and 0."""
    for p in norm.parameters():
        p.data.normal_()
    return norm


def line(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(layer() for layer in layers))


LINEAR: dict[str, Case] = {
    "single": Case(lambda: nn.Linear(D, 1)),
    "one output without bias": Case(lambda: nn.Linear(D, 1, bias=False)),
    "mlp": Case(lambda: models.mlp(D, 5, 2)),
    "mlp with biases and outputs": Case(lambda: models.mlp(D, 5, 2, outputs=3, bias=True, law=width.MUP)),
    "relu": Case(lambda: models.mlp(D, 5, 1, activation="relu", law=width.MEAN_FIELD)),
    "more outputs than features": Case(lambda: nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, 9))),
    "more outputs than features, frozen head": Case(
        lambda: nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, 9).requires_grad_(False))
    ),
    "scaled": Case(lambda: control.scale(models.mlp(D, 5, 2, bias=True), alpha=7.0)),
    "scaled linear": Case(lambda: control.scale(nn.Linear(D, 2), alpha=0.3, center=False)),
    "scaled images": Case(lambda: control.scale(images(), alpha=3.0)),
    "scaled inside": Case(
        lambda: nn.Sequential(control.scale(models.mlp(D, 3, 1, outputs=2), alpha=3.0), nn.Tanh())
    ),
    "linear on tokens": read(lambda: nn.Linear(2, 3), normal(5, 2)),
    "linear on as many tokens as samples": read(
        line(lambda: nn.Linear(5, 5), nn.Tanh, lambda: nn.Linear(5, 3)), normal(5, 5)
    ),
    "linear on a grid": read(lambda: nn.Linear(2, 3), normal(3, 2, 2)),
    "linear without bias on tokens": read(lambda: nn.Linear(2, 3, bias=False), normal(3, 2)),
    "long sequence": read(line(lambda: nn.Linear(1, 2), nn.Tanh, lambda: nn.Linear(2, 1)), normal(17, 1)),
    "own linear on tokens": read(
        lambda: Linear(2, 3, scaling=Scaling(multiplier=0.7), bias=True), normal(3, 2)
    ),
    "bilinear": read(
        lambda: Net(lambda net, x: net.a(x[:, :2], x[:, 2:]), a=nn.Bilinear(2, 2, 3)), normal(4)
    ),
    "log softmax": Case(lambda: nn.Sequential(nn.Linear(D, 3), nn.LogSoftmax(1))),
}

CONVOLUTIONS: dict[str, Case] = {
    "images": Case(images),
    "conv1d": read(lambda: nn.Conv1d(2, 3, 2, stride=2, padding=1, dilation=2), normal(2, 6)),
    "conv1d circular": read(
        lambda: nn.Conv1d(2, 3, 3, padding="same", padding_mode="circular", bias=False), normal(2, 5)
    ),
    "conv2d": read(
        lambda: nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), normal(2, 4, 3)
    ),
    "conv2d same": read(lambda: nn.Conv2d(2, 3, (3, 1), padding="same", dilation=2), normal(2, 3, 3)),
    "conv2d reflected": read(lambda: nn.Conv2d(1, 3, 3, padding=1, padding_mode="reflect"), normal(1, 3, 3)),
    "conv2d replicated": read(
        lambda: nn.Conv2d(1, 3, 3, padding=1, padding_mode="replicate"), normal(1, 3, 3)
    ),
    "conv2d in groups": read(lambda: nn.Conv2d(4, 6, 2, groups=2), normal(4, 3, 3)),
    "conv2d 1 x 1": read(lambda: nn.Conv2d(4, 3, 1, bias=False), normal(4, 2, 2)),
    "conv2d on the whole image": read(lambda: nn.Conv2d(2, 3, 3), normal(2, 3, 3)),
    "depthwise separable": read(
        line(lambda: nn.Conv2d(2, 4, 2, groups=2, bias=False), nn.ReLU, lambda: nn.Conv2d(4, 3, 1)),
        normal(2, 3, 3),
    ),
    "conv3d": read(
        lambda: nn.Conv3d(2, 2, 2, stride=(1, 2, 1), padding=(0, 1, 0), groups=2), normal(2, 2, 3, 2)
    ),
    "transposed conv1d": read(
        lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, output_padding=1, padding=1), normal(2, 3)
    ),
    "transposed conv2d": read(
        lambda: nn.ConvTranspose2d(4, 2, 2, stride=2, groups=2, bias=False), normal(4, 2, 2)
    ),
    "transposed conv2d dilated": read(
        lambda: nn.ConvTranspose2d(2, 3, 2, dilation=2, padding=1), normal(2, 2, 3)
    ),
    "transposed conv3d": read(lambda: nn.ConvTranspose3d(1, 2, 2, stride=(1, 2, 1)), normal(1, 2, 1, 2)),
    "channels last": Case(last_channel, channels_last),
    "own conv": read(
        lambda: Conv2d(2, 3, 2, stride=2, padding=1, scaling=Scaling(multiplier=0.6), bias=True),
        normal(2, 3, 3),
    ),
    "own cnn": Case(lambda: models.cnn(1, 2, 3, kernel=3, bias=True), normal(1, 6, 6)),
    "conv written out": Case(
        lambda: Net(own_convolution, w=matrix(3, 4), b=matrix(3, 1), out=nn.Linear(12, 2)), normal(1, 3, 3)
    ),
    "squeeze and excite": Case(
        lambda: Net(excited, a=nn.Conv2d(1, 3, 2), gate=nn.Linear(3, 3), out=nn.Linear(12, 1)),
        normal(1, 3, 3),
    ),
    "u shape": Case(
        lambda: Net(u_shaped, a=nn.Conv2d(1, 2, 1), down=nn.Conv2d(2, 2, 1), out=nn.Conv2d(4, 3, 2)),
        normal(1, 4, 4),
    ),
    "pixel shuffle": read(line(lambda: nn.Conv2d(1, 4, 1), lambda: nn.PixelShuffle(2)), normal(1, 2, 2)),
}

NORMS: dict[str, Case] = {
    "batch norm in eval": Case(
        lambda: nn.Sequential(
            nn.Linear(D, 3), statistics(nn.BatchNorm1d(3)), nn.Tanh(), nn.Linear(3, 1)
        ).eval()
    ),
    "batch norm of sequences": read(lambda: statistics(nn.BatchNorm1d(2)), normal(2, 3)),
    "batch norm of images": read(
        line(lambda: nn.Conv2d(1, 3, 2, bias=False), lambda: statistics(nn.BatchNorm2d(3)), nn.ReLU),
        normal(1, 3, 3),
    ),
    "layer norm": read(lambda: drawn(nn.LayerNorm(3)), normal(5, 3)),
    "layer norm over two axes": read(lambda: drawn(nn.LayerNorm([5, 3])), normal(5, 3)),
    "layer norm without bias": read(lambda: drawn(nn.LayerNorm(4, bias=False)), normal(4)),
    "rms norm": read(lambda: drawn(nn.RMSNorm(3)), normal(3, 3)),
    "group norm": read(lambda: drawn(nn.GroupNorm(2, 4)), normal(4, 3)),
    "instance norm": read(lambda: drawn(nn.InstanceNorm1d(2, affine=True)), normal(2, 5)),
    "instance norm of images": read(
        line(lambda: nn.Conv2d(1, 3, 2), lambda: drawn(nn.InstanceNorm2d(3, affine=True))), normal(1, 3, 3)
    ),
    "norms without parameters": read(
        line(
            lambda: nn.Conv1d(2, 4, 2),
            lambda: nn.GroupNorm(2, 4, affine=False),
            nn.Tanh,
            lambda: nn.Conv1d(4, 4, 1),
            lambda: nn.LayerNorm(3, elementwise_affine=False),
            nn.Tanh,
            lambda: nn.Conv1d(4, 2, 1),
            lambda: nn.BatchNorm1d(2, affine=False),
        ),
        normal(2, 4),
    ),
    "local response": read(
        line(lambda: nn.Conv2d(1, 3, 2), lambda: nn.LocalResponseNorm(2, alpha=0.5)), normal(1, 3, 3)
    ),
    "prelu": read(line(lambda: nn.Linear(D, 3), nn.PReLU), normal(D)),
    "prelu of channels": read(line(lambda: nn.Conv1d(1, 3, 2), lambda: drawn(nn.PReLU(3))), normal(1, 4)),
}

TOKENS: dict[str, Case] = {
    "embedding": read(lambda: nn.Embedding(5, 3), tokens(2, 5)),
    "embedding with padding": read(lambda: drawn(nn.Embedding(4, 3, padding_idx=1)), tokens(5, 4)),
    "embedding with sparse gradients": read(lambda: nn.Embedding(5, 3, sparse=True), tokens(2, 5)),
    "embedding scaled by frequency": read(lambda: nn.Embedding(3, 2, scale_grad_by_freq=True), tokens(4, 3)),
    "embedding of one token": read(lambda: nn.Embedding(5, 3), lambda n: torch.arange(n) % 3),
    "embedding bag": read(lambda: nn.EmbeddingBag(5, 3, mode="mean"), tokens(3, 5)),
    "embedding bag of largest": read(lambda: nn.EmbeddingBag(5, 3, mode="max"), tokens(3, 5)),
    "embedding bag with weights": Case(
        lambda: Net(bag, bag=nn.EmbeddingBag(5, 3, mode="sum"), out=nn.Linear(3, 2)), weighted_tokens
    ),
    "positions": Case(
        lambda: Net(positions, words=nn.Embedding(5, 2), places=nn.Embedding(4, 2), out=nn.Linear(6, 2)),
        tokens(3, 5),
    ),
    "positions per sample": Case(
        lambda: Net(
            positions_per_sample, words=nn.Embedding(5, 2), places=nn.Embedding(4, 2), out=nn.Linear(6, 2)
        ),
        tokens(3, 5),
    ),
}

RECURRENT: dict[str, Case] = {
    "rnn": Case(
        lambda: Net(last_state, cell=nn.RNN(2, 3, batch_first=True), out=nn.Linear(3, 2)), normal(3, 2)
    ),
    "lstm": Case(
        lambda: Net(
            last_state, cell=nn.LSTM(2, 3, batch_first=True, bidirectional=True), out=nn.Linear(6, 2)
        ),
        normal(3, 2),
    ),
    "lstm of two layers": Case(
        lambda: Net(last_state, cell=nn.LSTM(2, 3, num_layers=2, batch_first=True), out=nn.Linear(3, 1)),
        normal(3, 2),
    ),
    "gru, time first": Case(
        lambda: Net(last_state_time_first, cell=nn.GRU(2, 3), out=nn.Linear(3, 2)), normal(5, 2)
    ),
    "lstm cell in a loop": Case(
        lambda: Net(cell_by_cell, cell=nn.LSTMCell(2, 3), out=nn.Linear(3, 2)), normal(3, 2)
    ),
    "gru on packed sequences": Case(
        lambda: Net(packed, cell=nn.GRU(2, 3, batch_first=True), out=nn.Linear(3, 2)), of_length
    ),
    "fourier": Case(lambda: Net(fourier, w=matrix(3, 2), out=nn.Linear(4, 2))),
}

CASES: dict[str, Case] = {**LINEAR, **CONVOLUTIONS, **NORMS, **TOKENS, **RECURRENT}
