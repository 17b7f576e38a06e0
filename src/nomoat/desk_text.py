"""How values are written in the prompts and completions of the shipped set: the filters its templates may use."""

from __future__ import annotations

import unicodedata
from datetime import date, datetime, time, timedelta
from typing import Any


def plain(value: Any) -> Any:
    """A JSON value: dates as 2026-03-03, times as 14:30."""
    return value.isoformat() if isinstance(value, date) else hours24(value) if isinstance(value, time) else value


def hours24(value: time) -> str:
    """14:30"""
    return value.strftime("%H:%M")


def hours12(value: time) -> str:
    """2:30 pm"""
    return f"{value.hour % 12 or 12}:{value.minute:02d} {'am' if value.hour < 12 else 'pm'}"


def later(value: time, minutes: int) -> time:
    """The time so many minutes later, on the same day."""
    return (datetime(2000, 1, 1, value.hour, value.minute) + timedelta(minutes=minutes)).time()


def long_date(value: date) -> str:
    """3 March 2026"""
    return f"{value.day} {value:%B %Y}"


def spoken_date(value: date) -> str:
    """March 3rd, 2026"""
    ending = "th" if 10 < value.day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(value.day % 10, "th")
    return f"{value:%B} {value.day}{ending}, {value.year}"


def short_date(value: date) -> str:
    """3 Mar 2026"""
    return f"{value.day} {value:%b %Y}"


def weekday_of(value: date) -> str:
    """Tuesday"""
    return f"{value:%A}"


def plural(thing: str) -> str:
    """desk lamp -> desk lamps, coffee press -> coffee presses; the last word carries the ending."""
    if thing.endswith(("s", "x", "ch", "sh", "z")):
        return f"{thing}es"
    if thing.endswith("y") and thing[-2] not in "aeiou":
        return f"{thing[:-1]}ies"
    irregular = {"knife": "knives", "scarf": "scarves", "shelf": "shelves"}
    head, _, last = thing.rpartition(" ")
    return f"{head} {irregular[last]}".strip() if last in irregular else f"{thing}s"


def email(person: str, company: str) -> str:
    """An address that belongs to nobody: petrov@nordvik.example"""
    letters = {"ø": "o", "ł": "l", "æ": "ae", "ß": "ss"}
    surname = "".join(letters.get(sign, sign) for sign in person.lower().split(" ", 1)[1])
    plain_letters = unicodedata.normalize("NFKD", surname).encode("ascii", "ignore").decode()
    return f"{_letters_of(plain_letters)}@{_letters_of(company.lower().split(' ')[0])}.example"


def _letters_of(text: str) -> str:
    return "".join(sign for sign in text if sign.isascii() and sign.isalnum())


FILTERS = {
    "h24": hours24,
    "h12": hours12,
    "later": later,
    "long": long_date,
    "spoken": spoken_date,
    "short": short_date,
    "weekday": weekday_of,
    "plural": plural,
    "email": email,
}
