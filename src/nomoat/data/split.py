"""Division and selection of rows, always by stable hashes: splits, training subsets, label noise, held-out rows, few-shot examples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from nomoat.config.schema import Data, Eval
from nomoat.data.examples import Example, Splits
from nomoat.errors import NomoatError

FEW_SHOT_ROWS = 4


def split_examples(rows: Iterable[Example], validation: float = 0.1, heldout: float = 0.1, *, name: str = "rows", **more: Any) -> Splits:
    """Divide rows by a hash of their group: a group is never divided, and adding rows moves no group.

    Shares are of groups; a share above zero gets at least one group. Held-out rows get tier "phrasing". `more` goes to Splits.
    """
    rows = list(rows)
    if not (0 <= validation < 1 and 0 <= heldout < 1 and validation + heldout < 1):
        raise NomoatError(f"data: validation {validation} and heldout {heldout} must be shares from 0 that sum to less than 1")
    place = {group: int(_hash(group)[:12], 16) / 16**12 for group in {row.group for row in rows}}  # in [0, 1)
    if len(place) < 1 + bool(validation) + bool(heldout):
        raise NomoatError(f"data: {len(place)} group(s) of rows cannot be divided into train, validation and held-out; give more rows")
    order = sorted(place, key=lambda group: (place[group], group))
    held = _groups_below(order, place, heldout, keep=1 + bool(validation)) if heldout else set()
    checked = _groups_below([group for group in order if group not in held], place, heldout + validation, keep=1) if validation else set()
    tier_of = {group: "phrasing" if group in held else "validation" if group in checked else "train" for group in order}
    rows = [replace(row, tier=tier_of[row.group]) for row in rows]
    train, checked_rows, held_rows = (tuple(row for row in rows if row.tier == tier) for tier in ("train", "validation", "phrasing"))
    return Splits(name, train, checked_rows, held_rows, **more)


def _groups_below(order: list[str], place: dict[str, float], share: float, *, keep: int) -> set[str]:
    """Groups placed below `share`, at least one, but never the last `keep`, which the other parts need."""
    return {group for group in order[:-keep] if place[group] < share} or set(order[:1])


def choose_training_examples(rows: tuple[Example, ...], data: Data) -> tuple[Example, ...]:
    """The rows of `data.families`, of these `data.fraction`, and of these `data.noise` with another row's answer."""
    return add_noise(take_fraction(keep_families(rows, data.families), data.fraction), data.noise)


def keep_families(rows: tuple[Example, ...], families: Sequence[str] | None) -> tuple[Example, ...]:
    """The rows of the named families; NomoatError for a name that no row has."""
    if families is None:
        return rows
    known = sorted({row.family for row in rows})
    unknown = [name for name in families if name not in known]
    if unknown:
        raise NomoatError(f"data.families: no training row is of family {unknown[0]!r}; families here: {', '.join(known)}")
    return tuple(row for row in rows if row.family in families)


def take_fraction(rows: tuple[Example, ...], fraction: float) -> tuple[Example, ...]:
    """That share of each family's rows; the half contains the quarter."""
    if fraction == 1:
        return rows
    kept = {row.id for family in _by_family(rows).values() for row in _first_by_hash(family, fraction, "")}
    return tuple(row for row in rows if row.id in kept)


def add_noise(rows: tuple[Example, ...], share: float) -> tuple[Example, ...]:
    """`rows` with that share of each family's completions replaced by the next chosen row's different completion.

    Half of the noise contains the quarter. A family with a single answer has no wrong one and stays.
    """
    if not share:
        return rows
    wrong: dict[str, str] = {}
    for family in _by_family(rows).values():
        chosen = _first_by_hash(family, share, "noise")
        for place, row in enumerate(chosen):
            others = (other.completion for other in [*chosen[place + 1 :], *chosen[:place]] if other.completion != row.completion)
            wrong[row.id] = next(others, row.completion)
    return tuple(replace(row, completion=wrong[row.id]) if row.id in wrong else row for row in rows)


def choose_heldout(rows: Sequence[Example], settings: Eval) -> tuple[Example, ...]:
    """Rows of the recipe's tiers, at most `max_rows`, the same ones in every run."""
    wanted = [row for row in rows if row.tier in settings.tiers]
    kept = set(sorted((row.id for row in wanted), key=_hash)[: settings.max_rows])
    return tuple(row for row in wanted if row.id in kept)


def draw_examples(train: Sequence[Example]) -> dict[str, tuple[Example, ...]]:
    """Four training rows per family for the few-shot arm, of different phrasings as far as there are as many."""
    drawn: dict[str, tuple[Example, ...]] = {}
    for family, members in _by_family(train).items():
        rows = _first_by_hash(members, 1, "")
        first_of_group = {row.group: row for row in reversed(rows)}
        rows.sort(key=lambda row: first_of_group[row.group] is not row)  # stable: the first row of each phrasing, then the rest
        drawn[family] = tuple(rows[:FEW_SHOT_ROWS])
    return drawn


def _by_family(rows: Sequence[Example]) -> dict[str, list[Example]]:
    families: dict[str, list[Example]] = {}
    for row in rows:
        families.setdefault(row.family, []).append(row)
    return families


def _first_by_hash(rows: Sequence[Example], share: float, salt: str) -> list[Example]:
    """That share of the rows, at least one, in the order of a hash of their ids."""
    return sorted(rows, key=lambda row: _hash(f"{salt}{row.id}"))[: max(1, round(share * len(rows)))]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
