"""Which of a set's training rows a run learns from, and for an experiment on data quality, with how many wrong answers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from nomoat.config.schema import Data, Eval
from nomoat.data.examples import Example, Splits
from nomoat.errors import NomoatError


def choose_training_examples(rows: tuple[Example, ...], data: Data) -> tuple[Example, ...]:
    """The rows of `data.families`, of these `data.fraction`, and `data.noise` of what is left with another row's answer."""
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
    """That share of each family's rows, chosen by a stable hash: half of the rows contains the quarter."""
    if fraction == 1:
        return rows
    kept = {row.id for family in _by_family(rows) for row in _first_by_hash(family, fraction, "")}
    return tuple(row for row in rows if row.id in kept)


def add_noise(rows: tuple[Example, ...], share: float) -> tuple[Example, ...]:
    """`rows` with that share of each family's completions replaced by the next chosen row's that says something else.

    Rows are chosen by a stable hash, so that half of the noise contains the quarter. A family of one answer has no wrong one.
    """
    if not share:
        return rows
    wrong: dict[str, str] = {}
    for family in _by_family(rows):
        chosen = _first_by_hash(family, share, "noise")
        for place, row in enumerate(chosen):
            others = (other.completion for other in [*chosen[place + 1 :], *chosen[:place]] if other.completion != row.completion)
            wrong[row.id] = next(others, row.completion)
    return tuple(replace(row, completion=wrong[row.id]) if row.id in wrong else row for row in rows)


def _by_family(rows: Sequence[Example]) -> list[list[Example]]:
    return [[row for row in rows if row.family == family] for family in dict.fromkeys(row.family for row in rows)]


def _first_by_hash(rows: Sequence[Example], share: float, salt: str) -> list[Example]:
    """That share of the rows in the order of a hash of their ids, at least one."""
    ordered = sorted(rows, key=lambda row: hashlib.sha256(f"{salt}{row.id}".encode()).hexdigest())
    return ordered[: max(1, round(share * len(ordered)))]


FEW_SHOT_ROWS = 4


def choose_heldout(rows: Sequence[Example], settings: Eval) -> tuple[Example, ...]:
    """Rows of the recipe's tiers, at most `max_rows`, chosen by a stable hash so that every run takes the same."""
    wanted = [row for row in rows if row.tier in settings.tiers]
    if len(wanted) <= settings.max_rows:
        return tuple(wanted)
    kept = set(sorted((row.id for row in wanted), key=_stable)[: settings.max_rows])
    return tuple(row for row in wanted if row.id in kept)


def draw_examples(train: Sequence[Example]) -> dict[str, tuple[Example, ...]]:
    """Four training rows a family, of different phrasings where there are as many, drawn by a stable hash of their ids."""
    drawn: dict[str, tuple[Example, ...]] = {}
    for family in dict.fromkeys(row.family for row in train):
        rows = sorted((row for row in train if row.family == family), key=lambda row: _stable(row.id))
        first_of_group = {row.group: row for row in reversed(rows)}
        preferred = [row for row in rows if first_of_group[row.group] is row]
        rest = [row for row in rows if first_of_group[row.group] is not row]
        drawn[family] = tuple([*preferred, *rest][:FEW_SHOT_ROWS])
    return drawn


def _stable(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def split_examples(rows: Iterable[Example], validation: float = 0.1, heldout: float = 0.1, *, name: str = "rows", **more: Any) -> Splits:
    """Divide rows by a stable hash of their group, so that a group never straddles and more rows move nothing.

    Shares are of groups. A share above zero always gets at least one group. Held-out rows get tier "phrasing".
    """
    rows = list(rows)
    if not (0 <= validation < 1 and 0 <= heldout < 1 and validation + heldout < 1):
        raise NomoatError(f"data: validation {validation} and heldout {heldout} must be shares from 0 that sum to less than 1")
    place = {group: int(hashlib.sha256(group.encode()).hexdigest()[:12], 16) / 16**12 for group in {row.group for row in rows}}
    if len(place) < 1 + bool(validation) + bool(heldout):
        raise NomoatError(f"data: {len(place)} group(s) of rows cannot be divided into train, validation and held-out; give more rows")
    order = sorted(place, key=lambda group: (place[group], group))
    held = _groups_below(order, place, heldout, keep=1 + bool(validation)) if heldout else set()
    checked = _groups_below([group for group in order if group not in held], place, heldout + validation, keep=1) if validation else set()
    parts: dict[str, list[Example]] = {"train": [], "validation": [], "phrasing": []}
    for row in rows:
        tier = "phrasing" if row.group in held else "validation" if row.group in checked else "train"
        parts[tier].append(Example(**{**vars(row), "tier": tier}))
    return Splits(name, tuple(parts["train"]), tuple(parts["validation"]), tuple(parts["phrasing"]), **more)


def _groups_below(order: list[str], place: dict[str, float], share: float, *, keep: int) -> set[str]:
    """Groups placed below `share`, at least one of them, but never the last `keep` (other parts need them)."""
    return {group for group in order[:-keep] if place[group] < share} or set(order[:1])
