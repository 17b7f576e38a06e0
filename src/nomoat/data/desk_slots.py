"""Values for the slots of the shipped set: hand-written lists and generated forms, divided once into three parts.

A value of an open pool (a name, a city, a reference number ...) belongs permanently to train, validation or held-out, by a hash of the
pool and the value; weekdays, small numbers and company endings are shared. Most training values are coined from syllables and words
(coined.yaml): given two hundred names, each seen a dozen times, a model learns the names instead of copying them.
"""

from __future__ import annotations

import hashlib
import random
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, time, timedelta
from pathlib import Path
from typing import Any, TypeVar

from nomoat.config.load import parse_yaml
from nomoat.errors import NomoatError

PARTS = ("train", "validation", "heldout")
SHARES = {"train": 0.70, "validation": 0.08, "heldout": 0.22}
HARDER = 0.3  # share of training dates and times drawn from the harder ones only
COINED = 0.7  # share of a pool's training values that are coined, if coined.yaml has parts for it
SHARED = ("company_tails", "weekdays")  # lists too small to divide
PART_OF_LIST = {"devices": "items"}  # a list whose values another list has too is divided like that one
PATTERNS = {  # A: an upper-case letter, a: a lower-case letter, #: a digit
    "reference": ("A-#####", "AA####", "AAA-####", "##-####", "####/##", "A#A-###", "aa-####-a", "AA.###.##", "######", "A##-A##"),
    "room": ("A##", "A#.##", "###", "A-###", "#A"),
    "phone": ("555-####", "0## 555 ####", "+## 555 ### ###"),
}
# Slots that draw a list, and the pool of its values.
LISTINGS = {
    "guests": "first_names",
    "stops": "cities",
    "things": "items",
    "agenda": "topics",
    "firms": "company_heads",
    "tickets": "reference",
}
FIRST_DAY, DAYS = date(2023, 1, 1), 6 * 365
Value = TypeVar("Value")


@dataclass(frozen=True)
class Listing:
    """Three or four different values of one pool, one of them picked as target, and a new one that is not among them."""

    all: tuple[str, ...]
    target: str
    new: str

    def __str__(self) -> str:
        return ", ".join(self.all)

    @property
    def rest(self) -> list[str]:
        """All values except the target, in order."""
        return [value for value in self.all if value != self.target]

    @property
    def replaced(self) -> list[str]:
        """All values, with the new one in place of the target."""
        return [self.new if value == self.target else value for value in self.all]

    @property
    def later(self) -> str:
        """The target, or the last value if the target is first: a value that can be moved to the front."""
        return self.target if self.target != self.all[0] else self.all[-1]


@dataclass(frozen=True)
class Table:
    """An invented table with two text columns and a number column, and the values that a question about it may name."""

    name: str
    columns: list[str]  # the three that follow, in any order
    text: str
    other: str
    number: str
    value: str  # of the `text` column, as are `others`
    others: list[str]
    labels: list[str]  # values of the `other` column, one per data row
    limit: int

    @property
    def named(self) -> str:
        """The names of the columns."""
        return ", ".join(self.columns)

    @property
    def typed(self) -> str:
        """The columns as a CREATE TABLE statement lists them."""
        return ", ".join(f"{name} {'INTEGER' if name == self.number else 'TEXT'}" for name in self.columns)


def part_of(pool: str, value: object) -> str:
    """The part of the set to which a value of an open pool permanently belongs."""
    place = int(hashlib.sha256(f"{pool}:{value}".encode()).hexdigest()[:12], 16) / 16**12
    return "train" if place < SHARES["train"] else "validation" if place < SHARES["train"] + SHARES["validation"] else "heldout"


