"""A study that goes on with other settings: more of the same continues it, another experiment does not.

A run is a pure function of its parameters, so no setting changes what a finished run means. It may change what the
rows mean together: with another step size they would be a mixture. Growth is what keeps them together, and it can be
seen: what a sweep wants at the start with one value of an option is part of what it wants with the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regimes.core.error import UserError
from regimes.study.run import canonical, shorten
from regimes.study.schema import schema_of
from regimes.study.study import Settings, Study
from regimes.study.wanted import declared, wanted_runs

__all__ = ["check_growth", "setting"]


def check_growth(study: Study, scale: str, before: Mapping[str, Any], now: Settings, where: str) -> None:
    """Refuse settings that ask for other runs, rather than for more or fewer of those asked for before.

    Args:
        study: the study.
        scale: the scale of both.
        before: settings that were recorded, as JSON has them; an option that came later had its default.
        now: complete settings.
        where: the directory, for the error.

    Raises:
        UserError: an option was changed so that neither of both sets of runs holds the other.
    """
    earlier = study.settings(scale)
    was, asked = canonical(earlier) | before, canonical(now)
    other = [name for name in asked if was[name] != asked[name]]
    if not other:
        return
    try:
        earlier = study.settings(
            scale, {name: value for name, value in before.items() if name in study.options}
        )
    except UserError:
        raise UserError(_refusal(study, where, other[0], was[other[0]], asked[other[0]])) from None
    wanted = _keys(study, scale, earlier)
    for name in other:
        found = _keys(study, scale, {**earlier, name: now[name]})
        if not (wanted <= found or found <= wanted):
            raise UserError(_refusal(study, where, name, was[name], asked[name]))


def setting(name: str, value: Any) -> str:
    """``name=value`` as ``--set`` takes it.

    >>> setting("widths", (8, 16))
    'widths=8,16'
    """
    plain = canonical(value)
    if isinstance(plain, list):
        return f"{name}={','.join(map(_word, plain))}"
    return f"{name}={_word(plain)}"


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _keys(study: Study, scale: str, settings: Settings) -> set[str]:
    """What the sweep wants before anything is finished."""
    nothing = schema_of(study.runs).empty_table().to_pandas()
    return {run.key for run in wanted_runs(declared(study, scale, settings), nothing, study)}


def _refusal(study: Study, where: str, name: str, was: Any, asked: Any) -> str:
    way = "choose another --out or the same settings"
    if isinstance(was, Sequence) and isinstance(asked, Sequence) and not isinstance(was, str):
        both = [*was, *(value for value in asked if value not in was)]
        way = f"to add to them give --set {setting(name, both)}, or choose another --out"
    return (
        f"`out` is {where!r}: it holds {study.name} with {name}={shorten(was)}, not {shorten(asked)}, which asks for "
        f"other runs rather than for more; {way}"
    )
