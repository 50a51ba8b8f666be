"""Every figure is drawn from one panel and from several; legends keep off the data; little data is told."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from regimes.core.error import UserError
from regimes.papers.feature_lazy import figures
from regimes.papers.feature_lazy.figures import scale, width
from regimes.report import style
from tests.papers.feature_lazy import synthetic

FIGURES = {name: getattr(file, name) for file in (scale, width) for name in file.__all__}
GRID = (-2, -1, 0, 1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def two() -> pd.DataFrame:
    parts = [
        synthetic.study((16, 64, 256), GRID),
        synthetic.study((16, 128), GRID, depth=5, dataset="fashion-mnist"),
    ]
    return pd.concat(parts, ignore_index=True)


def overlaps(drawn: Figure) -> bool:
    """Whether the legend covers any part of the axes."""
    drawn.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in drawn.axes]
    legends = [legend.get_window_extent() for legend in drawn.legends]
    return any(box.overlaps(legend) for box in boxes if box for legend in legends)


@pytest.mark.parametrize("name", FIGURES)
def test_panels_legend_and_nothing_cut_off(name: str, two: pd.DataFrame) -> None:
    drawn = FIGURES[name](two)
    titles = [axes.get_title(loc="left") for axes in drawn.axes]
    assert sum(title.startswith("digits, L = 2") for title in titles) == 1
    assert sum(title.startswith("fashion-mnist, L = 5") for title in titles) == 1
    assert drawn.legends
    assert not overlaps(drawn)
    box, whole = drawn.get_tightbbox(), drawn.get_size_inches()
    assert box.x0 >= -0.02
    assert box.y0 >= -0.02
    assert box.x1 <= whole[0] + 0.02
    assert box.y1 <= whole[1] + 0.02


@pytest.mark.parametrize("name", FIGURES)
def test_a_single_seed_and_little_data(name: str) -> None:
    few = synthetic.study((16, 64), (-1, 1.5, 2, 4), seeds=1)
    needs_members = name in ("ensemble_error", "fluctuation", "fluctuation_width")
    if needs_members:
        with pytest.raises(UserError, match="members"):
            FIGURES[name](few)
    else:
        assert FIGURES[name](few).axes


@pytest.mark.parametrize("name", FIGURES)
def test_no_rows_is_a_user_error(name: str) -> None:
    with pytest.raises(UserError):
        FIGURES[name](pd.DataFrame())


def test_fitted_exponents_are_written_above_the_panel(two: pd.DataFrame) -> None:
    title = figures.kernel_change(two).axes[0].get_title(loc="left")
    assert "feature exponent −1.3" in title
    assert "lazy exponent −1.0" in title


def test_windows_can_be_left_out(two: pd.DataFrame) -> None:
    assert "lazy" not in figures.kernel_change(two, lazy=None).axes[0].get_title(loc="left")
    narrow = figures.kernel_change(two, lazy=(1e7, 1e8))
    assert "lazy: too few points in its window" in narrow.axes[0].get_title(loc="left")


def test_same_figure_same_bytes_and_nothing_outside(two: pd.DataFrame) -> None:
    a, b = (style.as_bytes(figures.kernel_change(two), "svg", "a") for _ in range(2))
    assert a == b
    assert b"<text" not in a  # letters are outlines: no font is needed
    assert style.as_bytes(figures.crossover(two), "png").startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [2, 6, 10])
def test_widths_are_told_apart_without_colour(count: int) -> None:
    look = style.marks(range(count))
    assert len({one["marker"] for one in look.values()}) == count
    red, green, blue = np.array([one["color"][:3] for one in look.values()]).T
    assert (np.diff(0.299 * red + 0.587 * green + 0.114 * blue) > 0.02).all()


def test_global_style_is_left_alone(two: pd.DataFrame) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    draw: Callable[[pd.DataFrame], Figure] = figures.test_error
    style.as_bytes(draw(two), "svg")
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("count", [4, 7])
def test_many_panels_are_wrapped(count: int) -> None:
    drawn, ((*row,),) = style.canvas(count)
    assert len(row) == count
    assert drawn.get_figwidth() <= 9.5
