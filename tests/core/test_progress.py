"""Time left from costs; plain lines, far apart, where there is no terminal."""

from __future__ import annotations

import time

import pytest

from regimes.core import progress
from regimes.core.progress import Bar, Lines, Silent, progress_of


def test_lines_are_plain_and_far_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress_of("toy") as lines:
        assert isinstance(lines, Lines)
        for now in range(35):
            lines.show(now, 40, 90.0 if now > 15 else None, "loss 0.1")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "toy: 10/40 runs, loss 0.1",
        "toy: 20/40 runs, 1 min 30 s left, loss 0.1",
        "toy: 30/40 runs, 1 min 30 s left, loss 0.1",
    ]


def test_the_bar_takes_any_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress_of("toy [quick]") as bar:
        assert isinstance(bar, Bar)
        bar.show(1, 2, 5.0, "dK [/nonsense] 0.3")
    assert "toy [quick]" in capsys.readouterr().err


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_of("toy", quiet=True) as silent:
        assert isinstance(silent, Silent)
        silent.show(1, 2, None, "")
    assert capsys.readouterr().err == ""
