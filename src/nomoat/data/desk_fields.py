"""Fields of the shipped set's templates: filters that write values, persona facts, and SQL fixtures."""

from __future__ import annotations

import random
import re
import sqlite3
import unicodedata
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from nomoat.config.load import parse_yaml
from nomoat.data.desk_slots import Table, part_of
from nomoat.errors import NomoatError

WORDINGS = {"heldout": slice(0, 3), "validation": slice(3, 4), "train": slice(4, None)}  # of a fact's 14 wordings, shuffled
DATA_ROWS = 6  # per invented table
AGGREGATES = ("COUNT(*)", "SUM({})", "MAX({})", "MIN({})", "AVG({})")


def plain(value: Any) -> Any:
    """A JSON value: dates as 2026-03-03, times as 14:30."""
    return value.isoformat() if isinstance(value, date) else f"{value:%H:%M}" if isinstance(value, time) else value


def hours12(value: time) -> str:
    """2:30 pm"""
    return f"{value.hour % 12 or 12}:{value.minute:02d} {'am' if value.hour < 12 else 'pm'}"


def later(value: time, minutes: int) -> time:
    """The time `minutes` later, on the same day."""
    return (datetime(2000, 1, 1, value.hour, value.minute) + timedelta(minutes=minutes)).time()


def spoken_date(value: date) -> str:
    """March 3rd, 2026"""
    ending = "th" if 10 < value.day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(value.day % 10, "th")
    return f"{value:%B} {value.day}{ending}, {value.year}"


def plural(thing: str) -> str:
    """desk lamp -> desk lamps, coffee press -> coffee presses; the last word takes the ending."""
    if thing.endswith(("s", "x", "ch", "sh", "z")):
        return f"{thing}es"
    if thing.endswith("y") and thing[-2] not in "aeiou":
        return f"{thing[:-1]}ies"
    irregular = {"knife": "knives", "scarf": "scarves", "shelf": "shelves"}
    head, _, last = thing.rpartition(" ")
    return f"{head} {irregular[last]}".strip() if last in irregular else f"{thing}s"


def email(person: str, company: str) -> str:
    """An address in a reserved domain: petrov@nordvik.example"""
    letters = {"ø": "o", "ł": "l", "æ": "ae", "ß": "ss"}
    surname = "".join(letters.get(letter, letter) for letter in person.lower().split(" ", 1)[1])
    user, host = unicodedata.normalize("NFKD", surname), company.lower().split(" ")[0]
    return "@".join(re.sub("[^a-z0-9]", "", name) for name in (user, host)) + ".example"


FILTERS: dict[str, Callable[..., str | time]] = {
    "h24": "{:%H:%M}".format,  # 14:30
    "h12": hours12,
    "later": later,
    "long": "{0.day} {0:%B %Y}".format,  # 3 March 2026
    "spoken": spoken_date,
    "short": "{0.day} {0:%b %Y}".format,  # 3 Mar 2026
    "weekday": "{:%A}".format,  # Tuesday
    "plural": plural,
    "email": email,
}


@dataclass(frozen=True)
class PersonaFact:
    """One fact in one wording: as a question and as a clause ('what your name is'), its answer, and all accepted answers."""

    name: str
    answer: str
    accept: list[str]
    question: str
    clause: str


class Persona:
    """Draws facts; each wording and each pair of facts belongs to one part."""

    def __init__(self, path: Path) -> None:
        self._facts: dict[str, dict[str, Any]] = parse_yaml(path.read_text(encoding="utf-8"), str(path))

    def draw(self, slot: str, part: str, rng: random.Random, taken: list[PersonaFact]) -> PersonaFact:
        """A fact in a wording of `part` for `slot` (fact, fact2); if a fact is `taken`, one whose pair with it belongs to `part`."""
        partners = {name: [other for other in self._facts if _pair_part(name, other) == part] for name in self._facts}
        name = rng.choice(partners[taken[0].name] if taken else [name for name in partners if partners[name]])
        fact = self._facts[name]
        question, clause = (rng.choice(_wordings(fact[form], part, name)) for form in ("questions", "clauses"))
        return PersonaFact(name, fact["answer"], fact["accept"], question, clause)


def _pair_part(one: str, other: str) -> str | None:
    """The part that may ask for both facts together, in either order; None for a fact with itself."""
    return None if one == other else part_of("pair", " + ".join(sorted((one, other))))


def _wordings(wordings: list[str], part: str, name: str) -> list[str]:
    # One seed for questions and clauses: the two lists are parallel, so both forms of a wording belong to the same part.
    order = list(wordings)
    random.Random(f"wordings {name}").shuffle(order)
    return order[WORDINGS[part]]


def table_script(table: Table, query: str, rng: random.Random) -> str:
    """CREATE and INSERT statements with which `query` has a result that none of its near misses gives."""
    for _ in range(500):
        script = _script(table, rng)
        if _distinguishes(script, query, near_misses(table, query)):
            return script
    raise NomoatError(f"no data found that distinguishes {query!r} from its near misses")


def near_misses(table: Table, query: str) -> list[str]:
    """Queries with one mistake: no condition, the opposite one, another column, order or aggregate."""
    misses = [re.sub(pattern, "", query) for pattern in (" WHERE .*", " ORDER BY .*", " ORDER BY .*(?= LIMIT)")]
    misses += [query.replace(f"ORDER BY {table.number}", f"ORDER BY {column}") for column in (table.text, table.other)]
    misses += [query.replace(old, new) for old, new in ((" = ", " != "), (" > ", " < "), (" > ", " >= "), (" < ", " > "), (" < ", " <= "))]
    misses.append(query.replace(" DESC", "") if " DESC" in query else query.replace(" LIMIT", " DESC LIMIT"))
    selected = query.split(" FROM ")[0].removeprefix("SELECT ")
    instead = [table.text, table.other, table.number, "*", *(aggregate.format(table.number) for aggregate in AGGREGATES)]
    misses += [query.replace(f"SELECT {selected} ", f"SELECT {other} ", 1) for other in instead]
    return sorted({miss for miss in misses if miss != query})


def _script(table: Table, rng: random.Random) -> str:
    """Six data rows: two or three with the value asked for, one with the limit itself, no number twice."""
    asked = [table.value] * rng.choice((2, 3))
    asked += [rng.choice(table.others) for _ in range(DATA_ROWS - len(asked))]
    numbers = [table.limit, *rng.sample([number for number in range(3, 99) if number != table.limit], DATA_ROWS - 1)]
    rng.shuffle(asked)
    rng.shuffle(numbers)
    texts = {table.text: asked, table.other: table.labels}
    literals = {name: ["'" + text.replace("'", "''") + "'" for text in column] for name, column in texts.items()}
    literals[table.number] = [str(number) for number in numbers]
    rows = ", ".join(f"({', '.join(row)})" for row in zip(*(literals[name] for name in table.columns), strict=True))
    return f"CREATE TABLE {table.name} ({table.typed}); INSERT INTO {table.name} VALUES {rows};"


def _distinguishes(script: str, query: str, misses: list[str]) -> bool:
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(script)
        wanted = database.execute(query).fetchall()
        results = (sorted(database.execute(miss).fetchall(), key=repr) for miss in misses)
        return bool(wanted) and wanted != [(None,)] and all(result != sorted(wanted, key=repr) for result in results)
