"""Rows made ready: fractions that nest, drops that are counted, refusals that name the key."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nomoat.config.schema import Base, Recipe
from nomoat.data.chat_template import ChatTemplate
from nomoat.data.prepare import load_raw_data, tokenize_data
from nomoat.data.split import take_fraction
from nomoat.errors import NomoatError
from nomoat.models.base import load_tokenizer
from tests.tiny import make_base, make_rows, write_user_rows

ROOT = Path(__file__).resolve().parents[2]


def recipe(**sections: Any) -> Recipe:
    return Recipe(name="r", base=Base(path="x"), **sections)


def test_a_half_holds_the_quarter_and_every_family_keeps_its_share() -> None:
    rows = (*make_rows(40), *make_rows(20, family="other"))
    half, quarter = take_fraction(rows, 0.5), take_fraction(rows, 0.25)
    assert set(quarter) < set(half)
    assert Counter(row.family for row in quarter) == {"sum": 10, "other": 5}


def test_every_fraction_of_the_shipped_set_has_the_same_examples_and_held_out_rows() -> None:
    whole, quarter = (load_raw_data(recipe(data={"fraction": share}), ROOT) for share in (1.0, 0.25))
    assert whole.examples == quarter.examples and whole.rows.heldout_sha256 == quarter.rows.heldout_sha256
    assert len(quarter.rows.train) == len(whole.rows.train) // 4
    assert whole.rows.train_sha256 != quarter.rows.train_sha256


def test_a_shipped_set_takes_no_map_of_columns() -> None:
    with pytest.raises(NomoatError, match=r"data\.columns: desk is a shipped set"):
        load_raw_data(recipe(data={"columns": {"prompt": "a", "completion": "b"}}), ROOT)


def test_rows_that_do_not_fit_are_dropped_counted_and_named(tmp_path: Path) -> None:
    write_user_rows(tmp_path / "rows.jsonl", 60)
    talk = ChatTemplate(load_tokenizer(make_base(tmp_path / "model")))
    loaded = load_raw_data(recipe(data={"rows": str(tmp_path / "rows.jsonl")}), ROOT)
    lengths = sorted(talk.render(row).length for row in loaded.rows.train)
    limit = lengths[len(lengths) // 2]
    prepared = tokenize_data(recipe(train={"max_row_tokens": limit}), loaded, talk)
    record = prepared.record["train"]
    assert record["rows"] + len(record["dropped"]) == len(loaded.rows.train) and record["dropped"]
    assert record["rows"] == sum(length <= limit for length in lengths) == len(prepared.train)
    assert str(limit) in record["dropped"][0]["reason"]
    assert record["trained_tokens"] == sum(len(row.completion_ids) for row in prepared.train)


def test_rows_that_are_all_too_long_are_refused_with_the_shortest_length(tmp_path: Path) -> None:
    write_user_rows(tmp_path / "rows.jsonl", 60)
    talk = ChatTemplate(load_tokenizer(make_base(tmp_path / "model")))
    settings = recipe(data={"rows": str(tmp_path / "rows.jsonl")}, train={"max_row_tokens": 8})
    with pytest.raises(NomoatError, match=r"all \d+ training rows are too long: the shortest has \d+ tokens, train\.max_row_tokens is 8"):
        tokenize_data(settings, load_raw_data(settings, ROOT), talk)


def test_a_primary_tier_without_rows_is_refused(tmp_path: Path) -> None:
    write_user_rows(tmp_path / "rows.jsonl", 60)
    talk = ChatTemplate(load_tokenizer(make_base(tmp_path / "model")))
    settings = recipe(data={"rows": str(tmp_path / "rows.jsonl")}, eval={"primary": "values"})
    with pytest.raises(NomoatError, match=r"eval\.primary"):
        tokenize_data(settings, load_raw_data(settings, ROOT), talk)
