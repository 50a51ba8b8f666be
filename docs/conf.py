"""How Sphinx builds these pages: `make docs`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive, directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import regimes

project = "regimes"
author = "regimes developers"
copyright = f"2026, {author}"
release = regimes.__version__
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

html_theme = "pydata_sphinx_theme"
html_title = "regimes"
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}
html_show_sourcelink = False

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# ``bytes`` is a type, and an attribute of several classes.
suppress_warnings = ["ref.python"]
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True


class Public(Directive):
    """``.. public:: regimes.control``: every name in the module's ``__all__``, wherever it is defined.

    With ``:no-index:`` links lead elsewhere: to the folder where users find these names.
    """

    required_arguments = 1
    option_spec: ClassVar = {"no-index": directives.flag}

    def run(self) -> list[nodes.Node]:
        module = importlib.import_module(self.arguments[0])
        lines = [
            f".. py:module:: {module.__name__}",
            "",
            *inspect.cleandoc(module.__doc__ or "").splitlines(),
            "",
        ]
        for name in getattr(module, "__all__", ()):
            lines += [*entry(module, name), *(["   :no-index:"] if "no-index" in self.options else []), ""]
        node = nodes.container()
        self.state.nested_parse(StringList(lines, source=module.__name__), self.content_offset, node)
        return node.children


def entry(module: ModuleType, name: str) -> list[str]:
    """The lines that document one public name; a public file is documented whole, each name where it is defined."""
    value = getattr(module, name)
    if inspect.ismodule(value):
        lines = [f".. rubric:: {name}", "", f".. automodule:: {value.__name__}", "   :members:"]
        others = [one for one in value.__all__ if is_from_elsewhere(value, one)]
        return [*lines, f"   :exclude-members: {', '.join(others)}"] if others else lines
    if inspect.isclass(value):
        return [f".. autoclass:: {module.__name__}.{name}", "   :members:"]
    if inspect.isroutine(value):
        return [f".. autofunction:: {module.__name__}.{name}"]
    return [f".. py:data:: {module.__name__}.{name}", "", *(f"   {line}" for line in comment(module, name))]


def is_from_elsewhere(module: ModuleType, name: str) -> bool:
    """Whether a public name of a file (or a folder of files) is a class or function that is defined elsewhere."""
    value = getattr(module, name)
    own = f"{module.__name__}."
    return (inspect.isclass(value) or inspect.isroutine(value)) and not f"{value.__module__}.".startswith(own)


def comment(module: ModuleType, name: str) -> list[str]:
    """The docstring under a constant, in whichever file of the folder defines it."""
    files = [module.__name__]
    if hasattr(module, "__path__"):
        files += [file.name for file in pkgutil.walk_packages(module.__path__, f"{module.__name__}.")]
    for file in files:
        analyzer = ModuleAnalyzer.for_module(file)
        analyzer.analyze()
        if ("", name) in analyzer.attr_docs:
            return analyzer.attr_docs["", name]
    return []


def setup(app: Sphinx) -> None:
    app.add_directive("public", Public)
