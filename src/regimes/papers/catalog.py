"""The studies that come with the library: a light table, read before anything heavy is imported."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from regimes.core.error import UserError, nearest

if TYPE_CHECKING:
    from regimes.study import Study

__all__ = ["CATALOG", "SCALES", "Entry", "entry", "find_study", "stored_study"]

SCALES = ("quick", "small", "paper")


@dataclass(frozen=True)
class Entry:
    """One study of the catalogue.

    Attributes:
        name: what ``regimes run`` calls it.
        title: what the study shows.
        paper: authors, title, where.
        claims: the ids of the claims it gives a verdict on.
        cost: what a run takes, one text per scale of ``SCALES``.
        module: the module that defines its ``STUDY``; empty while the study is only planned.
    """

    name: str
    title: str
    paper: str
    claims: tuple[str, ...]
    cost: tuple[str, str, str] = ("2 minutes on 2 cores", "30 minutes on 2 cores", "GPUs")
    module: str = ""

    @property
    def status(self) -> str:
        """Either "available" or "planned"."""
        return "available" if self.module else "planned"


CATALOG = {
    study.name: study
    for study in (
        Entry(
            "lazy-training",
            "A large output scale keeps a network at its linearisation",
            "Chizat, Oyallon, Bach: On Lazy Training in Differentiable Programming. NeurIPS 2019, "
            "arXiv:1812.07956",
            ("R1", "R2", "R3", "R4", "R5"),
            ("2 minutes on 2 cores", "30 minutes on 2 cores", "weeks of one GPU"),
            module="regimes.papers.lazy_training",
        ),
        Entry(
            "feature-lazy",
            "The phase diagram of lazy and feature training in scale and width",
            "Geiger, Spigler, Jacot, Wyart: Disentangling feature and lazy training in deep neural networks. "
            "J. Stat. Mech. 2020, arXiv:1906.08034",
            ("R6", "R7", "R8", "R9", "R10", "R11", "R12", "R13", "R14"),
            (
                "2 to 4 minutes on 2 cores",
                "30 minutes on 2 cores",
                "days on one GPU; a cluster for all of it",
            ),
            module="regimes.papers.feature_lazy",
        ),
        Entry(
            "iterative-linearisation",
            "How often must a network be linearised again to train as well as it does itself",
            "Goldwaser, Ge: Understanding Sparse Feature Updates in Deep Networks using Iterative "
            "Linearisation. arXiv:2211.12345",
            ("R15", "R16", "R17"),
        ),
        Entry(
            "two-regimes",
            "Large steps for generalisation, small steps with momentum for optimisation",
            "Leclerc, Madry: The Two Regimes of Deep Network Training. arXiv:2002.10376",
            ("R18", "R19"),
        ),
        Entry(
            "rich-regime",
            "Few parameters and layers are active, and back-propagation can do without the others",
            "Li, Banerjee: Experiments with Rich Regime Training for Deep Learning. arXiv:2102.13522",
            ("R20", "R21"),
        ),
    )
}
"""Name of a study -> what is known of it without running it."""


def entry(name: str) -> Entry:
    """The study of that name, if it can be run.

    Raises:
        UserError: no study has that name, or it is only planned.

    >>> entry("feature-lazy").module
    'regimes.papers.feature_lazy'
    """
    if name not in CATALOG:
        known = f"expected one of {', '.join(CATALOG)}, or a Python file that defines STUDY"
        raise UserError(f"`STUDY` is '{name}', {known}{nearest(name, CATALOG)}")
    if not CATALOG[name].module:
        ready = ", ".join(one.name for one in CATALOG.values() if one.module)
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
        return find_study(entry(name).name)
    hint = f" (it was run from {shown(source)})" if source else ""
    raise UserError(
        f"`OUT` is '{out}': it holds study {shown(name)} of a file{hint}, and no file is run because a directory names "
        "it; add: --study FILE.py"
    )


def shown(value: object) -> str:
    """What was read from a results directory, fit for a terminal: one short line without control characters."""
    return ascii(value)[1:-1][:200] if isinstance(value, str) else ascii(value)[:200]
