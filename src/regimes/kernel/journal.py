"""What is known of a kernel in a file: which one it is, which tiles are written, and their checksums."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from regimes.core.error import UserError
from regimes.kernel.fingerprint import Fingerprint

__all__ = ["Journal", "Tile", "overlap", "within"]

Tile = tuple[int, ...]
"""First and last (exclusive) row, column, direction of the rows, direction of the columns."""

# Of the journal; another one is not read.
_FORMAT = 2


@dataclass(frozen=True)
class Journal:
    """The journal of a kernel.

    Attributes:
        kernel: which one.
        by_rows: whether all of it goes by rows of the Jacobian: the network did not keep to its plan.
        done: the tiles that are written, with a checksum of each.
    """

    kernel: Fingerprint
    by_rows: bool = False
    done: Mapping[Tile, int] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write it down, in one piece."""
        noted = {"format": _FORMAT, "kernel": asdict(self.kernel), "by_rows": self.by_rows}
        noted["done"] = sorted([*tile, checksum] for tile, checksum in self.done.items())
        aside = path.with_name(path.name + ".partial")
        aside.write_text(json.dumps(noted))
        os.replace(aside, path)

    @classmethod
    def read(cls, path: Path) -> Journal | None:
        """The journal at this path; None where there is none, or none that can be read.

        Raises:
            UserError: if it is of another version.
        """
        try:
            noted = json.loads(path.read_text(encoding="utf-8"))
            form = noted.get("format", 1)
            if form == _FORMAT:
                kernel = noted["kernel"]
                found = Fingerprint(
                    str(kernel["digest"]),
                    tuple(map(float, kernel["outputs"])),
                    tuple(map(float, kernel["gradients"])),
                    float(kernel["precision"]),
                )
                done = {tuple(map(int, line[:-1])): int(line[-1]) for line in noted["done"]}
                if any(len(tile) != 8 for tile in done):
                    return None
                return cls(found, bool(noted["by_rows"]), done)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        raise UserError(
            f"`out`: '{path}' is of another version of this library; name another path, or pass overwrite=True"
        )


def within(tile: Tile, other: Tile) -> bool:
    """Whether a tile is a part of another one."""
    starts = all(a >= b for a, b in zip(tile[::2], other[::2], strict=True))
    return starts and all(a <= b for a, b in zip(tile[1::2], other[1::2], strict=True))


def overlap(tile: Tile, other: Tile) -> bool:
    """Whether two tiles have an entry in common."""
    pairs = zip(tile[::2], tile[1::2], other[::2], other[1::2], strict=True)
    return all(max(a, c) < min(b, d) for a, b, c, d in pairs)
