"""Training rows are chosen by families and by share, and made wrong on purpose, the same way every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from nomoat.config.schema import Base, Data, Recipe
from nomoat.data.examples import Example
from nomoat.data.prepare import load_raw_data
from nomoat.data.split import add_noise, keep_families, take_fraction
from nomoat.errors import NomoatError

ROOT = Path(__file__).resolve().parents[2]


def rows(count: int = 40) -> tuple[Example, ...]:
    """Two families, one of them with three answers only."""
    made = []
    for n in range(count):
        for family, answer in (("sum", str(2 * n)), ("label", "abc"[n % 3])):
            made.append(Example(f"{family}-{n}", f"q {n}", answer, None, family, "train", f"g{n}", {"by": "exact"}))
    return tuple(made)


def changed(noise: float) -> set[str]:
    return {new.id for old, new in zip(rows(), add_noise(rows(), noise), strict=True) if old != new}


def test_a_share_of_each_familys_answers_is_wrong_and_nothing_else_changes() -> None:
    assert add_noise(rows(), 0.0) == rows()
    assert len(changed(0.25)) == 2 * 10 and len(changed(0.5)) == 2 * 20 and changed(0.25) < changed(0.5)
    for old, new in zip(rows(), add_noise(rows(), 0.25), strict=True):
        assert new.completion in {row.completion for row in rows() if row.family == old.family}
        assert (new.id, new.prompt, new.group) == (old.id, old.prompt, old.group)
    assert add_noise(rows(), 0.25) == add_noise(rows(), 0.25)
    same = tuple(Example(str(n), "q", "yes", None, "f", "train", str(n), {"by": "exact"}) for n in range(8))
    assert add_noise(same, 0.5) == same, "where every answer is the same there is no wrong one"


def test_families_are_named_or_refused() -> None:
    assert {row.family for row in keep_families(rows(), ["sum"])} == {"sum"} and keep_families(rows(), None) == rows()
    with pytest.raises(NomoatError, match=r"no training row is of family 'sums'; families here: label, sum"):
        keep_families(rows(), ["sums"])


def test_a_recipe_trains_on_what_it_names_and_is_asked_everything() -> None:
    def loaded(**data: object) -> object:
        return load_raw_data(Recipe(name="r", base=Base(path="x"), data=Data.model_validate(data)), ROOT)

    whole, part = loaded(), loaded(families=["calendar", "route"], fraction=0.5, noise=0.25)
    assert {row.family for row in part.rows.train} == {"calendar", "route"}
    assert part.rows.heldout == whole.rows.heldout and part.rows.validation == whole.rows.validation
    assert part.examples == whole.examples, "the few-shot arm is the same for every choice of training rows"
    clean = {row.id: row.completion for row in take_fraction(keep_families(whole.rows.train, ["calendar", "route"]), 0.5)}
    assert clean.keys() == {row.id for row in part.rows.train}
    assert 0.2 < sum(clean[row.id] != row.completion for row in part.rows.train) / len(clean) <= 0.25
    assert part.rows.train_sha256 != whole.rows.train_sha256
