"""Surveys that were made before: a network that is looked at again and again is looked through once.

What a survey says is held against every tile that is computed by it (``Builder``, ``watch.py``): a network that has
changed in a way that its signature does not show is found out there.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from regimes.core.batch import Inputs, tensors
from regimes.measure.kernel.confirm import Survey, survey
from regimes.measure.kernel.network import Network

__all__ = ["forget", "known"]

# The last survey of each module, with the signature it was made for.
_SURVEYS: WeakKeyDictionary[nn.Module, tuple[Any, Survey]] = WeakKeyDictionary()


def known(network: Network, probe: Inputs) -> Survey:
    """The survey of a network, made now or before."""
    signature = _signature(network, probe)
    last = _SURVEYS.get(network.module)
    if last is None or last[0] != signature:
        last = (signature, survey(network, probe))
        _SURVEYS[network.module] = last
    return last[1]


def forget(network: Network) -> None:
    """Look anew the next time: the network does not do what its survey says."""
    _SURVEYS.pop(network.module, None)


def _signature(network: Network, probe: Inputs) -> Any:
    """What decides how a network uses its parameters, as far as can be told without running it.

    Nothing in it may hold on to the module, or it would never be let go.
    """
    parts = [
        (
            name,
            type(sub).forward,
            id(vars(sub).get("forward")),
            sub.training,
            tuple(map(id, sub._forward_hooks.values())),
            tuple(map(id, sub._forward_pre_hooks.values())),
            tuple((key, id(p)) for key, p in sub._parameters.items()),
        )
        for name, sub in network.module.named_modules()
    ]
    values = tuple((name, value.shape, value.dtype, value.device) for name, value in network.values.items())
    inputs = tuple((label, x.shape[1:], x.dtype, x.device) for label, x in tensors(probe).items())
    output = id(network.output), getattr(network.output, "__code__", None)
    return network.trained, output, values, inputs, parts
