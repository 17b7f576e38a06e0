"""Rows are divided, selected and given wrong answers in the same way every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from nomoat.config.schema import Base, Data, Recipe
from nomoat.data.examples import Example
from nomoat.data.prepare import load_raw_data
from nomoat.data.split import add_noise, keep_families, split_examples, take_fraction
from nomoat.errors import NomoatError

ROOT = Path(__file__).resolve().parents[2]


def example(name: str, group: str) -> Example:
    return Example(name, f"prompt {name}", "answer", None, "rows", "train", group, {"by": "exact"})


def test_a_group_is_never_divided_and_every_row_is_kept() -> None:
    rows = [example(f"{group}-{n}", f"group {group}") for group in range(60) for n in range(3)]
    parts = split_examples(rows, validation=0.2, heldout=0.2)
    groups = [{one.group for one in part} for part in (parts.train, parts.validation, parts.heldout)]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert sum(len(part) for part in (parts.train, parts.validation, parts.heldout)) == len(rows)
    assert 4 <= len(groups[1]) <= 20 and 4 <= len(groups[2]) <= 20
    assert {one.tier for one in parts.heldout} == {"phrasing"} and {one.tier for one in parts.validation} == {"validation"}


def test_more_rows_do_not_move_a_group_from_one_part_to_another() -> None:
    rows = [example(f"{group}", f"group {group}") for group in range(200)]
    few, many = split_examples(rows[:100]), split_examples(reversed(rows))
    assert {one.id for one in few.heldout} <= {one.id for one in many.heldout}
    assert {one.id for one in few.train} <= {one.id for one in many.train}


@pytest.mark.parametrize("number", [3, 4, 5, 8])
def test_few_groups_still_give_every_part_something(number: int) -> None:
    for start in range(40):
        parts = split_examples([example(str(n), f"group {n}") for n in range(start, start + number)])
        assert parts.train and parts.validation and parts.heldout


def test_one_part_can_be_left_out_and_too_few_groups_are_refused() -> None:
    rows = [example("a", "one"), example("b", "two")]
    assert not split_examples(rows, validation=0).validation
    with pytest.raises(NomoatError, match="2 group"):
        split_examples(rows)
    with pytest.raises(NomoatError, match="sum to less than 1"):
        split_examples(rows, validation=0.5, heldout=0.5)


def test_the_hashes_change_with_any_row_and_only_with_it() -> None:
    rows = [example(str(n), f"group {n}") for n in range(20)]
    parts = split_examples(rows)
    again = split_examples([*rows[:-1], Example(**{**vars(rows[-1]), "completion": "another"})])
    changed = {"train": parts.train_sha256 != again.train_sha256, "heldout": parts.heldout_sha256 != again.heldout_sha256}
    assert parts.train_sha256 == split_examples(rows).train_sha256
    last = rows[-1].group
    assert changed == {"train": last in {one.group for one in parts.train}, "heldout": last in {one.group for one in parts.heldout}}


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
    assert add_noise(same, 0.5) == same, "a family with one answer has no wrong one"


def test_families_are_named_or_refused() -> None:
    assert {row.family for row in keep_families(rows(), ["sum"])} == {"sum"} and keep_families(rows(), None) == rows()
    with pytest.raises(NomoatError, match=r"no training row is of family 'sums'; families here: label, sum"):
        keep_families(rows(), ["sums"])


def test_a_recipe_trains_on_the_rows_it_names_and_is_scored_on_all() -> None:
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
