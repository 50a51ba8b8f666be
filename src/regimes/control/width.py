r"""The laws of width: how multiplier, start and learning rate of each layer depend on its fan-in.

Four values of one class. With fan-in n, d inputs and h = width, a layer computes z = multiplier * W x:

=============  ===========================  =======================  ================================
law            multiplier                   standard deviation       rate (of the learning rate)
=============  ===========================  =======================  ================================
NTK            n^-1/2                       1                        1
standard       1                            n^-1/2                   1
mean-field     n^-1/2; last layer n^-1      1                        h
muP            1                            n^-1/2; last layer n^-1  input h/d; hidden 1; last 1/h
=============  ===========================  =======================  ================================

Under gradient flow, mean-field and muP are one and the same in function space, and both equal NTK at
:math:`\alpha \to \alpha / \sqrt{h}`: the feature-learning limit of Geiger et al. 2020 (section 2) is
:math:`\alpha = O(h^{-1/2})` under NTK, and alpha = O(1) under mean-field and muP. Sources: Jacot et al. 2018 (NTK);
Mei et al. 2018, Chizat and Bach 2018 (mean-field); Yang and Hu 2021 (muP).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from torch import nn

from regimes.core.check import checked
from regimes.core.error import UserError, nearest
from regimes.core.layer import Conv2d, Linear, Scaling
from regimes.core.tree import trainable

__all__ = ["LAWS", "MEAN_FIELD", "MUP", "NTK", "STANDARD", "Law", "Role", "law", "rates", "table"]

Role = Literal["input", "hidden", "output"]


@checked
@dataclass(frozen=True)
class Law:
    """A law of width: powers of the fan-in for the hidden layers, further powers of h for the ends.

    Attributes:
        name: "ntk", "standard", "mean-field" or "mup".
        in_weights: whether the factor n^-1/2 sits in the start of the weights (else in the multiplier).
        output_power: the further power of h that multiplies the output layer: 0 or -1/2.
        fast: whether features move at every width: the rate that keeps the kernel of order one.
        alpha_star: how the crossover of Geiger et al. scales under this law, alpha* ~ h^alpha_star (derived).
    """

    name: str
    in_weights: bool
    output_power: float
    fast: bool
    alpha_star: float

    def __post_init__(self) -> None:
        for name in ("output_power", "alpha_star"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"`{name}`: got {getattr(self, name)}, expected a finite power of the width")

    def scaling(self, role: Role, fan_in: int, width: int) -> Scaling:
        """Multiplier, standard deviation and rate of a layer with this role, fan-in n and width h."""
        size = fan_in**-0.5 * (width**self.output_power if role == "output" else 1.0)
        speed = float(width) if self.fast else 1.0
        bias_speed = 1.0 if role == "output" else speed
        if not self.in_weights:
            return Scaling(multiplier=size, std=1.0, rate=speed, bias_rate=bias_speed)
        # With the factor inside, W = size * W', a gradient step on W' is one of size^2 on W; the standard law
        # leaves the rate at 1 and so trains faster as the network grows.
        return Scaling(1.0, std=size, rate=speed * size**2 if self.fast else 1.0, bias_rate=bias_speed)


NTK = Law("ntk", in_weights=False, output_power=0.0, fast=False, alpha_star=-0.5)
STANDARD = Law("standard", in_weights=True, output_power=0.0, fast=False, alpha_star=-0.5)
MEAN_FIELD = Law("mean-field", in_weights=False, output_power=-0.5, fast=True, alpha_star=0.0)
MUP = Law("mup", in_weights=True, output_power=-0.5, fast=True, alpha_star=0.0)
LAWS: Mapping[str, Law] = MappingProxyType({each.name: each for each in (NTK, STANDARD, MEAN_FIELD, MUP)})


@checked
def law(name: str) -> Law:
    """The law of that name.

    Raises:
        UserError: if there is none.
    """
    if name not in LAWS:
        raise UserError(f"`name`: got '{name}', expected one of {', '.join(LAWS)}{nearest(name, LAWS)}")
    return LAWS[name]


@checked
def table(module: nn.Module) -> dict[str, Scaling]:
    """The side table of a module: name of each layer that carries a scaling -> its scaling."""
    layers = ((name, layer) for name, layer in module.named_modules() if isinstance(layer, Linear | Conv2d))
    return {name: layer.scaling for name, layer in layers}


@checked
def rates(module: nn.Module) -> dict[str, float]:
    """The factor on the learning rate of each parameter that requires grad, by name (1 where no law says else).

    >>> from regimes import models
    >>> rates(models.mlp(4, width=16, depth=2, law=MUP))
    {'0.weight': 4.0, '2.weight': 1.0, '4.weight': 0.0625}
    """
    scalings = table(module)
    found: dict[str, float] = {}
    for name in trainable(module):
        owner, _, kind = name.rpartition(".")
        scaling = scalings.get(owner, Scaling())
        found[name] = scaling.bias_rate if kind == "bias" else scaling.rate
    return found
