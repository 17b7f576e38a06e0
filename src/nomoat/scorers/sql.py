"""The scorer `sql_rows`: run a model's query in a sandbox and compare its rows with those of the reference query.

The sandbox is an in-memory SQLite database with four guards, all of them needed. An authoriser lets a query read tables and call the
functions of an allow-list. A budget of virtual-machine steps (equal on all machines, so that no score depends on their speed), backed
by a time limit, stops endless queries. SQLite's limits bound the size of a value, a row and a statement. And since SQLite expands a
common table expression at every mention while it compiles, where no budget applies, `_copies` refuses those that would explode.
"""

from __future__ import annotations

import itertools
import math
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nomoat.errors import quoted
from nomoat.scorers.text import Score, Spec, result

SECONDS = 0.8  # to build the tables, and again for all queries of one scoring; a reasonable query takes milliseconds
STEPS = 2_000_000  # virtual-machine steps per query; joining three tables of 40 rows takes about 400,000
ROWS = 10_000  # that are read of a result at most
BYTES = 20_000  # of a query, and of any text, blob or row that it builds
MAX_COPIES = 1_000  # of common table expressions

# fmt: off
FUNCTIONS = frozenset((
    "abs", "avg", "ceil", "ceiling", "coalesce", "concat", "concat_ws", "count", "cume_dist", "date", "datetime", "dense_rank",
    "first_value", "floor", "format", "glob", "group_concat", "ifnull", "iif", "instr", "julianday", "lag", "last_value", "lead",
    "length", "like", "lower", "ltrim", "max", "min", "mod", "nth_value", "ntile", "nullif", "percent_rank", "pow", "power",
    "printf", "rank", "replace", "round", "row_number", "rtrim", "sign", "sqrt", "strftime", "string_agg", "substr", "substring",
    "sum", "time", "total", "trim", "typeof", "unicode", "unixepoch", "upper",
))
# fmt: on
READING = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
BUILDING = READING | {
    sqlite3.SQLITE_CREATE_TABLE,
    sqlite3.SQLITE_CREATE_INDEX,
    sqlite3.SQLITE_CREATE_VIEW,
    sqlite3.SQLITE_INSERT,
    sqlite3.SQLITE_UPDATE,
    sqlite3.SQLITE_DELETE,
    sqlite3.SQLITE_TRANSACTION,
    sqlite3.SQLITE_REINDEX,  # part of creating an index
}
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: BYTES,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: BYTES,
    sqlite3.SQLITE_LIMIT_COLUMN: 200,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 200,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_TOKEN = re.compile(
    r"""--[^\n]* | /\*.*?(?:\*/|\Z) | '[^']*(?:''[^']*)*(?:'|\Z) | "[^"]*(?:"|\Z) | `[^`]*(?:`|\Z) | \[[^\]]*(?:\]|\Z) | \w+ | \S""",
    re.VERBOSE | re.DOTALL,
)


class QueryFailed(Exception):
    """A query that is not allowed, is invalid, or exceeds a limit."""


@dataclass(frozen=True)
class Result:
    """The rows that a query returned and the names of the tables that it read."""

    rows: list[tuple[Any, ...]]
    tables: frozenset[str]


class Sandbox:
    """A database built by `script`; all queries share one time limit of `seconds`. Raises sqlite3.Error for an invalid script."""

    def __init__(self, script: str, seconds: float = SECONDS) -> None:
        self._tables: set[str] = set()
        self._steps = -math.inf  # the script is bounded by time alone
        self._ends = time.monotonic() + seconds
        # without a cache: a cached statement does not pass the authoriser again
        self._database = sqlite3.connect(":memory:", isolation_level=None, cached_statements=0)
        try:
            self._database.set_progress_handler(self._over_budget, 100)
            self._database.set_authorizer(self._allow(BUILDING))
            self._database.executescript(script)
            self._database.set_authorizer(self._allow(READING))
            for limit, value in LIMITS.items():
                self._database.setlimit(limit, value)
            self._ends = time.monotonic() + seconds
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def run(self, query: str, max_rows: int = ROWS) -> Result:
        """The first `max_rows` rows of one SELECT. Raises QueryFailed, with the reason, for anything else."""
        tokens = _tokens(query[: BYTES + 1])
        if len(query) > BYTES or _copies(tokens) > MAX_COPIES:
            raise QueryFailed("the query is too long or too nested")
        if not tokens or tokens[0].casefold() not in ("select", "with"):
            raise QueryFailed("not a SELECT")
        self._steps, self._tables = 0, set()
        try:
            rows = self._database.execute(query).fetchmany(max_rows)
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
            raise QueryFailed(f"{type(error).__name__}: {error}") from None
        return Result(rows, frozenset(self._tables))

    def _over_budget(self) -> bool:
        self._steps += 100
        return self._steps > STEPS or time.monotonic() > self._ends

    def _allow(self, actions: frozenset[int]) -> Callable[[int, str | None, str | None, str | None, str | None], int]:
        def decide(action: int, first: str | None, second: str | None, _database: str | None, _trigger: str | None) -> int:
            if action not in actions or (action == sqlite3.SQLITE_FUNCTION and (second or "").casefold() not in FUNCTIONS):
                return sqlite3.SQLITE_DENY
            if action == sqlite3.SQLITE_READ and first:
                self._tables.add(first.casefold())
            return sqlite3.SQLITE_OK

        return decide


