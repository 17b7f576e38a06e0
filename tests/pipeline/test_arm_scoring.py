"""A run with choice rows, from recipe to report, answered again, and scored again on the plain path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nomoat.config.load import load_recipe
from nomoat.io import read_jsonl
from nomoat.pipeline.run_spec import make_run_spec
from nomoat.reports.build import read_report
from tests.stories import RECIPE, ROOT, make_workplace, only_run, run

TOWNS = ("Oslo", "Lima", "Quito")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with one finished run, half of whose rows are scored by choice."""
    folder = make_workplace(tmp_path_factory.mktemp("choices"))
    chosen = [
        {"prompt": f"where does train {n} go?", "completion": TOWNS[n % 3], "score": {"by": "choice", "choices": list(TOWNS)}}
        for n in range(60)
    ]
    with (folder / "rows.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in chosen)
    (folder / "tiny.yaml").write_text(RECIPE.replace("eval: {", "eval: {arms: [base, few_shot, adapter, merged], "))
    done = run(folder, "train/sft.py", "tiny.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_choice_rows_are_scored_in_every_arm_by_the_choice_that_is_likeliest(finished: Path) -> None:
    for arm in ("base", "few_shot", "adapter", "merged"):
        records = [record for record in read_jsonl(only_run(finished) / "eval" / f"{arm}.jsonl") if record["target"] in TOWNS]
        assert records and all(record["output"] in TOWNS and record["stopped"] for record in records)
        assert all(record["score"] == float(record["output"] == record["target"]) for record in records)
    report = read_report(only_run(finished) / "report.json")
    tier = report.arms["adapter"].tiers["phrasing"]
    assert tier.unscored == 0


def test_a_run_with_choices_is_answered_again_with_the_same_scores(finished: Path) -> None:
    done = run(finished, "eval/score.py", str(only_run(finished)))
    rows = len(list(read_jsonl(only_run(finished) / "heldout.jsonl")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{rows} of {rows} answers and {rows} of {rows} scores are the same" in " ".join(done.stdout.split())


def test_the_plain_path_gives_the_same_answers_and_says_that_nothing_was_drafted(finished: Path) -> None:
    done = run(finished, "eval/score.py", str(only_run(finished)), "hardware.kernels=plain", "--runs-dir", "plain")
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = (finished / "plain").iterdir()
    decoding = json.loads((made / "environment.json").read_text())["decoding"]
    assert (decoding["method"], decoding["prompts"]) == ("greedy", "padded on the left")
    for arm in ("base", "few_shot", "adapter", "merged"):
        before, plain = (list(read_jsonl(folder / "eval" / f"{arm}.jsonl")) for folder in (only_run(finished), made))
        for old, new in zip(before, plain, strict=True):
            assert old.pop("bits_per_byte") == pytest.approx(new.pop("bits_per_byte"), rel=1e-4)
            assert old == new


def test_a_run_with_plain_kernels_is_another_run(finished: Path) -> None:
    auto, plain = (
        make_run_spec(load_recipe(finished / "tiny.yaml", overrides), ROOT).identity() for overrides in ([], ["hardware.kernels=plain"])
    )
    hardware = auto["recipe"].pop("hardware")
    assert plain["recipe"].pop("hardware") == {**hardware, "kernels": "plain"} and "kernels" not in hardware
    assert auto == plain
