"""The seconds of a step by its parts: operations one by one for the structure, whole steps for the level."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regimes.control.layers.order import Depths, upwards
from regimes.core.batch import Inputs, feed
from regimes.core.error import UserError
from regimes.measure.layer_cost_terms import bounded_fit, fitted

__all__ = ["Loop", "StepTimes", "optimizer_copy", "step_times"]

# Whole steps are measured down to so many depths, evenly spread, and for the lowest layer alone.
_DEPTHS = 7


@dataclass(frozen=True, eq=False)
class Loop:
    """What is run.

    Attributes:
        module: without wrappers.
        found: its layers, and when their modules run.
        batches: inputs and targets.
        loss: from outputs and targets to a number.
        optimizer: a copy that moves copies of the parameters, and these by the identity of the parameter; or None.
        clock: seconds.
    """

    module: nn.Module
    found: Depths
    batches: Sequence[tuple[Inputs, Any]]
    loss: Callable[[Any, Any], Tensor]
    optimizer: tuple[Optimizer, dict[int, Tensor]] | None
    clock: Callable[[], float]

    @property
    def layers(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer."""
        own = dict(self.module.named_parameters())
        return [[own[name] for name in names] for names in self.found.parameters]

    def now(self) -> float:
        """The clock, when the device has done all that it was told."""
        device = next(self.module.parameters()).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return self.clock()

    def move(self, moving: Sequence[int] | frozenset[int]) -> None:
        """Set these layers free and freeze the others; no gradients."""
        for place, layer in enumerate(self.layers):
            for p in layer:
                p.requires_grad_(place in moving)
                p.grad = None

    def forward(self, batch: int) -> Tensor:
        """The loss of a batch."""
        x, y = self.batches[batch % len(self.batches)]
        return self.loss(feed(self.module, x), y)


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a step.

    Attributes:
        forward: of the forward pass where nothing is kept.
        keeping: seconds for each byte that is kept.
        by_layer: the forward pass by layers, from where one begins to run until another does.
        backward: by terms (:mod:`regimes.measure.layer_cost_terms`).
        optimizer: of a step without parameters.
        moving: of the optimiser, for each layer.
    """

    forward: float
    keeping: float
    by_layer: tuple[float, ...]
    backward: dict[frozenset[int], float]
    optimizer: float
    moving: tuple[float, ...]


def step_times(loop: Loop, kept: Callable[[frozenset[int]], float], rounds: int) -> StepTimes:
    """Measure, in so many rounds after one that warms up, each of which goes through all there is; medians over rounds.

    Args:
        loop: what is run.
        kept: bytes kept by sets of layers.
        rounds: how many.
    """
    n = len(loop.layers)
    depths = sorted({round(k * (n - 1) / (_DEPTHS - 1)) for k in range(_DEPTHS)})
    sets = [*(frozenset(range(depth, n)) for depth in depths), frozenset({0})]
    whole: list[list[tuple[float, float, float]]] = [[] for _ in sets]
    nodes: list[dict[frozenset[int], tuple[float, int]]] = []
    segments: list[list[float]] = []
    for turn in range(rounds + 1):
        steps = [_step(loop, moving, turn) for moving in sets]
        seen, parts = _nodes(loop, turn)
        if turn:
            for kind, step in zip(whole, steps, strict=True):
                kind.append(step)
            nodes.append(seen)
            segments.append(parts)
    median = [[statistics.median(each) for each in zip(*kind, strict=True)] for kind in whole]
    forward, backward, step = ([row[part] for row in median] for part in range(3))
    level, keeping = _weighted([[1.0, kept(moving)] for moving in sets], forward)
    numel = [(len(layer), sum(p.numel() for p in layer)) for layer in loop.layers]
    each = [[1.0, *(sum(numel[place][i] for place in moving) for i in (0, 1))] for moving in sets]
    base, tensors, numbers = _weighted(each, step)
    counts = {key: float(count) for key, (_, count) in nodes[0].items()}
    seconds = {key: statistics.median(seen[key][0] for seen in nodes) for key in counts}
    typical = [statistics.median(part) for part in zip(*segments, strict=True)]
    share = level / (sum(typical) or 1.0)
    return StepTimes(
        level,
        keeping,
        tuple(share * part for part in typical),
        fitted(seconds, counts, sets, backward),
        base,
        tuple(tensors * count + numbers * size for count, size in numel),
    )


def _weighted(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Coefficients of 0 or more with the least relative errors."""
    y = [max(each, 1e-12) for each in seconds]
    scaled = [[value / each for value in row] for row, each in zip(rows, y, strict=True)]
    return [
        float(each) for each in bounded_fit(scaled, [s / each for s, each in zip(seconds, y, strict=True)])
    ]


def _step(loop: Loop, moving: frozenset[int], turn: int) -> tuple[float, float, float]:
    """Seconds of forward pass, backward pass and optimiser, where these layers move."""
    loop.move(moving)
    began = loop.now()
    loss = loop.forward(turn)
    forward = loop.now()
    loss.backward()
    backward = loop.now()
    if loop.optimizer is None:
        return forward - began, backward - forward, 0.0
    optimizer, copies = loop.optimizer
    for layer in loop.layers:
        for p in layer:
            copies[id(p)].grad = p.grad
    before = loop.now()
    optimizer.step()
    return forward - began, backward - forward, loop.now() - before


