"""The sandbox that runs queries, and how results are compared."""

from __future__ import annotations

import sqlite3
import time

import pytest

from nomoat.scorers.sql import QueryFailed, Sandbox, is_ordered, queries_in, same_rows

SHOP = (
    "CREATE TABLE item(id INTEGER, name TEXT); INSERT INTO item VALUES (1, 'lamp'), (2, 'desk'); CREATE VIEW small AS SELECT * FROM item;"
)


def test_a_query_returns_its_rows_and_the_tables_it_read() -> None:
    with Sandbox(SHOP) as sandbox:
        result = sandbox.run("SELECT upper(name) FROM item ORDER BY id;")
        assert result.rows == [("LAMP",), ("DESK",)]
        assert result.tables == {"item"}
        assert sandbox.run("SELECT 1").tables == frozenset()
        assert sandbox.run("SELECT id FROM small", max_rows=1).rows == [(1,)]


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("DELETE FROM item", "not a SELECT"),
        ("WITH x AS (SELECT 1) DELETE FROM item", "not authorized"),
        ("SELECT 1; SELECT 2", "one statement"),
        ("SELECT load_extension('x')", "not authorized"),
        ("SELECT hex(randomblob(9))", "not authorized"),
        ("SELECT * FROM pragma_database_list", "not authorized"),
        ("SELECT replace('aaaaaaaaa', 'a', printf('%9000d', 1))", "too big"),
        ("SELECT " + "1," * 15_000 + "1", "too long"),
        ("SELECT " + "1+" * 200 + "1", "Expression tree is too large"),
        ("SELECT CAST(x'ff' AS TEXT)", "OperationalError"),
    ],
)
def test_anything_beyond_reading_fails_and_leaves_the_database_unchanged(query: str, why: str) -> None:
    with Sandbox(SHOP) as sandbox:
        with pytest.raises(QueryFailed, match=why):
            sandbox.run(query)
        assert len(sandbox.run("SELECT * FROM item").rows) == 2


def test_an_endless_query_is_stopped_by_its_steps_so_that_a_slow_machine_scores_the_same() -> None:
    with Sandbox(SHOP, seconds=60) as sandbox:
        started = time.monotonic()
        with pytest.raises(QueryFailed, match="interrupted"):
            sandbox.run("WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT sum(x) FROM c")
        assert time.monotonic() - started < 10
        assert sandbox.run("SELECT 1").rows == [(1,)]


def test_queries_of_one_sandbox_share_one_time_limit() -> None:
    with Sandbox(SHOP, seconds=0.05) as sandbox:
        time.sleep(0.06)
        with pytest.raises(QueryFailed, match="interrupted"):
            sandbox.run("SELECT count(*) FROM item a, item b, item c, item d, item e, item f, item g, item h")


def test_a_script_that_never_ends_is_an_error_of_the_script() -> None:
    endless = "CREATE TABLE t AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"
    with pytest.raises(sqlite3.Error, match="interrupted"):
        Sandbox(endless, seconds=0.2)


def test_chained_table_expressions_are_allowed_unless_they_double_at_every_step() -> None:
    chain = "WITH a AS (SELECT id FROM item), b(id) AS (SELECT x.id FROM a x JOIN a y), c AS (SELECT b.id FROM b) SELECT count(*) FROM c, b"
    doubling = "WITH t0 AS (SELECT 1 v)" + "".join(f", t{n} AS MATERIALIZED (SELECT * FROM t{n - 1}, t{n - 1})" for n in range(1, 25))
    with Sandbox(SHOP) as sandbox:
        assert sandbox.run(chain).rows == [(16,)]
        with pytest.raises(QueryFailed, match="too nested"):
            sandbox.run(doubling + " SELECT count(*) FROM t24")


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n by a desc limit 3", True),
        ("SELECT a FROM t", False),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT rank() OVER (ORDER BY a) FROM t", False),
        ("SELECT 'ORDER BY' FROM t -- ORDER BY a", False),
        ('SELECT "order" by_ FROM t /* ORDER BY */', False),
        ("SELECT ')' FROM t ORDER BY 1", True),
    ],
)
def test_only_an_order_at_the_top_makes_order_matter(query: str, ordered: bool) -> None:
    assert is_ordered(query) is ordered


@pytest.mark.parametrize(
    ("ours", "theirs", "ordered", "same"),
    [
        ([(1,), (2,)], [(2,), (1,)], False, True),
        ([(1,), (2,)], [(2,), (1,)], True, False),
        ([(1,), (1,)], [(1,)], False, False),
        ([(3,)], [(3.0,)], False, True),
        ([(0.1 + 0.2,)], [(0.3,)], False, True),
        ([(0.3001,)], [(0.3,)], False, False),
        ([("3",)], [(3,)], False, False),
        ([(None,)], [(0,)], False, False),
        ([(1, 2)], [(2, 1)], False, False),
        ([(b"a",)], [("a",)], False, False),
    ],
)
def test_results_are_compared_as_multisets_or_lists_of_values(ours: list, theirs: list, ordered: bool, same: bool) -> None:
    assert same_rows(ours, theirs, ordered=ordered) is same


def test_queries_are_found_in_fences_and_after_words_and_never_more_than_four() -> None:
    assert queries_in("Sure:\n```sql\nSELECT 1;\n```\nDone")[0] == "SELECT 1;"
    assert queries_in("The answer is SELECT a FROM t; which works")[0] == "SELECT a FROM t"
    assert queries_in("nothing here") == []
    assert len(queries_in("SELECT " * 1000)) == 4
