"""ROUGE-L for open-ended rows: the worked example of its paper, what it cannot see, and outputs that would stall it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from nomoat.reports.metrics import aggregate
from nomoat.reports.schema import CompactRow
from nomoat.scorers import check_spec, score

SPEC = {"by": "rouge_l"}


@dataclass(frozen=True)
class Row:
    completion: str
    score: dict[str, str]


# Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 3.1: one reference and three candidates.
LIN = [
    ("police kill the gunman", 3 / 4),
    ("the gunman kill police", 2 / 4),
    ("the gunman police killed", 2 / 4),
    ("police killed the gunman", 1),
]


@pytest.mark.parametrize(("output", "expected"), LIN)
def test_the_papers_own_example(output: str, expected: float) -> None:
    found = score(output, Row("police killed the gunman", SPEC))
    assert found.value == pytest.approx(expected) and found.lenient is None


def test_an_opposite_answer_scores_high_and_another_wording_low() -> None:
    row = Row("the meeting is at noon on Friday", SPEC)
    opposite, reworded = (score(text, row).value for text in ("the meeting is not at noon on Friday", "we gather midday, end of the week"))
    assert opposite is not None and reworded is not None and opposite > 0.9 > 0.2 > reworded


@pytest.mark.parametrize("output", ["", "\0\0", "\ud800", "DROP TABLE item;", "[" * 150_000, "a " * 90_000, "<script>alert(1)</script>"])
def test_hostile_outputs_score_low_and_soon(output: str) -> None:
    began = time.monotonic()
    found = score(output, Row("the cat sat on the mat " * 40, SPEC))
    assert found.value is not None and found.value < 0.1 and time.monotonic() - began < 10


def test_a_reference_without_words_it_can_count_is_refused() -> None:
    assert check_spec(SPEC, "a plain answer") == []
    (problem,) = check_spec(SPEC, "東京です")
    assert "a to z" in problem


def test_a_report_of_such_rows_gives_an_interval_and_no_p_value() -> None:
    values = [0.1 + 0.8 * (n % 7) / 6 for n in range(40)]
    rows = [CompactRow(f"r{n}", "phrasing", "open", f"g{n}", {"base": value / 2, "adapter": value}) for n, value in enumerate(values)]
    found = aggregate(rows, primary="phrasing")
    tier = found.arms["adapter"].tiers["phrasing"]
    assert tier is not None and tier.interval is not None and tier.interval[0] < sum(values) / len(values) < tier.interval[1]
    difference = found.comparison.tiers["phrasing"]
    assert difference.p_value is None and difference.verdict == "better"
