"""One exception for mistakes of a user, and its suggestion."""

from __future__ import annotations

from regimes.core.error import UserError, nearest


def test_a_mistake_is_a_value_error() -> None:
    assert issubclass(UserError, ValueError)


def test_the_nearest_word_is_suggested() -> None:
    known = ["mnist", "fashion-mnist", "digits"]
    assert nearest("minst", known) == "; did you mean 'mnist'?"
    assert nearest("fashion", known) == "; did you mean 'fashion-mnist'?"
    assert nearest("digits", known) == "; did you mean 'digits'?"
    assert nearest("qqq", known) == nearest("x", []) == ""
