"""The identities: blocks of one step are the optimiser itself, a block without end is the explicit linear model."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from regimes import control, data, models, train
from regimes.core.jacobian import jacobian
from regimes.core.loss import cross_entropy
from regimes.core.tree import trainable
from regimes.study import Run
from regimes.study.field import Count, Index, Positive, Rows, Tick
from regimes.train.descent import order

__all__ = ["IdentityRun"]

_BATCH = 20
_MOMENTUM = {"momentum": 0.9, "linear": 0.9}


class IdentityRun(Run):
    """Two ways to the same parameters, in float64, on batches of the digits, a fully connected network.

    Attributes:
        kind: sgd and momentum: the engine with an anchor that is renewed at each step, against ``torch.optim`` on the
            network. adam and adamw: a loop with ``control.linearize`` and ``relinearize``, against the same. linear:
            the engine with an anchor that is never renewed, against the linear model of an explicit Jacobian.
        steps: of both.
        n: training images.
        lr: of both.
        seed: of the start.
    """

    columns: ClassVar[Mapping[str, Any]] = {"step": int, "status": str, "apart": float, "seconds": float}

    kind: Literal["sgd", "momentum", "adam", "adamw", "linear"] = "sgd"
    steps: Count = 100
    n: Count = 64
    lr: Positive = 0.05
    seed: Index = 0

    def cost(self) -> float:
        """Rough seconds."""
        return self.steps * 5e-3

    @classmethod
    def perform(cls, runs: Sequence[Run], data: Path | None, tick: Tick) -> Iterator[tuple[Run, Rows]]:
        """Both ways of each run; ``apart`` is the largest difference of a parameter at any step."""
        for run in cast("Sequence[IdentityRun]", runs):
            began = time.perf_counter()
            tick(f"identity: {run.kind}")
            first, second = run._ways()
            apart = max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))
            row = {"step": run.steps, "status": "finished", "apart": apart}
            yield run, [row | {"seconds": time.perf_counter() - began}]

    def _ways(self) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters after each step, both ways."""
        points = data.load("digits", train=self.n, test=10, flat=True).train
        network = models.mlp(points.x.shape[1], 16, 2, 10, seed=self.seed)
        batches = [self._batch(points.x, points.y, step) for step in range(self.steps)]
        if self.kind in ("adam", "adamw"):
            return self._loop(network, batches), self._loop(control.linearize(network), batches)
        engine = self._engine(network, points.x, points.y)
        if self.kind == "linear":
            return self._explicit(network, batches), engine
        return self._loop(network, batches), engine

    def _batch(self, x: Tensor, y: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step, as the engine draws it."""
        epoch = -(-self.n // _BATCH)
        place = step % epoch * _BATCH
        picked = order(self.seed, step // epoch, self.n)[place : place + _BATCH]
        return x[picked], y[picked]

    def _engine(self, network: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
        """By ``train.descent``, the anchor renewed at every step, or never."""
        states = train.descent(
            network,
            x,
            y,
            lr=self.lr,
            loss=cross_entropy,
            momentum=_MOMENTUM.get(self.kind, 0.0),
            batch_size=_BATCH,
            steps=self.steps,
            seed=self.seed,
            anchor=lambda step: self.kind != "linear",
        )
        return [_flat(state.parameters) for state in states][1:]

    def _loop(self, module: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """By an optimiser of torch; a linearised module is linearised anew before each step."""
        module = copy.deepcopy(module)
        moving = list(trainable(module).values())
        made: dict[str, Any] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        options = {} if self.kind in made else {"momentum": _MOMENTUM.get(self.kind, 0.0)}
        optimiser = made.get(self.kind, torch.optim.SGD)(moving, lr=self.lr, **options)
        found = []
        for x, y in batches:
            if isinstance(module, control.Linearized):
                module.relinearize()
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()
            optimiser.step()
            found.append(_flat(trainable(module)).clone())
        return found

    def _explicit(self, network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Descent with momentum on f(w0) + J (w - w0), with J written out."""
        start = {name: p.detach() for name, p in trainable(network).items()}
        w0 = _flat(start)
        w, v = w0.clone(), torch.zeros_like(w0)
        found = []
        for x, y in batches:
            rows = jacobian(network, start, x)
            j = torch.cat([rows[name].flatten(2) for name in start], 2)
            with torch.no_grad():
                outputs = network(x) + j @ (w - w0)
            slope = outputs.softmax(1) - nn.functional.one_hot(y, outputs.shape[1])
            v = _MOMENTUM["linear"] * v + torch.einsum("ncp,nc->p", j, slope) / len(x)
            w = w - self.lr * v
            found.append(w)
        return found


def _flat(tree: Mapping[str, Tensor]) -> Tensor:
    """One vector of all parameters."""
    return torch.cat([value.detach().flatten() for value in tree.values()])
