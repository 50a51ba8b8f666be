"""The studies that come with the library: the cards in the folders beside this file, read before anything heavy."""

from __future__ import annotations

import importlib
import os
import pkgutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from regimes import papers
from regimes.core.error import UserError, nearest
from regimes.papers.card import Card

if TYPE_CHECKING:
    from regimes.study import Study

__all__ = ["CATALOG", "Entry", "entry", "find_study", "stored_study"]


@dataclass(frozen=True)
class Entry:
    """One study of the catalogue.

    Attributes:
        card: what its folder says of it.
        module: the module that defines its ``STUDY``; empty while the study is only planned.
    """

    card: Card
    module: str = ""

    @property
    def status(self) -> str:
        """Either "available" or "planned"."""
        return "available" if self.module else "planned"


def _found() -> dict[str, Entry]:
    """Name -> study, for every folder of ``regimes.papers`` that holds a card, by the date of the paper."""
    entries = []
    for folder in pkgutil.iter_modules(papers.__path__, f"{papers.__name__}."):
        card = getattr(importlib.import_module(folder.name), "CARD", None) if folder.ispkg else None
        if card is not None:
            study = f"{folder.name}.study"
            entries.append(Entry(card, study if find_spec(study) else ""))
    entries.sort(key=lambda one: (one.card.published, one.card.name))
    return {one.card.name: one for one in entries}


CATALOG = _found()
"""Name of a study -> what is known of it without running it."""


def entry(name: str) -> Entry:
    """The study of that name, if it can be run.

    Raises:
        UserError: no study has that name, or it is only planned.

    >>> entry("feature-lazy").module
    'regimes.papers.feature_lazy.study'
    """
    if name not in CATALOG:
        known = f"expected one of {', '.join(CATALOG)}, or a Python file that defines STUDY"
        raise UserError(f"`STUDY` is '{name}', {known}{nearest(name, CATALOG)}")
    if not CATALOG[name].module:
        ready = ", ".join(name for name, one in CATALOG.items() if one.module)
        raise UserError(f"`STUDY` is '{name}', which is planned but not there yet; available: {ready}")
    return CATALOG[name]


def find_study(text: str) -> Study:
    """The study meant on the command line: a name of the catalogue, or a Python file that defines STUDY.

    Raises:
        UserError: neither a known name nor a file with a study in it.
    """
    from regimes.study import load_study_file

    if text.endswith(".py") or os.sep in text:
        return load_study_file(text)
    return importlib.import_module(entry(text).module).STUDY


def stored_study(out: Path, given: str | None = None) -> Study:
    """The study whose rows a directory holds.

    What lies in the directory is data and never names code to be run: its ``study.json`` is looked up in the
    catalogue, and a study file is the one that the user names.

    Args:
        out: the directory.
        given: the study as on the command line of ``regimes run``; needed where it was a file.

    Raises:
        UserError: the directory is not there, or holds no study, or another one than ``given``, or one that is not in
            the catalogue.
    """
    from regimes.study import Store, read_record

    record = read_record(Store(out))
    if record is None:
        what = "it holds no study (no study.json)" if out.is_dir() else "no such directory"
        raise UserError(f"`OUT` is '{out}': {what}; expected the --out of a `regimes run`")
    name, source = record["study"], record.get("source")
    if given is not None:
        study = find_study(given)
        if study.name != name:
            raise UserError(
                f"`--study` is {given!r}, which is study {study.name}; '{out}' holds {shown(name)}"
            )
        return study
    if source is None and name in CATALOG:
        return find_study(name)
    hint = f" (it was run from {shown(source)})" if source else ""
    raise UserError(
        f"`OUT` is '{out}': it holds study {shown(name)} of a file{hint}, and no file is run because a directory names "
        "it; add: --study FILE.py"
    )


def shown(value: object) -> str:
    """What was read from a results directory, fit for a terminal: one short line without control characters."""
    return ascii(value)[1:-1][:200] if isinstance(value, str) else ascii(value)[:200]
