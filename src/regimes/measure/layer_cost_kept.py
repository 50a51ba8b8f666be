"""The bytes that a forward pass keeps for its backward pass, by the layers that move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from regimes.core.storage import address

__all__ = ["kept_by_layers"]


@final
class _Born(TorchDispatchMode):
    """Names the storages of a pass: the same ones in each pass, whatever moves.

    A storage is named by the module in whose call it was made, the operation, the shape, and how often that came there
    before. Where torch takes another operation because something else moves, as it does for products with three axes,
    only the names of that call differ.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.names: dict[int, tuple[Any, ...]] = {}
        self._counts: Counter[Any] = Counter()
        self._calls: list[tuple[str, int]] = []
        self._handles: list[Any] = []
        for name, each in module.named_modules():
            if not isinstance(each, torch.jit.ScriptModule):
                enter = each.register_forward_pre_hook(lambda *_, name=name: self._enter(name))
                leave = each.register_forward_hook(lambda *_: self._leave(), always_call=True)
                self._handles += [enter, leave]

    def remove(self) -> None:
        """Look at the calls of modules no longer."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, name: str) -> None:
        self._counts[name] += 1
        self._calls.append((name, self._counts[name]))

    def _leave(self) -> None:
        self._calls.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {address(each) for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)}
        results = func(*args, **kwargs)
        for place, each in enumerate(tree_iter(results)):
            if isinstance(each, Tensor) and address(each) not in given:
                key = (*self._calls[-1:], func, place, each.shape)
                self._counts[key] += 1
                self.names[address(each)] = (*key, self._counts[key])
        return results


def kept_by_layers(
    module: nn.Module, layers: Sequence[Sequence[Tensor]], run: Callable[[], Tensor]
) -> dict[frozenset[int], float]:
    """Bytes that are kept, each with the layers any one of which keeps it where it moves.

    An activation is kept if something needs it: the gradient of a weight that moves, or a gradient on its way down to
    one. So what some layers keep is the union of what each of them keeps alone: one pass for each layer. Counted are
    storages, each once, seen by hooks on saved tensors, and of inputs and targets their own bytes; parameters and
    buffers are there in any case.

    Args:
        module: whose parameters and buffers do not count.
        layers: the parameters of each.
        run: a forward pass, to the loss.
    """
    own = {address(each) for each in (*module.parameters(), *module.buffers())}
    keepers: dict[tuple[Any, ...], set[int]] = {}
    sizes: dict[tuple[Any, ...], int] = {}
    for place in range(len(layers)):
        for other, parameters in enumerate(layers):
            for p in parameters:
                p.requires_grad_(other == place)
        state = torch.get_rng_state()
        for name, size in _kept(module, own, run).items():
            keepers.setdefault(name, set()).add(place)
            sizes[name] = size
        torch.set_rng_state(state)
    terms: dict[frozenset[int], float] = {}
    for name, places in keepers.items():
        key = frozenset(places)
        terms[key] = terms.get(key, 0.0) + sizes[name]
    return terms


def _kept(module: nn.Module, own: set[int], run: Callable[[], Tensor]) -> dict[tuple[Any, ...], int]:
    """The storages that a pass keeps, by name, with their bytes."""
    born = _Born(module)
    held: dict[tuple[Any, ...], Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = address(tensor)
        if place not in own:
            held[born.names.get(place, ("given", place))] = tensor
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), born:
            loss = run()
    finally:
        born.remove()
    del loss
    # A batch may be a part of all data, which are not kept for its sake.
    return {
        name: tensor.nbytes if name[0] == "given" else tensor.untyped_storage().nbytes()
        for name, tensor in held.items()
    }