class Values:
    """Draws values for slots; `part` is the part whose values may be drawn."""

    def __init__(self, folder: Path) -> None:
        self.lists = {path.stem: path.read_text(encoding="utf-8").splitlines() for path in sorted(folder.glob("*.txt"))}
        coined = folder / "coined.yaml"
        self._syllables: dict[str, Any] = parse_yaml(coined.read_text(encoding="utf-8"), str(coined))
        self._divided: dict[tuple[str, str], list[str]] = {}
        for name, values in self.lists.items():
            if len(set(values)) < len(values) or not all(value == value.strip() and value for value in values):
                raise NomoatError(f"{folder / name}.txt: a value is empty, padded with spaces or given twice")
            for part in PARTS:
                pool = PART_OF_LIST.get(name, name)
                self._divided[name, part] = [value for value in values if name in SHARED or part_of(pool, value) == part]
        unseen = {value for (name, part), values in self._divided.items() if name not in SHARED and part != "train" for value in values}
        self._unseen = re.compile(r"(?<!\w)(?:" + "|".join(re.escape(value) for value in sorted(unseen)) + r")(?!\w)")

    def draw(self, slot: str, part: str, rng: random.Random, taken: list[Any]) -> Any:
        """A value for `slot` (`person2` draws a person) that is not in `taken`; NomoatError if none is left."""
        pool = slot.rstrip(string.digits)
        for _ in range(1000):
            value = self._draw(pool, part, rng)
            if value not in taken:
                return value
        raise NomoatError(f"slot {slot!r}: no value of part {part} is left")

    def _draw(self, pool: str, part: str, rng: random.Random) -> Any:
        if method := getattr(self, f"_{pool}", None):
            return method(part, rng)
        if pool == "quantity":
            return rng.randrange(2, 60)
        if pool == "list" or pool in LISTINGS:
            return self._listing(LISTINGS.get(pool) or rng.choice(list(LISTINGS.values())), part, rng)
        if pool in PATTERNS:
            return self._until(pool, part, lambda: _from_pattern(rng.choice(PATTERNS[pool]), rng))
        # `weekdays` draws from weekdays.txt, `weekday` too
        return self._pick("cities" if pool == "city" else pool if pool.endswith("s") else f"{pool}s", part, rng)

    def _pick(self, name: str, part: str, rng: random.Random) -> str:
        """A value of a list, or for training mostly a coined one of the same kind."""
        if part == "train" and name in self._syllables and rng.random() < COINED:
            return self._until(name, part, lambda: self._coin(name, rng))
        return rng.choice(self.listed(name, part))

    def _coin(self, name: str, rng: random.Random) -> str:
        """A coined value that contains no listed value of another part as a word."""
        while True:
            chosen = [rng.choice(choices) for choices in self._syllables[name]["parts"]]
            made = str(self._syllables[name]["join"]).join(filter(None, chosen))
            if not self._unseen.search(made):
                return made

    def _several(self, count: int, pool: str, part: str, rng: random.Random) -> list[str]:
        values: list[str] = []
        while len(values) < count:
            values.append(self.draw(pool, part, rng, values))
        return values

    def listed(self, name: str, part: str) -> list[str]:
        """The values of a list that belong to `part`; all of them if the list is shared."""
        if name not in self.lists:
            raise NomoatError(f"no list of values named {name!r} (known: {', '.join(self.lists)})")
        return self._divided[name, part]

    def _until(self, pool: str, part: str, make: Callable[[], Value]) -> Value:
        while part_of(pool, value := make()) != part:
            pass
        return value

    def _person(self, part: str, rng: random.Random) -> str:
        return f"{self._pick('first_names', part, rng)} {self._pick('last_names', part, rng)}"

    def _company(self, part: str, rng: random.Random) -> str:
        return f"{self._pick('company_heads', part, rng)} {self._pick('company_tails', part, rng)}"

    def _date(self, part: str, rng: random.Random) -> date:
        """In training rows, one-digit days are more frequent than in a calendar, so that `2 May` is not read as 22 May."""
        early = part == "train" and rng.random() < HARDER

        def draw() -> date:
            day = FIRST_DAY + timedelta(days=rng.randrange(DAYS))
            return day.replace(day=1 + day.day % 9) if early else day

        return self._until("date", part, draw)

    def _time(self, part: str, rng: random.Random) -> time:
        """In training rows, afternoons are more frequent: their 12-hour form has to be computed."""
        late = part == "train" and rng.random() < HARDER
        return self._until("time", part, lambda: time(rng.randrange(13 if late else 7, 20), 5 * rng.randrange(12)))

    def _amount(self, part: str, rng: random.Random) -> float:
        """A price whose last digit is not 0, so that it looks the same as text and as a number."""
        return self._until("amount", part, lambda: (10 * rng.randrange(50, 9000) + rng.randrange(1, 10)) / 100)

    def _listing(self, names: str, part: str, rng: random.Random) -> Listing:
        size = 3 if names == "reference" else rng.randrange(3, 5)  # digits make long answers: many tokenizers have one token per digit
        *chosen, new = self._several(size + 1, names, part, rng)
        return Listing(tuple(chosen), target=rng.choice(chosen), new=new)

    def _table(self, part: str, rng: random.Random) -> Table:
        pools = {"place_columns": "cities", "person_columns": "first_names", "thing_columns": "items"}
        texts, others = rng.sample(sorted(pools), 2)
        name, text, other, number = (self.draw(pool, part, rng, []) for pool in ("tables", texts, others, "number_columns"))
        columns = [text, other, number]
        rng.shuffle(columns)
        if part == "train":
            value, *more = self._several(3, pools[texts], part, rng)
            labels = self._several(6, pools[others], part, rng)
        else:
            value, *more = rng.sample(self.listed(pools[texts], part), 3)
            labels = rng.sample(self.listed(pools[others], part), 6)
        return Table(name, columns, text, other, number, value, others=more, labels=labels, limit=rng.randrange(12, 90))


def _from_pattern(pattern: str, rng: random.Random) -> str:
    """`A-##` becomes 'K-48'; letters that look like digits are not used, and a number does not start with 0."""
    letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"
    alphabets = {"A": letters, "a": letters.lower().replace("l", ""), "#": string.digits}
    made = "".join(rng.choice(alphabets.get(sign, sign)) for sign in pattern)
    return made if made[0] != "0" or pattern.startswith("0") else "4" + made[1:]
