"""Which of a set's training rows a run learns from, and for an experiment on data quality, with how many wrong answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from nomoat.errors import NomoatError
from nomoat.rows import Row
from nomoat.sources import Data


def choose_training_rows(rows: tuple[Row, ...], data: Data) -> tuple[Row, ...]:
    """The rows of `data.families`, of these `data.fraction`, and `data.noise` of what is left with another row's answer."""
    return add_noise(take_fraction(of_families(rows, data.families), data.fraction), data.noise)


def of_families(rows: tuple[Row, ...], families: Sequence[str] | None) -> tuple[Row, ...]:
    """The rows of the named families; NomoatError for a name that no row has."""
    if families is None:
        return rows
    known = sorted({row.family for row in rows})
    unknown = [name for name in families if name not in known]
    if unknown:
        raise NomoatError(f"data.families: no training row is of family {unknown[0]!r}; families here: {', '.join(known)}")
    return tuple(row for row in rows if row.family in families)


def take_fraction(rows: tuple[Row, ...], fraction: float) -> tuple[Row, ...]:
    """That share of each family's rows, chosen by a stable hash: half of the rows contains the quarter."""
    if fraction == 1:
        return rows
    kept = {row.id for family in _families(rows) for row in _first(family, fraction, "")}
    return tuple(row for row in rows if row.id in kept)


def add_noise(rows: tuple[Row, ...], share: float) -> tuple[Row, ...]:
    """`rows` with that share of each family's completions replaced by the next chosen row's that says something else.

    Rows are chosen by a stable hash, so that half of the noise contains the quarter. A family of one answer has no wrong one.
    """
    if not share:
        return rows
    wrong: dict[str, str] = {}
    for family in _families(rows):
        chosen = _first(family, share, "noise")
        for place, row in enumerate(chosen):
            others = (other.completion for other in [*chosen[place + 1 :], *chosen[:place]] if other.completion != row.completion)
            wrong[row.id] = next(others, row.completion)
    return tuple(replace(row, completion=wrong[row.id]) if row.id in wrong else row for row in rows)


def _families(rows: Sequence[Row]) -> list[list[Row]]:
    return [[row for row in rows if row.family == family] for family in dict.fromkeys(row.family for row in rows)]


def _first(rows: Sequence[Row], share: float, salt: str) -> list[Row]:
    """That share of the rows in the order of a hash of their ids, at least one."""
    ordered = sorted(rows, key=lambda row: hashlib.sha256(f"{salt}{row.id}".encode()).hexdigest())
    return ordered[: max(1, round(share * len(ordered)))]
