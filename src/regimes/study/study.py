"""A study as a value: its sweeps at several scales, what may be set, its claims; and the loader of a file."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from regimes.core.check import checked
from regimes.core.error import UserError, at_home, nearest
from regimes.study.protocol import Amendment
from regimes.study.run import Run
from regimes.study.schema import schema_of
from regimes.study.sweep import Listed, Sweep, listed

__all__ = [
    "Option",
    "Scale",
    "Settings",
    "Study",
    "import_file",
    "load_study_file",
    "one_line",
    "parse_settings",
    "sources",
]

Settings = Mapping[str, Any]
MODULE = "regimes_study_file_"


@checked
@dataclass(frozen=True)
class Option:
    """What ``--set name=value`` may change.

    Attributes:
        type: any type pydantic can check a text against: ``int``, ``float``, ``Literal["mnist", "digits"]``,
            ``Annotated[int, Field(ge=1)]``; for ``tuple[int, ...]`` or ``list[float]`` the text is split at
            commas.
        default: its value where neither the user nor the scale gives one.
        help: one phrase.
    """

    type: Any
    default: Any
    help: str = ""

    def parse(self, name: str, value: Any) -> Any:
        """``value`` (text or already of the type) checked.

        >>> Option(tuple[int, ...], (8,)).parse("widths", "8,16")
        (8, 16)
        """
        many = typing.get_origin(self.type) in (tuple, list)
        given = (
            [part.strip() for part in value.split(",") if part.strip()]
            if many and isinstance(value, str)
            else value
        )
        try:
            return TypeAdapter(self.type).validate_python(given)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            raise UserError(
                f"`{name}` is {value!r}: {detail['msg'][:1].lower()}{detail['msg'][1:]}"
            ) from None


@checked
@dataclass(frozen=True)
class Scale:
    """One size of a study.

    Attributes:
        sweep: settings -> Sweep; the settings are complete (every option has a value of its type).
        cost: what it costs, in words: "1 minute on 2 cores".
        description: what is run, in words.
        defaults: values of options that differ at this scale.
    """

    sweep: Callable[[Settings], Sweep]
    cost: str
    description: str
    defaults: Settings = field(default_factory=dict)


@checked
@dataclass(frozen=True)
class Study:
    """Many runs that answer one question: what ``regimes run`` carries out.

    Attributes:
        name: lower-case words joined by dashes; the name on the command line.
        title: one phrase.
        paper: citation, or empty.
        runs: the Run classes that its sweeps build; they fix the columns of the result table.
        scales: name -> Scale; the first one is the default.
        options: name -> Option.
        claims: what the result must show; read by the report, not here.
        figures: what is drawn; read by the report, not here.
        tables: what is shown as a table; read by the report, not here.
        protocol: what was changed after a look at results, the oldest first.
        methods: what a reader must know of its own statistics: pairs of a word and a sentence.
        source: the file it was loaded from, if it was.

    Raises:
        UserError: the parts do not fit together (found at declaration, before anything runs).
    """

    name: str
    title: str
    runs: Sequence[type[Run]]
    scales: Mapping[str, Scale]
    paper: str = ""
    options: Mapping[str, Option] = field(default_factory=dict)
    claims: Any = ()
    figures: Any = ()
    tables: Any = ()
    protocol: Sequence[Amendment] = ()
    methods: Sequence[tuple[str, str]] = ()
    source: Path | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise UserError(f"`name` of a study is {self.name!r}: expected lower-case words joined by dashes")
        if not self.scales:
            raise UserError(f"`scales` of study {self.name} is empty: expected at least one, such as 'quick'")
        if not self.runs:
            raise UserError(
                f"`runs` of study {self.name} is empty: expected the Run classes its sweeps build"
            )
        for cls in self.runs:
            if not (isinstance(cls, type) and issubclass(cls, Run)):
                raise UserError(
                    f"`runs` of study {self.name} holds {cls!r}: expected subclasses of regimes.study.Run"
                )
        if len({cls.__name__ for cls in self.runs}) < len(self.runs):
            raise UserError(f"`runs` of study {self.name} holds two classes of one name: rename one")
        schema_of(self.runs)
        for title, scale in self.scales.items():
            for name in scale.defaults:
                if name not in self.options:
                    raise UserError(
                        f"`defaults` of scale {title} sets {name!r}, which is no option of {self.name}"
                    )

    def settings(self, scale: str, given: Settings | None = None) -> dict[str, Any]:
        """Complete settings: what is given, else the scale's default, else the option's.

        Raises:
            UserError: unknown scale or option, or a value that is not of the option's type.
        """
        chosen = dict(given or {})
        defaults = self.scale(scale).defaults
        for name in chosen:
            if name not in self.options:
                known = nearest(name, self.options) or f"; it has: {', '.join(self.options) or 'none'}"
                raise UserError(f"`{name}` is no option of study {self.name}{known}")
        return {
            name: option.parse(name, chosen.get(name, defaults.get(name, option.default)))
            for name, option in self.options.items()
        }

    def sweep(self, scale: str, settings: Settings) -> Listed:
        """The sweep of a scale, its runs in a tuple; ``settings`` as ``Study.settings`` gives them.

        Raises:
            UserError: the sweep is no function of the rows.
        """
        sweep = self.scale(scale).sweep(settings)
        if not callable(sweep):
            raise UserError(
                f"`sweep` of scale {scale} gave {type(sweep).__name__}: expected settings -> sweep, "
                "such as lambda settings: grid(...)"
            )
        return listed(sweep, self.name)

    def scale(self, name: str) -> Scale:
        """The scale of that name."""
        if name not in self.scales:
            raise UserError(
                f"`scale` is {name!r}: study {self.name} has {', '.join(self.scales)}"
                f"{nearest(name, self.scales)}"
            )
        return self.scales[name]


@checked
def parse_settings(texts: Sequence[str]) -> dict[str, str]:
    """Texts ``name=value`` of the command line as a dict.

    >>> parse_settings(["width=8,16", "dataset=mnist"])
    {'width': '8,16', 'dataset': 'mnist'}
    """
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UserError(f"`--set` is {text!r}: expected name=value")
        if name.strip() in pairs:
            raise UserError(f"`--set` gives {name.strip()!r} twice: keep one")
        pairs[name.strip()] = value.strip()
    return pairs


@checked
def load_study_file(path: str | Path) -> Study:
    """The ``STUDY`` that a Python file defines; the file may import modules that lie beside it.

    Raises:
        UserError: no such file, an error in it (with the line), or no ``STUDY``.
    """
    file = Path(os.path.realpath(at_home(path, "study")))
    if not file.is_file():
        raise UserError(f"`study` is {str(path)!r}: no such file")
    study = getattr(import_file(file), "STUDY", None)
    if not isinstance(study, Study):
        found = "no STUDY" if study is None else f"a STUDY of type {type(study).__name__}"
        raise UserError(f"`{path}` defines {found}: expected STUDY = regimes.study.Study(...)")
    return replace(study, source=file)


def import_file(file: Path) -> Any:
    """Import a file under a name made of its path: every process knows its classes by the same name."""
    digest = hashlib.sha256(str(file).encode()).hexdigest()[:8]
    name = f"{MODULE}{digest}_{re.sub(r'[^0-9a-zA-Z]', '_', file.stem)}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"`study` is {str(file)!r}: expected a Python file, its name ending in .py")
    module = importlib.util.module_from_spec(spec)
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"`{file}`{_line(error, file)}: {one_line(error)}") from error
    return module


def sources(classes: Sequence[type[Run]]) -> tuple[Path, ...]:
    """The loaded study files that define these classes: a worker imports them before it receives runs."""
    modules = {cls.__module__ for cls in classes if cls.__module__.startswith(MODULE)}
    return tuple(sorted(Path(str(sys.modules[name].__file__)) for name in modules))


def one_line(error: BaseException) -> str:
    """``Type: message`` on one line; the message alone for a mistake of the user."""
    try:
        text = str(error) if not isinstance(error, SyntaxError) else error.msg
    except Exception:
        text = "it has no words"
    text = " ".join(text.split())
    if isinstance(error, UserError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _line(error: BaseException, file: Path) -> str:
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f" line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f" line {frames[-1].lineno}" if frames else ""
