"""Data for an invented table, chosen so that a wrong query gives a wrong result."""

from __future__ import annotations

import random
import re
import sqlite3

from nomoat.desk_values import Table
from nomoat.errors import NomoatError

DATA_ROWS = 6
AGGREGATES = ("COUNT(*)", "SUM", "MAX", "MIN", "AVG")


def table_script(table: Table, query: str, rng: random.Random) -> str:
    """CREATE and INSERT statements under which `query` has a result that none of its near misses gives."""
    for _ in range(500):
        script = _script(table, rng)
        if _tells_apart(script, query, near_misses(table, query)):
            return script
    raise NomoatError(f"no data found that tells {query!r} from its near misses")


def near_misses(table: Table, query: str) -> list[str]:
    """Queries that are wrong in one place: no condition, the opposite one, another column, order or aggregate."""
    misses = [re.sub(pattern, "", query) for pattern in (" WHERE .*", " ORDER BY .*", " ORDER BY .*(?= LIMIT)")]
    misses += [query.replace(f"ORDER BY {table.number}", f"ORDER BY {column}") for column in (table.text, table.other)]
    misses += [query.replace(old, new) for old, new in ((" = ", " != "), (" > ", " < "), (" > ", " >= "), (" < ", " > "), (" < ", " <= "))]
    misses.append(query.replace(" DESC", "") if " DESC" in query else query.replace(" LIMIT", " DESC LIMIT"))
    selected = query.split(" FROM ")[0].removeprefix("SELECT ")
    instead = [table.text, table.other, table.number, "*"] + [f"{name}({table.number})" if "*" not in name else name for name in AGGREGATES]
    misses += [query.replace(f"SELECT {selected} ", f"SELECT {other} ", 1) for other in instead]
    return sorted({miss for miss in misses if miss != query})


def _script(table: Table, rng: random.Random) -> str:
    """Six data rows: two or three with the value asked for, one with the very limit, no number twice."""
    texts = [table.value] * rng.choice((2, 3))
    texts += [rng.choice(table.others) for _ in range(DATA_ROWS - len(texts))]
    numbers = [table.limit, *rng.sample([number for number in range(3, 99) if number != table.limit], DATA_ROWS - 1)]
    rng.shuffle(texts)
    rng.shuffle(numbers)
    cells = {table.text: texts, table.other: list(table.labels), table.number: numbers}
    rows = zip(*(cells[name] for name, _ in table.columns), strict=True)
    values = ", ".join("(" + ", ".join(_literal(cell) for cell in row) + ")" for row in rows)
    return f"CREATE TABLE {table.name} ({table.typed}); INSERT INTO {table.name} VALUES {values};"


def _literal(cell: str | int) -> str:
    return str(cell) if isinstance(cell, int) else "'" + cell.replace("'", "''") + "'"


def _tells_apart(script: str, query: str, misses: list[str]) -> bool:
    database = sqlite3.connect(":memory:")
    try:
        database.executescript(script)
        wanted = database.execute(query).fetchall()
        results = (sorted(database.execute(miss).fetchall(), key=repr) for miss in misses)
        return bool(wanted) and wanted != [(None,)] and all(result != sorted(wanted, key=repr) for result in results)
    finally:
        database.close()
