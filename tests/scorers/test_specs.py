"""A row that says its scorer wrongly is refused before anything runs, with everything that is wrong said at once."""

from __future__ import annotations

from typing import Any

import pytest

from nomoat.scorers import check_spec

SHOP = "CREATE TABLE item(id INTEGER, name TEXT); INSERT INTO item VALUES (1, 'lamp'), (2, 'desk');"


@pytest.mark.parametrize(
    ("spec", "completion", "said"),
    [
        ({"by": "exakt"}, "a", "did you mean 'exact'?"),
        ({}, "a", "no scorer None"),
        (7, "a", "no scorer None"),
        ({"by": ["exact"]}, "a", "no scorer ['exact']"),
        ({"by": "exact", "lables": []}, "a", "no key 'lables'"),
        ({"by": "label", "lables": ["a", "b"]}, "a", "did you mean 'labels'?"),
        ({"by": "label", "labels": ["a", "a"]}, "a", "at least two different strings"),
        ({"by": "label", "labels": ["a", "b"]}, "c", "is not one of the labels"),
        ({"by": "choice"}, "a", "choice needs choices: a list of at least two different strings"),
        ({"by": "choice", "choices": ["a"]}, "a", "at least two different strings"),
        ({"by": "choice", "choices": ["a", "a"]}, "a", "at least two different strings"),
        ({"by": "choice", "choices": ["a", ""]}, "a", "none of them blank; saw ['a', '']"),
        ({"by": "choice", "choices": ["a", 1]}, "a", "choices: a list of at least two"),
        ({"by": "choice", "choices": ["a", "b"]}, "c", "the completion 'c' is not one of the choices ['a', 'b']"),
        ({"by": "choice", "choices": ["a", "a "]}, "a", "differ in more than outer white space; saw ['a', 'a ']"),
        ({"by": "choice", "choices": ["a", "\ud800"]}, "a", "without lone surrogates"),
        ({"by": "contains"}, "a", "needs all, any or both"),
        ({"by": "contains", "all": [["a", 1]]}, "a", "all must be a list of strings"),
        ({"by": "contains", "any": "a"}, "a", "any must be a list of strings"),
        ({"by": "contains", "all": ["b"]}, "a", "does not score 1"),
        ({"by": "number", "tolerance": -1}, "1", "tolerance must be a finite number, 0 or more"),
        ({"by": "number", "tolerance": True}, "1", "tolerance must be a finite number, 0 or more"),
        ({"by": "number"}, "one", "must contain a number; saw 'one'"),
        ({"by": "json_fields"}, "{", "must be a JSON object"),
        ({"by": "json_fields"}, "[1]", "must be a JSON object"),
        ({"by": "json_fields"}, '{"a": NaN}', "NaN is not JSON"),
        ({"by": "sql_rows"}, "SELECT 1", "sql_rows needs script"),
        ({"by": "sql_rows", "script": "CREATE TABEL x(a)"}, "SELECT 1", "does not run"),
        ({"by": "sql_rows", "script": SHOP}, "SELECT name FROM item WHERE id > 99", "returns no rows"),
        ({"by": "constraints", "rules": []}, "a", "at least one rule"),
        ({"by": "constraints", "rules": [{"rule": "max_word", "number": 3}]}, "a", "did you mean 'max_words'?"),
        ({"by": "constraints", "rules": [{"rule": "max_words", "text": "x"}]}, "a", "max_words has no key 'text'"),
        ({"by": "constraints", "rules": [{"rule": "max_words", "number": 0}]}, "a", "does not score 1 by constraints: broken: max_words"),
    ],
)
def test_a_spec_that_cannot_work_is_named_before_anything_runs(spec: Any, completion: str, said: str) -> None:
    problems = check_spec(spec, completion)
    assert any(said in problem for problem in problems), problems


def test_all_problems_of_a_spec_are_said_at_once() -> None:
    spec = {"by": "constraints", "rulez": 1, "rules": [{"rule": "rhymes"}, {"rule": "starts_with"}, {"rule": "lines", "number": 1.5}]}
    assert len(check_spec(spec, "a")) == 4
