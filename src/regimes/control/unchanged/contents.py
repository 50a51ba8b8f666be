"""The bits of tensors in a few numbers: weights, to see that none was written to, and samples, to know them again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from regimes.core.error import UserError
from regimes.core.stream import generator

__all__ = ["Contents", "row_keys"]

_WORDS = 1021  # a prime, so that rows of a weight that change places do not go unseen
_TURNS = 16
_ROW = 8 * _WORDS


@final
class Contents:
    """The values of tensors, as sums over the columns of a table of 1021 words of 64 bits a row.

    torch counts what is written to a tensor; after that all is looked at. It does not count what is written behind its
    back (``.data``, numpy): of tensors above 128 KB each turn looks at one row in 16, which finds what changes many of
    them, and 16 turns look at all; of small ones all is looked at, each time.

    Args:
        tensors: by name.
        whose: the argument they belong to, and what to do about what was kept of them, for an error.
        turns: how many look at all; 1 looks at all of them each time.
    """

    def __init__(self, tensors: Mapping[str, Tensor], whose: tuple[str, str], turns: int = _TURNS) -> None:
        self._whose, self._turns = whose, turns
        self._tensors = [*tensors.values()]
        self._large = [each for each in self._tensors if each.numel() * each.element_size() >= turns * _ROW]
        large = {id(each) for each in self._large}
        self._small = [each for each in self._tensors if id(each) not in large]
        self._name = next((name for name, each in tensors.items() if id(each) in large), "")
        self._places, self._turn = self._now(), 0
        self._lay_out()
        self._known = [self._sums(turn) for turn in range(turns)]
        self._known_rest = self._rest()

    def same(self) -> bool:
        """Whether nothing was written to, as far as this turn sees.

        Raises:
            UserError: if something was, in a turn before.
        """
        counted, turn = self._now() != self._places, self._turn
        self._places, self._turn = self._now(), (turn + 1) % self._turns
        if counted:
            self._lay_out()
        if self._rest() != self._known_rest:
            return False
        turns = range(self._turns) if counted else (turn,)
        if all(self._sums(each) == self._known[each] for each in turns):
            return True
        before = (turn - 1) % self._turns
        if not counted and self._sums(before) == self._known[before]:
            argument, way_out = self._whose
            raise UserError(
                f"{argument}: entries of its parameters or buffers ('{self._name}' or another one) were written to "
                "behind torch's back (.data, numpy), and up to 15 passes may have looked up what they gave before; "
                f"write under torch.no_grad(), or {way_out} after it"
            )
        return False

    def _now(self) -> list[tuple[int, int]]:
        """Where the tensors are, and how often torch has written to them."""
        return [(0 if each.is_inference() else each._version, each.data_ptr()) for each in self._tensors]

    def _lay_out(self) -> None:
        """The tensors as they are read: views of them, or functions that copy those which have none in one piece."""
        self._tables = [_source(each, _rows) for each in self._large]
        self._parts: dict[torch.device, list[Callable[[], Tensor]]] = {}
        for each in self._small:
            self._parts.setdefault(each.device, []).append(_source(each, _bytes))
        for each in self._large:
            self._parts.setdefault(each.device, []).append(_source(each, _tail))

    @torch.no_grad()
    def _sums(self, turn: int) -> list[int]:
        """Of the rows of large tensors that have their turn."""
        return _numbers([table()[turn :: self._turns].sum(0) for table in self._tables])

    @torch.no_grad()
    def _rest(self) -> list[int]:
        """Of small tensors, and of what is left of large ones, on each device."""
        found = []
        for parts in self._parts.values():
            joined = torch.cat([part() for part in parts])
            words = nn.functional.pad(joined, (0, -joined.numel() % _ROW)).view(torch.int64)
            found.append(words.view(-1, _WORDS).sum(0))
        return _numbers(found)


def _source(tensor: Tensor, form: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    """A tensor in a form, made once where that is a view of it."""
    made = form(tensor)
    if made.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
        return lambda: made
    return lambda: form(tensor)


def _tail(tensor: Tensor) -> Tensor:
    """The bytes (b,) that are no whole row."""
    whole = _bytes(tensor)
    return whole[whole.numel() // _ROW * _ROW :]


def _bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor (b,)."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8) if flat.numel() else flat.new_empty(0, dtype=torch.uint8)


def _rows(tensor: Tensor) -> Tensor:
    """A tensor as a table (rows, 1021) of words, without what is left."""
    flat = _bytes(tensor)
    if flat.storage_offset() % 8:
        flat = flat.clone()
    return flat[: flat.numel() // _ROW * _ROW].view(torch.int64).view(-1, _WORDS)


def _numbers(columns: Sequence[Tensor]) -> list[int]:
    """A number for each of several sums (1021,)."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for each in columns:
        by_device.setdefault(each.device, []).append(each)
    return [
        number
        for device, each in by_device.items()
        for number in (torch.stack(each) * _weights(_WORDS, device)).sum(1).tolist()
    ]


def row_keys(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    """128 bits for each sample (n), by the bits of its entries in all of these tensors (n, ...).

    Two sums over words x of 64 bits, of w (x xor x / 2^32) modulo 2^64 with odd random w. Two given samples that differ
    have equal keys with probability 2^-66 at most.
    """
    total: Tensor | None = None
    for place, each in enumerate(tensors):
        n = each.shape[0]
        flat = _bytes(each).view(n, -1)
        if flat.shape[1] % 8:
            flat = nn.functional.pad(flat, (0, 8 - flat.shape[1] % 8))
        if flat.storage_offset() % 8:
            flat = flat.clone()
        words = flat.view(torch.int64)
        mixed = (words >> 32).bitwise_xor_(words)
        weights = _weights(2 * words.shape[1], each.device, place)
        sums = torch.stack([(mixed * part).sum(1) for part in weights.view(2, -1)], 1)
        total = sums if total is None else total + sums.to(total.device)
    return [] if total is None else [(a, b) for a, b in total.tolist()]


@functools.cache
def _weights(count: int, device: torch.device, stream: int = -1) -> Tensor:
    """Odd random numbers of 64 bits."""
    drawn = torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator(0, "fingerprint", stream, count))
    return (drawn | 1).to(device)
