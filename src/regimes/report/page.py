"""Claims, figures and provenance on one self-contained HTML page: nothing is fetched, nothing is run."""

from __future__ import annotations

import functools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.report.claim import OUTSIDE, VERDICTS, Claims, dumps, said, verdicts
from regimes.report.decide import with_ways
from regimes.report.laid_out import Table, lay_out_all
from regimes.report.power import ENOUGH
from regimes.report.provenance import counts, facts, load
from regimes.report.shown import Shown, draw, draw_all
from regimes.study import Amendment, Run, Store
from regimes.study.execute import FAILURES
from regimes.study.fault import StudyFault
from regimes.study.store import opened

__all__ = ["Described", "Shown", "build", "draw", "headline", "render"]

HEADING = "While the report was built\n"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
TOLD = {"reproduced": "✓", "not reproduced": "✗", "inconclusive": "?", OUTSIDE: "○"}


class Described(Protocol):
    """What the page asks of a study."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def paper(self) -> str: ...
    @property
    def runs(self) -> Sequence[type[Run]]: ...
    @property
    def claims(self) -> Claims: ...
    @property
    def protocol(self) -> Sequence[Amendment]: ...
    @property
    def methods(self) -> Sequence[tuple[str, str]]: ...
    @property
    def figures(self) -> Sequence[Any] | Callable[[pd.DataFrame], Sequence[Any]]: ...
    @property
    def tables(self) -> Sequence[Any] | Callable[[pd.DataFrame], Sequence[Any]]: ...


@checked
def build(
    store: Path | str | Store,
    study: Described,
    frame: pd.DataFrame | None = None,
    write: Callable[[Path, bytes], object] | None = None,
) -> list[dict[str, Any]]:
    """Judge the claims, draw the figures and write the page of a study from the rows of its store.

    Writes ``claims.json``, ``figures/NAME.svg`` and ``.png``, ``tables/NAME.csv`` and ``report.html``, each whole or
    not at all. A figure or a table that cannot be made from the rows there are is a note on the page, and its former
    files are removed. An exception in the study's code is a note and a warning, and its traceback is kept in
    ``failures.txt``; the rest is built.

    Arguments:
        store: the folder ``OUT`` with ``rows/*.parquet`` and ``study.json``, which may be missing; or the store there.
        study: has ``name``, ``title``, ``paper``, ``runs`` (the Run classes, by which the store knows its rows),
            ``claims`` (of :class:`regimes.report.claim.Claim`), ``figures`` and ``tables``, tuples ``(name, title,
            function, caption)`` with ``function(rows)`` a Figure or a data frame; each may be a function of the
            rows. ``protocol`` is the log of changes, ``methods`` what the page says of the study's own statistics.
        frame: the rows, if they are at hand.
        write: called as ``write(path, bytes)`` for each file, instead of writing it.

    Returns:
        the verdicts, as in ``claims.json``.

    Raises:
        UserError: ``store`` is not a folder, or cannot be written; or there are no verdicts, because the function of
            the claims raises: then the page holds the figures, and says so.
    """
    out = store.out if isinstance(store, Store) else Path(store)
    if not out.is_dir():
        raise UserError(f"`store` is {str(out)!r}: expected a folder that `regimes run` has made")
    kept = opened(store, study.runs)
    put = write or (lambda path, content: kept.write_bytes(path.relative_to(out).as_posix(), content))
    notes: list[str] = []
    if frame is None:
        reading = kept.read()
        frame, notes = reading.frame, list(reading.left_out)
        if write is None:
            kept.keep()
    faults: list[StudyFault] = []
    mistake: UserError | None = None
    try:
        found = with_ways(verdicts(study.claims, frame, faults.append), study, kept)
    except UserError as error:
        found, mistake = [], error
        notes.append(str(error))
        faults += [error] if isinstance(error, StudyFault) else []
    shown = draw_all(study.figures, frame, faults.append)
    tables = lay_out_all(study.tables, frame, faults.append)
    _put_faults(out, put, faults)
    put(out / "claims.json", dumps(found).encode(errors="backslashreplace"))
    for one in shown:
        for kind, content in (("svg", one.svg), ("png", one.png)):
            if content:
                put(out / "figures" / f"{one.name}.{kind}", content)
            elif one.name:
                kept.remove(f"figures/{one.name}.{kind}")
    for one in tables:
        if not one.note:
            put(out / "tables" / f"{one.name}.csv", one.csv)
        elif one.name:
            kept.remove(f"tables/{one.name}.csv")
    record, broken = load(out / "study.json")
    notes += [f"{name} could not be read and was left out" for name in broken]
    text = render(study, found, shown, frame, record, notes, tables)
    put(out / "report.html", text.encode(errors="backslashreplace"))
    if mistake is not None:
        raise mistake
    return found


def _put_faults(out: Path, put: Callable[[Path, bytes], object], faults: Sequence[StudyFault]) -> None:
    """Keep the tracebacks after those of the runs, in the place of those of the last report."""
    path = out / FAILURES
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    runs = before.partition(HEADING)[0]
    after = runs + "".join([HEADING, *(f"{fault}\n{fault.trace}\n" for fault in faults)] if faults else [])
    if after != before:
        put(path, after.encode(errors="backslashreplace"))
    for fault in faults:
        warnings.warn(f"{fault}; the traceback is in {path}", stacklevel=3)


@checked
def render(
    study: Described,
    found: Sequence[Mapping[str, Any]],
    shown: Sequence[Shown],
    frame: pd.DataFrame,
    record: Mapping[str, Any],
    notes: Sequence[str] = (),
    tables: Sequence[Table] = (),
) -> str:
    """The page as text: no script, no address outside itself.

    Arguments:
        study: its ``name``, ``title``, ``paper``, ``protocol`` and ``methods``.
        found: the verdicts.
        shown: the figures.
        frame: the rows, for the counts.
        record: what the study wrote about itself; see :func:`regimes.report.provenance.facts`.
        notes: what the reader must know about the rows.
        tables: the tables.
    """
    return template().render(
        study={"name": study.name, "title": study.title, "paper": study.paper},
        groups=groups(found),
        protocol=study.protocol,
        methods=study.methods,
        enough=ENOUGH,
        headline=headline(found),
        figures=shown,
        tables=tables,
        counts=counts(frame),
        facts=facts(record),
        notes=notes,
    )


def groups(found: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The claims, and the controls, with what the page shows of each beside its verdict."""
    lines = [
        {**one, "mark": TOLD[one["verdict"]], "word": said(one), "strip": strip(one), "chance": chance(one)}
        for one in found
    ]
    return {
        "Claims": [one for one in lines if one["kind"] == "claim"],
        "Controls": [one for one in lines if one["kind"] == "control"],
    }


def chance(one: Mapping[str, Any]) -> tuple[str, str]:
    """The power of a claim, and what is to be said of it.

    >>> chance({"power": 0.312, "enough": 24, "n": 9, "unpowered": ""})
    ('0.31', '0.8 at n = 24')
    >>> chance({"power": None, "enough": None, "n": 0, "unpowered": "no interval"})
    ('–', 'no interval')
    """
    if one["power"] is None:
        return "–", one["unpowered"]
    text = f"{one['power']:.2f}"
    if one["power"] >= ENOUGH:
        return text, ""
    return text, f"{ENOUGH:g} at n = {one['enough']}" if one["enough"] else f"{ENOUGH:g} at no n"


@functools.cache
def template() -> Any:
    """The page with its gaps, read once: to compile it takes longer than to fill it."""
    import jinja2

    room = jinja2.Environment(
        loader=jinja2.PackageLoader("regimes.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    room.filters |= {"short": short, "prose": prose, "measured": measured}
    return room.get_template("report.html.j2")


@checked
def headline(found: Sequence[Mapping[str, Any]]) -> str:
    """The verdicts in a sentence.

    >>> headline([{"verdict": "reproduced"}, {"verdict": "inconclusive"}, {"verdict": "outside this scale"}])
    '1 of 2 claims reproduced, 1 inconclusive; 1 outside this scale.'
    >>> headline([{"verdict": "reproduced"}, {"verdict": "reproduced", "kind": "control"}])
    '1 of 1 claims reproduced; the control holds.'
    """
    if not found:
        return "This study makes no claims."
    tally = Counter((one.get("kind", "claim"), one["verdict"]) for one in found)
    claims = {word: tally["claim", word] for word in VERDICTS}
    controls = {word: tally["control", word] for word in VERDICTS}
    parts = []
    if decided := sum(claims.values()) - claims[OUTSIDE]:
        words = [f"{claims['reproduced']} of {decided} claims reproduced"]
        words += [f"{claims[word]} {word}" for word in VERDICTS[1:3] if claims[word]]
        parts.append(", ".join(words))
    if claims[OUTSIDE]:
        parts.append(f"{claims[OUTSIDE]} outside this scale")
    if count := sum(controls.values()):
        right = controls["reproduced"]
        whole = "the control holds" if count == 1 else f"all {count} controls hold"
        parts.append(whole if right == count else f"{right} of {count} controls hold")
    return "; ".join(parts) + "."


def measured(one: Mapping[str, Any]) -> tuple[str, str]:
    """The value and its interval with equal decimals: two digits of the half-width.

    >>> measured({"value": -0.5043, "low": -0.5591, "high": -0.4494})
    ('−0.504', '[−0.559, −0.449]')
    >>> measured({"value": 12.5, "low": None, "high": None})
    ('12.5', 'no interval')
    """
    value, low, high = one["value"], one["low"], one["high"]
    if low is None or high is None:
        return short(value), "no interval"
    size = max(abs(value), abs(low), abs(high))
    if size and not 1e-3 <= size < 1e5:
        return scientific(value), f"[{scientific(low)}, {scientific(high)}]"
    half = (high - low) / 2
    decimals = min(max(1 - math.floor(math.log10(half)), 0), 5) if half > 0 else 3
    texts = [f"{end:.{decimals}f}".replace("-", "−") for end in (value, low, high)]
    return texts[0], f"[{texts[1]}, {texts[2]}]"


def scientific(value: float) -> str:
    """Three digits and a power of ten.

    >>> scientific(-12345.0)
    '−1.23 × 10⁴'
    """
    mantissa, exponent = f"{value:.2e}".split("e")
    return mantissa.replace("-", "−") + " × 10" + str(int(exponent)).translate(RAISED)


def prose(text: str) -> str:
    """A message as HTML: what stands between backticks is code, a full stop at the end.

    >>> str(prose("`frame` is < 3"))
    '<code>frame</code> is &lt; 3.'
    """
    import markupsafe

    parts = [str(markupsafe.escape(part)) for part in text.rstrip(".").split("`")]
    joined = "".join(
        f"<code>{part}</code>" if i % 2 and i < len(parts) - 1 else part for i, part in enumerate(parts)
    )
    return markupsafe.Markup(joined + ".")  # every part is escaped above


def short(value: float | str | None) -> str:
    """A number as it was written down, words as they are.

    >>> short(-0.5), short("curves coincide")
    ('−0.5', 'curves coincide')
    """
    return value if isinstance(value, str) else "–" if value is None else f"{value:.4g}".replace("-", "−")


def strip(one: Mapping[str, Any]) -> dict[str, float] | None:
    """Where the range, the interval and the value lie on a strip from 0 to 100; None without an interval."""
    value, low, high = one["value"], one["low"], one["high"]
    if value is None or low is None or high is None:
        return None
    first, last = one["range"]
    there = [end for end in (value, low, high, first, last) if end is not None]
    left, right = min(there), max(there)
    margin = 0.12 * (right - left) or 1.0
    left, right = left - margin, right + margin

    def place(at: float | None, otherwise: float) -> float:
        return otherwise if at is None else round(100 * (at - left) / (right - left), 2)

    ends = {"low": place(low, 0), "high": place(high, 100), "value": place(value, 50)}
    return ends | {"first": place(first, 0), "last": place(last, 100)}
