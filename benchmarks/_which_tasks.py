"""Source networks and target samples of ``which_layers.py``: eight shifts of images and text."""

from __future__ import annotations

import copy
import functools
import pydoc_data.topics
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes import data
from regimes.core.stream import generator

__all__ = ["SHIFTS", "Task", "task"]

LETTERS = string.ascii_lowercase + " .,_()'=:"
CONTEXT, SOURCE, TEST = 12, 16000, 2000


@dataclass(frozen=True, eq=False)
class Task:
    """A trained network, and samples of another kind to train it on and to test it on."""

    network: nn.Module
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


@dataclass(frozen=True, eq=False)
class Pool:
    """Samples of one kind: those a source network is trained on, those to draw targets from, and a test set."""

    source: tuple[Tensor, Tensor]
    target: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class Block(nn.Module):
    """Attention to what came before, and two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        """(n, letters, width) to the same."""
        q, k, v = self.attend(self.first(h)).chunk(3, dim=-1)
        h = h + self.mix(torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1) @ v)
        return h + self.down(functional.relu(self.up(self.second(h))))


class Reader(nn.Module):
    """The next letter from those before: a transformer of two blocks."""

    def __init__(self, letters: int, width: int = 32) -> None:
        super().__init__()
        self.letters = nn.Embedding(letters, width)
        self.places = nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, letters)

    def forward(self, text: Tensor) -> Tensor:
        """(n, CONTEXT) indices to (n, letters)."""
        h = self.letters(text) + self.places(torch.arange(CONTEXT, device=text.device))
        return self.head(self.blocks(h)[:, -1])


class Patches(nn.Module):
    """Squares of side k of (n, h, w, c), as (n, h / k, w / k, k k c): a linear layer on them is a convolution."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        """Cut."""
        n, h, w, c = x.shape
        k = self.k
        return x.reshape(n, h // k, k, w // k, k, c).transpose(2, 3).reshape(n, h // k, w // k, k * k * c)


class Last(nn.Module):
    """Channels last."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to (n, h, w, c)."""
        return x.permute(0, 2, 3, 1)


def convolutions(channels: int) -> nn.Sequential:
    """Three convolutions whose stride is their size, and two linear layers; for images of 16 x 16."""
    return nn.Sequential(
        *(Last(), Patches(4), nn.Linear(16 * channels, 48), nn.ReLU()),
        *(nn.Linear(48, 48), nn.ReLU()),
        *(Patches(2), nn.Linear(4 * 48, 64), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(4 * 64, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


@functools.cache
def images(name: str, size: int) -> Pool:
    """Images of a data set, (n, c, size, size) in float32."""
    found = data.load(name, train=SOURCE + 4000, test=TEST, size=size, dtype=torch.float32)
    x, y = found.train.x, found.train.y
    return Pool((x[:SOURCE], y[:SOURCE]), (x[SOURCE:], y[SOURCE:]), (found.test.x, found.test.y))


@functools.cache
def texts(kind: str) -> Pool:
    """Pieces of text and the letter that follows: the manual of Python in English, or its library as code."""
    if kind == "english":
        text = "\n".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
    else:
        folder = Path(functools.__file__).parent
        names = (
            "argparse",
            "ast",
            "bdb",
            "calendar",
            "cmd",
            "codecs",
            "configparser",
            "csv",
            "difflib",
            "enum",
        )
        text = "\n".join((folder / f"{name}.py").read_text() for name in names)
    index = {letter: place for place, letter in enumerate(LETTERS)}
    text = re.sub(r"\s+", " ", text.lower())
    numbers = torch.tensor([index[letter] for letter in text if letter in index])
    places = torch.randperm(len(numbers) - CONTEXT, generator=generator(0, "texts", kind))
    x = numbers.unfold(0, CONTEXT + 1, 1)[places[: 24000 + 4000 + TEST]]
    parts = [(part[:, :-1], part[:, -1]) for part in x.split([24000, 4000, TEST])]
    return Pool(*parts)


@functools.cache
def trained(kind: str, seed: int) -> Reader | nn.Sequential:
    """A source network."""
    torch.manual_seed(seed)
    if kind == "text":
        network, (x, y), epochs = Reader(len(LETTERS)), texts("english").source, 4
    elif kind == "mnist":
        network, (x, y), epochs = convolutions(1), images("mnist", 16).source, 2
    else:
        network, (x, y), epochs = convolutions(3), images("cifar-10", 16).source, 8
        if kind == "five":
            x, y = x[y < 5], y[y < 5]
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    steps = epochs * (len(x) // 100)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draws = generator(seed, "source", kind)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=draws).split(100)[: len(x) // 100]:
            optimizer.zero_grad()
            functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def noise(x: Tensor, stream: torch.Generator) -> Tensor:
    """White noise, one and a half times as strong as the image."""
    return x + 1.5 * torch.randn(x.shape, generator=stream)


def blur(x: Tensor, _: torch.Generator) -> Tensor:
    """The mean of 5 x 5 pixels."""
    return functional.avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=False)


def inverted(x: Tensor, _: torch.Generator) -> Tensor:
    """The negative."""
    return -x


def colours(x: Tensor, _: torch.Generator) -> Tensor:
    """Red for green, green for blue, blue for red."""
    return x.roll(1, dims=1)


Shift = Callable[[Tensor, torch.Generator], Tensor]
INPUTS: dict[str, Shift] = {"noise": noise, "blur": blur, "inversion": inverted, "colours": colours}
SHIFTS = (*INPUTS, "permuted labels", "new classes", "another data set", "another text")


def task(shift: str, samples: int, seed: int) -> Task:
    """The network of a seed, and so many target samples, drawn with it."""
    kind = {"new classes": "five", "another data set": "mnist", "another text": "text"}.get(shift, "ten")
    if kind == "text":
        pool = texts("code")
    else:
        pool = images("fashion-mnist", 16) if kind == "mnist" else images("cifar-10", 16)
    stream = generator(seed, "target", shift, samples)
    (x, y), (x_test, y_test) = pool.target, pool.test
    if shift == "new classes":
        (x, y), (x_test, y_test) = ((a[b > 4], b[b > 4] - 5) for a, b in ((x, y), (x_test, y_test)))
    chosen = torch.randperm(len(x), generator=stream)[:samples]
    x, y = x[chosen], y[chosen]
    if shift in INPUTS:
        x, x_test = (INPUTS[shift](part, stream) for part in (x, x_test))
    if shift == "permuted labels":
        y, y_test = (y + 1) % 10, (y_test + 1) % 10
    network = copy.deepcopy(trained(kind, seed))
    if isinstance(network, nn.Sequential) and kind != "ten":  # other classes: a head of their own
        torch.manual_seed(seed)
        network[-1] = nn.Linear(64, 5 if kind == "five" else 10)
    return Task(network, x, y, x_test, y_test)
