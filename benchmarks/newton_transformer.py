"""Gauss-Newton on a character transformer at a large batch: outer steps against tuned AdamW and Muon.

    python benchmarks/newton_transformer.py [--threads N] [--steps T ...] [--newton-steps S] [--batch B] [--products P]

**Text.** The sources of Python's standard library, as they are installed with the interpreter (free under the PSF
licence): all ``*.py`` of its top folder, in alphabetical order; 95 printable characters, a line end, and one for all
others. The last tenth is held out.

**Network.** Two pre-norm blocks of width 64 with 4 heads, 32 tokens, learnt positions: 0.11 million parameters. A batch
is 128 sequences, 4096 predictions; the loss is their mean cross-entropy. ``train.GaussNewton`` takes the outputs
(n, tokens, characters) as they are.

**Runs.** AdamW, and Muon for the matrices of the blocks beside AdamW with a third of its rate for all else: T steps,
three rates a factor of 3 apart, for each T; a tenth of the steps of warm-up and a linear end.
Gauss-Newton: conjugate gradients with at most P products, line search and damping by the next batch. All see the same
sequence of batches. The loss is that of 512 held-out sequences, evaluated outside of the clock.

**Figures.** For each T, at the final loss of the best first-order run and two losses on its way, the steps that the
best run of each needs, with seconds. Goal: Gauss-Newton takes at most half the steps of the best first-order run to its
final loss. Its batch for the line search is the next one that it solves, so that it sees as much data as the others.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes import study, train
from regimes.core.loss import cross_entropy

LETTERS = "\n" + "".join(map(chr, range(32, 127)))
TOKENS, WIDTH, HEADS, DEPTH = 32, 64, 4, 2
RATES = {"AdamW": (1e-2, 3e-2, 1e-1), "Muon": (3e-2, 1e-1, 3e-1)}


class Block(nn.Module):
    """Attention to what came before, and a layer of four times the width; norms in front."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.into, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) to the same."""
        heads = self.into(self.first(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.second(x))))


class Transformer(nn.Module):
    """From characters (n, tokens) to logits of the next ones (n, tokens, characters)."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(LETTERS) + 1, WIDTH)
        self.places = nn.Parameter(torch.randn(TOKENS, WIDTH) / 10)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.read = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(LETTERS) + 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.read(self.norm(self.blocks(self.letters(x) + self.places)))


class Muon(torch.optim.Optimizer):
    """Momentum whose singular values are set to about 1 by five steps of Newton and Schulz (Jordan et al. 2024)."""

    def __init__(self, matrices: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One step, with Nesterov's momentum; wide and tall matrices by the root of their longer side."""
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                velocity = (
                    state.setdefault("velocity", torch.zeros_like(p)).mul_(group["momentum"]).add_(p.grad)
                )
                x = p.grad + group["momentum"] * velocity
                turned = len(x) > x.shape[1]
                x = x.T if turned else x
                x = x / (x.norm() + 1e-7)
                for _ in range(5):
                    a = x @ x.T
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                x = x.T if turned else x
                p.add_(x, alpha=-group["lr"] * max(1.0, len(x) / x.shape[1]) ** 0.5)


@dataclass(frozen=True)
class Point:
    """The held-out loss after so many steps and seconds."""

    step: int
    seconds: float
    loss: float


def text() -> Tensor:
    """The library as indices."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    whole = "".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.py")))
    known = {letter: i for i, letter in enumerate(LETTERS)}
    return torch.tensor([known.get(letter, len(LETTERS)) for letter in whole])


def sequences(letters: Tensor, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n sequences and what follows each of their characters."""
    starts = torch.randint(len(letters) - TOKENS - 1, (n, 1), generator=torch.Generator().manual_seed(seed))
    places = starts + torch.arange(TOKENS)
    return letters[places], letters[places + 1]


