"""Rows from shipped sets and users' files: what is read and what is refused."""

import json
from pathlib import Path

import pytest

from nomoat.config.schema import Columns, Data, Tree
from nomoat.data.examples import HELDOUT_TIERS, load_shipped_set, load_user_examples, normalise
from nomoat.errors import NomoatError

ROOT = Path(__file__).resolve().parents[2]


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(NomoatError) as caught:
        load_user_examples(path)
    return str(caught.value)


def test_only_prompt_and_completion_are_required(tmp_path):
    [first, second] = load_user_examples(
        write(tmp_path / "a.jsonl", {"prompt": "Hello, World!", "completion": "a"}, {"prompt": " hello world", "completion": "b"})
    )
    assert (first.id, second.id) == ("row-1", "row-2")
    assert (first.family, first.tier, first.system, first.score, first.slots) == ("rows", "train", None, {"by": "exact"}, ())
    assert first.group == second.group, "prompts that differ in case and punctuation only belong together"


def test_text_is_kept_as_it_is_written(tmp_path):
    prompt = "  Cafe\u0301 \ufb01ne\n\tWrite:  "
    [one] = load_user_examples(write(tmp_path / "a.jsonl", {"prompt": prompt, "completion": " \u00bd\n"}))
    assert (one.prompt, one.completion) == (prompt, " \u00bd\n")


def test_csv_jsonl_and_parquet_give_the_same_rows(tmp_path):
    import pyarrow
    from pyarrow import parquet

    records = [
        {"prompt": 'Two\nlines, "quoted"', "completion": "a", "system": "Be brief.", "score": "exact"},
        {"prompt": "Which?", "completion": "b", "score": {"by": "label", "labels": ["a", "b"]}, "group": "g", "family": "f", "id": "x"},
    ]
    lines = write(tmp_path / "a.jsonl", *records)
    table = tmp_path / "a.csv"
    table.write_text(
        'prompt,completion,system,score,group,family,id\n"Two\nlines, ""quoted""",a,Be brief.,exact,,,\n'
        'Which?,b,,"{""by"": ""label"", ""labels"": [""a"", ""b""]}",g,f,x\n',
        encoding="utf-8-sig",
    )
    columns = {key: [record.get(key) for record in records] for key in ("prompt", "completion", "system", "group", "family", "id")}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    from_lines, from_table, from_columns = (load_user_examples(path) for path in (lines, table, tmp_path / "a.parquet"))
    assert [one.id for one in from_table] == ["row-2", "x"], "the header is line 1"
    assert [one.record() | {"id": ""} for one in from_table] == [one.record() | {"id": ""} for one in from_lines]
    assert [one.record() | {"score": ""} for one in from_columns] == [one.record() | {"score": ""} for one in from_lines]


def test_an_empty_cell_is_an_empty_column_not_a_missing_one(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("instruction,context,response,lang\nWho?,,Me.,en\nWhere?,At sea.,Here.,en\nWer?,,Ich.,\n", encoding="utf-8")
    columns = Columns(prompt="{instruction}\n\n{context}", completion="response")
    rows = load_user_examples(path, Data(rows="a.csv", columns=columns, where={"lang": "en"}))
    assert [row.prompt for row in rows] == ["Who?", "Where?\n\nAt sea."]


def test_a_csv_row_is_named_by_the_line_it_starts_on(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion\n"two\nlines",a\n,b\n', encoding="utf-8")
    assert f"{path}:4: prompt must be text that is not empty; saw ''" in refusal(path)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": "p", "completion": "c", "familly": "f"}, "no such key as 'familly'; did you mean 'family'?"),
        ({"prompt": "p", "completion": "c", "tier": "values"}, "no such key as 'tier'"),
        ({"prompt": "p"}, "completion is missing"),
        ({"prompt": "p", "completion": None}, "completion is missing"),
        ({"prompt": "p", "completion": 7}, "completion must be text that is not empty; saw 7"),
        ({"prompt": "p", "completion": " \n"}, "completion must be text that is not empty; saw ' \\n'"),
        ({"prompt": "\ud800", "completion": "c"}, "without its other half is no character"),
        ({"prompt": "p", "completion": "c", "score": {"by": "contains", "all": ["\udfff"]}}, "without its other half is no character"),
        ({"prompt": "p", "completion": "c", "group": 3}, "group must be text that is not empty; saw 3"),
        ({"prompt": "p", "completion": "c", "score": "exactt"}, "did you mean 'exact'?"),
        ({"prompt": "p", "completion": "c", "score": ["exact"]}, "score must be the name of a scorer"),
        ({"prompt": "p", "completion": "c", "score": {"by": "label", "labels": ["a", "b"]}}, "is not one of the labels"),
        (["p", "c"], "a row must be an object"),
    ],
)
def test_a_malformed_row_is_refused_with_its_line_and_what_is_allowed(tmp_path, record, said):
    path = write(tmp_path / "a.jsonl", {"prompt": "good", "completion": "row"}, record)
    message = refusal(path)
    assert f"{path}:2: " in message and said in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "p", "completion": "c"', "not a JSON value"),
        ('{"prompt": "p", "prompt": "q", "completion": "c"}', "the same key twice"),
        ('{"prompt": "p", "completion": "c", "score": {"by": "number", "tolerance": NaN}}', "NaN is not JSON"),
        ("[" * 100_000, "not a JSON value"),
        ("", "no rows in it"),
        ("\n\n", "no rows in it"),
        ('"text"', "a row must be an object with prompt, completion"),
    ],
)
def test_a_line_that_is_not_a_row_is_refused(tmp_path, text, said):
    path = tmp_path / "a.jsonl"
    path.write_text(text, encoding="utf-8")
    assert said in refusal(path)


