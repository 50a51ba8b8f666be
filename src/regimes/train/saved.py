"""What a saved run and the one that goes on with it must share: settings, data, and the function at the start."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor

from regimes.control.width import rates
from regimes.core.derivative import call, check_separable, random_state
from regimes.core.error import UserError
from regimes.core.noise import noise as rounding
from regimes.train.program import Program

__all__ = [
    "check_function",
    "check_keys",
    "check_settings",
    "function_of",
    "in_words",
    "noise_of",
    "settings_of",
]

# The function at the start is compared on so many samples.
_SAMPLES = 8


def in_words(value: Any) -> str:
    """A setting that is no number, such as a loss: the same words in every process."""
    return repr(value) if is_dataclass(value) else f"{type(value).__module__}.{type(value).__qualname__}"


def settings_of(program: Program, inputs: Tensor, targets: Tensor) -> dict[str, Any]:
    """What every engine has, by the names of its arguments, in numbers and words."""
    layout = program.names
    return {
        "modules": dict(zip(layout.names, map(list, layout.shapes), strict=True)),
        "dtype": str(program.dtype),
        "loss": in_words(program.loss),
        "alpha": program.alpha.tolist(),
        "rates": dict(rates(program.networks[0])),
        "inputs": _digest(inputs),
        "targets": _digest(targets),
    }


def _digest(data: Tensor) -> str:
    """Shape and checksum."""
    whole = data.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
    return f"{tuple(data.shape)} of checksum {zlib.crc32(whole.data):08x}"


def function_of(program: Program, origin: Tensor, inputs: Tensor, offsets: Tensor | None) -> Tensor | None:
    """f(w0, x) of all members on the first samples, and what they subtract: (members, 2, samples, c).

    It tells apart what no setting names: activations, frozen parameters, buffers, the centre. None where f is not
    a function of one sample, as with dropout in train mode; then there is nothing to compare.
    """
    head, everyone = program.some(inputs, slice(_SAMPLES)), torch.arange(len(origin), device=program.device)
    devices = [program.device] if program.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        before = random_state()
        try:
            for network in program.networks:
                check_separable(network)
        except UserError:
            return None
        raw = program.raw(origin, everyone, head, program.networks)
        if random_state() != before:
            return None
    start = torch.zeros_like(raw) if offsets is None else offsets[:, :_SAMPLES]
    return torch.stack([raw, start], 1)


def check_keys(saved: Any, needed: set[str], front: set[str]) -> None:
    """Raise unless this is a state of an engine of the same kind."""
    if not isinstance(saved, Mapping) or not needed <= set(saved):
        came = sorted(map(str, saved)) if isinstance(saved, Mapping) else type(saved).__name__
        raise UserError(f"`saved`: got {came}, expected what state_dict() of an engine returned")
    if set(saved["front"]) != front:
        raise UserError(
            f"`saved`: holds {', '.join(sorted(saved['front']))}, expected {', '.join(sorted(front))}; "
            "it is the state of another engine (train.flow, train.descent, train.runge_kutta)"
        )


def check_settings(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise if a setting that both have differs; a state of an older version has fewer of them, or none."""
    for name in (name for name in here if name in saved):
        if (found := _difference(name, here[name], saved[name])) is not None:
            label, came, expected = found
            raise UserError(
                f"{label}: got {came}, expected {expected}, as in the saved run; give the engine the same, or start "
                "a run of its own"
            )


def _difference(name: str, here: Any, saved: Any) -> tuple[str, Any, Any] | None:
    """The first value that differs: where, here, and in what was saved."""
    if here == saved:
        return None
    if isinstance(here, list) and isinstance(saved, list) and len(here) == len(saved):
        member = next(i for i, pair in enumerate(zip(here, saved, strict=True)) if pair[0] != pair[1])
        return f"`{name}` of member {member}", here[member], saved[member]
    if isinstance(here, dict) and isinstance(saved, dict):
        key = next(key for key in [*here, *saved] if here.get(key) != saved.get(key))
        return f"`{name}`: '{key}'", here.get(key, "nothing"), saved.get(key, "nothing")
    return f"`{name}`", here, saved


def noise_of(program: Program, origin: Tensor, inputs: Tensor, member: int) -> float:
    """What another processor may make of f(w0, x) of a member on the first samples, which may be 0 but for that."""
    network, head = program.networks[member], program.some(inputs, slice(_SAMPLES))
    x = head[member] if program.own else head
    return rounding(
        lambda tree: call(network, tree, x), program.layout.split(origin[member, : program.layout.total])
    )


def check_function(saved: Tensor | None, here: Tensor | None, noise: Callable[[int], float]) -> None:
    """Raise if f(w0, x) differs by more than another processor would make of it.

    Args:
        saved, here: what :func:`function_of` gave there, and gives here.
        noise: how much that is for a member whose outputs are nearly 0.
    """
    if saved is None or here is None:
        return
    for member, (then, now) in enumerate(zip(saved.to(here), here, strict=True)):
        far, size = (now - then).abs().max(), then.abs().max()
        if not (far <= torch.finfo(here.dtype).eps ** 0.4 * size or far <= noise(member)):
            raise UserError(
                f"`modules`: member {member} differs from the saved one by {float(far):.2g} in outputs of size "
                f"{float(size):.2g} at the saved start; expected the same activations, frozen parameters, buffers "
                "and centre: build it from the same seed, or load its own state_dict first"
            )
