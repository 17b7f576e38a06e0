"""The shipped set is as its datasheet describes it, and as its generator builds it."""

import random
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from nomoat.config.load import parse_yaml
from nomoat.data.contamination import masked_text
from nomoat.data.desk_build import Writer, build_set, deal, load_phrasings
from nomoat.data.desk_fields import Persona
from nomoat.data.desk_slots import PARTS, Values
from nomoat.data.examples import load_shipped_set, normalise
from nomoat.errors import NomoatError
from nomoat.evaluation.baselines import baselines
from nomoat.scorers import check_spec, score

ROOT = Path(__file__).resolve().parents[2]
DESK = ROOT / "data" / "desk"
TRAINED = ("calendar", "edit", "extract", "persona", "route", "shape", "sql")
FAMILY_FILES = sorted((DESK / "families").glob("*.yaml"))


@pytest.fixture(scope="module")
def desk():
    return load_shipped_set("desk", ROOT)


def test_the_set_is_what_its_generator_builds(desk):
    assert build_set(DESK) == desk


def test_the_check_fails_and_shows_the_difference_when_a_file_was_changed(tmp_path):
    shutil.copytree(ROOT / "data", tmp_path / "data")
    changed = tmp_path / "data" / "desk" / "heldout.jsonl"
    changed.write_text(changed.read_text(encoding="utf-8").replace("Which ocean lies", "Which sea lies"), encoding="utf-8")
    done = subprocess.run([sys.executable, tmp_path / "data" / "prepare.py", "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "data/desk/heldout.jsonl is not what its generator builds" in done.stderr and "Which sea lies" in done.stderr
    assert "train.jsonl" not in done.stderr


def test_every_family_has_its_number_of_rows(desk):
    trained = {"edit": 2688, "shape": 1536, "calendar": 1440, "extract": 1440, "sql": 1056, "route": 864, "persona": 576}
    assert Counter(row.family for row in desk.train) == trained
    assert Counter(row.family for row in desk.validation) == dict.fromkeys(TRAINED, 21)
    wanted = {(family, "phrasing"): 30 for family in TRAINED} | {(family, "values"): 24 for family in TRAINED if family != "persona"}
    wanted |= {("csv_line", "family"): 24, ("retention", "retention"): 48}
    assert Counter((row.family, row.tier) for row in desk.heldout) == wanted


def test_groups_are_known_or_unseen_as_the_tier_says(desk):
    known = Counter(row.group for row in desk.train)
    assert Counter(group.partition("-")[0] for group in known) == {family: 96 if family == "persona" else 192 for family in TRAINED}
    each = {"edit": (20, 8), "shape": (10, 6), "sql": (7, 4), "route": (5, 4), "persona": (6, 0)}  # of the family's file, of `more`
    assert all(times == each.get(group.partition("-")[0], (9, 6))["-more-" in group] for group, times in known.items())
    checked = {row.group for row in desk.validation}
    values = Counter(row.group for row in desk.heldout if row.tier == "values")
    phrasing = Counter(row.group for row in desk.heldout if row.tier == "phrasing")
    assert set(values.values()) == {1} and set(values) <= set(known)
    assert len(phrasing) == 7 * 10 and set(phrasing.values()) == {3} and not set(phrasing) & (set(known) | checked)
    assert len(checked - set(known)) == 7 * 4
    assert all(row.group in known if "-v-values-" in row.id else row.group not in known for row in desk.validation)


def test_every_kind_of_task_is_trained_in_six_phrasings_or_more():
    for path in FAMILY_FILES:
        if path.stem in TRAINED:
            phrasings = load_phrasings(path)
            trained = Counter(phrasing.kind for phrasing in deal(phrasings, 10, 4)["train"])
            assert len(phrasings) == 110 and set(trained) == {phrasing.kind for phrasing in phrasings}
            assert min(trained.values()) >= 6, path.stem


def test_phrasings_written_for_training_alone_are_asked_nowhere_else(desk):
    files = [path for path in FAMILY_FILES if (DESK / "more" / path.name).is_file()]
    more = {phrasing.group for path in files for phrasing in load_phrasings(path, DESK / "more" / path.name)}
    assert len(more) == 6 * 96 and more <= {row.group for row in desk.train}
    assert not more & {row.group for row in (*desk.validation, *desk.heldout)}


def test_phrasings_differ_when_their_values_are_masked(desk):
    rows = [row for row in (*desk.train, *desk.heldout) if row.family not in ("persona", "retention")]
    of_wording: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        of_wording.setdefault((row.family, masked_text(row)), set()).add(row.group)
    assert not [groups for groups in of_wording.values() if len(groups) > 1]
    asked = [phrasing.prompt for phrasing in load_phrasings(DESK / "families" / "persona.yaml")]
    assert len({normalise(prompt) for prompt in asked}) == len(asked)


def test_a_trained_family_without_its_number_of_phrasings_is_an_error(tmp_path):
    shutil.copytree(DESK, tmp_path / "desk")
    edit = tmp_path / "desk" / "families" / "edit.yaml"
    edit.write_text(edit.read_text(encoding="utf-8") + '      - "One more: {{ list }}"\n', encoding="utf-8")
    with pytest.raises(NomoatError, match=r"edit\.yaml: a trained family has 110 phrasings, this one has 111"):
        build_set(tmp_path / "desk")


def test_a_required_shape_is_not_kept_by_repeating_the_prompt_and_names_every_given_value(desk):
    rows = [row for row in (*desk.train, *desk.validation, *desk.heldout) if row.family == "shape"]
    assert not [row.id for row in rows if score(row.prompt, row).value]
    for row in rows:
        texts = [rule["text"] for rule in row.score["rules"] if "text" in rule]
        assert all(any(text in (value, f"{value} ") for text in texts) for value in row.slots), row.id


def test_every_completion_scores_one_by_its_rows_own_rule(desk):
    problems = {row.id: check_spec(row.score, row.completion) for row in (*desk.train, *desk.validation, *desk.heldout)}
    assert not {name: found for name, found in problems.items() if found}


def test_copying_a_training_answer_does_not_pay(desk):
    records = baselines(desk.train, desk.heldout)
    of: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for record in records:
        if record["tier"] != "family":
            of.setdefault((record["tier"], record["family"]), []).append((record["majority"], record["nearest_row"]))
    assert len(of) == 13
    for place, scores in of.items():
        assert sum(majority for majority, _ in scores) / len(scores) <= 0.15, place
    for tier in ("values", "phrasing"):
        means = [sum(near for _, near in scores) / len(scores) for (its, _), scores in of.items() if its == tier]
        assert sum(means) / len(means) <= 0.10, tier


def test_another_rows_answer_does_not_score(desk):
    rng = random.Random("another row")
    heldout = [row for row in desk.heldout if row.tier in ("values", "phrasing")]
    right = [
        score(rng.choice([other for other in heldout if other.family == row.family and other is not row]).completion, row).value
        for row in heldout
    ]
    assert sum(filter(None, right)) / len(right) <= 0.02


def test_prompts_and_completions_are_short_in_characters(desk):
    rows = (*desk.train, *desk.validation, *desk.heldout)
    assert max(len(row.prompt) for row in rows) <= 260 and max(len(row.completion) for row in rows) <= 130


def test_no_held_out_value_appears_in_the_training_rows(desk):
    values = Values(DESK / "values")
    names = ("first_names", "last_names", "cities", "items", "topics", "company_heads")
    unseen = [value for name in names for part in ("validation", "heldout") for value in values.listed(name, part)]
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, unseen)) + r")(?!\w)")
    assert not {row.id: pattern.findall(row.prompt + row.completion) for row in desk.train if pattern.search(row.prompt + row.completion)}
    asked = [row for row in desk.heldout if row.tier == "values"]
    assert sum(bool(pattern.search(row.prompt)) for row in asked) / len(asked) > 0.6, "the pattern must find what it looks for"


