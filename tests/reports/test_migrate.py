"""Reports of schema version 1 are read as if they had been written today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from make_run import make_run

from nomoat.reports.build import build_report, read_gate, read_report, write_report
from nomoat.reports.format import check_words
from nomoat.reports.migrate import migrate, migrate_gate
from nomoat.reports.schema import Check, Gate

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = ROOT / "recipes" / "reference" / "smollm2-135m.json"
CHECKS = [
    ("complete", "418 of 420 tensors saved (such as a.lora_A.weight)", {"value": 418, "threshold": 420, "example": "a.lora_A.weight"}),
    ("finite", "0 tensors hold NaN or infinity", {"value": 0}),
    ("every tensor moved", "1 of 420 tensors equal their initial value (such as b)", {"value": 1, "total": 420, "example": "b"}),
    ("changes the logits", "by up to 31.2; reloading differs by 1.5e-05", {"value": 31.2, "reload_error": 1.5e-05}),
    ("changes the logits", "by up to nan; reloading differs by inf", {}),
    ("lowers the loss", "0.6893 against 2.4910 nats a token on 32 training rows", {"value": 0.6893, "threshold": 2.491, "total": 32}),
    ("answers differ", "8 of 426 held-out answers equal the base's", {"value": 8, "threshold": 426}),
    ("every tensor found its place", "420 tensors", {"total": 420}),
    ("a check that this version does not know", "7 of something", {}),
]


@pytest.mark.parametrize(("name", "detail", "fields"), CHECKS)
@pytest.mark.parametrize("excuse", ["", "not met, as eval.expect_no_gain allows: "])
def test_the_numbers_of_a_check_come_out_of_its_sentence(name: str, detail: str, fields: dict[str, Any], excuse: str) -> None:
    old = {"passed": True, "checks": [{"name": name, "passed": True, "detail": excuse + detail}]}
    (check,) = Gate.model_validate(migrate_gate(old)).checks
    assert check == Check(name=name, passed=True, **fields, excused=bool(excuse))
    assert check_words(check)


def test_a_gate_of_this_version_is_left_alone() -> None:
    gate = Gate.of([Check(name="complete", passed=True, value=420, threshold=420)]).model_dump(mode="json")
    assert migrate_gate(gate) == gate and migrate_gate(None) is None


def test_an_old_report_has_names_reasons_and_no_sentences() -> None:
    old = json.loads(DEFAULT.read_text())
    assert old["schema_version"] == 1 and "headline" in old["comparison"]
    report = read_report(DEFAULT)
    assert report.base_name == "SmolLM2-135M-Instruct (4-bit GGUF)"
    assert report.cost.rate_unknown and report.cost.usd_reason == "no rate is known for AMD EPYC (AVX2)"
    assert report.cost.usd_as_if_label is not None and report.cost.usd_as_if_label.startswith("m6a.large at 0.0864 USD/h")
    assert report.cost.energy_note == "no energy counter could be read"
    gate = report.adapter.gate
    assert gate is not None and gate.passed
    logits = gate.check("changes the logits")
    assert logits is not None and logits.reload_error == 0 and (logits.value or 0) > 1


def test_an_old_report_written_again_is_of_this_version_and_the_same(tmp_path: Path) -> None:
    report = read_report(DEFAULT)
    write_report(report, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["schema_version"] == 2
    assert read_report(tmp_path / "report.json") == report


def test_a_report_of_this_version_is_not_migrated(tmp_path: Path) -> None:
    content = build_report(make_run(tmp_path / "run")).model_dump(mode="json")
    assert migrate(content) == content


def test_the_gate_file_of_an_old_run_is_read(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    old = {
        "passed": False,
        "checks": [{"name": "lowers the loss", "passed": False, "detail": "2.9 against 2.8 nats a token on 32 training rows"}],
    }
    (run_dir / "gate.json").write_text(json.dumps(old))
    gate = read_gate(run_dir)
    assert gate is not None and gate.checks[0].value == 2.9 and build_report(run_dir).status == "failed"
