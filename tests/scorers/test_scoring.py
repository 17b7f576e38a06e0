"""Scores of fair, sloppy and hostile outputs. One row of a table is one output: what it is, and what it must score."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import pytest

from nomoat.scorers import SCORERS, check_spec, choices_of, needs_likelihoods, score, score_choice
from nomoat.scorers.text import NOTE_LENGTH, Score, Scorer

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
def test_an_output_scores_what_it_deserves(row: Row, output: str, value: float, lenient: float) -> None:
    found = score(output, row)
    assert (found.value, found.lenient) == (value, lenient), found.note


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
    found = score(output, row)
    assert time.monotonic() - started < 2
    assert found.value == 0
    assert found.lenient == (row is QUERY and output == HOSTILE["two statements"])  # its first statement is the answer
    assert len(found.note) <= NOTE_LENGTH
    assert found.note.isprintable()
    json.dumps(found.note, ensure_ascii=False).encode("utf-8")


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
    found = score("SELECT name FROM item", row)
    assert found.value is None
    assert found.lenient is None
    assert why in found.note


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
    for row in (EXACT, Row("go", "choice"), Row("stay", CHOICE.score)):
        assert score_choice([-1.0, -1.0], [2, 12], row).value is None


def test_only_choice_rows_need_likelihoods() -> None:
    assert [needs_likelihoods(row) for row in (CHOICE, EXACT, Row("Oslo", "exact"), LABEL)] == [True, False, False, False]
    assert choices_of(LABEL) == choices_of(Row("Oslo", "exact")) == ()


def test_a_choice_row_scores_a_text_exactly_so_that_baselines_can_answer_it() -> None:
    assert check_spec(CHOICE.score, CHOICE.completion) == []
    assert score(" the long way\n", CHOICE) == Score(1.0, 1.0)
    assert score("Take THE LONG WAY.", CHOICE) == Score(0.0, 1.0)
    assert score("go", CHOICE) == Score(0.0, 0.0)


def test_a_lenient_score_is_never_below_the_strict_one() -> None:
    for row, output, _, _ in OUTPUTS:
        found = score(output, row)
        assert found.value is not None
        assert found.lenient is not None
        assert found.lenient >= found.value