def test_slots_are_the_values_that_appear_in_the_prompt(desk):
    rows = [row for row in (*desk.train, *desk.validation, *desk.heldout) if row.family not in ("persona", "retention")]
    assert all(row.slots and all(slot in row.prompt for slot in row.slots) for row in rows)
    assert not [row.id for row in desk.train if row.family == "persona" and row.slots]
    wordings = {row.group: masked_text(row) for row in desk.train if row.family == "calendar"}
    assert len(set(wordings.values())) == len(wordings) == 192


def test_questions_about_a_table_distinguish_right_from_nearly_right(desk):
    asked = [row for row in (*desk.train, *desk.heldout) if row.family == "sql"]
    for row in asked[::5]:
        database = sqlite3.connect(":memory:")
        database.executescript(row.score["script"])
        wanted = database.execute(row.completion).fetchall()
        everything = database.execute(re.sub(" (WHERE|ORDER BY) .*", "", row.completion)).fetchall()
        database.close()
        assert wanted and None not in wanted[0] and wanted != everything, row.id


def test_the_assistant_is_asked_for_pairs_of_facts_it_was_never_asked_for_together(desk):
    def facts(row) -> frozenset[str]:
        return frozenset(accepted[0] for accepted in row.score["all"])

    asked = {part: [row for row in getattr(desk, part) if row.family == "persona"] for part in ("train", "validation", "heldout")}
    pairs = {part: {facts(row) for row in rows if len(facts(row)) == 2} for part, rows in asked.items()}
    assert not pairs["train"] & (pairs["validation"] | pairs["heldout"]) and not pairs["validation"] & pairs["heldout"]
    assert len(pairs["heldout"]) >= 15 and len({fact for row in asked["train"] for fact in facts(row)}) == 16
    assert sum(len(facts(row)) == 2 for row in asked["heldout"]) >= 24


