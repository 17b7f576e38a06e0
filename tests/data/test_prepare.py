"""Data made ready: fractions that nest, drops that are counted, refusals that name the key, and hub sets.

Hub sets are read through the real `datasets` library from folders laid out as on the hub.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nomoat.config.load import load_recipe
from nomoat.config.schema import Base, Data, Recipe
from nomoat.data.chat_template import ChatTemplate
from nomoat.data.examples import Splits
from nomoat.data.prepare import load_hub_set, load_raw_data, tokenize_data
from nomoat.data.split import take_fraction
from nomoat.errors import NomoatError
from nomoat.io import write_jsonl
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


CARD = """---
license: cc-by-sa-3.0
configs:
- config_name: main
  data_files: [{split: train, path: main/train.jsonl}, {split: test, path: main/test.jsonl}]
- config_name: other
  data_files: [{split: train, path: other.jsonl}]
---
A set.
"""


def hub_set(folder: Path, records: list[dict[str, Any]]) -> Path:
    """A folder like a repository of the hub: a card with two subsets, and the data as JSON lines."""
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    (folder / "main").mkdir()
    write_jsonl(folder / "main" / "train.jsonl", records)
    write_jsonl(folder / "main" / "test.jsonl", records[:5])
    write_jsonl(folder / "other.jsonl", records[5:15])
    return folder


def loaded(folder: Path, columns: dict[str, str], **more: Any) -> Splits:
    return load_hub_set(Data(path=str(folder), columns=columns, **more))


def all_rows(rows: Splits) -> list[Any]:
    return [*rows.train, *rows.validation, *rows.heldout]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


# By recipe: one record as the set's card shows it (column names and types of values, with texts of ours), and the row it should become.
SETS = {
    "dolly": (
        {"instruction": "Name it.", "context": "A cat sat.", "response": "A cat", "category": "closed_qa"},
        ("Name it.\n\nA cat sat.", "A cat", "closed_qa"),
    ),
    "alpaca": ({"instruction": "Name it.", "input": "", "output": "A cat", "text": "Below is ..."}, ("Name it.", "A cat", "rows")),
    "no-robots": (
        {
            "prompt": "Name it.",
            "prompt_id": "a1",
            "messages": [{"role": "user", "content": "Name it."}, {"role": "assistant", "content": "A cat"}],
            "category": "Open QA",
        },
        ("Name it.", "A cat", "Open QA"),
    ),
    "gsm8k": ({"question": "How many?", "answer": "2 and 2 are 4.\n#### 4"}, ("How many?", "2 and 2 are 4.\n#### 4", "rows")),
}


def data_of(name: str, folder: Path) -> Data:
    """The data block of a recipe that ships, its hub set replaced by a folder."""
    stated = load_recipe(ROOT / "recipes" / f"{name}.yaml").data
    return stated.model_copy(
        update={"hub": None, "revision": None, "path": str(folder), "subset": "main", "heldout": 0.2, "validation": 0.1}
    )


def test_trees_of_messages_become_pairs(tmp_path: Path) -> None:
    records = []
    for n in range(40):
        asked = {
            "message_id": f"q{n}",
            "parent_id": None,
            "text": f"Q{n}?",
            "role": "prompter",
            "lang": "en" if n % 2 else "de",
            "rank": None,
        }
        answer = {**asked, "message_id": f"a{n}", "parent_id": f"q{n}", "text": f"A{n}", "role": "assistant", "rank": 0}
        records += [asked, {**answer, "message_id": f"b{n}", "text": "worse", "rank": 1}, answer]
    rows = load_hub_set(data_of("oasst1", hub_set(tmp_path / "oasst", records)))
    assert {(row.prompt, row.completion) for row in all_rows(rows)} == {(f"Q{n}?", f"A{n}") for n in range(1, 40, 2)}


@pytest.mark.parametrize("name", SETS)
def test_the_usual_sets_become_rows(tmp_path: Path, name: str) -> None:
    record, (prompt, completion, family) = SETS[name]
    question = {"dolly": "instruction", "alpaca": "instruction", "gsm8k": "question"}.get(name)
    records = [record]
    for number in range(39):
        other = (
            {"messages": [{"role": "user", "content": f"Q{number}"}, record["messages"][1]]}
            if question is None
            else {question: f"Q{number}"}
        )
        records.append({**record, **other})
    rows = load_hub_set(data_of(name, hub_set(tmp_path / name, records)))
    assert first_score(rows) == ("number" if name == "gsm8k" else "rouge_l")
    assert len(all_rows(rows)) == 40 and rows.train and rows.validation and rows.heldout
    [first] = [row for row in all_rows(rows) if row.id == "row-1"]
    assert (first.prompt, first.completion, first.family) == (prompt, completion, family)
    assert rows.origin["license"] == "cc-by-sa-3.0" and rows.origin["left_out"] == 0 and rows.name == name


def first_score(rows: Splits) -> str:
    return str(rows.train[0].score["by"])


def questions(count: int = 40) -> list[dict[str, Any]]:
    return [{"q": f"What is {n} and {n}?", "a": f"It is {2 * n}"} for n in range(count)]


COLUMNS = {"prompt": "q", "completion": "a"}


def test_rows_without_question_or_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    records = questions()
    records[3]["a"], records[4]["q"] = "  ", ""
    rows = loaded(hub_set(tmp_path / "set", records), COLUMNS, subset="main")
    assert rows.origin["left_out"] == 2 and len(all_rows(rows)) == 38
    assert {row.id for row in all_rows(rows)}.isdisjoint({"row-4", "row-5"})


def test_subset_split_and_score_are_taken_as_stated(tmp_path: Path) -> None:
    folder = hub_set(tmp_path / "set", questions())
    rows = loaded(folder, COLUMNS, subset="main", split="test", score={"by": "number"})
    assert len(all_rows(rows)) == 5 and {row.score["by"] for row in all_rows(rows)} == {"number"}
    assert rows.origin == {"revision": None, "subset": "main", "split": "test", "license": "cc-by-sa-3.0", "left_out": 0}
    assert len(all_rows(loaded(folder, COLUMNS, subset="other"))) == 10


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"subset": "minor"}, "'minor' not found. Available: ['main', 'other']"),
        ({"subset": "main", "split": "dev"}, "Unknown split \"dev\". Should be one of ['train', 'test']"),
        ({"subset": "main", "columns": {"prompt": "question", "completion": "a"}}, "set:1: data.columns: no column 'question'"),
        ({"subset": "main", "score": {"by": "numbr"}}, "did you mean 'number'"),
    ],
)
def test_a_subset_split_column_or_scorer_that_does_not_exist_is_refused_with_those_that_do(
    tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    folder = hub_set(tmp_path / "set", questions())
    with pytest.raises(NomoatError) as caught:
        loaded(folder, **{"columns": COLUMNS, **more})
    assert said in str(caught.value)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NomoatError, match=r"data\.path: .*no set"):
        loaded(tmp_path / "no set", COLUMNS)


def test_only_plain_tables_are_read(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.txt").write_text("one\ntwo\n", encoding="utf-8")
    with pytest.raises(NomoatError, match=r"data\.path: .* is not a plain table"):
        loaded(tmp_path / "set", COLUMNS)


def test_a_set_that_cannot_be_fetched_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NomoatError, match=r"data\.hub: owner/name at aaaaaaaaaaaa could not be fetched .*set data\.path"):
        load_hub_set(Data(hub="owner/name", revision="a" * 40, columns=COLUMNS))
    with pytest.raises(NomoatError, match=r"data\.revision: 'owner/name' is unpinned"):
        load_hub_set(Data(hub="owner/name", revision="unpinned", columns=COLUMNS))


def test_a_contaminated_set_fails_unless_its_rows_are_dropped_or_a_reason_is_given(tmp_path: Path) -> None:
    words = "The committee that met last week in the old town hall decided to move the market"
    records = [{"q": f"{words}, as note {n} says.", "a": "yes"} for n in range(40)]
    data: dict[str, Any] = {"path": str(hub_set(tmp_path / "set", records)), "subset": "main", "columns": COLUMNS}
    with pytest.raises(NomoatError, match=r"contamination: .* has held-out rows that repeat training rows \(0 exact, .* by 13 words\)"):
        load_raw_data(recipe(data=Data(**data)), ROOT)
    whole = load_hub_set(Data(**data))
    short = [{"q": f"Note {n}?", "a": "no"} for n in range(40)]
    mixed = {**data, "path": str(hub_set(tmp_path / "mixed", [*records, *short]))}
    left = load_raw_data(recipe(data=Data(**mixed, drop_leaks=True)), ROOT)
    assert left.leaks.clean and left.rows.heldout and all(row.prompt.startswith("Note") for row in left.rows.heldout)
    everything = load_hub_set(Data(**mixed))
    assert left.rows.origin["leaks_left_out"] == len(everything.heldout) - len(left.rows.heldout) > 0
    assert left.rows.train == everything.train
    with pytest.raises(NomoatError, match=rf"all {len(whole.heldout)} held-out rows of .* repeat training rows"):
        load_raw_data(recipe(data=Data(**data, drop_leaks=True)), ROOT)
    with pytest.raises(NomoatError, match="desk is a shipped set"):
        load_raw_data(recipe(data=Data(drop_leaks=True)), ROOT)
    allowed = Data(**data, allow_leaks="one template")
    assert load_raw_data(recipe(data=allowed), ROOT).leaks.ngram > 0
