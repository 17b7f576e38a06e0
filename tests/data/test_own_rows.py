"""The README's story of a user's own rows: 200 messages with labels, its recipe word for word, from file to comparison."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nomoat.config.load import load_recipe
from nomoat.data.prepare import load_raw_data
from nomoat.reports.build import read_report
from tests.stories import ROOT, run
from tests.tiny import make_base

README = (ROOT / "README.md").read_text()
TINY = "base: {path: ./model}\ntrain: {learning_rate: 5e-3, batch_tokens: 256, pack_tokens: 256, max_row_tokens: 128}\n"
QUEUES = {"billing": "the invoice for order {} is wrong", "returns": "item {} arrived broken", "shipping": "where is parcel {} now"}


def readme_block(language: str, holding: str) -> str:
    """The README's block of `language` that holds a text."""
    (found,) = [block for block in re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL) if holding in block]
    return found


def write_messages(path: Path, count: int = 200) -> None:
    """Messages with their queue, in the form of the README's example row."""
    keys = list(json.loads(readme_block("json", '"queue"')))
    rows = []
    for n in range(count):
        label = sorted(QUEUES)[n % 3]
        rows.append(dict(zip(keys, (QUEUES[label].format(1000 + 37 * n), label), strict=True)))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_readmes_recipe_trains_on_all_rows_though_its_parent_takes_a_part(tmp_path: Path) -> None:
    write_messages(tmp_path / "queues.jsonl")
    (tmp_path / "queues.yaml").write_text(readme_block("yaml", "queues.jsonl").replace("../recipes", str(ROOT / "recipes")))
    recipe = load_recipe(tmp_path / "queues.yaml")
    rows = load_raw_data(recipe, ROOT).rows
    assert len(rows.train) + len(rows.validation) + len(rows.heldout) == 200
    assert {row.score["by"] for row in rows.heldout} == {"label"} and len(rows.heldout) >= 30  # a quarter of 200, by hash


@pytest.mark.slow
def test_two_hundred_messages_are_trained_scored_and_compared_with_the_readmes_recipe(tmp_path: Path) -> None:
    recipe = readme_block("yaml", "queues.jsonl")
    assert len(recipe.splitlines()) <= 10
    (tmp_path / "queues.yaml").write_text(recipe.replace("../recipes/smollm2-135m.yaml", "base.yaml"))
    (tmp_path / "base.yaml").write_text(TINY)
    make_base(tmp_path / "model")
    write_messages(tmp_path / "queues.jsonl")
    for rank in ("lora.rank=16", "lora.rank=4"):
        done = run(tmp_path, "train/sft.py", "queues.yaml", rank, "train.epochs=12")
        assert done.returncode == 0, done.stdout + done.stderr
    reports = [read_report(path) for path in sorted(tmp_path.glob("runs/*/report.json"))]
    assert len(reports) == 2 and all(report.arms["adapter"].tiers["phrasing"].n >= 30 for report in reports)  # a quarter of 200, by hash
    compared = run(tmp_path, "eval/compare.py")
    assert compared.returncode == 0, compared.stderr
    assert "lora.rank" in compared.stdout and (tmp_path / "runs" / "compare.html").is_file()
