"""The verdict follows from published reports and from nothing else: the same reports, the same bytes; another report, another verdict."""

from __future__ import annotations

import html
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nomoat import memo_runs
from nomoat.claims import CLAIMS, claims_sha256
from nomoat.errors import NomoatError
from nomoat.memo import gather, verdict
from nomoat.memo_page import quotable
from nomoat.memo_view import print_verdict
from nomoat.report import build_report, write_report
from tests.make_run import RATES, make_run
from tests.stories import ROOT

GOOD, BAD = 0.9, 0.1


def publish(root: Path, name: str, *, seed: int, rate: float = GOOD, table: str | None = None) -> Path:
    """A report of a finished run, as it would be committed."""
    rates = {**RATES, "adapter": (rate, rate, 0.1, 0.75)}
    run_dir = make_run(root / "runs" / f"{name}-{seed}-{rate}", seed=seed, per_family=40, rates=rates)
    environment = json.loads((run_dir / "environment.json").read_text())
    (run_dir / "environment.json").write_text(json.dumps({**environment, "seed": seed, "claims_sha256": table or claims_sha256()}))
    folder = root / "recipes" / ("reference" if name.startswith("smollm2-135m") else "memo/reports")
    folder.mkdir(parents=True, exist_ok=True)
    write_report(build_report(run_dir), folder / f"{name}.json")
    return folder / f"{name}.json"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of the default, of lora and of full."""
    folder = tmp_path_factory.mktemp("published")
    for seed in range(3):
        publish(folder, "smollm2-135m" + (f".seed{seed}" if seed else ""), seed=seed)
        publish(folder, f"lora.seed{seed}", seed=seed)
        publish(folder, f"full.seed{seed}", seed=seed)
    return folder


@pytest.fixture
def root(published: Path, tmp_path: Path) -> Path:
    """The same reports, to be changed."""
    shutil.copytree(published / "recipes", tmp_path / "recipes")
    return tmp_path


def words(root: Path) -> dict[str, Any]:
    return {claim["id"]: claim["verdict"] for claim in verdict(gather(root))["claims"]}


def memo(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "eval" / "memo.py"), f"--root={root}", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_same_reports_give_the_same_bytes_and_a_line_a_claim(root: Path) -> None:
    done = memo(root)
    assert done.returncode == 0, done.stderr
    written = root / "recipes" / "memo" / "memo.json"
    first = written.read_bytes()
    assert memo(root).returncode == 0 and written.read_bytes() == first
    found = json.loads(first)
    page = written.with_suffix(".html").read_text()
    assert (
        "<script" not in page
        and page.count("<svg") >= 8
        and "PEFT&#39;s comparison" in page
        and quotable(found)[:40] in html.unescape(page)
    )
    for claim, one in zip(CLAIMS, found["claims"], strict=True):
        assert any(line.startswith(f"{claim.id:<4} {one['verdict']}") for line in done.stdout.splitlines()), claim.id
    assert {run["seed"] for run in found["runs"]["full"]} == {0, 1, 2}
    assert [one["seeds"] for one in found["claims"] if one["id"] == "M8"] == [3]


def test_a_changed_score_is_refused_and_another_report_changes_the_verdict(root: Path) -> None:
    before = words(root)
    assert before["M13"] != "failed" and before["M8"] != "held"
    path = root / "recipes" / "memo" / "reports" / "lora.seed1.json"
    report = json.loads(path.read_text())
    report["arms"]["adapter"]["tiers"]["phrasing"]["score"] = 0.99
    path.write_text(json.dumps(report))
    done = memo(root)
    assert done.returncode == 2 and "phrasing" in done.stderr and "Traceback" not in done.stderr
    for seed in range(3):
        (root / "recipes" / "memo" / "reports" / f"lora.seed{seed}.json").unlink()
        publish(root, f"lora.seed{seed}", seed=seed, rate=BAD)
    again = words(root)
    assert again["M13"] == "failed" and again["M8"] == "failed"


def test_the_paragraph_says_no_more_than_the_verdicts(root: Path) -> None:
    found = verdict(gather(root))
    said = quotable(found)
    for claim in found["claims"]:
        held, failed, rest = (said.partition("Held: ")[2].partition("Failed: ")[0], said.partition("Failed: ")[2], claim["quote"] in said)
        assert (claim["quote"] in held) == (claim["verdict"] == "held")
        assert (claim["quote"] in failed) == (claim["verdict"] == "failed")
        assert rest == (claim["verdict"] in ("held", "failed"))
    assert f"by {sum(map(len, found['runs'].values()))} runs of tiny on 2-core CPU" in said


def test_a_report_made_under_another_table_is_refused(root: Path) -> None:
    publish(root, "rank1.seed0", seed=0, table="f" * 64)
    with pytest.raises(NomoatError, match=r"rank1\.seed0-0-0\.9 was made under another table of claims \(ffffffffffff\)"):
        gather(root)


def test_a_threshold_changed_after_looking_is_shown_with_both_verdicts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from nomoat import claims, judges

    first = claims.CLAIMS[0]
    stricter = replace(first, limits={"seconds": 1.0}, looked_at=first.limits)
    changed = (stricter, *claims.CLAIMS[1:])
    monkeypatch.setattr(claims, "CLAIMS", changed)
    monkeypatch.setattr(judges, "CLAIMS", changed)
    found = verdict(gather(root))
    told = found["claims"][0]
    assert told["changed_after_looking"]["limits"] == first.limits
    assert (told["verdict"], told["changed_after_looking"]["verdict"]) == ("failed", words_before(root, first))
    printed = io.StringIO()
    print_verdict(found, Console(file=printed, width=120))
    assert "changed after looking" in printed.getvalue()


def words_before(root: Path, claim: Any) -> str:
    from nomoat.judges import judge_claim

    return judge_claim(claim, gather(root)).word


def test_what_is_missing_is_made_a_seed_of_everything_at_a_time(root: Path) -> None:
    planned = list(memo_runs.missing(root))
    made = {(one.role, one.seed) for one in planned}
    assert not {role for role, _ in made} & {"lora", "full", "default"} and ("noisy50", 0) in made and ("noisy50", 1) not in made
    assert [one.seed for one in planned] == sorted(one.seed for one in planned)
    order = [one.role for one in planned if one.seed == 0]
    assert order.index("a") < order.index("b_on_a")
    assert {path.stem for path in (ROOT / "recipes" / "memo").glob("*.yaml")} == set(memo_runs.ROLES)
