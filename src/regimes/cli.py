"""The command line: parse, then call one function. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

import regimes
from regimes.core.error import UserError, at_home
from regimes.core.rounding import fix_rounding
from regimes.papers.catalog import CATALOG, find_study, stored_study

__all__ = ["app", "main"]

MISTAKE = 2
INTERRUPTED = 130
LONGEST = 1000
COLOURS = {
    "reproduced": "green",
    "not reproduced": "red",
    "inconclusive": "yellow",
    "outside this scale": "blue",
}


class Commands(TyperGroup):
    """Turns a mistake of the user into one line and exit code 2, Ctrl-C into one line and exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(told(f"error: {error}"), err=True)
            raise typer.Exit(MISTAKE) from None
        except SystemExit as error:  # in the code of a study, where nothing else was in the way of it
            raise RuntimeError(f"sys.exit({error.code!r}) was called") from error
        except KeyboardInterrupt as error:
            typer.echo(str(error) or "interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def folder(text: str) -> Path:
    """The name of a directory: an empty one would mean the current one."""
    if not text:
        raise typer.BadParameter("it is empty: expected the name of a directory, such as . for this one")
    return Path(text)


def existing(text: str) -> Path:
    """The name of a directory that is there."""
    folder(text)
    try:
        path = at_home(text, "data")
    except UserError as error:  # a ValueError, of which typer tells no words
        raise typer.BadParameter(str(error)) from None
    if not path.is_dir():
        raise typer.BadParameter(f"{text!r} is no directory")
    return path


Out = Annotated[
    Path, typer.Argument(metavar="OUT", parser=folder, help="The directory that `regimes run` wrote.")
]
Given = Annotated[
    str | None,
    typer.Option(
        "--study", metavar="FILE.py", help="The file of a study of your own, as given to `regimes run`."
    ),
]
StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="A name of `regimes list`, or a file that defines STUDY.")
]
ScaleName = Annotated[str | None, typer.Option(help="How large: quick (the default), small or paper.")]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        parser=existing,
        help="Data sets; without it REGIMES_DATA, or ~/.cache/regimes.",
    ),
]
Results = Annotated[
    Path | None,
    typer.Option(metavar="DIR", parser=folder, help="Results, to be continued; without it runs/STUDY-SCALE."),
]
On = Annotated[
    str, typer.Option(metavar="here|pool[:N]", help="In this process, or in N; without N one per core.")
]
Device = Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Where the tensors are.")]
Seeds = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Seeds per point, if not as many as the scale has.")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change an option of the study.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and end.")]


def version(wanted: bool) -> bool:
    """Print the version and end, if that is wanted."""
    if wanted:
        typer.echo(f"regimes {regimes.__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def common(
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=version, is_eager=True)
    ] = False,
) -> None:
    """Training regimes of neural networks: run the studies, read their claims."""


@app.command("list")
def list_studies() -> None:
    """Show the studies, what they claim, what each scale costs."""
    for study in CATALOG.values():
        card = study.card
        costs = ", ".join(f"{scale}: {cost}" for scale, cost in card.cost.items())
        name = typer.style(card.name, bold=True)
        typer.echo(f"{name} ({study.status})\n  {card.title}\n  {card.paper}")
        typer.echo(f"  claims: {', '.join(card.claims)}\n  {costs}\n")
    typer.echo("Run one: regimes run STUDY, or a study of your own: regimes run FILE.py")


@app.command()
def run(
    study: StudyName,
    scale: ScaleName = None,
    data: Data = None,
    out: Results = None,
    on: On = "pool",
    device: Device = None,
    seeds: Seeds = None,
    settings: Sets = None,
    dry_run: DryRun = False,
) -> None:
    """Run a study, or what is left of it, and build its report. The same command continues it."""
    from regimes.report import page
    from regimes.study import Store, forecast_study, parse_settings, run_study

    chosen: dict[str, Any] = {**parse_settings(settings or [])}
    for name, value in {"device": device, "seeds": seeds}.items():
        if value is not None:
            if name in chosen:
                raise UserError(f"`--{name}` and `--set {name}=` are both given: keep one")
            chosen[name] = value
    check_device(chosen.get("device"))
    found = find_study(study)
    size = next(iter(found.scales)) if scale is None else scale
    found.scale(size)
    place = out or Path("runs") / f"{found.name}-{size}"
    if dry_run:
        typer.echo(
            f"{found.name} ({size}) in {place}: {forecast_study(found, size, place, settings=chosen, on=on)}"
        )
        return
    store = Store(place, found.runs)
    result = run_study(found, size, store, data=data, settings=chosen, on=on)
    typer.echo(str(result))
    typer.echo(f"{page.headline(page.build(store, found))} Report: {place / 'report.html'}")
    raise typer.Exit(1 if result.failures else 0)


@app.command()
def claims(
    out: Out,
    study: Given = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a list of objects instead of a table.")
    ] = False,
) -> None:
    """Show the verdict on each claim. Exit code 0 if all that the scale can decide are reproduced, and all controls
    hold; else 1.
    """
    from regimes.report.claim import dumps, holds, verdicts
    from regimes.report.decide import with_ways
    from regimes.study import Store

    held = stored_study(out, study)
    store = Store(out, held.runs)
    reading = store.read()
    store.keep()
    for line in reading.left_out:
        typer.echo(told(f"warning: {line}"), err=True)
    found = with_ways(verdicts(held.claims, reading.frame), held, store)
    if as_json:
        typer.echo(dumps(found), nl=False)
    else:
        from regimes.report.page import headline

        log = logged(len(held.protocol))
        typer.echo("\n".join([*lines_of(found), headline(found), *log]))
    raise typer.Exit(0 if holds(found) else 1)


