"""The arms: which rows, which examples, which records; and a cache that never answers for something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nomoat.config.schema import Eval
from nomoat.data.chat_template import ChatTemplate
from nomoat.data.examples import Example
from nomoat.data.split import choose_heldout, draw_examples
from nomoat.evaluation.arms import Arm, arm_key, load_cached_arm, make_arms, score_arm, store_cached_arm
from nomoat.models.base import load_model, load_tokenizer
from tests.tiny import make_base, make_rows


def heldout() -> tuple[Example, ...]:
    return (*make_rows(6, tier="phrasing"), *make_rows(3, tier="family", family="new"), *make_rows(2, tier="retention", family="old"))


def test_held_out_rows_are_bounded_by_a_choice_that_does_not_depend_on_their_order() -> None:
    rows = heldout()
    settings = Eval(max_rows=5)
    chosen = {row.id for row in choose_heldout(rows, settings)}
    assert len(chosen) == 5 and chosen == {row.id for row in choose_heldout(rows[::-1], settings)}
    only = choose_heldout(rows, Eval(tiers=("retention",), primary="retention"))
    assert {row.tier for row in only} == {"retention"}


def test_examples_are_four_rows_a_family_of_different_groups_whatever_the_order() -> None:
    rows = [replace(row, group=f"g{n % 6}") for n, row in enumerate(make_rows(24))]
    drawn = draw_examples(rows)["sum"]
    assert len(drawn) == 4 and len({row.group for row in drawn}) == 4
    assert set(drawn) == set(draw_examples(rows[::-1])["sum"])


def test_few_shot_leaves_out_what_training_has_nothing_to_show_for() -> None:
    arms = {arm.name: arm for arm in make_arms(("base", "few_shot", "adapter"), heldout(), {"sum": tuple(make_rows(4))})}
    assert {row.tier for row in arms["few_shot"].rows} == {"phrasing"}
    assert len(arms["base"].rows) == len(arms["adapter"].rows) == len(heldout())
    assert arms["adapter"].adapter and not arms["base"].adapter and not arms["few_shot"].adapter


def test_records_come_in_the_order_of_the_rows_with_all_their_facts(tmp_path: Path) -> None:
    files = make_base(tmp_path)
    talk, model = ChatTemplate(load_tokenizer(files)), load_model(files, precision="float32", device="cpu")
    arm = make_arms(("few_shot",), heldout(), {"sum": tuple(make_rows(4))})[0]
    done: list[int] = []
    records = score_arm(arm, model, talk, Eval(max_new_tokens=3, batch_rows=4), on_rows=done.append)
    assert [record["id"] for record in records] == [row.id for row in arm.rows] and sum(done) == len(arm.rows)
    for record in records:
        assert record["score"] in (0, 1) and record["bits_per_byte"] > 0 and record["tokens"] <= 3
        assert record["stopped"] or record["tokens"] == 3


@pytest.mark.parametrize("change", ["rows", "examples", "decoding", "threads", "base"])
def test_the_cache_key_follows_everything_an_answer_depends_on(tmp_path: Path, change: str) -> None:
    files = make_base(tmp_path / "a")
    talk = ChatTemplate(load_tokenizer(files))
    arm = Arm("few_shot", tuple(make_rows(3)), {"sum": tuple(make_rows(2))}, False)
    settings = {"arm": arm, "files": files, "decoding": {"max_new_tokens": 3}, "threads": 2}
    changed = {
        "rows": {"arm": replace(arm, rows=arm.rows[:2])},
        "examples": {"arm": replace(arm, examples={})},
        "decoding": {"decoding": {"max_new_tokens": 4}},
        "threads": {"threads": 1},
        "base": {"files": make_base(tmp_path / "b", seed=1)},
    }[change]

    def key(**stated: object) -> str:
        return arm_key(template=talk, device_name="cpu", **stated)  # type: ignore[arg-type]

    assert key(**settings) == key(**settings)
    assert key(**{**settings, **changed}) != key(**settings)


def test_a_kept_arm_comes_back_with_its_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOMOAT_CACHE", str(tmp_path))
    assert load_cached_arm("k") is None
    store_cached_arm("k", [{"id": "1", "output": "half \ud800"}], {"seconds": 3.0})
    found = load_cached_arm("k")
    assert found is not None and found[0] == [{"id": "1", "output": "half \ud800"}] and found[1]["seconds"] == 3.0
