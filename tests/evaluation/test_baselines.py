"""The two baselines that need no model."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from nomoat.data.examples import Example, load_shipped_set
from nomoat.data.split import choose_training_examples
from nomoat.evaluation.baselines import baselines, majority_answer, nearest_rows
from nomoat.reports.build import read_report

ROOT = Path(__file__).resolve().parents[2]


def row(name: str, prompt: str, completion: str, family: str = "f", tier: str = "train") -> Example:
    return Example(name, prompt, completion, None, family, tier, f"group {name}", {"by": "exact"})


TRAIN = [
    row("t1", "where is my parcel", "shipping"),
    row("t2", "where is my money", "billing"),
    row("t3", "my parcel is broken", "returns"),
    row("t4", "the invoice is wrong", "billing"),
    row("u1", "reverse a b c", "c b a", "edit"),
]


def test_each_row_is_answered_from_the_training_rows_of_its_own_family() -> None:
    heldout = [row("h1", "where is the parcel of my aunt", "shipping", tier="phrasing"), row("h2", "reverse a b", "b a", "edit", "values")]
    first, second = baselines(TRAIN, heldout)
    assert first == {
        "id": "h1",
        "tier": "phrasing",
        "family": "f",
        "group": "group h1",
        "majority": 0.0,
        "nearest_row": 1.0,
        "nearest_id": "t1",
        "majority_answer": "billing",
    }
    assert (second["nearest_id"], second["nearest_row"], second["majority_answer"], second["majority"]) == ("u1", 0.0, "c b a", 0.0)


def test_a_family_that_is_not_trained_has_no_baselines_and_retention_has_no_record() -> None:
    [only] = baselines(TRAIN, [row("h", "a,b", "a", "csv", "family"), row("r", "capital?", "x", "retention", "retention")])
    assert only["id"] == "h"
    assert only["majority"] is None and only["nearest_row"] is None and only["nearest_id"] is None and only["majority_answer"] is None


def test_an_unscored_answer_stays_unscored() -> None:
    broken = replace(row("h", "where", "x", tier="values"), score={"by": "sql_rows", "script": "CREATE nonsense"})
    [only] = baselines(TRAIN, [broken])
    assert only["majority"] is None and only["nearest_row"] is None and only["nearest_id"] is not None


def test_the_majority_answer_is_the_most_frequent_and_of_equals_the_first_by_letter() -> None:
    assert majority_answer(TRAIN) == "billing"
    assert majority_answer([row("a", "p", "z"), row("b", "q", "c"), row("c", "r", "m")]) == "c"


def test_a_rare_shared_word_outweighs_a_frequent_one() -> None:
    train = [row("a", "please send it to Oslo", "1"), row("b", "please send it", "2"), row("c", "please send it now", "3")]
    assert [near.id for near in nearest_rows(train, [row("h", "please, Oslo", "x")]) if near] == ["a"]


def test_a_long_prompt_is_not_nearer_for_being_long() -> None:
    train = [row("a", "send it " + " ".join(f"word{n}" for n in range(40)), "1"), row("b", "send it there", "2")]
    assert [near.id for near in nearest_rows(train, [row("h", "send it", "x")]) if near] == ["b"]


def test_equally_near_rows_give_the_first_id_whatever_their_order() -> None:
    twins = [row("b", "send it", "2"), row("a", "send it", "1"), row("c", "now", "3")]
    for train in (twins, twins[::-1]):
        [only] = baselines(train, [row("h", "send it please", "x", tier="values")])
        assert only["nearest_id"] == "a"


def test_a_prompt_without_any_known_word_still_gets_an_answer() -> None:
    [near] = nearest_rows(TRAIN[:4], [row("h", "xyzzy plugh", "x")])
    assert near is not None and near.id == "t1"


def test_the_nearest_rows_do_not_depend_on_the_hash_seed_of_the_process() -> None:
    code = (
        "import json, pathlib; from nomoat.data.examples import load_shipped_set; from nomoat.evaluation.baselines import nearest_rows;"
        f"s = load_shipped_set('desk', pathlib.Path({str(ROOT)!r})); t = [r for r in s.train if r.family == 'shape'];"
        "print(json.dumps([n.id for n in nearest_rows(t, [r for r in s.heldout if r.family == 'shape'])]))"
    )
    desk = load_shipped_set("desk", ROOT)
    train, heldout = ([row for row in rows if row.family == "shape"] for rows in (desk.train, desk.heldout))
    here = [near.id for near in nearest_rows(train, heldout) if near]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == here


def test_the_shipped_set_has_the_baselines_of_the_published_report() -> None:
    report, desk = read_report(ROOT / "recipes" / "reference" / "smollm2-135m.json"), load_shipped_set("desk", ROOT)
    train = choose_training_examples(desk.train, report.recipe.data)
    published = [(row.id, row.values.get("majority"), row.values.get("nearest_row")) for row in report.rows if row.tier != "retention"]
    assert len(published) == 378
    assert [(record["id"], record["majority"], record["nearest_row"]) for record in baselines(train, desk.heldout)] == published
