"""Numbers as a person reads them."""

from __future__ import annotations

import pytest

from nomoat.reports import format as fmt


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(9.94, "9.9 s"), (45, "45 s"), (59.6, "1 min 00 s"), (725, "12 min 05 s"), (12000, "3 h 20 min"), (None, "not measured")],
)
def test_durations(seconds: float | None, words: str) -> None:
    assert fmt.duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (19_600_000, "19.6 MB"), (269_030_016, "269 MB"), (999_700_000, "1.0 GB"), (None, "not measured")],
)
def test_sizes(count: int | None, words: str) -> None:
    assert fmt.size(count) == words


@pytest.mark.parametrize(("usd", "words"), [(0.0123, "$0.0123"), (12.3, "$12.30"), (None, "no figure")])
def test_money(usd: float | None, words: str) -> None:
    assert fmt.money(usd) == words


def test_a_difference_that_rounds_to_nothing_has_no_minus() -> None:
    assert fmt.number(-0.001, signed=True) == "+0.00"


def test_control_and_reordering_characters_become_visible() -> None:
    assert fmt.visible("a\x00b\x1b[0m\ud800\u202ec\r\n\td") == "a\u2400b\u241b[0m\ufffd[U+202E]c\n\td"
