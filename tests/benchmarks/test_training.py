"""The benchmark: the same work for everyone, told apart when it is not, and counted right."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from rich.console import Console

from nomoat.benchmarks.generation import sentence
from nomoat.benchmarks.peers import BenchSize, BenchWork, fixed_steps, pack_of, sorted_halves, worthwhile
from nomoat.benchmarks.results import (
    ArmTimings,
    TimedInterval,
    best_trl,
    compile_seconds,
    linear_shapes,
    peak_flops_per_second,
    rate_with_compiling,
    same_work,
    speed_block,
    step_flops,
)
from nomoat.benchmarks.training import interleave, make_work, run_bench, write_bench
from nomoat.config.schema import Base, Recipe
from nomoat.data.chat_template import TokenizedExample
from nomoat.errors import RunFailed
from nomoat.io import read_json
from nomoat.models import device
from nomoat.models.device import PROBE_CALLS, matmul_flops_per_second
from tests.tiny import make_base, write_user_rows

SMALL = BenchSize(turns=2, steps_per_turn=2, warmup_steps=1)


def make_recipe(folder: Path) -> Recipe:
    files = make_base(folder / "base")
    write_user_rows(folder / "rows.jsonl", 60)
    train = {"batch_tokens": 256, "pack_tokens": 256, "max_row_tokens": 128, "learning_rate": 1e-3}
    hardware = {"device": "cpu", "threads": 1}
    return Recipe(
        name="tiny",
        base=Base(path=str(files.folder)),
        data={"rows": str(folder / "rows.jsonl")},
        train=train,
        hardware=hardware,
        precision="float32",
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> BenchWork:
    folder = tmp_path_factory.mktemp("bench")
    return make_work(make_recipe(folder), folder, SMALL, folder)


def test_plain_trainer_does_the_same_work_and_the_record_says_how_fast_each_was(tmp_path: Path) -> None:
    record = run_bench(make_recipe(tmp_path), tmp_path, ["ours", "trainer"], SMALL, tmp_path, Console(quiet=True))
    write_bench(record, tmp_path / "out")
    assert read_json(tmp_path / "out" / "bench.json") == record and (tmp_path / "out" / "bench.svg").read_text().startswith("<?xml")
    ours, theirs = record["arms"]["ours"], record["arms"]["trainer"]
    assert record["not_the_same_work"] == []
    assert ours["first_loss"] == pytest.approx(theirs["first_loss"], abs=1e-4)
    assert ours["last_loss"] == pytest.approx(theirs["last_loss"], abs=1e-4) and ours["last_loss"] < ours["first_loss"]
    assert [turn["tokens"] for turn in ours["turns"]] == [turn["tokens"] for turn in theirs["turns"]]
    ratios = [mine / other for mine, other in zip(ours["tokens_per_second"], theirs["tokens_per_second"], strict=True)]
    speed = record["ratios"]["trainer"]["tokens_per_second"]
    assert speed["lowest"] == pytest.approx(min(ratios)) and speed["highest"] == pytest.approx(max(ratios))
    memory = record["ratios"]["trainer"]["peak_memory"]
    assert 0 < memory["lowest"] <= memory["median"] <= memory["highest"]
    assert 0 < record["share_of_peak"]["median"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["trl_packed", "trl_padded", "trl_sorted", "trl_default"])
def test_trl_does_the_same_work(work: BenchWork, arm: str) -> None:
    pytest.importorskip("trl")
    courses = interleave(["ours", arm], work, between=lambda: None, told=lambda name, turn: None)
    assert courses[arm].first_loss == pytest.approx(courses["ours"].first_loss, abs=1e-3 if arm != "trl_default" else 1e-2)
    assert courses[arm].last_loss == (None if arm == "trl_default" else pytest.approx(courses["ours"].last_loss, abs=1e-3))
    assert len(courses[arm].turns) == SMALL.turns


def test_an_arm_that_fails_ends_the_others_and_says_why(work: BenchWork) -> None:
    broken = dataclasses.replace(work, files=dataclasses.replace(work.files, folder=work.scratch / "nowhere"))
    with pytest.raises(RunFailed, match="arm ours failed"):
        interleave(["ours"], broken, between=lambda: None, told=lambda name, turn: None)


def course(first: float = 2.0, last: float | None = 1.5, rate: float = 100.0) -> ArmTimings:
    turn = TimedInterval(1, 100, 100 / rate, 1_000_000_000)
    return ArmTimings(first, turn, (turn, turn, turn), last)


def test_other_work_is_told() -> None:
    assert same_work({"ours": course(), "trainer": course()}, "float32") == []
    [said] = same_work({"ours": course(), "trainer": course(first=2.002)}, "float32")
    assert said.startswith("trainer: loss before any step 2.0020")
    assert same_work({"ours": course(), "trainer": course(first=2.002)}, "bfloat16") == []
    [said] = same_work({"ours": course(), "trl_packed": course(last=1.53)}, "bfloat16")
    assert "validation loss at the end" in said
    assert same_work({"ours": course(), "trl_default": course(last=None)}, "bfloat16") == []  # its own steps
    assert same_work({"ours": course(), "trainer": course(first=float("nan"))}, "float32")


def test_compiling_counts_against_trl_at_its_best(work: BenchWork) -> None:
    compiled = course(rate=200)
    compiled.warmup = TimedInterval(1, 100, 10.5, 1)  # 0.5 s of steps, 10 s of compiling
    courses = {"ours": course(rate=400), "trl_packed": course(rate=150), "trl_compiled": compiled}
    assert compile_seconds(compiled) == pytest.approx(10)
    long = dataclasses.replace(work, recipe_tokens=200_000)  # 1,000 s of steps: 1 % of compiling
    short = dataclasses.replace(work, recipe_tokens=2_000)  # 10 s of steps, 10 of compiling: half the speed
    assert best_trl(courses, long) == "trl_compiled" and best_trl(courses, short) == "trl_packed"
    assert rate_with_compiling("trl_compiled", compiled, short) == pytest.approx(100)


def row(prompt: int, completion: int, start: int = 0) -> TokenizedExample:
    return TokenizedExample(f"{prompt}-{completion}-{start}", tuple(range(start, start + prompt)), tuple(range(completion)))


def test_flops_by_hand() -> None:
    step = (row(6, 2), row(6, 2, start=100))
    # 16 tokens; a base of 10 x 20: 4 * 200; an adapter of rank 2: 6 * 2 * 30; a head of 10 x 50 on 4 labelled tokens: 4 * 500
    expected = 16 * (4 * 200 + 6 * 60) + 4 * 4 * 500
    assert step_flops(step, [(10, 20)], (10, 50), 2, shared=False) == expected
    assert step_flops(step, [(10, 20)], (10, 50), 2, shared=True) == expected  # they begin with different tokens
    alike = (row(6, 2), row(7, 1))  # six tokens in common, of which each row keeps one of its own
    assert step_flops(alike, [(10, 20)], (10, 50), 2, shared=True) == (16 - 5) * (4 * 200 + 6 * 60) + 3 * 4 * 500


def test_the_best_rate_is_a_rate(work: BenchWork) -> None:
    shapes, head = linear_shapes(work)
    assert head == (64, 328) and len(shapes) == 14 and shapes.count((64, 128)) == 4
    assert 1e8 < peak_flops_per_second(shapes, 128, "float32", "cpu") < 1e14


def test_a_rate_rests_on_several_products_however_long_one_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    real, sizes = torch.nn.functional.linear, []

    def counted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return real(x, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    monkeypatch.setattr(device, "SECONDS", 0.0)
    assert matmul_flops_per_second(64, 64, 64, "float32", "cpu") > 1e6
    assert len(sizes) == 1 + PROBE_CALLS, "one to warm up, and as many as it takes"


def test_steps_are_lists_of_rows_that_fit_a_pack_and_sorting_loses_none(work: BenchWork) -> None:
    assert len(work.steps) == SMALL.steps and all(sum(row.length for row in step) <= 256 for step in work.steps)
    for step in work.steps:
        long, short = sorted_halves(step)
        assert sorted(row.row_id for row in (*long, *short)) == sorted(row.row_id for row in step)
        assert len(long) - len(short) in (0, 1) and min(row.length for row in long) >= max((row.length for row in short), default=0)
    packed = pack_of(work.steps[0])
    assert len(packed["input_ids"]) == len(packed["labels"]) == sum(packed["seq_lengths"])
    assert fixed_steps(work.recipe, work.rows, dataclasses.replace(SMALL, turns=40))  # more steps than an epoch has: rows repeat


def test_steps_that_wake_a_waiting_arm_are_not_timed(work: BenchWork) -> None:
    size = BenchSize(turns=2, steps_per_turn=2, warmup_steps=1)
    assert size.steps == 7 and size.timed == [2, 3, 5, 6]
    [course] = interleave(["ours"], work, between=lambda: None, told=lambda name, turn: None).values()
    tokens = [sum(row.length for row in step) for step in work.steps]
    assert [turn.tokens for turn in course.turns] == [tokens[2] + tokens[3], tokens[5] + tokens[6]] and len(set(tokens)) > 1


def test_an_arm_in_bfloat16_is_left_out_where_that_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nomoat.models.device.has_bfloat16", lambda kind: kind == "cuda")
    names = ["ours", "trl_packed", "trl_autocast"]
    assert worthwhile(names, "cpu") == names[:2] and worthwhile(names, "cuda") == names


def test_speed_in_words_puts_trl_at_its_best_first_and_tells_of_answers_that_differ() -> None:
    folder = Path(__file__).resolve().parents[2] / "recipes" / "reference" / "speed"
    record, scoring = read_json(folder / "bench.json"), read_json(folder / "scoring.json")
    assert not record["dirty"] and record["not_the_same_work"] == []
    block = speed_block(record, sentence(scoring))
    first, *others = [line for line in block.splitlines() if line.startswith("- ")]
    assert first.startswith(f"- **{record['ratios']['trl_best']['tokens_per_second']['median']:.2f} x TRL at its best") and len(others) == 3
    assert block.endswith("answers identical.")
    named = speed_block({**record, "device_name": "a laptop"}, sentence(scoring))
    assert f"{record['threads']} threads on a laptop, all arms" in named.splitlines()[0]
    assert sentence({**scoring, "identical": 0.995, "largest_gap": 5e-4}).endswith("at most 5.0e-04 apart")
