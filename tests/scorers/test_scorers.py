"""Scores of correct, sloppy and hostile outputs, and specs that are refused. A line of a table is one output with its scores."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import pytest

from nomoat.scorers import SCORERS, Score, Scorer, check_spec, score
from nomoat.scorers.text import NOTE_LENGTH

SHOP = """CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, price REAL, shelf INTEGER);
INSERT INTO item VALUES (1, 'lamp', 20.0, 1), (2, 'desk', 95.5, 2), (3, 'chair', 60.0, 2), (4, 'rug', 60.0, 3);"""


@dataclass(frozen=True)
class Row:
    completion: str
    score: Any


EXACT = Row("Oslo, Lima", {"by": "exact"})
FIELDS = Row('{"name": "Ada", "count": 2, "paid": true}', {"by": "json_fields"})
QUERY = Row("SELECT name FROM item WHERE price > 50", {"by": "sql_rows", "script": SHOP})
SORTED = Row("SELECT name FROM item ORDER BY price, id", {"by": "sql_rows", "script": SHOP})
COUNTED = Row("SELECT shelf, AVG(price) FROM item GROUP BY shelf", {"by": "sql_rows", "script": SHOP})
SHAPE = Row(
    "Dear Ada,\nall good.",
    {
        "by": "constraints",
        "rules": [
            {"rule": "starts_with", "text": "Dear"},
            {"rule": "max_words", "number": 6},
            {"rule": "no_digits"},
            {"rule": "sentences", "number": 1},
        ],
    },
)
LABEL = Row("billing", {"by": "label", "labels": ["billing", "billing dispute", "sales", "other"]})
FACTS = Row("Ask Ada before 5.", {"by": "contains", "all": ["Ada", ["5", "five"]]})
EITHER = Row("Monday", {"by": "contains", "any": ["Monday", "Tuesday"]})
TOTAL = Row("1,234.50", {"by": "number"})
NEAR = Row("3.14", {"by": "number", "tolerance": 0.01})
ROWS = [EXACT, FIELDS, QUERY, SORTED, COUNTED, SHAPE, LABEL, FACTS, EITHER, TOTAL, NEAR]

OUTPUTS: list[tuple[Row, str, float, float]] = [
    (EXACT, "Oslo, Lima", 1, 1),
    (EXACT, "  Oslo, Lima\n", 1, 1),
    (EXACT, "The list is: OSLO, LIMA.", 0, 1),
    (EXACT, "Lima, Oslo", 0, 0),
    (EXACT, "", 0, 0),
    (FIELDS, '{"paid": true, "count": 2, "name": "Ada"}', 1, 1),
    (FIELDS, '{"name": "Ada", "count": 2.0, "paid": true}', 0, 1),
    (FIELDS, '{"name": "Ada", "count": "2", "paid": "true"}', 0, 1),
    (FIELDS, '{"name": "Ada", "count": 2, "paid": 1}', 0, 0),
    (FIELDS, 'Here you are: {"name": "ada ", "count": 2, "paid": true} Anything else?', 0, 1),
    (FIELDS, 'Put {name} there.\n```json\n{"name": "Ada", "count": 2, "paid": true}\n```', 0, 1),
    (FIELDS, '{"name": "Ada", "count": 2}', 0, 0),
    (FIELDS, '{"name": "Ada", "count": 2, "paid": true, "more": null}', 0, 0),
    (FIELDS, '{"name": "Bob", "name": "Ada", "count": 2, "paid": true}', 0, 0),
    (FIELDS, "{'name': 'Ada', 'count': 2, 'paid': True}", 0, 0),
    (FIELDS, '{"name": "Ada", "count": NaN, "paid": true}', 0, 0),
    (FIELDS, '__import__("os").abort()', 0, 0),
    (FIELDS, "", 0, 0),
    (QUERY, "SELECT name FROM item WHERE price > 50", 1, 1),
    (QUERY, "select i.name as n from item i where not price <= 50 order by 1 desc;", 1, 1),
    (QUERY, "-- dear ones\nSELECT name FROM item WHERE price > 50;", 1, 1),
    (QUERY, "WITH dear AS (SELECT * FROM item WHERE price > 50) SELECT name FROM dear", 1, 1),
    (QUERY, "```sql\nSELECT name FROM item WHERE price > 50;\n```", 0, 1),
    (QUERY, "With this query you get it: SELECT name FROM item WHERE price > 50; I hope it helps.", 0, 1),
    (QUERY, "SELECT name FROM item WHERE price > 60", 0, 0),
    (QUERY, "SELECT name FROM item WHERE price > 50 UNION ALL SELECT 'desk'", 0, 0),
    (QUERY, "SELECT name, price FROM item WHERE price > 50", 0, 0),
    (QUERY, "SELECT 'desk' UNION SELECT 'chair' UNION SELECT 'rug'", 0, 0),
    (QUERY, "SELECT nam FROM item", 0, 0),
    (QUERY, "I cannot do that.", 0, 0),
    (QUERY, "", 0, 0),
    (QUERY, " \n ", 0, 0),
    (SORTED, "SELECT name FROM item ORDER BY price ASC, id ASC", 1, 1),
    (SORTED, "SELECT name FROM item ORDER BY id DESC", 0, 0),
    (COUNTED, "SELECT shelf, SUM(price) / COUNT(*) FROM item GROUP BY shelf ORDER BY shelf DESC", 1, 1),
    (COUNTED, "SELECT CAST(shelf AS REAL), AVG(price) FROM item GROUP BY shelf", 1, 1),
    (COUNTED, "SELECT CAST(shelf AS TEXT), AVG(price) FROM item GROUP BY shelf", 0, 0),
    (SHAPE, "Dear Bob, see you.", 1, 1),
    (SHAPE, "dear Bob, see you.", 0, 1),
    (SHAPE, "Sure, here is one that I wrote:\n\nDear Bob, see you.", 0, 1),
    (SHAPE, "Dear Bob, see you at 5.", 0, 0),
    (SHAPE, "", 0, 0),
    (LABEL, "billing", 1, 1),
    (LABEL, "Billing.", 0, 1),
    (LABEL, "The queue is: billing", 0, 1),
    (LABEL, "billing dispute", 0, 0),
    (LABEL, "billing, sales or other", 0, 0),
    (LABEL, "billings", 0, 0),
    (FACTS, "You can ASK ADA until five.", 1, 1),
    (FACTS, "Ask\n Ada at 5!", 1, 1),
    (FACTS, "Ask Ada at 15", 0, 1),
    (FACTS, "Ask Ada for 5.50", 0, 1),
    (FACTS, "Ask Adam at 5", 0, 1),
    (FACTS, "Ask at 5", 0, 0),
    (EITHER, "On a Tuesday", 1, 1),
    (EITHER, "On a Sunday", 0, 0),
    (TOTAL, "1234.5", 1, 1),
    (TOTAL, "It costs $1,234.50.", 1, 1),
    (TOTAL, "1 item: 1'234.50 EUR", 1, 1),
    (TOTAL, "1.2345e3", 1, 1),
    (TOTAL, "1,234.50 for 2 of them", 0, 1),
    (TOTAL, "-1,234.50", 0, 0),
    (TOTAL, "1,2345.0", 0, 0),
    (TOTAL, "x1234.5", 0, 0),
    (TOTAL, "about a thousand", 0, 0),
    (NEAR, "about 3.149%", 1, 1),
    (NEAR, "3.16", 0, 0),
    (NEAR, "-3.14", 0, 0),
]


@pytest.mark.parametrize(("row", "output", "value", "lenient"), OUTPUTS, ids=lambda item: None if isinstance(item, Row) else str(item)[:30])
def test_an_output_gets_its_strict_and_lenient_score(row: Row, output: str, value: float, lenient: float) -> None:
    scored = score(output, row)
    assert (scored.value, scored.lenient) == (value, lenient), scored.note


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.score["by"])
def test_a_rows_own_completion_scores_1_and_its_spec_has_no_problem(row: Row) -> None:
    assert score(row.completion, row) == Score(1.0, 1.0)
    assert check_spec(row.score, row.completion) == []


HOSTILE = {
    "drop": "DROP TABLE item",
    "two statements": "SELECT name FROM item WHERE price > 50; DROP TABLE item",
    "10 MB of brackets": "[" * 10_000_000,
    "10 MB of braces": '{"a":' * 2_000_000,
    "200 kB of open objects": '{"a":' * 39_999,
    "200 kB of broken keys": '{"a' * 66_000,
    "objects closed": '{"a":' * 480 + "1" + "}" * 480,
    "brackets closed": "[" * 50_000 + "]" * 50_000,
    "huge number": "9" * 199_000,
    "many numbers": "111," * 49_000,
    "huge exponent": "1e999 " * 30_000,
    "sentence marks": "." * 199_000 + "a",
    "NUL bytes": "\0" * 100_000,
    "NUL in a query": "SELECT name\0 FROM item",
    "lone surrogates": "\ud800" * 100_000,
    "surrogate in a query": "SELECT name FROM item WHERE name = '\ud800'",
    "control sign in a query": "SELECT \x1b FROM item",
    "control signs": "\x1b[31m\x07\u202e" * 100,
    "endless": "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c",
    "endless rows": "WITH RECURSIVE c(x) AS (SELECT id FROM item UNION ALL SELECT x + 1 FROM c) SELECT x FROM c",
    "endless and wide": "WITH RECURSIVE c(x, y) AS (SELECT 1, 'a' UNION SELECT x + 1, printf('%19000d', x) FROM c) "
    "SELECT y FROM c ORDER BY y",
    "cross join": "SELECT count(*) FROM " + ", ".join(f"item i{at}" for at in range(30)),
    "tables that double": "WITH c0 AS (SELECT name FROM item)"
    + "".join(f', "C{at}" AS (SELECT x.name FROM c{at - 1} x, [c{at - 1}] y)' for at in range(1, 40))
    + " SELECT count(*) FROM c39",
    "attach": "ATTACH 'stolen.db' AS stolen",
    "pragma": "PRAGMA table_info(item)",
    "pragma as a table": "SELECT name FROM pragma_table_info('item')",
    "extension": "SELECT load_extension('evil') FROM item",
    "random": "SELECT name FROM item ORDER BY random()",
    "write in a CTE": "WITH x AS (SELECT 9) INSERT INTO item(id) SELECT * FROM x",
    "open quote": "SELECT '" + "a" * 15_000,
    "open brackets": "SELECT " + "(" * 15_000,
    "comments": "SELECT " + "/*" * 9_000,
    "fences": "```\n" * 40_000,
    "slow pattern": "(a+)+$" + "a" * 100_000 + "!",
    "white space": " \n" * 90_000,
    "paragraphs": "a\n\n" * 60_000,
}


@pytest.mark.parametrize("output", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.score["by"])
def test_a_hostile_output_scores_0_in_time_and_leaves_a_note_that_can_be_written(row: Row, output: str) -> None:
    started = time.monotonic()
    scored = score(output, row)
    assert time.monotonic() - started < 2
    assert scored.value == 0
    assert scored.lenient == (row is QUERY and output == HOSTILE["two statements"])  # its first statement is the answer
    assert len(scored.note) <= NOTE_LENGTH
    assert scored.note.isprintable()
    json.dumps(scored.note, ensure_ascii=False).encode("utf-8")


def test_nothing_that_a_query_tries_changes_the_next_scoring() -> None:
    for output in HOSTILE.values():
        score(output, QUERY)
    assert score(QUERY.completion, QUERY).value == 1


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (Row("SELECT 1 FROM item", {"by": "sql_rows", "script": "CREATE TABLE item("}), "OperationalError"),
        (Row("SELECT x FROM item", {"by": "sql_rows", "script": SHOP}), "QueryFailed"),
        (Row("not json", {"by": "json_fields"}), "JSONDecodeError"),
        (Row("none", {"by": "number"}), "IndexError"),
        (Row("a", {"by": "exactly"}), "KeyError"),
        (Row("a", {"by": "constraints", "rules": [{"rule": "rhymes"}]}), "KeyError"),
        (Row("a", None), "TypeError"),
    ],
)
def test_a_scorer_that_fails_leaves_the_row_unscored_and_names_the_error(row: Row, why: str) -> None:
    scored = score("SELECT name FROM item", row)
    assert scored.value is None
    assert scored.lenient is None
    assert why in scored.note


@pytest.mark.parametrize("error", [RecursionError(), MemoryError("no room"), UnicodeError("bad"), ZeroDivisionError()])
def test_whatever_a_scorer_raises_is_a_row_without_a_score(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Score:
        raise error

    monkeypatch.setitem(SCORERS, "exact", Scorer(broken))
    assert score("a", EXACT) == Score(None, None, f"{type(error).__name__}: {error}")


def test_a_fixture_may_not_reach_outside_its_database(tmp_path: Any) -> None:
    for script in (f"ATTACH '{tmp_path}/x.db' AS x", f"VACUUM INTO '{tmp_path}/y.db'", "PRAGMA journal_mode = WAL", "DETACH main"):
        assert score("SELECT 1", Row("SELECT 1", {"by": "sql_rows", "script": script})).value is None
    assert list(tmp_path.iterdir()) == []


def test_a_row_may_name_its_scorer_with_a_bare_string() -> None:
    assert score("Oslo", Row("Oslo", "exact")).value == 1
    assert check_spec("exact", "Oslo") == []


def test_a_lenient_score_is_never_below_the_strict_one() -> None:
    for row, output, _, _ in OUTPUTS:
        scored = score(output, row)
        assert scored.value is not None
        assert scored.lenient is not None
        assert scored.lenient >= scored.value


TABLES = "CREATE TABLE item(id INTEGER, name TEXT); INSERT INTO item VALUES (1, 'lamp'), (2, 'desk');"


@pytest.mark.parametrize(
    ("spec", "completion", "message"),
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
        ({"by": "sql_rows", "script": TABLES}, "SELECT name FROM item WHERE id > 99", "returns no rows"),
        ({"by": "constraints", "rules": []}, "a", "at least one rule"),
        ({"by": "constraints", "rules": [{"rule": "max_word", "number": 3}]}, "a", "did you mean 'max_words'?"),
        ({"by": "constraints", "rules": [{"rule": "max_words", "text": "x"}]}, "a", "max_words has no key 'text'"),
        ({"by": "constraints", "rules": [{"rule": "max_words", "number": 0}]}, "a", "does not score 1 by constraints: broken: max_words"),
    ],
)
def test_an_invalid_spec_is_reported(spec: Any, completion: str, message: str) -> None:
    problems = check_spec(spec, completion)
    assert any(message in problem for problem in problems), problems


def test_all_problems_of_a_spec_are_reported_at_once() -> None:
    spec = {"by": "constraints", "rulez": 1, "rules": [{"rule": "rhymes"}, {"rule": "starts_with"}, {"rule": "lines", "number": 1.5}]}
    assert len(check_spec(spec, "a")) == 4
