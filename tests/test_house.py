"""The rules of CONTRIBUTING.md that a machine can check."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "regimes"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PYTHON = [
    *SOURCES,
    *(
        path
        for folder in ("tests", "benchmarks", "examples")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ),
]
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
FOLDERS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
LONGEST_FILE = 400
LONGEST_FUNCTION = 50

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(tree: ast.AST) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def length(function: Function) -> int:
    """Lines from ``def`` to the end, without the docstring."""
    first = function.body[0]
    documented = ast.get_docstring(function, clean=False) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def unannotated(function: Function) -> list[str]:
    """The arguments without a type (``self`` and ``cls`` have none), and "return" if that has none."""
    spec = function.args
    every = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *filter(None, (spec.vararg, spec.kwarg))]
    missing = [one.arg for one in every if one.annotation is None and one.arg not in ("self", "cls")]
    return missing + (["return"] if function.returns is None else [])


def public_names(path: Path) -> list[str] | None:
    """The ``__all__`` of a file, read without importing it."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None


def order(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest, each by the alphabet: what ``ruff check`` (RUF022) writes."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def is_frozen(decorator: ast.expr) -> bool:
    """Whether a decorator is ``dataclass(frozen=True)``, or no dataclass decorator at all."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    if ast.unparse(called).split(".")[-1] != "dataclass":
        return True
    keywords = decorator.keywords if isinstance(decorator, ast.Call) else []
    return any(word.arg == "frozen" and ast.unparse(word.value) == "True" for word in keywords)


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE
    long = {one.name: length(one) for one in functions(ast.parse(text)) if length(one) > LONGEST_FUNCTION}
    assert not long, f"functions above {LONGEST_FUNCTION} lines: {long}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_argument_and_return_is_annotated(path: Path) -> None:
    missing = {
        one.name: unannotated(one) for one in functions(ast.parse(path.read_text())) if unannotated(one)
    }
    assert not missing


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_public_names_are_listed_and_sorted(path: Path) -> None:
    names = public_names(path)
    assert names is not None, "no `__all__`"
    assert names == sorted(names, key=order)


@pytest.mark.parametrize("path", [path for path in PYTHON if path != Path(__file__)], ids=name_of)
def test_nothing_is_left_to_do(path: Path) -> None:
    assert not re.findall(r"\b(?:TODO|FIXME|XXX)\b", path.read_text())


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_dataclasses_are_frozen(path: Path) -> None:
    classes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
    thawed = [
        one.name for one in classes if not all(is_frozen(decorator) for decorator in one.decorator_list)
    ]
    assert not thawed


def narrows(test: ast.expr) -> bool:
    """Whether an assertion only tells the type checker what is known: `x is not None`, `isinstance(x, C)`."""
    return bool(re.fullmatch(r"[\w.]+ is not None|isinstance\(.*\)", ast.unparse(test)))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_users_meet_no_assert_and_no_bare_except(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assert):
            assert narrows(node.test), f"line {node.lineno}: raise UserError, or nothing"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: name the exception"


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_a_test_is_found_by_the_file_it_is_for(path: Path) -> None:
    """How: ``tests/README.md``, which lists what concerns several folders."""
    assert ast.get_docstring(ast.parse(path.read_text())), "no first line that says what it holds"
    name, folder = path.stem.removeprefix("test_"), path.parent.relative_to(ROOT / "tests")
    if folder == Path():
        assert f"`{path.name}`" in (ROOT / "tests" / "README.md").read_text()
        return
    tested = {each.stem for each in (PACKAGE / folder).rglob("*") if each.is_dir() or each.suffix == ".py"}
    assert any(f"{name}_".startswith(f"{each}_") for each in tested), (
        f"nothing of that name in src/regimes/{folder}"
    )


def test_tests_that_pages_name_are_there() -> None:
    """Each file, and each function after ``::``; where the file is left out it is the one named before."""
    missing = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        path = ""
        for found in re.finditer(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", page.read_text()):
            path, function = found.group(1) or path, found.group(2)
            text = (ROOT / path).read_text() if path and (ROOT / path).is_file() else None
            if found.group(0) != "``" and (text is None or (function and f"def {function}(" not in text)):
                missing.append(f"{page.name}: {found.group(0)}")
    assert not missing


def test_one_name_is_one_thing() -> None:
    """A class, or a type that files share, has one definition. Studies name their own parts as they like."""
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        if path.name == "__init__.py" or path.is_relative_to(PACKAGE / "papers"):
            continue
        own: set[str] = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Assign):
                own |= {ast.unparse(target) for target in node.targets}
        for name in own & set(public_names(path) or []):
            places.setdefault(name, []).append(name_of(path))
    several = {name: found for name, found in places.items() if len(found) > 1 and order(name)[0] == 1}
    assert not several


def test_no_file_is_a_drawer() -> None:
    drawers = [
        name_of(path) for path in PYTHON if path.stem in ("util", "utils", "helpers", "misc", "common")
    ]
    assert not drawers


@pytest.mark.parametrize("folder", [*FOLDERS, "cli"])
def test_public_names_are_on_a_docs_page(folder: str) -> None:
    """The directive ``public`` documents every name in ``__all__``."""
    page = (ROOT / "docs" / "api" / f"{folder}.md").read_text()
    assert f".. public:: regimes.{folder}\n" in page
    assert f"api/{folder}" in (ROOT / "docs" / "index.md").read_text()


@pytest.mark.parametrize("folder", [*FOLDERS, "cli"])
def test_public_names_say_what_they_are(folder: str) -> None:
    """Every class and function that a folder offers has a docstring of its own."""
    module = importlib.import_module(f"regimes.{folder}")
    offered = {name: getattr(module, name) for name in module.__all__}
    speaking = {
        name: value for name, value in offered.items() if inspect.isclass(value) or inspect.isroutine(value)
    }
    assert not [name for name, value in speaking.items() if not value.__doc__]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_offers_only_what_its_files_offer(folder: str) -> None:
    """A name that a folder makes public is public in the file it comes from; ``measure`` offers the kernel too."""
    init = PACKAGE / folder / "__init__.py"
    below = set(public_names(PACKAGE / "kernel" / "__init__.py") or []) if folder == "measure" else set()
    offered = {
        name for path in (PACKAGE / folder).rglob("*.py") if path != init for name in public_names(path) or []
    }
    modules = {path.stem for path in init.parent.iterdir() if path != init}
    assert set(public_names(init) or []) <= offered | modules | below
