"""``study.json``: which study an output directory holds, and every session that worked on it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from pydantic import BaseModel, ConfigDict, InstanceOf

import regimes
from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.study.growth import check_growth
from regimes.study.run import canonical
from regimes.study.store import Store
from regimes.study.study import Settings, Study

__all__ = ["Record", "check_record", "read_record"]

FILE = "study.json"
PACKAGES = ("torch", "numpy", "pandas", "pyarrow", "scipy", "scikit-learn")


Text = InstanceOf[str]
"""Words of any letters: the name of a file need not be one that UTF-8 can spell, which a plain ``str`` must be."""


@final
class Held(BaseModel):
    """What must be in ``study.json`` for the rest to be read; more may be there."""

    model_config = ConfigDict(extra="allow", strict=True)

    study: Text
    sessions: list[dict[Any, Any]]
    scale: Text | None = None
    settings: dict[Any, Any] | None = None
    source: Text | None = None


@checked
def read_record(store: Store) -> dict[str, Any] | None:
    """The content of ``study.json``: study, scale, settings, source, sessions; None if there is no such file.

    Raises:
        UserError: the file is damaged, or cannot be read.
    """
    try:
        return Held.model_validate(json.loads((store.out / FILE).read_bytes())).model_dump()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"`out` is {str(store.out)!r}: its {FILE} cannot be read ({reason})") from None
    except (ValueError, RecursionError):
        raise UserError(f"`out` is {str(store.out)!r}: its {FILE} is damaged; choose another --out") from None


@final
class Record:
    """The running session in ``study.json``.

    Args:
        store: the output directory, locked.
        study: the study to be run there.
        scale: name of the scale.
        settings: complete settings.
        command: the command that started the session.
        on: the back end.
        data: directory of the data sets, if one was given.

    Raises:
        UserError: the directory holds another study, or this one at another scale, or with settings that ask for
            other runs.
    """

    def __init__(
        self,
        store: Store,
        study: Study,
        scale: str,
        settings: Settings,
        command: str,
        on: str,
        data: Path | None = None,
    ) -> None:
        check_record(store, study, scale, settings)
        self._store = store
        self._began = self._saved = time.monotonic()
        before = (read_record(store) or {}).get("sessions", [])
        self._session: dict[str, Any] = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": 0.0,
            "finished": len(store),
            "command": command,
            "settings": canonical(settings),
            "data": str(data) if data else None,
            "on": on,
            "machine": {
                "system": platform.platform(),
                "processor": platform.machine(),
                "cores": os.cpu_count(),
                "python": platform.python_version(),
            },
            "versions": {"regimes": regimes.__version__}
            | {name: version for name in PACKAGES if (version := _version(name))},
        }
        self._content = {
            **_identity(study, scale, settings),
            "title": study.title,
            "paper": study.paper,
            "source": str(study.source) if study.source else None,
            "sessions": [*before, self._session],
        }
        self.save()

    def save(self, every: float = 0.0) -> None:
        """Bring seconds and finished runs up to date, unless that was less than ``every`` seconds ago."""
        now = time.monotonic()
        if every and now - self._saved < every:
            return
        self._saved = now
        self._session.update(seconds=round(now - self._began, 3), finished=len(self._store))
        self._store.write_text(FILE, json.dumps(self._content, indent=2) + "\n")


def check_record(store: Store, study: Study, scale: str, settings: Settings) -> None:
    """Refuse a directory that holds something else; writes nothing."""
    held = read_record(store)
    if held is None:
        if len(store):
            raise UserError(f"`out` is {str(store.out)!r}: it has rows but no {FILE}; choose another --out")
        return
    asked = _identity(study, scale, settings)
    if held["study"] != asked["study"]:
        raise UserError(
            f"`out` is {str(store.out)!r}: it holds study {held['study']}; "
            f"choose another --out for {study.name}"
        )
    if held.get("scale") != scale:
        raise UserError(
            f"`out` is {str(store.out)!r}: it holds {study.name} at scale {held.get('scale')}; "
            f"choose another --out for scale {scale}"
        )
    check_growth(study, scale, held.get("settings") or {}, settings, str(store.out))


def _identity(study: Study, scale: str, settings: Settings) -> dict[str, Any]:
    return {"study": study.name, "scale": scale, "settings": canonical(settings)}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
