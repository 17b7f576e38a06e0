"""Results of the training benchmark: other work is refused, ratios have a spread, and the published record can be read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nomoat.benchmarks.results import ARMS, arm_record, arms_table, compare_arms, draw, speed_block, work_differences
from nomoat.io import read_json

PUBLISHED = Path(__file__).resolve().parents[2] / "recipes" / "reference" / "speed"


def arm(first: float = 2.0, last: float | None = 1.5, rate: float = 100.0, warmup_seconds: float = 1.0) -> dict[str, Any]:
    turns = [{"steps": 1, "tokens": 100, "seconds": 100 / speed, "peak_bytes": 1_000_000_000} for speed in (rate, 2 * rate, rate / 2)]
    return arm_record(first, {"steps": 1, "tokens": 100, "seconds": warmup_seconds, "peak_bytes": 1}, turns, last)


def test_other_work_is_refused() -> None:
    assert work_differences({"ours": arm(), "trainer": arm()}, "float32") == []
    [said] = work_differences({"ours": arm(), "trainer": arm(first=2.002)}, "float32")
    assert said == "trainer: loss before any step 2.0020, ours 2.0000, allowed difference 0.001"
    assert work_differences({"ours": arm(), "trainer": arm(first=2.002)}, "bfloat16") == []
    assert len(work_differences({"ours": arm(), "trainer": arm(first=2.02)}, "nf4")) == 1
    [said] = work_differences({"ours": arm(), "trl_compiled": arm(last=1.53)}, "bfloat16")
    assert said.startswith("trl_compiled: validation loss at the end 1.5300, ours 1.5000")
    assert work_differences({"ours": arm(), "trl_default": arm(last=None)}, "bfloat16") == []  # chooses its own steps
    assert len(work_differences({"ours": arm(), "trainer": arm(first=float("nan"), last=float("nan"))}, "float32")) == 2


def test_ratios_are_turn_by_turn() -> None:
    slower = arm(rate=50)
    slower["tokens_per_second"] = [50.0, 50.0, 50.0]
    for turn in slower["turns"]:
        turn["peak_bytes"] *= 4
    compared = compare_arms({"ours": arm(), "trainer": slower}, recipe_tokens=1000)
    assert compared["ratios"] == {
        "trainer": {
            "arm": "trainer",
            "tokens_per_second": {"median": 2.0, "lowest": 1.0, "highest": 4.0},
            "peak_memory": {"median": 0.25, "lowest": 0.25, "highest": 0.25},
        }
    }
    assert compared["trl_best"] is None and compared["compile_seconds"] == {}


def test_compiling_counts_against_trl_tuned() -> None:
    compiled = arm(rate=200, warmup_seconds=10.5)  # 0.5 s of steps, 10 s of compiling
    arms = {"ours": arm(rate=400), "trl_compiled": compiled}
    long, short = compare_arms(arms, recipe_tokens=200_000), compare_arms(arms, recipe_tokens=2_000)
    assert long["compile_seconds"] == {"trl_compiled": pytest.approx(10)} and long["trl_best"] == "trl_compiled"
    # 1,000 s of steps: 1 % of compiling; 10 s of steps and 10 of compiling: half the speed
    assert long["ratios"]["trl_best"]["tokens_per_second"]["median"] == pytest.approx(2 * 1.01)
    assert short["ratios"]["trl_best"]["tokens_per_second"]["median"] == pytest.approx(2 * 2)


def test_the_ratios_of_the_published_record_follow_from_its_turns() -> None:
    record = read_json(PUBLISHED / "bench.json")
    kept = {name: entry for name, entry in record["arms"].items() if name in ARMS}
    tokens = 3 * 463_000  # about what the default recipe trained on
    ratios = compare_arms(kept, tokens)["ratios"]
    for peer in ("trainer", "trl_default"):
        assert ratios[peer] == {
            "arm": peer,
            **{key: pytest.approx(record["ratios"][peer][key]) for key in ("tokens_per_second", "peak_memory")},
        }
    assert compare_arms(kept, tokens)["compile_seconds"] == pytest.approx(record["compile_seconds"])
    assert ratios["trl_best"]["tokens_per_second"] == pytest.approx(record["ratios"]["trl_best"]["tokens_per_second"], rel=0.05)


def test_the_readme_shows_trl_tuned_and_the_published_numbers() -> None:
    record, scoring = read_json(PUBLISHED / "bench.json"), read_json(PUBLISHED / "scoring.json")
    assert not record["dirty"] and record["not_the_same_work"] == []
    head, rule, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in speed_block(record, scoring).splitlines()]
    assert head[0] == "41 steps of 468 tokens, float32, 2 threads" and rule == ["---"] * 4
    assert lines == [
        ["training relative to TRL tuned (packed, compiled)", "1.71x", "1.37x to 1.87x", "0.80x"],
        ["training relative to transformers.Trainer (padded, full logits)", "1.68x", "1.26x to 1.90x", "0.68x"],
        ["MFU (peak 145 GFLOP/s measured)", "47%", "46% to 57%", ""],
        ["MFU if the shared prefix is counted once, as computed", "42%", "40% to 50%", ""],
        ["scoring relative to `model.generate` at batch size 8 (100.00% of 1,206 answers identical)", "3.88x", "2.43x to 6.14x", ""],
    ]
    named = speed_block({**record, "device_name": "a laptop"}, scoring)
    assert named.startswith("| 41 steps of 468 tokens, float32, 2 threads, a laptop |")


def test_arms_that_no_longer_exist_are_shown_by_their_keys(tmp_path: Path) -> None:
    record = read_json(PUBLISHED / "bench.json")
    table = arms_table(record)
    assert "| trl_sorted: loss 1.5435 before, 0.772 after | 82 | 75 to 91 | 2.79 GB |" in table
    assert "| TRL tuned (packed, compiled): loss 1.5435 before, 0.772 after, 231 s of compiling | 92 |" in table
    assert "| training relative to TRL's defaults | 39.13x | 37.17x to 41.90x | 0.92x |" in table
    draw(record, tmp_path / "bench.svg")
    assert (tmp_path / "bench.svg").read_text().startswith("<?xml")


def test_results_do_not_wait_for_torch() -> None:
    code = "import sys, nomoat.benchmarks.results; sys.exit(bool({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
