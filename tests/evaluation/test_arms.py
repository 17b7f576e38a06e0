"""The arms: which rows, which examples, which records; choices by likelihood; and a cache that never answers for something else."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nomoat.config.schema import Eval, Lora
from nomoat.data.chat_template import ChatTemplate
from nomoat.data.examples import Example
from nomoat.data.split import choose_heldout, draw_examples
from nomoat.evaluation.arms import Arm, arm_key, decoding_settings, load_cached_arm, make_arms, score_arm, store_cached_arm
from nomoat.models.adapter import attach_adapter
from nomoat.models.base import load_model, load_tokenizer
from tests.tiny import make_base, make_rows

SETTINGS = Eval(max_new_tokens=6, batch_rows=4)
CHOICES = ("Paris", "London is large", "Rome", "Oslo")


def choice_rows(count: int) -> list[Example]:
    """Rows with four choices, of which the completion is the first, the second and so on."""
    return [
        replace(row, id=f"choice-{n}", completion=CHOICES[n % 4], score={"by": "choice", "choices": list(CHOICES)})
        for n, row in enumerate(make_rows(count, tier="phrasing"))
    ]


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
    template, model = ChatTemplate(load_tokenizer(files)), load_model(files, precision="float32", device="cpu")
    arm = make_arms(("few_shot",), heldout(), {"sum": tuple(make_rows(4))})[0]
    done: list[int] = []
    records = score_arm(arm, model, template, Eval(max_new_tokens=3, batch_rows=4), on_rows=done.append)
    assert [record["id"] for record in records] == [row.id for row in arm.rows] and sum(done) == len(arm.rows)
    for record in records:
        assert record["score"] in (0, 1) and record["bits_per_byte"] > 0 and record["tokens"] <= 3
        assert record["stopped"] or record["tokens"] == 3


def log_likelihood(model: Any, prompt: tuple[int, ...], ids: tuple[int, ...]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(ids))


@pytest.mark.parametrize("draft", [True, False])
@pytest.mark.parametrize("few_shot", [False, True])
def test_a_choice_row_is_answered_by_the_choice_the_model_likes_best_per_byte(tmp_path: Path, draft: bool, few_shot: bool) -> None:
    files = make_base(tmp_path)
    template, model = ChatTemplate(load_tokenizer(files)), load_model(files, precision="float32", device="cpu")
    rows = (*make_rows(2, tier="phrasing"), *choice_rows(8))
    arm = Arm("few_shot", rows, {"sum": tuple(make_rows(2))} if few_shot else {}, False)
    heard: list[int] = []
    records = score_arm(arm, model, template, replace_rows(SETTINGS, 3), draft=draft, on_rows=heard.append)
    assert [record["id"] for record in records] == [row.id for row in rows] and sum(heard) == len(rows)
    for row, record in zip(rows[2:], records[2:], strict=True):
        prompt = template.prompt_ids(template.messages(row, arm.examples.get(row.family, ())))
        ids = {choice: template.completion_ids(choice) for choice in CHOICES}
        per_byte = {choice: log_likelihood(model, prompt, ids[choice][:-1]) / len(choice) for choice in CHOICES}
        best = max(per_byte, key=lambda choice: per_byte[choice])
        total = {choice: per_byte[choice] * len(choice) for choice in CHOICES}
        assert record["output"] == best and record["score"] == float(best == row.completion) and record["stopped"]
        assert record["lenient"] == float(row.completion in (best, max(total, key=lambda choice: total[choice])))
        assert record["tokens"] == len(ids[best]) - 1 and record["target_bytes"] == len(row.completion)
        bits = -log_likelihood(model, prompt, ids[row.completion]) / math.log(2) / len(row.completion)
        assert record["bits_per_byte"] == pytest.approx(bits, rel=1e-4)
    assert {record["score"] for record in records[2:]} == {0.0, 1.0}


def replace_rows(settings: Eval, batch_rows: int) -> Eval:
    return settings.model_copy(update={"batch_rows": batch_rows})


def test_an_adapter_that_learnt_a_choice_scores_where_its_base_does_not(tmp_path: Path) -> None:
    files = make_base(tmp_path)
    template, base = ChatTemplate(load_tokenizer(files)), load_model(files, precision="float32", device="cpu")
    towns = ("Oslo", "Lima")  # of equal length: a base this small can learn little more than a preference
    row = replace(choice_rows(1)[0], completion=towns[0], score={"by": "choice", "choices": list(towns)})
    [before] = score_arm(Arm("base", (row,), {}, False), base, template, SETTINGS)
    row = replace(row, completion=next(town for town in towns if town != before["output"]))
    model = attach_adapter(base, Lora(rank=8, alpha=64), seed=0, files=files)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    rendered = template.render(row)
    for _ in range(30):
        optimiser.zero_grad()
        ids = torch.tensor([[*rendered.prompt_ids, *rendered.completion_ids]])
        labels = torch.tensor([[-100] * len(rendered.prompt_ids) + list(rendered.completion_ids)])
        model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
    [adapted] = score_arm(Arm("adapter", (row,), {}, True), model.eval(), template, SETTINGS)
    with model.disable_adapter():
        [untouched] = score_arm(Arm("base", (row,), {}, False), model, template, SETTINGS)
    assert (untouched["score"], adapted["score"]) == (0.0, 1.0)
    assert untouched["output"] == before["output"] and adapted["output"] == row.completion
    assert adapted["bits_per_byte"] < untouched["bits_per_byte"]


def test_decoding_without_drafts_says_so_and_the_rest_is_as_published_reports_have_it() -> None:
    drafted = decoding_settings(Eval(), "float32", "cpu", "auto")
    assert drafted == {
        "method": "greedy, drafted by the reference",
        "max_new_tokens": 256,
        "batch_rows": 64,
        "order": "longest prompt first, few_shot by family",
        "prompts": "end to end where that is safe, else padded on the left",
        "dtype": "float32",
        "device": "cpu",
    }
    assert decoding_settings(Eval(), "float32", "cpu", "plain") == {**drafted, "method": "greedy", "prompts": "padded on the left"}
    cuda = decoding_settings(Eval(), "bfloat16", "cuda", "auto")
    assert (cuda["method"], cuda["prompts"]) == (drafted["method"], "padded on the left")


@pytest.mark.parametrize("change", ["rows", "examples", "decoding", "kernels", "threads", "base", "choices"])
def test_the_cache_key_follows_everything_an_answer_depends_on(tmp_path: Path, change: str) -> None:
    files = make_base(tmp_path / "a")
    template = ChatTemplate(load_tokenizer(files))
    arm = Arm("few_shot", tuple(make_rows(3)), {"sum": tuple(make_rows(2))}, False)
    decoding = decoding_settings(Eval(), "float32", "cpu", "auto")
    settings = {"arm": arm, "files": files, "decoding": decoding, "threads": 2}
    changed = {
        "rows": {"arm": replace(arm, rows=arm.rows[:2])},
        "examples": {"arm": replace(arm, examples={})},
        "decoding": {"decoding": {**decoding, "max_new_tokens": 4}},
        "kernels": {"decoding": decoding_settings(Eval(), "float32", "cpu", "plain")},
        "threads": {"threads": 1},
        "base": {"files": make_base(tmp_path / "b", seed=1)},
        "choices": {"arm": replace(arm, rows=tuple(choice_rows(3)))},
    }[change]

    def key(**stated: object) -> str:
        return arm_key(template=template, device_name="cpu", **stated)  # type: ignore[arg-type]

    renamed = replace(files, identity={**files.identity, "display_name": "Another name"})
    assert key(**settings) == key(**settings) == key(**{**settings, "files": renamed})
    assert key(**{**settings, **changed}) != key(**settings)


def test_a_kept_arm_comes_back_with_its_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOMOAT_CACHE", str(tmp_path))
    assert load_cached_arm("k") is None
    store_cached_arm("k", [{"id": "1", "output": "half \ud800"}], {"seconds": 3.0})
    found = load_cached_arm("k")
    assert found is not None and found[0] == [{"id": "1", "output": "half \ud800"}] and found[1]["seconds"] == 3.0
