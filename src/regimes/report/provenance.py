"""Where the numbers come from, in words: runs, seeds, time, versions, machine, command, data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from regimes.core.estimate import array
from regimes.report.table import last

__all__ = ["Fact", "counts", "duration", "facts", "load", "words"]

Fact = tuple[str, str | list[tuple[str, str]]]
"""A name, and a line of words or (name, words) pairs."""

ELSEWHERE = ("study", "title", "paper", "sessions")


def load(path: Path) -> tuple[dict[str, Any], list[str]]:
    """What the study wrote about itself (``study.json``); and its name if it is there but unreadable."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError, RecursionError):
        return {}, [path.name]
    return (content, []) if isinstance(content, dict) else ({"record": content}, [])


def facts(record: Mapping[str, Any]) -> list[Fact]:
    """The record as lines for a reader. No key has to be there; unknown ones are shown as they are.

    ``sessions`` (one mapping per time the study was run: ``command``, ``started``, ``seconds``, ``versions``,
    ``machine``, ...) are merged: the distinct commands, the sum of the time, the rest as in the last session.
    """
    told = [_fact(key, value) for key, value in record.items() if key not in ELSEWHERE and value is not None]
    listed = record.get("sessions")
    sessions = [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []
    if not sessions:
        return told
    commands = list(dict.fromkeys(str(one["command"]) for one in sessions if one.get("command")))
    if commands:
        told.append(("Command", "; ".join(commands)))
    given = [one["seconds"] for one in sessions if isinstance(one.get("seconds"), (int, float))]
    seconds = [one for one in given if 0 <= one < 1e15]  # neither nan nor an integer beyond all floats
    if seconds:
        count = f"{len(sessions)} sessions" if len(sessions) > 1 else "1 session"
        told.append(("Time spent", f"{duration(float(sum(seconds)))} in {count}"))
    if sessions[0].get("started"):
        told.append(("First started", words(sessions[0]["started"])))
    earlier = [words(one["settings"]) for one in sessions if one.get("settings")]
    if earlier := [text for text in dict.fromkeys(earlier) if text != words(record.get("settings"))]:
        told.append(("Earlier settings", earlier[0] if len(earlier) == 1 else " | ".join(earlier)))
    shown = ("command", "seconds", "started", "finished", "settings")
    told += [
        _fact(key, value) for key, value in sessions[-1].items() if key not in shown and value is not None
    ]
    return told


def counts(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Runs, seeds and time as the rows tell them."""
    if not {"key", "status"} <= set(frame.columns):
        return [("Runs", "none finished")] if frame.empty else [("Rows", str(len(frame)))]
    runs = last(frame)
    tally = ", ".join(f"{count} {word}" for word, count in Counter(runs["status"].tolist()).most_common())
    told = [("Runs", f"{len(runs)} ({tally})" if tally else "none finished")]
    if "seed" in runs.columns:
        told.append(("Seeds", str(len(set(runs["seed"].tolist())))))
    if "seconds" in runs.columns and pd.api.types.is_numeric_dtype(runs["seconds"]):
        told.append(("Time in runs", duration(float(np.nansum(array(runs["seconds"]))))))
    return told


def duration(seconds: float) -> str:
    """A duration as one would say it.

    >>> duration(42.0), duration(600.0), duration(7200.0)
    ('42 s', '10 min', '2.0 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def words(value: Any) -> str:
    """One fact on one line; what nests deeper is written as JSON.

    >>> words([16, 32]), words(None), words({"images": 1797, "size": [8, 8]})
    ('16, 32', '–', 'images 1797; size 8, 8')
    """
    if value is None or value == "":
        return "–"
    if isinstance(value, Mapping):
        if not any(isinstance(part, Mapping) for part in value.values()):
            return "; ".join(f"{name} {words(part)}" for name, part in value.items())
        return json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, Sequence) and not isinstance(value, str):
        flat = not any(isinstance(part, (Mapping, list, tuple)) for part in value)
        return (
            ", ".join(map(str, value)) or "–" if flat else json.dumps(value, ensure_ascii=False, default=str)
        )
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _fact(key: str, value: Any) -> Fact:
    """A name for people, and the value with its parts."""
    name = "Back end" if key == "on" else str(key).replace("_", " ").capitalize()
    if isinstance(value, Mapping) and value:
        return name, [(str(part), words(what)) for part, what in value.items()]
    return name, words(value) if value else "–"
