"""The contamination check finds what was planted, and nothing else."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from nomoat.data.contamination import MAX_EXAMPLES, audit, masked_text
from nomoat.data.examples import Example
from nomoat.io import write_jsonl

ROOT = Path(__file__).resolve().parents[2]
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen"


def row(name: str, prompt: str, tier: str = "train", slots: tuple[str, ...] = ()) -> Example:
    return Example(name, prompt, "answer", None, "family", tier, f"group {name}", {"by": "exact"}, slots)


def counts(train, heldout, validation=(), user_data=False):
    report = audit(train, validation, heldout, user_data=user_data)
    return report.exact, report.masked, report.ngram


@pytest.mark.parametrize("tier", ["values", "phrasing", "family", "retention"])
def test_the_same_prompt_is_a_leak_in_every_tier_whatever_its_case_and_punctuation(tier):
    report = audit([row("t", "Where is Oslo?")], (), [row("h", " where is OSLO", tier)], user_data=False)
    assert report.exact == 1 and not report.clean
    assert (report.examples[0].row_id, report.examples[0].seen_id, report.examples[0].text) == ("h", "t", "where is oslo")


def test_a_prompt_of_the_validation_rows_is_a_leak_too():
    assert counts([], [row("h", "Where?", "values")], validation=[row("v", "Where?", "validation")]) == (1, 0, 0)
    assert counts([row("t", "Where?")], [], validation=[row("v", "Where?", "validation")]) == (1, 0, 0)


def test_a_known_phrasing_with_new_values_is_a_leak_only_where_the_phrasing_should_be_new():
    train = [row("t", "Where is Oslo?", slots=("Oslo",))]
    assert counts(train, [row("h", "Where is Addis Ababa?", "phrasing", ("Addis Ababa",))]) == (0, 1, 1)
    assert counts(train, [row("h", "Where is Addis Ababa?", "family", ("Addis Ababa",))]) == (0, 1, 1)
    assert counts(train, [row("h", "Where is Addis Ababa?", "values", ("Addis Ababa",))]) == (0, 0, 0)
    assert counts(train, [row("h", "In which country is Lima?", "phrasing", ("Lima",))]) == (0, 0, 0)


def test_thirteen_shared_words_are_a_leak_and_twelve_are_not():
    train = [row("t", f"start {LONG} end")]
    assert counts(train, [row("h", f"other {LONG} close", "phrasing")]) == (0, 0, 1)
    assert counts(train, [row("h", f"other {LONG.removesuffix(' thirteen')} close", "phrasing")]) == (0, 0, 0)


def test_shared_words_are_counted_with_the_values_masked():
    train = [row("t", f"Oslo {LONG.replace('four', 'Lima')}", slots=("Oslo", "Lima"))]
    assert counts(train, [row("h", f"So: {LONG.replace('four', 'Addis Ababa')}", "phrasing", ("Addis Ababa",))]) == (0, 0, 1)


def test_a_users_rows_are_compared_by_runs_of_words_whatever_their_tier():
    train, heldout = [row("t", f"start {LONG}")], [row("h", f"other {LONG}", "values")]
    assert counts(train, heldout, user_data=True) == (0, 0, 1)
    assert counts(train, heldout) == (0, 0, 0)


def test_a_short_prompt_is_one_run_of_words():
    assert counts([row("t", "Where is it now")], [row("h", "is it now", "phrasing")], user_data=True) == (0, 0, 0)
    assert counts([row("t", "Is it now?")], [row("h", "is it now", "phrasing")], user_data=True) == (1, 0, 1)


def test_values_are_masked_as_whole_words_the_longest_first():
    assert masked_text(row("a", "Cork to Cork-on-Sea in Corks, Cork.", slots=("Cork", "Cork-on-Sea"))) == "▢ to ▢ in corks ▢"
    assert masked_text(row("a", "4 of 14 (4)", slots=("4",))) == "▢ of 14 ▢"


def test_a_row_counts_once_per_check_and_examples_are_limited():
    train = [row("t", f"{LONG} {LONG}"), row("u", f"{LONG} {LONG}")]
    report = audit(train, (), [row(f"h{n}", f"{LONG} {LONG}", "phrasing") for n in range(30)], user_data=False)
    assert (report.exact, report.masked, report.ngram) == (30, 30, 30)
    assert len(report.examples) == MAX_EXAMPLES


def test_two_thousand_rows_take_seconds():
    def made(start: int, tier: str, size: int) -> list[Example]:
        return [row(f"{tier}-{n}", " ".join(f"w{(n + start) * k % 7919}" for k in range(1, 60)), tier) for n in range(size)]

    train, heldout = made(1, "train", 2000), made(5001, "phrasing", 400)
    start = time.monotonic()
    audit(train, (), heldout, user_data=False)
    assert time.monotonic() - start < 5


def leaks_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, ROOT / "data" / "leaks.py", *map(str, arguments)], capture_output=True, text=True, check=False)


def test_the_script_passes_the_shipped_set():
    done = leaks_script("desk")
    assert done.returncode == 0 and done.stderr == ""
    assert "426 held-out rows of desk against 9,600 training" in done.stdout and done.stdout.count("     0\n") == 3


def test_the_script_fails_two_files_that_share_a_prompt_and_names_the_rows(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": "Where is Oslo?", "completion": "a"}, {"prompt": "Who?", "completion": "b"}])
    write_jsonl(tmp_path / "heldout.jsonl", [{"prompt": "What?", "completion": "c"}, {"prompt": "who", "completion": "d"}])
    done = leaks_script(tmp_path / "train.jsonl", tmp_path / "heldout.jsonl")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "same prompt: row-2 repeats row-2: who" in done.stderr


def test_the_script_explains_what_it_needs(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": "Who?", "completion": "b"}])
    done = leaks_script(tmp_path / "train.jsonl")
    assert done.returncode == 2 and "give the training rows and the held-out rows" in done.stderr


def test_the_script_checks_a_recipes_rows_against_any_held_out_rows(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"q": f"What is {n} and {n}?", "a": str(2 * n)} for n in range(40)])
    write_jsonl(tmp_path / "heldout.jsonl", [{"prompt": "what is 7 and 7", "completion": "14"}, {"prompt": "Why?", "completion": "c"}])
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: {path: ./base}\ndata: {rows: rows.jsonl, columns: {prompt: q, completion: a}}\n", encoding="utf-8")
    done = leaks_script(recipe)
    assert done.returncode == 0 and "of rows against" in done.stdout
    done = leaks_script(recipe, tmp_path / "heldout.jsonl")
    assert done.returncode == 1 and "same prompt: row-1 repeats row-8: what is 7 and 7" in done.stderr
    done = leaks_script(recipe, "desk")
    assert done.returncode == 0 and "426 held-out rows of desk" in done.stdout and "values masked" not in done.stdout
