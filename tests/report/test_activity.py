"""The picture of the layers against time shows the numbers of the rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from regimes.core.error import UserError
from regimes.report.activity import layers_in_time
from regimes.report.style import as_bytes


def rows(*changes: tuple[float, list[float]], share: list[float] | None = None) -> pd.DataFrame:
    """Rows of the probe: at each step the change of each layer; the movement lies where the change does."""
    return pd.DataFrame(
        [
            {
                "step": step,
                "layer_change": change,
                "layer_moved": [
                    each**2 / sum(c**2 for c in change) if any(change) else math.nan for each in change
                ],
                "layer_share": share or [1 / len(change)] * len(change),
            }
            for step, change in changes
        ]
    )


def shown(figure: Any) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """The times between the cells, the shades (layers, times), and the places of the marks at the end."""
    left, right = figure.axes[:2]
    (mesh,) = left.collections
    shades = np.ma.filled(np.ma.asarray(mesh.get_array(), dtype=float), math.nan)
    return mesh.get_coordinates()[0, :, 0], shades, [line.get_xdata() for line in right.lines]


def test_it_shows_the_rows_and_averages_over_runs() -> None:
    frame = pd.concat([rows((1, [0.1, 0.3]), (100, [0.2, 0.6])), rows((100, [0.4, 0.2]), (0, [0.0, 0.0]))])
    frame = pd.concat([frame, rows((100, [math.nan, math.nan]))])
    edges, shades, (share, moved) = shown(layers_in_time(frame, names=["in", "out"]))
    np.testing.assert_allclose(edges, [0.1, 10, 1000])
    np.testing.assert_allclose(shades, [[0.1, 0.3], [0.3, 0.4]])
    np.testing.assert_allclose([share, moved], [[0.5, 0.5], [(0.1 + 0.8) / 2, (0.9 + 0.2) / 2]])


def test_one_time_layers_that_did_not_move_or_moved_from_zero_and_many_layers() -> None:
    figure = layers_in_time(rows((3, [0.0, 0.5, 0.5])))
    edges, shades, _ = shown(figure)
    np.testing.assert_allclose(edges, [1.5, 6])
    np.testing.assert_equal(shades[:, 0], [math.nan, 0.5, 0.5])
    assert [each.get_text() for each in figure.axes[0].get_yticklabels()] == ["1", "2", "3"]
    frame = rows((3, [0.5, 0.5]))
    frame["layer_change"] = [[math.inf, 0.5]]
    assert shown(layers_in_time(frame))[1][0, 0] > 1  # beyond the scale, which ends at 1
    many = layers_in_time(rows((1, [0.1] * 100), (9, [0.2] * 100)))
    assert len(many.axes[0].get_yticks()) <= 24


def test_the_same_rows_give_the_same_bytes_and_shades_get_darker() -> None:
    frame = rows((1, [0.01, 0.1]), (10, [0.1, 1.0]))
    one, other = (as_bytes(layers_in_time(frame), "png") for _ in range(2))
    assert one == other
    figure = layers_in_time(frame)
    figure.canvas.draw()
    (mesh,) = figure.axes[0].collections
    colours = np.asarray(mesh.to_rgba(np.array([0.01, 0.1, 1.0])), dtype=float)  # type: ignore[attr-defined]
    grey = colours[:, :3] @ [0.299, 0.587, 0.114]
    assert grey[0] > grey[1] + 0.2 and grey[1] > grey[2] + 0.2


def test_names_the_mistake() -> None:
    good = rows((1, [0.1, 0.2]))
    cases: list[tuple[str, pd.DataFrame, dict[str, Any]]] = [
        ("`frame` .*has no column 'layer_change'", good.drop(columns="layer_change"), {}),
        ("`frame` .*has no column 'epoch'", good, {"time": "epoch"}),
        ("`names`: got 1, expected 2", good, {"names": ["a"]}),
        ("`frame`: no row has a positive 'step'", rows((0, [0.1, 0.2])), {}),
        ("`frame`: its lists differ", pd.concat([good, rows((1, [0.1]))]), {}),
        ("`frame`: its lists differ", good.assign(layer_share=1.0), {}),
        ("`time`: 'word' holds something other than numbers", good.assign(word="x"), {"time": "word"}),
    ]
    for message, frame, more in cases:
        with pytest.raises(UserError, match=message):
            layers_in_time(frame, **more)