def queries_in(text: str) -> list[str]:
    """At most four parts of an answer that may be its query: the contents of code fences, then the text from each SELECT or WITH."""
    pieces = text.split("```")
    fenced = [piece.partition("\n")[2] or piece for piece in pieces[1::2]]
    starts = [match.start() for match in itertools.islice(re.finditer(r"\b(?:select|with)\b", text, re.IGNORECASE), 4)]
    plain = [re.split(r";|\n\s*\n|```", text[start : start + BYTES], maxsplit=1)[0] for start in starts]
    return [query.strip() for query in [*fenced, *plain] if query.strip()][:4]


def same_rows(ours: Sequence[tuple[Any, ...]], theirs: Sequence[tuple[Any, ...]], *, ordered: bool) -> bool:
    """Whether two results are equal, as lists or as multisets: 3 equals 3.0, and floats are compared to 9 digits."""

    def rounded(row: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(float(f"{cell:.9g}") if isinstance(cell, float) else cell for cell in row)

    left, right = [rounded(row) for row in ours], [rounded(row) for row in theirs]
    return left == right if ordered else Counter(left) == Counter(right)


def is_ordered(query: str) -> bool:
    """Whether the outermost SELECT has an ORDER BY."""
    depth = 0
    for token, following in itertools.pairwise([*_tokens(query), ""]):
        depth += (token == "(") - (token == ")")
        if depth == 0 and token.casefold() == "order" and following.casefold() == "by":
            return True
    return False


def _tokens(query: str) -> list[str]:
    """Words, quoted strings and symbols of a query, without comments."""
    return [token for token in _TOKEN.findall(query) if not token.startswith(("--", "/*"))]


def _copies(tokens: list[str]) -> int:
    """An upper bound of the copies that SQLite makes of a common table expression: the product of the mentions of each name."""
    plain = [token.strip('"`[]').casefold() for token in tokens]
    names = {
        _name_before(plain, at)
        for at, (token, after) in enumerate(itertools.pairwise([*plain, ""]))
        if token == "as" and after in ("(", "not", "materialized")
    }
    return math.prod(max(1, plain.count(name) - 1) for name in names if name)


def _name_before(tokens: list[str], at: int) -> str:
    """The name in `name AS (` or `name(column, column) AS (`."""
    before = at - 1
    if before >= 0 and tokens[before] == ")":
        while before >= 0 and tokens[before] != "(":
            before -= 1
        before -= 1
    return tokens[before] if before >= 0 else ""


def sql_rows(output: str, completion: str, spec: Spec) -> Score:
    """Strict: the output is one query that returns the reference's rows. Lenient: a query in a fence or after other text does."""
    with Sandbox(spec["script"]) as sandbox:
        reference, ordered = sandbox.run(completion), is_ordered(completion)
        note = _difference(sandbox, output.strip(), reference, ordered)
        lenient = bool(note) and any(not _difference(sandbox, query, reference, ordered) for query in queries_in(output))
    return result(not note, lenient, note)


def _difference(sandbox: Sandbox, query: str, reference: Result, ordered: bool) -> str:
    """Why a query does not give the reference's result, or '' where it does."""
    try:
        answer = sandbox.run(query, max_rows=len(reference.rows) + 1)
    except QueryFailed as error:
        return str(error)
    if reference.tables and not answer.tables:
        return "reads no table"  # a lucky constant is not a query
    return "" if same_rows(answer.rows, reference.rows, ordered=ordered) else "other rows than the reference"


def check_sql_rows(spec: Spec, completion: str) -> list[str]:
    script = spec.get("script")
    if not isinstance(script, str) or not script.strip():
        return [f"sql_rows needs script: the statements that build its tables; saw {quoted(script)}"]
    try:
        with Sandbox(script) as sandbox:
            rows = sandbox.run(completion, max_rows=1).rows
    except (sqlite3.Error, QueryFailed) as error:
        return [f"the script or the reference query does not run: {error}"]
    return [] if rows else ["the reference query returns no rows, so that many wrong queries would pass: add rows to the script"]
