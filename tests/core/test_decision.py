"""What counts as wrong, against the definition in words, one sample at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regimes import measure
from regimes.core.decision import wrong
from regimes.report.ensemble import ensemble_error, single_error

NUMBER = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 1.0, math.inf, math.nan])


def plain(outputs: list[float], y: float) -> bool:
    """Whether one sample is decided wrongly: there is no number, or the right one does not stand alone."""
    if any(math.isnan(value) for value in outputs):
        return True
    if len(outputs) == 1:
        return outputs[0] == 0 or (outputs[0] > 0) != (y > 0)
    best = [k for k, value in enumerate(outputs) if value == max(outputs)]
    return best != [int(y)]


@st.composite
def decisions(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Outputs (m, n, c) and targets (n,)."""
    m, n, c = (draw(st.integers(1, 3)) for _ in range(3))
    outputs = draw(st.lists(NUMBER, min_size=m * n * c, max_size=m * n * c))
    classes = st.sampled_from([-1.0, 1.0]) if c == 1 else st.integers(0, c - 1)
    return torch.tensor(outputs).view(m, n, c), torch.tensor(draw(st.lists(classes, min_size=n, max_size=n)))


@given(decisions())
def test_wrong_is_what_it_says_everywhere(drawn: tuple[Tensor, Tensor]) -> None:
    """Also in the error rate of one network, and in the report's mean over members, from stored rows."""
    outputs, y = drawn
    expected = [
        [plain(one.tolist(), float(t)) for one, t in zip(member, y, strict=True)] for member in outputs
    ]
    assert wrong(outputs, y).tolist() == expected
    assert measure.error_rate(outputs[0], y) == pytest.approx(np.mean(expected[0]))
    stored = outputs.flatten(1).double().numpy()
    assert single_error(stored, y.double().numpy()) == pytest.approx(np.mean(expected))
    assert ensemble_error(stored[:1], y.double().numpy()) == pytest.approx(np.mean(expected[0]))
