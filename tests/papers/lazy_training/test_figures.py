"""Figures of the lazy-training study: they show the numbers of the rows, and say what is missing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from regimes.core.error import UserError
from regimes.papers.lazy_training import figures as figure_lazy
from regimes.papers.lazy_training.figures import FIGURES
from regimes.report.page import draw
from tests.papers.lazy_training.synthetic import laws_obeyed


@pytest.mark.parametrize("entry", FIGURES, ids=[entry[0] for entry in FIGURES])
def test_a_figure_is_drawn_or_says_why_not(entry: tuple) -> None:
    shown = draw(entry, laws_obeyed())
    assert shown.svg and shown.png and not shown.note
    other = laws_obeyed().loc[lambda rows: rows["run"] == "nothing of the kind"]
    assert draw(entry, pd.concat([other, laws_obeyed().head(1).assign(run="Other")])).note


def test_paths_go_from_the_start_to_the_end_of_each_neuron() -> None:
    panels = figure_lazy.neuron_paths(laws_obeyed()).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["tau = 0.1", "tau = 2"]
    lines = {line.get_label(): line for line in panels[1].lines}
    assert np.array(lines["start"].get_xydata()).tolist() == [[2.0, 0.0], [0.0, 2.0], [-2.0, -2.0]]
    assert np.array(lines["end"].get_xydata()).tolist() == [[10.0, 0.0], [0.0, 10.0], [-10.0, -10.0]]


def test_the_powers_are_written_beside_the_curves() -> None:
    (axes,) = figure_lazy.lazy_rates(laws_obeyed()).axes
    labels = " ".join(axes.get_legend_handles_labels()[1])
    assert labels.count("\N{MINUS SIGN}1.0") + labels.count("\N{MINUS SIGN}0.99") == 2
    assert "\N{MINUS SIGN}2.0" in labels or "\N{MINUS SIGN}1.99" in labels


def test_each_data_set_has_a_panel_of_accuracy_and_one_of_stability() -> None:
    figure = figure_lazy.accuracy_stability(laws_obeyed())
    titles = [axes.get_title(loc="left") for axes in figure.axes[:3]]
    assert titles == ["cifar-10", "digits", "fashion-mnist"]
    assert len(figure.axes) == 6


def test_wide_networks_are_not_in_the_panels() -> None:
    rows = laws_obeyed()
    with pytest.raises(UserError):
        figure_lazy.accuracy_stability(rows.loc[rows["width_factor"] != 1])