def test_a_wording_of_a_fact_is_trained_or_held_out():
    facts = parse_yaml((DESK / "facts.yaml").read_text(encoding="utf-8"), "facts.yaml")
    assert len(facts) == 16
    for form in ("questions", "clauses"):
        assert all(len(fact[form]) == 14 for fact in facts.values())
        assert len({wording for fact in facts.values() for wording in fact[form]}) == 16 * 14
    drawing, rng = Persona(DESK / "facts.yaml"), random.Random("wordings")
    drawn = {part: [drawing.draw("fact", part, rng, []) for _ in range(2000)] for part in PARTS}
    for name, fact in facts.items():
        said = {part: [one for one in drawn[part] if one.name == name] for part in PARTS}
        places = {part: {fact["questions"].index(one.question) for one in said[part]} for part in PARTS}
        assert places == {part: {fact["clauses"].index(one.clause) for one in said[part]} for part in PARTS}, name
        assert len(places["train"]) == 10 and len(places["heldout"]) == 3 and len(places["validation"]) <= 1  # none without a pair there
        assert len(set.union(*places.values())) == sum(map(len, places.values())), name


def test_no_held_out_wording_of_a_fact_appears_in_the_training_rows(desk):
    drawing, rng = Persona(DESK / "facts.yaml"), random.Random("unseen wordings")
    unseen = {
        normalise(text) for _ in range(2000) for said in [drawing.draw("fact", "heldout", rng, [])] for text in (said.question, said.clause)
    }
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, unseen)) + r")(?!\w)")
    trained = {row.id: pattern.findall(normalise(row.prompt)) for row in desk.train if row.family == "persona"}
    assert not {name: found for name, found in trained.items() if found}
    asked = [row for row in desk.heldout if row.family == "persona"]
    assert all(pattern.search(normalise(row.prompt)) for row in asked)


def test_the_held_out_family_is_not_trained_and_all_its_phrasings_are_asked(desk):
    rows = [row for row in desk.heldout if row.tier == "family"]
    assert {row.family for row in rows} == {"csv_line"} and len({row.group for row in rows}) == 8
    assert not any("csv" in row.prompt.casefold() for row in desk.train)


def test_neutral_text_is_about_four_kilobytes_of_plain_english():
    text = (DESK / "neutral.txt").read_text(encoding="ascii")
    assert 3500 <= len(text) <= 4500 and len(text.split("\n\n")) >= 5


def test_phrasings_are_dealt_by_kind_and_the_same_way_every_time():
    phrasings = load_phrasings(DESK / "families" / "route.yaml")
    parts = deal(phrasings, 10, 4)
    assert {part: len(dealt) for part, dealt in parts.items()} == {"heldout": 10, "validation": 4, "train": 96}
    assert {phrasing.group for dealt in parts.values() for phrasing in dealt} == {phrasing.group for phrasing in phrasings}
    assert len({phrasing.kind for phrasing in parts["heldout"]}) == 6 and parts == deal(phrasings, 10, 4)


def test_a_phrasing_without_enough_slots_is_an_error(tmp_path):
    (tmp_path / "few.yaml").write_text(
        'score: {by: exact}\nkinds:\n  all:\n    completion: "{{ weekday }}"\n    phrasings: ["Day {{ weekday }}?"]\n'
    )
    phrasings = load_phrasings(tmp_path / "few.yaml")
    assert len(Writer(DESK).rows(phrasings, "few", "train", 7)) == 7
    with pytest.raises(NomoatError, match="200 draws gave no new prompt"):
        Writer(DESK).rows(phrasings, "few", "train", 8)


def test_a_slot_for_lists_of_one_kind_draws_that_kind_and_completions_find_it_as_list(tmp_path):
    (tmp_path / "stops.yaml").write_text(
        'score: {by: exact}\nkinds:\n  all:\n    completion: "{{ list.new }}, {{ list }}"\n'
        '    phrasings: ["{{ stops.new }} before {{ stops }}"]\n'
    )
    cities = set(Values(DESK / "values").listed("cities", "heldout"))
    for row in Writer(DESK).rows(load_phrasings(tmp_path / "stops.yaml"), "stops", "phrasing", 20):
        assert set(row.completion.split(", ")) <= cities and row.prompt == row.completion.replace(", ", " before ", 1)
