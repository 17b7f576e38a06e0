"""Choices by likelihood, ROUGE-L with the worked example of its paper, and phrases as whole words."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytest

from nomoat.reports.metrics import aggregate
from nomoat.reports.schema import CompactRow
from nomoat.scorers import Score, check_spec, choices_of, needs_likelihoods, score, score_choice
from nomoat.scorers.text import mentions


@dataclass(frozen=True)
class Row:
    completion: str
    score: Any


LABEL = Row("go", {"by": "label", "labels": ["go", "the long way"]})
CHOICE = Row("the long way", {"by": "choice", "choices": ["go", "the long way"]})


@pytest.mark.parametrize(
    ("log_likelihoods", "value", "lenient"),
    [([-4.0, -6.0], 1, 1), ([-9.0, -6.0], 1, 1), ([-0.5, -6.0], 0, 0), ([-1.0, -6.0], 0, 0), ([-1.0, -0.5], 1, 1), ([-2.0, -13.0], 0, 0)],
)
def test_a_choice_is_won_by_the_highest_likelihood_per_byte(log_likelihoods: list[float], value: float, lenient: float) -> None:
    assert choices_of(CHOICE) == ("go", "the long way")
    scored = score_choice(log_likelihoods, [2, 12], CHOICE)
    assert (scored.value, scored.lenient) == (value, lenient)
    assert scored.note == ("" if value else "at least as likely per byte: go")


def test_a_choice_by_bytes_and_one_in_sum_can_differ_and_lenient_says_so() -> None:
    short = Row("go", {"by": "choice", "choices": ["go", "the long way"]})
    assert score_choice([-4.0, -6.0], [2, 12], short) == Score(0.0, 1.0, "at least as likely per byte: the long way")


def test_a_tie_between_choices_is_no_answer_and_a_missing_likelihood_no_score() -> None:
    assert score_choice([-2.0, -12.0], [2, 12], CHOICE).value == 0
    for log_likelihoods, byte_lengths in (([float("nan"), -1.0], [2, 12]), ([-1.0], [2, 12]), ([-1.0, -1.0], [2]), ([-1.0, -1.0], [0, 12])):
        assert "each of the 2 choices needs a finite log-likelihood" in score_choice(log_likelihoods, byte_lengths, CHOICE).note
    for row in (Row("Oslo", {"by": "exact"}), Row("go", "choice"), Row("stay", CHOICE.score)):
        assert score_choice([-1.0, -1.0], [2, 12], row).value is None


def test_only_choice_rows_need_likelihoods() -> None:
    assert [needs_likelihoods(row) for row in (CHOICE, Row("Oslo", "exact"), LABEL)] == [True, False, False]
    assert choices_of(LABEL) == choices_of(Row("Oslo", "exact")) == ()


def test_a_choice_row_scores_a_text_exactly_so_that_baselines_can_answer_it() -> None:
    assert check_spec(CHOICE.score, CHOICE.completion) == []
    assert score(" the long way\n", CHOICE) == Score(1.0, 1.0)
    assert score("Take THE LONG WAY.", CHOICE) == Score(0.0, 1.0)
    assert score("go", CHOICE) == Score(0.0, 0.0)


SPEC = {"by": "rouge_l"}
# Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 3.1: one reference and three candidates.
LIN = [
    ("police kill the gunman", 3 / 4),
    ("the gunman kill police", 2 / 4),
    ("the gunman police killed", 2 / 4),
    ("police killed the gunman", 1),
]


@pytest.mark.parametrize(("output", "expected"), LIN)
def test_the_papers_own_example(output: str, expected: float) -> None:
    scored = score(output, Row("police killed the gunman", SPEC))
    assert scored.value == pytest.approx(expected) and scored.lenient is None


def test_an_opposite_answer_scores_high_and_another_wording_low() -> None:
    row = Row("the meeting is at noon on Friday", SPEC)
    opposite, reworded = (score(text, row).value for text in ("the meeting is not at noon on Friday", "we gather midday, end of the week"))
    assert opposite is not None and reworded is not None and opposite > 0.9 > 0.2 > reworded


@pytest.mark.parametrize("output", ["", "\0\0", "\ud800", "DROP TABLE item;", "[" * 150_000, "a " * 90_000, "<script>alert(1)</script>"])
def test_hostile_outputs_score_low_and_fast(output: str) -> None:
    began = time.monotonic()
    scored = score(output, Row("the cat sat on the mat " * 40, SPEC))
    assert scored.value is not None and scored.value < 0.1 and time.monotonic() - began < 10


def test_a_reference_without_words_it_can_count_is_refused() -> None:
    assert check_spec(SPEC, "a plain answer") == []
    (problem,) = check_spec(SPEC, "東京です")
    assert "a to z" in problem


def test_a_report_of_such_rows_gives_an_interval_and_no_p_value() -> None:
    values = [0.1 + 0.8 * (n % 7) / 6 for n in range(40)]
    rows = [CompactRow(f"r{n}", "phrasing", "open", f"g{n}", {"base": value / 2, "adapter": value}) for n, value in enumerate(values)]
    aggregates = aggregate(rows, primary="phrasing")
    tier = aggregates.arms["adapter"].tiers["phrasing"]
    assert tier is not None and tier.interval is not None and tier.interval[0] < sum(values) / len(values) < tier.interval[1]
    difference = aggregates.comparison.tiers["phrasing"]
    assert difference.p_value is None and difference.verdict == "better"


@pytest.mark.parametrize(
    ("text", "phrase", "mentioned"),
    [
        ("Room 5.", "5", True),
        ("5, please", "5", True),
        ("15", "5", False),
        ("5.2", "5", False),
        ("1,5", "5", False),
        ("Straße", "STRASSE", True),
        ("C++ it is", "c++", True),
        ("naïve", "naï", False),
        ("", "a", False),
        ("a", " ", False),
    ],
)
def test_mentions_are_whole_words(text: str, phrase: str, mentioned: bool) -> None:
    assert mentions(text, phrase) is mentioned
