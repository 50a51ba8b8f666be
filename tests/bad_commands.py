"""Command lines that nobody should give, drawn from a grammar: each has at least one part that is wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DIGITS = "9" * 400
WORDS = (
    "",
    " ",
    "x",
    "None",
    "[]",
    "[/red]",
    "{0}",
    "%s",
    "é",
    "\udcff\udcfe",
    "\x1b[2J",
    "a\nb",
    "-",
    "'",
    '"',
    "𝟙",
)
NUMBERS = (
    "0",
    "-1",
    "1.5",
    "nan",
    "inf",
    "1e400",
    "٣x",
    "½",
    "0x10",
    "1_",
    "1,",
    DIGITS + "x",
    "",
    "one",
    "1" * 5000,
)
LARGE = ("1000000000", "100001", str(2**31), str(2**63), str(10**18), DIGITS)
PLACES = (
    "pol",
    "pool:",
    "pool:0",
    "pool:-1",
    "pool:x",
    "pool:99999",
    "pool:1:2",
    "here:1",
    "ray",
    "ray:auto",
    "",
    ":",
    DIGITS,
)
STUDIES = (
    "",
    " ",
    "feature-lasy",
    "iterative-linearisation",
    "two-regimes",
    "x" * 5000,
    "nothing.py",
    "../nothing.py",
    "~nouser/x.py",
)
SETS = (
    "",
    "=",
    "=1",
    " =1",
    "steps",
    "steps=",
    "steps=,",
    "steps=many",
    "nothing=1",
    "steps=1e400",
    "steps=nan",
    "steps=½",
)
SETS += (
    f"steps={DIGITS}x",
    "seeds=-1",
    "seeds=0.5",
    "seeds=True",
    "\udcff=1",
    f"{'y' * 3000}=1",
    "seeds=1,2",
    "step=1",
)
DEVICES = ("", "gpu", "cuda:0", "CPU", "tpu", "0", "meta")


@dataclass(frozen=True)
class Places:
    """What lies about: a study that works, files that are none, an OUT that is whole and some that are not."""

    study: str
    files: tuple[str, ...]
    outs: tuple[str, ...]
    whole: str

    @classmethod
    def make(cls, folder: Path, study: str, whole: Path) -> Places:
        """Lay out the files of the grammar in a folder."""
        texts = {
            "empty.py": "",
            "number.py": "STUDY = 3",
            "exits.py": "import sys; sys.exit(0)",
            "raises.py": "def f():\n    raise ValueError('a\\nb')\nf()",
            "syntax.py": "STUDY = (",
            "deep.py": "x = " + "(" * 500 + ")" * 500,
            "nul.py": "STUDY = '\0'",
            "latin.py": "x = 'é'",
            "endless.py": "def f(): f()\nf()",
            "mute.py": "class E(Exception):\n    def __str__(self): raise E\nraise E",
            "text.txt": "no Python",
        }
        for name, text in texts.items():
            (folder / name).write_bytes(text.encode("latin-1"))
        (folder / "folder.py").mkdir()
        (folder / "loop.py").symlink_to("loop.py")
        (folder / "broken.py").symlink_to("gone.py")
        outs = [
            folder / "text.txt",
            folder / "text.txt" / "below",
            folder / "loop.py",
            Path("/proc/nothing"),
            Path("/dev/null"),
        ]
        for number, content in enumerate(("", "null", "[]", '{"study": 3}', "[" * 100_000, "\xff")):
            (out := folder / f"out{number}").mkdir()
            (out / "study.json").write_text(content, encoding="latin-1")
            outs.append(out)
        (folder / "taken" / "study.json").mkdir(parents=True)
        (folder / "lock" / ".lock").mkdir(parents=True)
        outs += [folder / "taken", folder / "lock" / ".lock" / "x" / ".." / ".." / ".." / "text.txt"]
        named = [
            "~nouser",
            "~nouser/x",
            "x" * 300,
            "/".join(["d" * 200] * 30),
            "\udcff\udcfe",
            "",
            "nothing",
            "a\nb",
        ]
        files = (*sorted(texts), "folder.py", "loop.py", "broken.py")
        return cls(study, tuple(str(folder / name) for name in files), (*named, *map(str, outs)), str(whole))


def bad_commands(count: int, seed: int, at: Places) -> Iterator[list[str]]:
    """So many command lines; equal seeds give equal lines."""
    draw = random.Random(seed)
    kinds = (_run, _run, _run, _run, _claims, _claims, _fetch, _list, _nothing)
    for _ in range(count):
        yield draw.choice(kinds)(draw, at)


def _run(draw: random.Random, at: Places) -> list[str]:
    """``run`` of the small study with one wrong option or more, or of a wrong study with any options."""
    wrong = {
        "--scale": ("", "quik", "paper", "QUICK", *WORDS[2:]),
        "--seeds": (*NUMBERS, *LARGE),
        "--on": PLACES,
        "--set": (
            *SETS,
            *(f"seeds={number}" for number in (*NUMBERS[:8], *LARGE)),
            f"steps={DIGITS},{DIGITS}",
        ),
        "--device": DEVICES,
        "--data": ("nothing", at.files[0], "", "~nouser", "x" * 300, "\udcff"),
        "--out": tuple(out for out in at.outs if "/" in out or not out),
        "--nothing": WORDS,
        "--dry-run=": WORDS,
    }
    fine = {"--scale": "quick", "--on": "here", "--seeds": "1", "--out": "fine"}
    study = draw.choice([at.study, at.study, draw.choice(at.files), draw.choice(STUDIES), "feature-lazy"])
    if study == "feature-lazy":
        del wrong["--out"], wrong["--scale"]  # it has more than one, and a dry run writes nowhere
    chosen = draw.sample(sorted(wrong), draw.choice([1, 1, 1, 2, 3]))
    options = {name: draw.choice(wrong[name]) for name in chosen}
    options |= {name: value for name, value in fine.items() if name not in options and draw.random() < 0.5}
    # whatever of this should turn out to be fine is not to begin an hour of work
    line = [part for name, value in options.items() for part in (name, value)] + ["--dry-run"] * (
        study == "feature-lazy"
    )
    return ["run", *([study, *line] if draw.random() < 0.8 else [*line, study])]


def _claims(draw: random.Random, at: Places) -> list[str]:
    """``claims`` or ``report`` of what is no output directory, or with what is no option."""
    extra = draw.choice(
        [
            [],
            ["--json"],
            ["--jsn"],
            ["more"],
            ["--study", draw.choice(at.files)],
            ["--study", draw.choice(STUDIES)],
        ]
    )
    out = at.whole if draw.random() < 0.2 and extra and extra[0] != "--json" else draw.choice(at.outs)
    return [draw.choice(["claims", "report"]), out, *extra]


def _fetch(draw: random.Random, at: Places) -> list[str]:
    name = draw.choice([*WORDS, "minst", "../mnist", "x" * 3000, DIGITS])
    return ["fetch", name, *draw.choice([[], ["--to", draw.choice(at.outs)], ["--to"], ["--too", "x"]])]


def _list(draw: random.Random, at: Places) -> list[str]:
    return ["list", draw.choice([*WORDS, "--all", "--scale", DIGITS])]


def _nothing(draw: random.Random, at: Places) -> list[str]:
    word = draw.choice([*WORDS, "rin", "Run", "--verbose", "--version=3", "-x", DIGITS, at.study])
    return [word, *draw.choices([*WORDS, *NUMBERS], k=draw.randint(0, 3))]