@app.command()
def report(out: Out, study: Given = None) -> None:
    """Build the figures, the claims and the page again from the stored rows."""
    from regimes.report import page

    held = stored_study(out, study)
    typer.echo(f"{page.headline(page.build(out, held))} Report: {out / 'report.html'}")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A data set, such as fashion-mnist.")],
    to: Annotated[
        Path, typer.Option(metavar="DIR", help="The data directory it goes to.", show_default=False)
    ],
) -> None:
    """Fetch a data set, with its checksums."""
    from regimes import data

    for path in data.fetch(name, to):
        typer.echo(path)


def check_device(device: str | None) -> None:
    """Refuse "cuda" where there is none, before a hundred runs fail one by one."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError(
                "`--device` is 'cuda', but PyTorch finds no CUDA device here; expected cpu or auto"
            )


def logged(changes: int) -> list[str]:
    """That there is a protocol log, if there is.

    >>> logged(1), logged(0)
    (['protocol log: 1 change, see the report'], [])
    """
    return [f"protocol log: {changes} change{'s' * (changes > 1)}, see the report"] if changes else []


def lines_of(verdicts: list[dict[str, Any]]) -> list[str]:
    """The verdicts as a table for the terminal, the controls after the claims; under each line the sentence, and a
    note if there is one.
    """
    from regimes.report.claim import said
    from regimes.report.page import chance

    ordered = sorted(verdicts, key=lambda one: one["kind"] == "control")
    cells = [("claim", "value", "interval", "range", "reference", "power", "verdict")]
    for one in ordered:
        ends = interval(one["low"], one["high"]), interval(*one["range"])
        words = number(one["reference"]), chance(one)[0].replace("–", "-"), said(one)
        cells.append((one["id"], number(one["value"]), *ends, *words))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    lines = [typer.style(rows[0].rstrip(), bold=True)]
    before = "claim"
    for one, row in zip(ordered, rows[1:], strict=True):
        if one["kind"] != before:
            before = one["kind"]
            lines.append(typer.style("controls: identities, which fail only if the code is wrong", bold=True))
        lines += [typer.style(row.rstrip(), fg=COLOURS[one["verdict"]]), f"  {one['claim']}"]
        lines += [f"  {one['note']}"] if one["note"] else []
        power, why = chance(one)
        lines += [f"  power {power}: {why}"] if one["power"] is not None and why else []
        lines += [f"  {line}" for line in way_of(one["decide"])] if one["decide"] else []
    return lines


def way_of(way: dict[str, str]) -> list[str]:
    """What would decide a claim, its command on a line of its own."""
    if not way["command"]:
        return [way["text"]]
    return [f"{way['text']} ({way['cost']}):", f"  {way['command']}"]


def number(value: float | str | None) -> str:
    """Three significant digits, words as they are, a dash for nothing.

    >>> number(0.12345), number("equal"), number(None)
    ('0.123', 'equal', '-')
    """
    return "-" if value is None else value if isinstance(value, str) else f"{value:.3g}"


def interval(low: float | None, high: float | None) -> str:
    """Both ends; an end that is missing is open.

    >>> interval(-0.6, -0.4), interval(None, 0.3), interval(2, None), interval(None, None)
    ('-0.6 to -0.4', 'at most 0.3', 'at least 2', '-')
    """
    if low is not None and high is not None:
        return f"{number(low)} to {number(high)}"
    return (
        f"at least {number(low)}"
        if low is not None
        else f"at most {number(high)}"
        if high is not None
        else "-"
    )


def one_line(message: Warning | str, *_: Any) -> str:
    """A warning as the user sees it: what it says, not where in the library it was said."""
    return f"{told(f'warning: {message}')}\n"


def told(text: str) -> str:
    """A message as one line for a terminal: what cannot be printed by its number, no more than fits one.

    >>> told("`out` is 'a\\nb\\x1b[2J'")
    "`out` is 'a\\\\nb\\\\x1b[2J'"
    """
    line = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text.strip())
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def defect(error: Exception) -> str:
    """What nobody foresaw in a line; its traceback goes to a file, which is named."""
    from regimes.study.fault import place, trace_of
    from regimes.study.study import one_line

    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="regimes-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(trace_of(error))
        where = f"; the traceback is in {file.name}"
    except OSError:
        where = ""
    return f"error: unforeseen: {one_line(error)}{place(error)}{where}"


def main() -> None:
    """The console command ``regimes``."""
    warnings.formatwarning = one_line
    fix_rounding()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        app(prog_name="regimes")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        line = f"error: {error.filename or 'the system says'}: {reason}"
    except MemoryError:
        line = "error: out of memory; ask for less, or for fewer workers with --on pool:1"
    except Exception as error:
        line = defect(error)
    with suppress(OSError):
        # standard output may be what failed: it must not fail again when the process ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with suppress(OSError):
        print(told(line), file=sys.stderr)
    sys.exit(MISTAKE)


if __name__ == "__main__":
    sys.exit(main())
