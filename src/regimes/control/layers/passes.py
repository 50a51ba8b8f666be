"""The passes of a module: when one begins, and whether its layers run in the order that was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from regimes.control.layers.order import Depths, outputs_of
from regimes.core.error import UserError

__all__ = ["Hook", "Passes", "refuse_watched"]


@final
class Hook:
    """A hook that does nothing in compiled code, in a copy of the module, or in one that was saved."""

    def __init__(self, call: Callable[..., Any] | None) -> None:
        self.call = call

    def __call__(self, *args: Any) -> Any:
        if not torch.compiler.is_compiling() and self.call is not None and torch.is_grad_enabled():
            return self.call(*args)
        return None

    def __deepcopy__(self, memo: Any) -> Hook:
        return Hook(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hook, (None,)


def refuse_watched(module: nn.Module) -> None:
    """Raise if a policy watches the module, or a part of it."""
    hooks = (hook for part in module.modules() for hook in part._forward_pre_hooks.values())
    if any(isinstance(hook, Hook) and hook.call for hook in hooks):
        raise UserError(
            "`module`: has a policy already, or a part of it has, that freezes layers; call its remove() first"
        )


@final
class Passes:
    """What is seen of the passes of a module, where gradients are on.

    Args:
        outer: the module that is called.
        module: the same without wrappers.
        found: its layers, and when they ran in the example.
        begin: called when a pass begins.
        end: called with the tensors among the outputs when one ends.
    """

    def __init__(
        self,
        outer: nn.Module,
        module: nn.Module,
        found: Depths,
        begin: Callable[[], None],
        end: Callable[[list[Tensor]], None],
    ) -> None:
        self._begin, self._end = begin, end
        self._running = False
        self._seen: list[str] = []
        modules = dict(module.named_modules())
        pairs = zip(found.layers, found.parameters, strict=True)
        owners = {name.rpartition(".")[0]: layer for layer, names in pairs for name in names}
        # Whatever owns no parameter of its own, as a container, runs with what it holds.
        owners = {owner: layer for owner, layer in owners.items() if owner in found.calls}
        self._order: dict[str, int] = {}
        for owner, layer in owners.items():
            self._order[layer] = min(self._order.get(layer, found.calls[owner]), found.calls[owner])
        self._handles = [
            outer.register_forward_pre_hook(Hook(self._pass)),
            outer.register_forward_hook(Hook(self._passed), always_call=True),
        ]
        for owner, layer in owners.items():
            hook = Hook(lambda *_, layer=layer: self._runs(layer))
            self._handles.append(modules[owner].register_forward_pre_hook(hook))

    def remove(self) -> None:
        """Look no longer."""
        for handle in self._handles:
            handle.remove()

    def _pass(self, *_: Any) -> None:
        self._seen, self._running = [], True
        self._begin()

    def _passed(self, module: nn.Module, args: Any, outputs: Any) -> None:
        self._running = False
        if outputs is not None:  # None where the pass ended with an error
            self._end(list(outputs_of(outputs)))

    def _runs(self, layer: str) -> None:
        """One of the layers begins to run."""
        if not self._running or layer in self._seen:
            return
        late = [each for each in self._seen if self._order[each] > self._order[layer]]
        if late:
            raise UserError(
                f"`module`: '{late[0]}' ran before '{layer}', and after it in `example`; make one layer of those whose "
                "order changes (`layers`), or give an example that takes the same way"
            )
        self._seen.append(layer)
