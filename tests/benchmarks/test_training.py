"""The training benchmark: the same work for everyone, in turns, counted right; an arm that fails ends it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from nomoat.benchmarks.peers import BenchWork
from nomoat.benchmarks.results import work_differences
from nomoat.benchmarks.training import interleave, linear_shapes, make_work, peak_flops, run_bench, step_flops
from nomoat.cli import ProgressBar
from nomoat.data.chat_template import TokenizedExample
from nomoat.errors import RunFailed
from tests.benchmarks.make_work import make_recipe, make_small_work

ROOT = Path(__file__).resolve().parents[2]
BAR = ProgressBar("turns", 100, Console(quiet=True))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> BenchWork:
    return make_small_work(tmp_path_factory.mktemp("bench"))


def test_plain_trainer_does_the_same_work_and_the_record_says_how_fast_each_was(work: BenchWork) -> None:
    record = run_bench(work, ROOT, ["ours", "trainer"], Console(quiet=True))
    assert json.loads(json.dumps(record)) == record and record["not_the_same_work"] == []
    ours, theirs = record["arms"]["ours"], record["arms"]["trainer"]
    assert ours["first_loss"] == pytest.approx(theirs["first_loss"], abs=1e-4)
    assert ours["last_loss"] == pytest.approx(theirs["last_loss"], abs=1e-4) and ours["last_loss"] < ours["first_loss"]
    tokens = [sum(row.length for row in step) for step in work.steps]
    for arm in (ours, theirs):
        assert [(turn["steps"], turn["tokens"]) for turn in (arm["warmup"], *arm["turns"])] == [
            (1, tokens[0]),
            (2, tokens[2] + tokens[3]),  # the step before wakes the arm up
            (2, tokens[5] + tokens[6]),
        ]
    assert tokens[2] + tokens[3] != tokens[1] + tokens[2] and tokens[5] + tokens[6] != tokens[4] + tokens[5]
    ratios = [mine / other for mine, other in zip(ours["tokens_per_second"], theirs["tokens_per_second"], strict=True)]
    speed = record["ratios"]["trainer"]["tokens_per_second"]
    assert speed["lowest"] == pytest.approx(min(ratios)) and speed["highest"] == pytest.approx(max(ratios))
    memory = record["ratios"]["trainer"]["peak_memory"]
    assert 0 < memory["lowest"] <= memory["median"] <= memory["highest"]
    assert 0 < record["share_of_peak_shared_once"]["median"] < record["share_of_peak"]["median"] < 1
    assert record["steps"] == 7 and record["learning_rate"] == pytest.approx(1e-4) and "trl" not in record["packages"]


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["trl_default", "trl_compiled"])
def test_trl_does_the_same_work(tmp_path: Path, arm: str) -> None:
    pytest.importorskip("trl")
    work = make_work(make_recipe(tmp_path), tmp_path, turns=2, steps_per_turn=1, warmup_steps=1)
    timings = interleave(["ours", arm], work, BAR, lambda: None)
    assert work_differences(timings, "bfloat16" if arm == "trl_default" else "float32") == []
    assert (timings[arm]["last_loss"] is None) == (arm == "trl_default") and len(timings[arm]["turns"]) == 2
    if arm == "trl_default":
        assert 16 < len(work.rows) <= 24, "three steps of eight rows see each row once"
        intervals = [timings[arm]["warmup"], *timings[arm]["turns"]]
        assert sum(interval["tokens"] for interval in intervals) == sum(row.length for row in work.rows)
        assert [interval["steps"] for interval in intervals] == [1, 1, 1]


def test_an_arm_that_fails_ends_the_others_and_says_why(work: BenchWork, capfd: pytest.CaptureFixture[str]) -> None:
    missing = dataclasses.replace(work.base.files, folder=work.base.files.folder / "nowhere")
    broken = dataclasses.replace(work, base=dataclasses.replace(work.base, files=missing))
    with pytest.raises(RunFailed, match="arm ours failed with exit code 1"):
        interleave(["ours"], broken, BAR, lambda: None)
    assert "nowhere" in capfd.readouterr().err


def test_steps_are_rows_that_fit_a_pack_and_repeat_after_an_epoch(tmp_path: Path, work: BenchWork) -> None:
    assert [list(interval) for interval in work.intervals] == [[0], [2, 3], [5, 6]] and len(work.steps) == 7
    long = make_work(make_recipe(tmp_path), tmp_path, turns=40, steps_per_turn=2, warmup_steps=3)
    assert len(long.steps) == 123 and all(sum(row.length for row in step) <= 256 for step in long.steps)
    assert long.intervals[0] == range(3) and long.intervals[-1] == range(121, 123)
    epoch = long.steps.index(long.steps[0], 1)
    assert long.steps[epoch:] == long.steps[: len(long.steps) - epoch]
    rows = [row.row_id for step in long.steps[:epoch] for row in step]
    assert len(rows) == len(set(rows))


def test_trl_is_asked_for_before_anything_is_loaded() -> None:
    code = "import sys, runpy; sys.modules['trl'] = None; sys.argv[1:] = ['--arms', 'trl_compiled']; "
    code += f"runpy.run_path({str(ROOT / 'train' / 'bench.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: trl_compiled: TRL is not installed")


def row(prompt: int, completion: int, start: int = 0) -> TokenizedExample:
    return TokenizedExample(f"{prompt}-{completion}-{start}", tuple(range(start, start + prompt)), tuple(range(completion)))


def test_flops_by_hand() -> None:
    step = (row(6, 2), row(6, 2, start=100))
    # 16 tokens; a base of 10 x 20: 4 * 200; an adapter of rank 2: 6 * 2 * 30; a head of 10 x 50 on 4 labelled tokens: 4 * 500
    expected = 16 * (4 * 200 + 6 * 60) + 4 * 4 * 500
    assert step_flops(step, [(10, 20)], (10, 50), 2, shared=False) == expected
    assert step_flops(step, [(10, 20)], (10, 50), 2, shared=True) == expected  # they begin with different tokens
    alike = (row(6, 2), row(7, 1))  # six tokens in common, of which each row keeps at least one
    assert step_flops(alike, [(10, 20)], (10, 50), 2, shared=True) == (16 - 5) * (4 * 200 + 6 * 60) + 3 * 4 * 500


def test_the_peak_is_the_rate_of_a_product(work: BenchWork) -> None:
    shapes, head = linear_shapes(work.base.files.folder)
    assert head == (64, 328) and len(shapes) == 14 and shapes.count((64, 128)) == 4
    assert 1e8 < peak_flops(shapes, 128, "float32", "cpu") < 1e14