def batches(letters: Tensor, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The same sequence of batches for every run."""
    return (sequences(letters, n, seed) for seed in itertools.count(1))


def followed(
    network: nn.Module, step: Callable[[], None], steps: int, held: tuple[Tensor, Tensor], every: int
) -> list[Point]:
    """The losses on the way; the clock stands while they are computed."""

    @torch.no_grad()
    def loss() -> float:
        return float(functional.cross_entropy(network(held[0]).flatten(0, 1), held[1].flatten()))

    points, seconds = [Point(0, 0.0, loss())], 0.0
    for count in range(1, steps + 1):
        began = time.perf_counter()
        step()
        seconds += time.perf_counter() - began
        if count % every == 0 or count == steps:
            points.append(Point(count, seconds, loss()))
    return points


def first_order(
    network: nn.Module, name: str, rate: float, steps: int, data: Iterator[tuple[Tensor, Tensor]]
) -> Callable[[], None]:
    """A step of AdamW, or of Muon beside it; warm-up, then a linear fall."""
    matrices = [p for name, p in network.named_parameters() if p.dim() == 2 and name.startswith("blocks")]
    own = {id(p) for p in matrices} if name == "Muon" else set()
    others = [p for p in network.parameters() if id(p) not in own]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, lr=rate if not own else rate / 3)]
    optimizers += [Muon(matrices, rate)] if own else []

    def factor(step: int) -> float:
        return min(1.0, 10 * (step + 1) / steps) * (1 - step / steps)

    schedules = [torch.optim.lr_scheduler.LambdaLR(each, factor) for each in optimizers]

    def step() -> None:
        x, y = next(data)
        network.zero_grad()
        functional.cross_entropy(network(x).flatten(0, 1), y.flatten()).backward()
        for each in (*optimizers, *schedules):
            each.step()

    return step


def newton(
    network: nn.Module, products: int, damping: float, data: Iterator[tuple[Tensor, Tensor]]
) -> Callable[[], None]:
    """A step of Gauss-Newton; the next batch judges."""
    optimizer = train.GaussNewton(
        network, loss=cross_entropy, kernel="products", damping=damping, tolerance=1e-2, max_products=products
    )
    now = [next(data)]

    def step() -> None:
        other = next(data)
        record = optimizer.step(*now[0], check=other)
        now[0] = other
        print(
            f"    lambda {record.damping:.2e}  length {record.length:.3f}  ratio {record.ratio:.2f}  "
            f"{record.products} products, residual {record.residual:.2f}",
            flush=True,
        )

    return step


def reached(points: list[Point], loss: float) -> Point | None:
    """The first point at that loss."""
    return next((point for point in points if point.loss <= loss), None)


def main() -> None:
    """Print the best run of each, and the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, nargs="+", default=[24, 60])
    parser.add_argument("--newton-steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--products", type=int, default=40)
    parser.add_argument("--runs", nargs="+", default=[*RATES, "Gauss-Newton"])
    parser.add_argument("--damping", type=float, default=1e-2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    study.keep_memory()
    letters = text()
    cut = len(letters) * 9 // 10
    held = sequences(letters[cut:], 512, 0)
    torch.manual_seed(0)
    start = Transformer()
    count = sum(p.numel() for p in start.parameters())
    print(
        f"{len(letters)} characters, {count} parameters, {chosen.batch} x {TOKENS} tokens, {chosen.threads} threads"
    )
    runs: dict[str, list[Point]] = {}
    steps: int
    for name, steps, rate in [
        (n, t, r) for n in RATES if n in chosen.runs for t in chosen.steps for r in RATES[n]
    ]:
        network = copy.deepcopy(start)
        step = first_order(network, name, rate, steps, batches(letters[:cut], chosen.batch))
        found = followed(network, step, steps, held, 2)
        print(
            f"{name} {rate:g}, {steps} steps: {found[-1].loss:.4f} in {found[-1].seconds:.0f} s",
            flush=True,
        )
        key = f"{name}, {steps}"
        if not math.isnan(found[-1].loss) and (key not in runs or found[-1].loss < runs[key][-1].loss):
            runs[key] = found
    if "Gauss-Newton" in chosen.runs:
        network = copy.deepcopy(start)
        step = newton(network, chosen.products, chosen.damping, batches(letters[:cut], chosen.batch))
        found = runs["Gauss-Newton"] = followed(network, step, chosen.newton_steps, held, 1)
        print("Gauss-Newton: " + " ".join(f"{point.loss:.3f}" for point in found))
    for steps in chosen.steps:
        report({name: points for name, points in runs.items() if name.endswith((f", {steps}", "Newton"))})


def report(runs: dict[str, list[Point]]) -> None:
    """A line for each loss: steps and seconds."""
    best = min(list(runs.values())[:2], key=lambda points: points[-1].loss)
    print("\n| held-out loss | " + " | ".join(runs) + " |\n|" + "---|" * (len(runs) + 1))
    for share in (0.5, 0.75, 1.0):
        loss = best[round(share * (len(best) - 1))].loss
        found = [reached(points, loss) for points in runs.values()]
        cells = ["not reached" if p is None else f"{p.step} steps, {p.seconds:.0f} s" for p in found]
        print(f"| {loss:.3f} | " + " | ".join(cells) + " |")
    ends = [
        f"{points[-1].loss:.3f} after {points[-1].step}, {points[-1].seconds:.0f} s"
        for points in runs.values()
    ]
    print("| at the end | " + " | ".join(ends) + " |")


if __name__ == "__main__":
    main()
