"""Any damage to any file of an output directory: it is named, its run is done again, or one line says what it is."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from regimes.study import Store
from tests.test_bad_commands import answered, fault_of
from tests.test_cli import STUDY

STUDY_WITH_FIGURE = STUDY.replace(
    "    claims=(claim",
    '    figures=(("square", "Square", lambda frame: __import__("matplotlib.figure").figure.Figure((1, 1)), ""),),\n'
    "    claims=(claim",
)
Damage = Callable[[Path, random.Random], None]


def changed(path: Path, draw: random.Random) -> None:
    """One byte, or a few."""
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 1, 1, 4, 40]) if content else 0):
        content[draw.randrange(len(content))] ^= draw.choice([1, 128, 255, draw.randrange(1, 256)])
    path.write_bytes(content)


def cut(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content) + 1)])


def grown(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    place = draw.randrange(len(content) + 1)
    path.write_bytes(content[:place] + draw.randbytes(draw.choice([1, 10, 3000])) + content[place:])


def moved(path: Path, draw: random.Random) -> None:
    """A piece of the file lies elsewhere in it."""
    content = path.read_bytes()
    ends = sorted(draw.randrange(len(content) + 1) for _ in range(3))
    first, middle, last = ends
    path.write_bytes(content[:first] + content[middle:last] + content[first:middle] + content[last:])


def replaced(path: Path, draw: random.Random) -> None:
    texts = (
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\0" * 1000,
        b"PAR1" * 9,
        b"[" * 10**5,
        draw.randbytes(500),
        b"\xff\xfe",
    )
    path.write_bytes(draw.choice(texts))


def words(path: Path, draw: random.Random) -> None:
    """A value of a JSON file of another type."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return replaced(path, draw)
    if not isinstance(content, dict):
        return replaced(path, draw)
    odd = (
        None,
        3,
        -1,
        1e308,
        10**400,
        True,
        "",
        "x\ud800",
        "a\nb",
        [],
        [[]],
        {},
        {"a": {"b": [{}]}},
        [None],
        "x" * 10**5,
    )
    place = draw.choice(
        [content, content["sessions"][0], content["sessions"][0]["versions"], content["settings"]]
    )
    place[draw.choice([*place, "more"])] = draw.choice(odd)
    path.write_text(json.dumps(content))


def exchanged(path: Path, draw: random.Random) -> None:
    """Something else under the name."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    kind = draw.randrange(5)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        (path / "deeper").mkdir(parents=True)
    elif kind == 2:
        path.symlink_to(path.name)
    elif kind == 3:
        path.symlink_to("gone" if draw.random() < 0.5 else "/dev/null")
    else:
        path.write_bytes(b"")


def strewn(path: Path, draw: random.Random) -> None:
    """Something that does not belong beside the file."""
    name = draw.choice(
        ["x", ".x.1.partial", "\udcff", "a\nb", "0" * 20 + ".parquet", path.name + ".parquet", "y" * 200]
    )
    (path.parent / name).write_bytes(draw.choice([b"", b"x", path.read_bytes()]))


DAMAGES: tuple[Damage, ...] = (
    changed,
    changed,
    changed,
    cut,
    grown,
    moved,
    replaced,
    words,
    exchanged,
    strewn,
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, pd.DataFrame]:
    """A study file, and what it left when it was run: rows, claims, a page, and a failed run."""
    folder = tmp_path_factory.mktemp("sound")
    (study := folder / "walk.py").write_text(STUDY_WITH_FIGURE)
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        assert answered(ask(study, folder / "out"), patch)[0] == 1, "one of its runs fails"
    return study, folder / "out", Store(folder / "out").frame()


def quick(patch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than all the rest."""

    def picture(figure: Figure, kind: str, name: str = "") -> bytes:
        return kind.encode()

    patch.setattr("regimes.report.shown.as_bytes", picture)
    patch.setattr("regimes.cli.fix_rounding", lambda: None)


def ask(study: Path, out: Path) -> list[str]:
    return ["run", str(study), "--out", str(out), "--on", "here", "--set", "steps=1,4,9,101"]


@pytest.mark.parametrize("cases", [20, pytest.param(1500, marks=pytest.mark.slow)])
def test_a_damaged_directory_is_mended_or_refused_in_a_line(
    tmp_path: Path, sound: tuple[Path, Path, pd.DataFrame], cases: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, template, rows = sound
    quick(monkeypatch)
    draw = random.Random(cases)
    told: Counter[object] = Counter()
    out = tmp_path / "out"
    for case in range(cases):
        shutil.copytree(template, out, symlinks=True)
        victim = draw.choice(sorted(path for path in out.rglob("*") if path.is_file() or draw.random() < 0.2))
        damage = exchanged if victim.is_dir() else draw.choice(DAMAGES)
        damage(victim, draw)
        where = f"case {case}: {damage.__name__} {victim.relative_to(out)}"
        for order in (
            ["claims", str(out), "--study", str(study)],
            ["report", str(out), "--study", str(study)],
        ):
            code, told_out, err = answered(order, monkeypatch)
            assert well_told(code, err), f"{where}: {order[0]} {code}\n{told_out}{err}"
        code, told_out, err = answered(ask(study, out), monkeypatch)
        assert well_told(code, err), f"{where}: run {code}\n{told_out}{err}"
        told[code] += 1
        if code == 2:  # nothing is lost: with the one file back all is as it was
            clear(victim)
            if (template / victim.relative_to(out)).is_dir():
                shutil.copytree(template / victim.relative_to(out), victim)
            else:
                shutil.copy(template / victim.relative_to(out), victim)
            code, told_out, err = answered(ask(study, out), monkeypatch)
            assert code == 1, f"{where}: mended {code}\n{told_out}{err}"
        pd.testing.assert_frame_equal(Store(out).frame(), rows, check_exact=True, obj=where)
        shutil.rmtree(out)
    assert told[1] > cases / 2, told


def clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def well_told(code: object, err: str) -> bool:
    """Whether every line is a warning, but for the one of an exit code 2."""
    if code == 2:
        return not fault_of(code, "", err)
    return code in (0, 1) and all(line.startswith("warning: ") for line in err.splitlines())