def optimizer_copy(optimizer: Optimizer, module: nn.Module) -> tuple[Optimizer, dict[int, Tensor]]:
    """An optimiser like this one, which moves copies of the parameters and has stepped once.

    Raises:
        UserError: if it does not step without a closure.
    """
    found = copy.deepcopy(optimizer)
    copies = {
        id(p): twin
        for group, theirs in zip(optimizer.param_groups, found.param_groups, strict=True)
        for p, twin in zip(group["params"], theirs["params"], strict=True)
    }
    for twin in copies.values():
        twin.grad = torch.zeros_like(twin)
    missing = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in copies]
    if missing:
        raise UserError(
            f"`optimizer`: does not hold '{missing[0]}', which may move; make it of all that may move "
            "(module.parameters()), or freeze that"
        )
    try:
        found.step()
    except TypeError as error:
        raise UserError(
            f"`optimizer`: {type(optimizer).__name__} does not step without a closure ({error}); take one that does, "
            "such as SGD or AdamW"
        ) from error
    return found, copies


def _nodes(loop: Loop, turn: int) -> tuple[dict[frozenset[int], tuple[float, int]], list[float]]:
    """Seconds and number of the nodes of a backward pass by terms; seconds of the forward pass by layers.

    A node runs if anything below it moves. One whose inputs depend on different layers, such as a product with a
    weight, does what is asked of it for each of them: it is timed with all layers asked for, and with one alone that
    part of its inputs depends on; the difference is paid for the rest.
    """
    every = range(len(loop.layers))
    loop.move(every)
    with _watched(loop) as events:
        loss = loop.forward(turn)
        events.append((-1, loop.now()))
    inputs = _inputs(loss, loop.layers)
    took = {place: _timed(loop, place, turn) for place in {None, *_probes(inputs)}}
    terms: dict[frozenset[int], tuple[float, int]] = {}

    def add(key: frozenset[int], seconds: float, count: int) -> None:
        before = terms.get(key, (0.0, 0))
        terms[key] = (before[0] + max(seconds, 0.0), before[1] + count)

    for index, each in enumerate(inputs):
        seconds, union = took[None].get(index, 0.0), frozenset[int]().union(*each)
        if not union:
            continue
        place = next((place for place in took if place is not None and _splits(each, place)), None)
        if place is None:
            add(union, seconds, 1)
            continue
        part = min(took[place].get(index, 0.0), seconds)
        add(frozenset[int]().union(*(one for one in each if place in one)), part, 1)
        add(frozenset[int]().union(*(one for one in each if place not in one)), seconds - part, 0)
    return terms, _segments(events, len(loop.layers))


def _splits(inputs: Sequence[frozenset[int]], place: int) -> bool:
    """Whether some inputs depend on a layer, and some that depend on layers do not depend on it."""
    return len({place in each for each in inputs if each}) == 2


def _probes(inputs: Sequence[Sequence[frozenset[int]]]) -> list[int]:
    """Few layers by which the inputs of all nodes are split that can be."""
    kinds = {frozenset(each) for each in inputs if len({one for one in each if one}) > 1}
    found: list[int] = []
    while kinds:
        places = sorted(frozenset[int]().union(*(one for each in kinds for one in each)))
        best = max(places, key=lambda place: sum(_splits([*each], place) for each in kinds))
        found.append(best)
        kinds = {each for each in kinds if not _splits([*each], best)}
    return found


def _inputs(loss: Tensor, layers: Sequence[Sequence[Tensor]]) -> list[list[frozenset[int]]]:
    """For each node of a graph the layers that each of its inputs depends on; that of a parameter has one, its own."""
    places = {id(p): place for place, layer in enumerate(layers) for p in layer}
    parts: dict[Any, frozenset[int]] = {}
    found: list[list[frozenset[int]]] = []
    for node in upwards([loss.grad_fn]):
        following = [each for each, _ in node.next_functions if each is not None]
        place = places.get(id(getattr(node, "variable", None)))
        own = [] if place is None else [frozenset({place})]
        found.append([parts[each] for each in following] or own)
        parts[node] = frozenset[int]().union(*found[-1])
    return found


def _timed(loop: Loop, place: int | None, turn: int) -> dict[int, float]:
    """Seconds of each node that runs, where one layer is asked for, or all of them; by its number in the graph."""
    layers = loop.layers
    loss = loop.forward(turn)
    began: dict[int, float] = {}
    took: dict[int, float] = {}

    def begin(index: int) -> None:
        began[index] = loop.now()

    def end(index: int) -> None:
        took[index] = loop.now() - began[index]

    for index, node in enumerate(upwards([loss.grad_fn])):
        if node.next_functions:  # that of a parameter is not run here
            node.register_prehook(lambda *_, index=index: begin(index))
            node.register_hook(lambda *_, index=index: end(index))
    wanted = [p for layer in (layers if place is None else [layers[place]]) for p in layer]
    torch.autograd.grad(loss, wanted, allow_unused=True)
    return took


@contextmanager
def _watched(loop: Loop) -> Iterator[list[tuple[int, float]]]:
    """When which layer began to run, in the order of time."""
    events: list[tuple[int, float]] = []
    modules = dict(loop.module.named_modules())
    handles = []
    for place, (layer, names) in enumerate(zip(loop.found.layers, loop.found.parameters, strict=True)):
        for owner in {layer, *(name.rpartition(".")[0] for name in names)} & loop.found.calls.keys() - {""}:

            def note(*_: object, place: int = place) -> None:
                events.append((place, loop.now()))

            handles.append(modules[owner].register_forward_pre_hook(note))
    events.append((0, loop.now()))
    try:
        yield events
    finally:
        for handle in handles:
            handle.remove()


def _segments(events: Sequence[tuple[int, float]], n: int) -> list[float]:
    """Seconds from where a layer begins until another does; what comes before all of them belongs to the first."""
    seconds = [0.0] * n
    first = next((place for place, _ in events[1:] if place >= 0), 0)
    for index, ((place, began), (_, ended)) in enumerate(pairwise(events)):
        seconds[place if index else first] += ended - began
    return seconds
