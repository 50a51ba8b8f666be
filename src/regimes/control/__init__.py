"""What an experimenter may change; each control takes a module and gives a module."""

from regimes.control.linear import Linearized, linearize
from regimes.control.scale import Scaled, scale, unscaled
from regimes.control.width import LAWS, MEAN_FIELD, MUP, NTK, STANDARD, Law, law, rates, table

__all__ = [
    "LAWS",
    "MEAN_FIELD",
    "MUP",
    "NTK",
    "STANDARD",
    "Law",
    "Linearized",
    "Scaled",
    "law",
    "linearize",
    "rates",
    "scale",
    "table",
    "unscaled",
]