@pytest.mark.parametrize("columns", [Columns(prompt="q", completion="a"), Columns(tree=Tree())])
def test_a_record_that_is_not_an_object_is_refused_with_columns_too(tmp_path, columns):
    path = write(tmp_path / "a.jsonl", "text")
    with pytest.raises(NomoatError, match=r"a\.jsonl:1: a row must be an object with .*; saw 'text'"):
        load_user_examples(path, Data(rows=str(path), columns=columns))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"x", "rows must be in a .jsonl, .csv, .parquet file; saw '.txt'"),
        ("a.jsonl", b'{"prompt": "\xff"}', "not UTF-8 text (byte 12)"),
        ("a.parquet", b"not parquet", "not a readable .parquet file"),
        ("a.csv", b"prompt,completion\na,b,c\n", "more cells than the header has columns; saw ['c']"),
        ("a.csv", b"prompt,prompt\na,b\n", "the same column twice"),
        ("a.csv", b'prompt,completion\n"a,b\n', "not CSV"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(path)
    assert str(path) in message and said in message


def test_a_missing_file_is_refused():
    assert refusal(Path("nowhere.jsonl")) == "nowhere.jsonl: no such file"


def test_at_most_twenty_problems_are_shown(tmp_path):
    message = refusal(write(tmp_path / "a.jsonl", *[{"prompt": ""}] * 30))
    assert message.count("a.jsonl:") == 20 and "there may be more" in message


def test_ids_must_be_unique(tmp_path):
    twice = {"id": "x", "prompt": "p", "completion": "c"}
    assert "the same id on more than one row: x" in refusal(write(tmp_path / "a.jsonl", twice, twice))


def test_normalising_folds_case_width_punctuation_and_spaces_and_nothing_else():
    assert normalise("  \uff28ello,\tWORLD\u2014ok! ") == "hello world ok"
    assert normalise("Straße") == "strasse"
    assert normalise("3 + 4 = 7") == "3 + 4 = 7", "symbols carry meaning"
    assert normalise("नमस्ते") == "नमस्ते", "vowel signs are part of a word"
    assert normalise("?") != normalise("!"), "a prompt of punctuation only is compared as it is"


def test_a_shipped_set_loads_by_name_and_by_folder():
    by_name, by_folder = load_shipped_set("desk", ROOT), load_shipped_set(ROOT / "data" / "desk", Path("elsewhere"))
    assert by_name == by_folder and by_name.name == "desk"
    assert {one.tier for one in by_name.train} == {"train"} and {one.tier for one in by_name.heldout} == set(HELDOUT_TIERS)


def test_an_unknown_set_is_refused_with_the_nearest_name():
    with pytest.raises(NomoatError, match=r"no set named 'dask'; did you mean 'desk'\? \(allowed: desk\)"):
        load_shipped_set("dask", ROOT)


def test_a_row_in_the_wrong_file_of_a_set_is_refused(tmp_path):
    good = {"id": "a", "prompt": "p", "completion": "c", "family": "f", "group": "g", "score": {"by": "exact"}}
    write(tmp_path / "train.jsonl", {**good, "tier": "values"})
    with pytest.raises(NomoatError, match=r"train.jsonl:1: tier must be train in this file; saw 'values'"):
        load_shipped_set(tmp_path, ROOT)


def test_an_id_that_two_files_of_a_set_share_is_refused(tmp_path):
    good = {"id": "a", "prompt": "p", "completion": "c", "family": "f", "group": "g", "score": {"by": "exact"}}
    for part, tier in (("train", "train"), ("validation", "validation"), ("heldout", "values")):
        write(tmp_path / f"{part}.jsonl", {**good, "tier": tier})
    with pytest.raises(NomoatError, match="the same id on more than one row: a"):
        load_shipped_set(tmp_path, ROOT)
