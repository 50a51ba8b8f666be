"""A study is checked when it is declared, and its file when it is loaded."""

from __future__ import annotations

import dataclasses
import pickle
import textwrap
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import pytest
from pydantic import Field

from regimes.core.error import UserError
from regimes.study import Option, Scale, Study, grid, load_study_file, parse_settings, run_study
from tests.study.toy import STUDY, Fragile, Toy

SCALE = Scale(lambda settings: grid(Toy, width=settings["width"]), "nothing", "one run", {"width": (4,)})
OPTIONS = {
    "width": Option(tuple[int, ...], (8, 16)),
    "data": Option(Literal["mnist", "digits"], "digits"),
    "seeds": Option(Annotated[int, Field(ge=1)], 3),
    "rate": Option(float, 1.0),
    "center": Option(bool, True),
}
FULL = Study("full-study", "Full", (Toy,), {"quick": SCALE}, options=OPTIONS)

FILE = """
    from pathlib import Path
    from beside import WIDTHS
    from regimes.study import Run, Scale, Study, grid

    class Mine(Run):
        columns = {"value": float, "where": str}
        width: int

        @classmethod
        def perform(cls, runs, data, tick):
            for run in runs:
                yield run, [{"value": run.width**2, "where": __name__}]

    SCALES = {"quick": Scale(lambda settings: grid(Mine, width=WIDTHS), "", "")}
    STUDY = Study("mine", "Mine", (Mine,), SCALES)
"""


def write(folder: Path, text: str) -> Path:
    (folder / "beside.py").write_text("WIDTHS = [1, 2, 3]\n")
    path = folder / "my study.py"
    path.write_text(textwrap.dedent(text))
    return path


def test_settings_are_given_or_the_scales_or_the_options() -> None:
    assert FULL.settings("quick") == {
        "width": (4,),
        "data": "digits",
        "seeds": 3,
        "rate": 1.0,
        "center": True,
    }
    given = parse_settings(["width=1, 2", "data=mnist", "rate=1e3", "center=false", "seeds=5"])
    assert FULL.settings("quick", given) == {
        "width": (1, 2),
        "data": "mnist",
        "seeds": 5,
        "rate": 1e3,
        "center": False,
    }
    assert len(FULL.sweep("quick", FULL.settings("quick", given))(pd.DataFrame())) == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"seed": "1"}, "`seed` is no option of study full-study; did you mean 'seeds'?"),
        ({"zzz": "1"}, "it has: width, data, seeds, rate, center"),
        ({"seeds": "0"}, "`seeds` is '0': input should be greater than or equal to 1"),
        ({"seeds": "1.5"}, "`seeds` is '1.5': input should be a valid integer"),
        ({"data": "cifar"}, "`data` is 'cifar': input should be 'mnist' or 'digits'"),
        ({"width": "4,x"}, "`width` is '4,x': input should be a valid integer"),
    ],
)
def test_a_wrong_setting_is_one_line(given: dict[str, str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        FULL.settings("quick", given)
    assert words in str(caught.value)


def test_an_unknown_scale_names_the_others() -> None:
    with pytest.raises(
        UserError, match="`scale` is 'quik': study full-study has quick; did you mean 'quick'"
    ):
        FULL.settings("quik")


@pytest.mark.parametrize("text", ["width", "=3"])
def test_texts_of_settings_have_a_name_and_a_value(text: str) -> None:
    with pytest.raises(UserError, match="expected name=value"):
        parse_settings([text])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "My Study"}, "`name`"),
        ({"scales": {}}, "`scales`"),
        ({"runs": ()}, "`runs`"),
        ({"runs": (Toy, Toy)}, "two classes of one name"),
        ({"options": {}}, "which is no option"),
        (
            {"runs": (Toy, type("Odd", (Fragile,), {"columns": {"step": str}, "__module__": __name__}))},
            "column `step`",
        ),
    ],
)
def test_a_study_that_does_not_fit_together_fails_at_declaration(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        dataclasses.replace(FULL, **change)


@pytest.mark.parametrize("on", ["here", "pool:1"])
def test_a_file_of_the_user_is_run_here_and_by_workers(tmp_path: Path, on: str) -> None:
    study = load_study_file(write(tmp_path, FILE))
    assert study.source == (tmp_path / "my study.py").resolve()
    assert run_study(study, "quick", tmp_path / "out", on=on, quiet=True).finished == 3
    frame = pd.read_parquet(tmp_path / "out" / "rows")
    assert sorted(frame["value"]) == [1.0, 4.0, 9.0]
    run = study.sweep("quick", {})(frame)[0]
    assert pickle.loads(pickle.dumps(run)) == run


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "defines no STUDY: expected STUDY = "),
        ("STUDY = 3", "defines a STUDY of type int"),
        ("\n\nx = 1 / 0", "line 3: ZeroDivisionError: division by zero"),
        ("def f():\n    raise OSError('a\\nb')\n\nf()", "line 2: OSError: a b"),
        ("x = (", "line 1: SyntaxError: '(' was never closed"),
        ("import nothing_like_this", "line 1: ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("raise SystemExit(3)", "line 1: SystemExit: 3"),
        (
            "from regimes.study import Study\nSTUDY = Study('a b', '', (), {})",
            "line 2: `name` of a study is 'a b'",
        ),
    ],
)
def test_a_file_with_a_mistake_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_study_file(write(tmp_path, text))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_python(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_study_file(tmp_path / "gone.py")
    (tmp_path / "study.txt").write_text("")
    with pytest.raises(UserError, match=r"expected a Python file"):
        load_study_file(tmp_path / "study.txt")


def test_a_sweep_must_be_built_by_a_function() -> None:
    wrong = Scale(lambda settings: [Toy(width=1)], "", "")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="`sweep` of scale quick gave list"):
        dataclasses.replace(STUDY, scales={"quick": wrong}).sweep("quick", {})
