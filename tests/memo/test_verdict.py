"""The verdict follows from published reports alone: the same reports give the same bytes, another report another verdict."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from nomoat.errors import NomoatError
from nomoat.io import write_json
from nomoat.memo.evidence import Finding, ModuleRanks, Spent, SumRanks
from nomoat.memo.verdict import RANKS_FILE, SPENT_FILE, MemoVerdict, gather, judge_memo
from nomoat.reports.build import read_report
from tests.memo.conftest import BAD, publish
from tests.stories import run


def findings(root: Path) -> dict[str, Finding]:
    return {claim.id: claim for claim in judge_memo(gather(root), root).claims}


def memo(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run(root, "eval/memo.py", f"--root={root}", *options)


def test_the_same_reports_give_the_same_bytes_which_are_the_verdict(root: Path) -> None:
    done = memo(root)
    assert done.returncode == 0, done.stderr
    path = root / "recipes" / "memo" / "memo.json"
    first = path.read_bytes()
    assert memo(root).returncode == 0 and path.read_bytes() == first
    verdict = MemoVerdict.model_validate_json(first)
    assert verdict == judge_memo(gather(root), root)
    assert {run.seed for run in verdict.runs["full"]} == {0, 1, 2}
    assert [claim.seeds for claim in verdict.claims if claim.id == "M8"] == [3]
    assert {point.rows for point in verdict.curve} == {900} and len(verdict.curve) == 6
    assert path.with_suffix(".html").read_text().count("<svg") >= 8


def test_a_changed_score_is_refused(root: Path) -> None:
    path = root / "recipes" / "memo" / "reports" / "lora.seed1.json"
    report = json.loads(path.read_text())
    report["arms"]["adapter"]["tiers"]["phrasing"]["score"] = 0.99
    path.write_text(json.dumps(report))
    done = memo(root)
    assert done.returncode == 2 and "phrasing" in done.stderr and "Traceback" not in done.stderr


def test_other_reports_give_another_verdict(root: Path) -> None:
    before = findings(root)
    assert before["M13"].verdict != "failed" and before["M8"].verdict != "held"
    for seed in range(3):
        publish(root, f"lora.seed{seed}", seed=seed, rate=BAD)
    after = findings(root)
    assert after["M13"].verdict == after["M8"].verdict == "failed"


def test_a_value_that_no_row_gives_is_null(root: Path) -> None:
    for role in ("a", "b", "b_on_a"):
        publish(root, f"{role}.seed0", seed=0)
    done = memo(root)
    assert done.returncode == 0, done.stderr
    text = (root / "recipes" / "memo" / "memo.json").read_text()
    verdict = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    stacked = {claim["id"]: claim for claim in verdict["claims"]}["M9"]
    assert stacked["measured"][1]["value"] is None, "the made-up rows have no family that counts as new"
    assert "score, b_on_a minus b on B's families: not known" in done.stdout


def test_a_report_made_under_another_table_is_refused(root: Path) -> None:
    publish(root, "rank1.seed0", seed=0, table="f" * 64)
    with pytest.raises(NomoatError, match=r"rank1\.seed0-0-0\.9 was made under another table of claims \(ffffffffffff\)"):
        gather(root)


def test_ranks_belong_to_the_adapters_of_the_reports(root: Path) -> None:
    reports = [read_report(publish(root, f"{role}.seed0", seed=seed)) for seed, role in enumerate("ab")]
    hashes = [report.adapter.sha256 or "" for report in reports]
    assert all(hashes)
    modules = [ModuleRanks(module=str(n), a=16, b=16, sum=32 if n else 16) for n in range(10)]
    ranks = SumRanks(threshold=1e-3, a_sha256=hashes[0], b_sha256=hashes[1], modules=tuple(modules))
    path = root / "recipes" / "memo" / "reports" / RANKS_FILE
    write_json(path, ranks.model_dump())
    finding = findings(root)["M10"]
    assert finding.verdict == "held" and finding.measured[0].value == 0.9
    write_json(path, ranks.model_copy(update={"b_sha256": "0" * 64}).model_dump())
    with pytest.raises(NomoatError, match="an adapter 000000000000 that belongs to no report of b"):
        gather(root)


def test_money_spent_on_runs_without_a_report_is_counted(root: Path) -> None:
    evidence = gather(root)
    reported = tuple(Spent(run=report.run, seconds=9.0, usd=400.0) for reports in evidence.runs.values() for report in reports)

    def total(*spent: Spent) -> Finding:
        return {claim.id: claim for claim in judge_memo(replace(evidence, spent=spent), root).claims}["M18"]

    before = total()
    assert before.verdict == "held" and total(*reported) == before, "a run with a report counts once, by its report"
    interrupted = Spent(run="lora-interrupted", seconds=9.0, usd=400.0)
    assert total(interrupted).verdict == "failed"
    assert before.measured[0].value is not None
    assert total(interrupted).measured[0].value == pytest.approx(before.measured[0].value + 400.0)
    unpriced = total(interrupted.model_copy(update={"usd": None}))
    assert unpriced.verdict == "cannot tell" and "have no rental rate" in unpriced.lacking
    write_json(root / "recipes" / "memo" / "reports" / SPENT_FILE, [interrupted.model_dump()])
    assert gather(root).spent == (interrupted,)
