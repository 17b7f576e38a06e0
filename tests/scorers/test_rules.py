"""Each rule with a reply that follows it and one that breaks it."""

from __future__ import annotations

from typing import Any

import pytest

from nomoat.scorers.rules import NAMES, broken_rules, broken_rules_leniently, check_constraints

CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"rule": "starts_with", "text": "Re:"}, "Re: lunch", "re: lunch"),
    ({"rule": "ends_with", "text": "Thanks"}, "So be it. Thanks\n", "Thanks, Ada"),
    ({"rule": "contains", "text": "by Friday"}, "Send it BY\nfriday.", "Send it by Fridays"),
    ({"rule": "excludes", "text": "sorry"}, "We regret it", "Sorry!"),
    ({"rule": "each_line_starts_with", "text": "- "}, "- a\n\n - b", "- a\nb"),
    ({"rule": "each_line_ends_with", "text": ";"}, "a;\nb;", "a;\nb"),
    ({"rule": "lines", "number": 2}, "a\n\n  \nb", "a"),
    ({"rule": "max_lines", "number": 2}, "a\nb", "a\nb\nc"),
    ({"rule": "words", "number": 3}, "one  two\nthree", "one two"),
    ({"rule": "max_words", "number": 2}, "one two", "one two three"),
    ({"rule": "min_words", "number": 2}, "one two", "one"),
    ({"rule": "each_line_max_words", "number": 2}, "a b\nc d", "a b c\nd"),
    ({"rule": "sentences", "number": 2}, "It costs 3.50. Really?! ", "It costs 3.50. Really? Yes."),
    ({"rule": "max_characters", "number": 3}, " abc ", "abcd"),
    ({"rule": "min_characters", "number": 3}, "abc", " ab "),
    ({"rule": "uppercase"}, "ALL GOOD, 7", "All GOOD"),
    ({"rule": "lowercase"}, "all good, 7", "All good"),
    ({"rule": "no_punctuation"}, "all good $5", "all good, yes"),
    ({"rule": "no_digits"}, "seven", "7"),
    ({"rule": "numbered"}, "1. a\n2) b", "1. a\n3. b"),
    ({"rule": "one_line"}, "a b\n", "a\nb"),
]


def test_every_rule_is_in_the_table() -> None:
    assert {rule["rule"] for rule, _, _ in CASES} == set(NAMES)


@pytest.mark.parametrize(("rule", "follows", "breaks"), CASES, ids=lambda item: item["rule"] if isinstance(item, dict) else None)
def test_a_rule_accepts_a_reply_that_follows_it_and_reports_one_that_breaks_it(rule: dict[str, Any], follows: str, breaks: str) -> None:
    assert check_constraints({"rules": [rule]}, "") == []
    assert broken_rules(follows, [rule]) == []
    assert broken_rules(breaks, [rule]) == [rule["rule"]]
    assert broken_rules(" \n", [rule]) == [rule["rule"]]


def test_text_without_letters_is_neither_upper_nor_lower_case() -> None:
    assert broken_rules("123", [{"rule": "uppercase"}, {"rule": "lowercase"}]) == ["uppercase", "lowercase"]


def test_the_lenient_reading_takes_the_best_paragraph_and_ignores_the_case_of_texts_but_not_of_replies() -> None:
    rules = [{"rule": "starts_with", "text": "DEAR"}, {"rule": "one_line"}]
    assert broken_rules_leniently("Here it is:\n\ndear Ada", rules) == []
    assert broken_rules_leniently("Here it is:\ndear Ada", rules) != []
    assert broken_rules_leniently("loud", [{"rule": "uppercase"}]) == ["uppercase"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("starts_with", "must be a list"),
        ([{"text": "a"}], "a rule looks like"),
        (["uppercase"], "a rule looks like"),
        ([{"rule": "uppercase", "number": 3}], "no key 'number'"),
        ([{"rule": "startswith", "text": "a"}], "did you mean 'starts_with'?"),
        ([{"rule": "starts_with", "txt": "a"}], "did you mean 'text'?"),
        ([{"rule": "starts_with", "text": " "}], "a string that is not blank"),
        ([{"rule": "lines", "number": True}], "an integer, 0 or more"),
        ([{"rule": "lines", "number": -1}], "an integer, 0 or more"),
    ],
)
def test_an_invalid_rule_is_reported_with_its_position(rules: Any, message: str) -> None:
    problems = check_constraints({"rules": rules}, "")
    assert any(message in problem for problem in problems), problems
