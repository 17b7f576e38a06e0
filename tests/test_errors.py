"""Messages stay short and always say something."""

from __future__ import annotations

import pytest

from nomoat.errors import did_you_mean, first_line, quoted


@pytest.mark.parametrize(
    ("error", "said"),
    [(ValueError("\n one\ntwo"), "one"), (OSError(), "OSError"), (KeyError(" "), "' '"), (ValueError("x" * 300), "x" * 200)],
)
def test_the_first_line_of_an_error_is_never_empty_and_never_long(error: Exception, said: str) -> None:
    assert first_line(error) == said


def test_a_quoted_value_is_cut_and_a_near_word_is_offered_with_all_that_are_allowed() -> None:
    assert quoted("a") == "'a'" and len(quoted("a" * 100)) == 60
    assert did_you_mean("rnak", ["rank", "alpha"]) == "; did you mean 'rank'? (allowed: rank, alpha)"
    assert did_you_mean("x", []) == " (allowed: none)"
