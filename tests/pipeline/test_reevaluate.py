"""A finished run scored on other rows, in other arms, with another adapter: run as a user runs it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from nomoat.errors import NomoatError
from nomoat.io import read_jsonl
from nomoat.models.external_adapter import fetch_adapter, lora_settings
from nomoat.reports.build import read_report, verify_files
from nomoat.reports.schema import Report
from tests.private import find_private_strings, private_strings
from tests.stories import environment, make_workplace, only_run, run
from tests.tiny import make_base

NEW_ROWS = [{"prompt": f"add {n} to {7 * n} for order number {1000 + 13 * n}", "completion": str(8 * n)} for n in range(200, 224)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with one finished run and a file of rows that it has not seen."""
    folder = make_workplace(tmp_path_factory.mktemp("elsewhere"))
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in NEW_ROWS))
    done = run(folder, "train/sft.py", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    return folder


def score(folder: Path, *words: str, out: str) -> tuple[Path, Report]:
    """Score the workplace's run with `words`; the new directory and its report, checked."""
    before = hashes(only_run(folder))
    done = run(folder, "eval/score.py", str(only_run(folder)), *words, "--runs-dir", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert hashes(only_run(folder)) == before
    (made,) = (folder / out).iterdir()
    report = read_report(made / "report.json")
    verify_files(report, made)
    return made, report


def hashes(folder: Path) -> dict[str, str]:
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_rows_of_ones_own_are_answered_in_every_arm_and_the_cost_of_training_comes_along(finished: Path) -> None:
    made, report = score(finished, "--rows", "mine.jsonl", out="on-mine")
    trained = read_report(only_run(finished) / "report.json")
    assert made.name.startswith(f"{only_run(finished).name}@mine-")
    assert [row[1] for row in report.rows] == ["phrasing"] * len(NEW_ROWS)
    assert all(report.arms[arm].tiers["phrasing"] is not None for arm in ("base", "few_shot", "adapter"))
    assert report.adapter.sha256 == trained.adapter.sha256 and report.adapter.gate is not None and report.adapter.gate.passed
    assert report.cost.seconds_by_phase["train"] == trained.cost.seconds_by_phase["train"]
    assert report.cost.tokens_seen == trained.cost.tokens_seen
    assert report.provenance.scored_from.run == only_run(finished).name
    assert find_private_strings(made, [*private_strings(environment(finished)), str(finished), "hunter2-hunter2"]) == []


@pytest.mark.slow
def test_the_new_directory_is_a_run_like_any_other(finished: Path) -> None:
    made, _ = score(finished, "--rows", "mine.jsonl", "eval.max_rows=20", out="as-a-run")
    again = run(finished, "eval/score.py", str(made))
    assert again.returncode == 0 and "20 of 20 scores are the same" in " ".join(again.stdout.split()), again.stdout + again.stderr
    refused = run(finished, "eval/compare.py", str(made), str(only_run(finished)))
    assert refused.returncode == 2 and "held-out rows" in refused.stderr


def test_rows_it_was_trained_on_are_refused(finished: Path) -> None:
    done = run(finished, "eval/score.py", str(only_run(finished)), "--rows", "rows.jsonl")
    assert done.returncode == 2 and "was trained on" in done.stderr and "repeats" in done.stderr and "Traceback" not in done.stderr


def test_the_merged_model_is_an_arm_of_its_own(finished: Path) -> None:
    made, report = score(finished, "eval.arms=[base, adapter, merged]", out="merged")
    answers = {arm: [line["output"] for line in read_jsonl(made / "eval" / f"{arm}.jsonl")] for arm in ("base", "adapter", "merged")}
    assert answers["merged"] != answers["base"] and len(answers["merged"]) == len(answers["adapter"])
    assert report.arms["merged"].tiers["phrasing"] is not None and "phrasing" in report.comparison.merged
    assert "Merged into the 16-bit base" in (made / "report.html").read_text()
    assert "merged" not in read_report(only_run(finished) / "report.json").arms


def test_an_adapter_from_elsewhere_is_scored_without_a_price_it_did_not_pay(finished: Path) -> None:
    folder = finished / "theirs"
    folder.mkdir(exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(only_run(finished) / "adapter" / name, folder / name)
    _made, report = score(finished, "--adapter", "theirs", out="foreign")
    own = read_report(only_run(finished) / "report.json")
    assert report.arms["adapter"] == own.arms["adapter"]
    assert report.provenance.scored_from.foreign and report.cost.tokens_seen == 0 and "train" not in report.cost.seconds_by_phase
    assert (report.adapter.rank, report.adapter.parameters) == (own.adapter.rank, own.adapter.parameters)
    assert report.adapter.gate is not None and report.adapter.gate.checks[0].total == 28


@pytest.mark.slow
def test_an_adapter_for_another_base_is_refused(finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    make_base(other / "model", "gpt2")
    shutil.copy(finished / "rows.jsonl", other)
    (other / "tiny.yaml").write_text((finished / "tiny.yaml").read_text() + "lora: {targets: [c_attn]}\n")
    trained = run(other, "train/sft.py", "tiny.yaml", "train.max_steps=4", "eval.expect_no_gain=true")
    assert trained.returncode == 0, trained.stderr
    done = run(finished, "eval/score.py", str(only_run(finished)), "--adapter", str(only_run(other) / "adapter"), "--runs-dir", "never")
    assert done.returncode == 2 and "base" in done.stderr and "Traceback" not in done.stderr
    assert not list((finished / "never").glob("*/report.json"))


def test_what_training_depended_on_cannot_be_changed_any_more(finished: Path) -> None:
    done = run(finished, "eval/score.py", str(only_run(finished)), "train.epochs=2")
    assert done.returncode == 2 and "train.epochs=2" in done.stderr and "eval." in done.stderr


BAD_CONFIGS = [
    ({"peft_type": "IA3", "r": 4, "lora_alpha": 8}, "IA3"),
    ({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "init_lora_weights": "pissa"}, "pissa"),
    ({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"peft_type": "LORA"}, "no numbers r and lora_alpha"),
    ({"peft_type": "LORA", "r": 0, "lora_alpha": 8}, "rank"),
]


@pytest.mark.parametrize(("config", "said"), BAD_CONFIGS, ids=[said for _, said in BAD_CONFIGS])
def test_adapters_that_would_not_be_scored_as_meant_are_refused(tmp_path: Path, config: dict[str, object], said: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(NomoatError, match=said):
        lora_settings(tmp_path)


def test_an_adapter_without_safetensors_or_without_a_revision_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"a pickle")
    with pytest.raises(NomoatError, match="only peft adapters saved as safetensors"):
        fetch_adapter(str(tmp_path))
    for source in ("somebody/adapter", "somebody/adapter@main", str(tmp_path / "nowhere")):
        with pytest.raises(NomoatError, match="revision"):
            fetch_adapter(source)
