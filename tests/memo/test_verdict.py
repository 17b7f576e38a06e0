"""The verdict follows from published reports and from nothing else: the same reports, the same bytes; another report, another verdict."""

from __future__ import annotations

import html
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from nomoat.memo.claims import CLAIMS, claims_sha256
from rich.console import Console

from nomoat.errors import NomoatError
from nomoat.io import write_json
from nomoat.memo import rules
from nomoat.memo.evidence import Spent
from nomoat.memo.rules import BOTH
from nomoat.memo.runs import MADE_ROLES, PlannedRun, make_missing_run, missing_runs
from nomoat.memo.verdict import RANKS_FILE, SPENT_FILE, gather, verdict
from nomoat.memo.views import ROLE_WORDS, measured_words, minutes_block, print_verdict, quotable, readme_block, render_memo
from nomoat.reports.build import build_report, read_report, write_report
from tests.make_run import RATES, make_run
from tests.stories import ROOT, environment, make_workplace, run

GOOD, BAD = 0.9, 0.1


def publish(root: Path, name: str, *, seed: int, rate: float = GOOD, table: str | None = None) -> Path:
    """A report of a finished run, as it would be committed."""
    rates = {**RATES, "adapter": (rate, rate, 0.1, 0.75)}
    run_dir = make_run(root / "runs" / f"{name}-{seed}-{rate}", seed=seed, per_family=40, rates=rates)
    environment = json.loads((run_dir / "environment.json").read_text())
    rate = {"usd_per_hour": 0.5, "source": "a test", "date": "2026-03-10"}
    facts = {**environment, "seed": seed, "claims_sha256": table or claims_sha256(), "rate": rate}
    (run_dir / "environment.json").write_text(json.dumps(facts))
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
    return run(root, "eval/memo.py", f"--root={root}", *options)


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


def test_the_readmes_section_has_a_line_a_claim_and_its_table_is_whole(root: Path) -> None:
    found = verdict(gather(root))
    paragraph, _, table = readme_block(found).partition("\n\n")
    assert paragraph == quotable(found)
    lines = table.splitlines()[2:]
    for claim, line in zip(found["claims"], lines, strict=True):
        assert line.startswith(f"| {claim['id']} | **{claim['verdict']}** |") and line.count(" | ") == 3, line
        assert not claim["measured"] or measured_words(claim["measured"][0]) in line


def test_what_no_row_tells_is_null_and_said_to_be_unknown(root: Path) -> None:
    for role in ("a", "b", "b_on_a"):
        publish(root, f"{role}.seed0", seed=0)
    done = memo(root)
    assert done.returncode == 0, done.stderr
    found = json.loads((root / "recipes" / "memo" / "memo.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    stacked = {claim["id"]: claim for claim in found["claims"]}["M9"]
    assert [one["value"] for one in stacked["measured"]][1] is None, "the made-up rows have no family that counts as new"
    assert "score of b_on_a less b on B's families: not known" in done.stdout


def test_what_the_runs_took_is_told_role_by_role(root: Path) -> None:
    lines = minutes_block(verdict(gather(root))).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| `default`", "| `full`", "| `lora`"]
    assert lines[2].startswith("| `default` | 0, 1, 2 | ") and lines[2].endswith("8 min 30 s |")


def test_a_report_made_under_another_table_is_refused(root: Path) -> None:
    publish(root, "rank1.seed0", seed=0, table="f" * 64)
    with pytest.raises(NomoatError, match=r"rank1\.seed0-0-0\.9 was made under another table of claims \(ffffffffffff\)"):
        gather(root)


def test_a_threshold_changed_after_looking_is_shown_with_both_verdicts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nomoat.memo import claims

    first = claims.CLAIMS[0]
    stricter = replace(first, limits={"seconds": 1.0}, looked_at=first.limits)
    changed = (stricter, *claims.CLAIMS[1:])
    monkeypatch.setattr(claims, "CLAIMS", changed)
    monkeypatch.setattr(rules, "CLAIMS", changed)
    found = verdict(gather(root))
    told = found["claims"][0]
    assert told["changed_after_looking"]["limits"] == first.limits
    assert (told["verdict"], told["changed_after_looking"]["verdict"]) == ("failed", words_before(root, first))
    printed = io.StringIO()
    print_verdict(found, Console(file=printed, width=120))
    assert "changed after looking" in printed.getvalue()


def words_before(root: Path, claim: Any) -> str:
    from nomoat.memo.rules import judge_claim

    return judge_claim(claim, gather(root)).word


def test_what_is_missing_is_made_a_seed_of_everything_at_a_time(root: Path) -> None:
    planned = list(missing_runs(root))
    made = {(one.role, one.seed) for one in planned}
    assert not {role for role, _ in made} & {"lora", "full", "default"} and ("noisy50", 0) in made and ("noisy50", 1) not in made
    assert [one.seed for one in planned] == sorted(one.seed for one in planned)
    assert {one.role for one in missing_runs(root, ["rank1", "a"])} == {"rank1", "a"}
    with pytest.raises(NomoatError, match="no such role: rank2; known are lora, full"):
        list(missing_runs(root, ["rank2"]))
    order = [one.role for one in planned if one.seed == 0]
    assert order.index("a") < order.index("b_on_a")
    assert order.index("b_on_a") < order.index(BOTH)
    assert {path.stem for path in (ROOT / "recipes" / "memo").glob("*.yaml")} == set(MADE_ROLES) - {BOTH}, "a sum has no recipe"


def test_the_page_says_what_every_role_is_and_whose_times_count(root: Path) -> None:
    assert set(ROLE_WORDS) == {"default", "quarter", "gemma", *MADE_ROLES}
    path = publish(root, "rank1.seed0", seed=0)
    record = json.loads(path.read_text())
    record["recipe"]["hardware"] = {"shared": True}
    path.write_text(json.dumps(record))
    page = render_memo(verdict(gather(root)))
    assert ROLE_WORDS["rank1"] in page and page.count("beside other runs") == 1


def test_ranks_are_of_the_adapters_that_the_reports_are_of(root: Path) -> None:
    reports = [read_report(publish(root, f"{role}.seed0", seed=seed)) for seed, role in enumerate("ab")]
    assert all(report.adapter.sha256 for report in reports)
    known = {f"{role}_sha256": report.adapter.sha256 for role, report in zip("ab", reports, strict=True)}
    modules = [{"module": str(n), "a": 16, "b": 16, "sum": 32 if n else 16} for n in range(10)]
    path = root / "recipes" / "memo" / "reports" / RANKS_FILE
    write_json(path, {**known, "modules": modules})
    found = {claim["id"]: claim for claim in verdict(gather(root))["claims"]}["M10"]
    assert found["verdict"] == "held" and found["measured"][0]["value"] == 0.9
    write_json(path, {**known, "b_sha256": "0" * 64, "modules": modules})
    with pytest.raises(NomoatError, match="an adapter 000000000000 that no report of b is of"):
        gather(root)


def test_money_spent_on_runs_without_a_report_is_counted(root: Path) -> None:
    known = gather(root)
    reported = tuple(Spent(report.run, 9.0, 400.0) for reports in known.runs.values() for report in reports)

    def total(*spent: Spent) -> dict[str, Any]:
        return {claim["id"]: claim for claim in verdict(replace(known, spent=spent))["claims"]}["M18"]

    before = total()
    assert before["verdict"] == "held" and total(*reported) == before, "a run with a report counts once, by its report"
    broken_off = Spent("lora-broken-off", 9.0, 400.0)
    assert total(broken_off)["verdict"] == "failed"
    assert total(broken_off)["measured"][0]["value"] == pytest.approx(before["measured"][0]["value"] + 400.0)
    unpriced = total(replace(broken_off, usd=None))
    assert unpriced["verdict"] == "cannot tell" and "have no rental rate" in unpriced["lacking"]
    write_json(root / "recipes" / "memo" / "reports" / SPENT_FILE, [asdict(broken_off)])
    assert gather(root).spent == (broken_off,)


@pytest.mark.slow
def test_two_runs_are_added_scored_and_paid_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_workplace(tmp_path / "root")
    memo_folder = folder / "recipes" / "memo"
    memo_folder.mkdir(parents=True)
    for role in "ab":
        files = "base: {path: ../../model}\ndata: {rows: ../../rows.jsonl}\n"
        (memo_folder / f"{role}.yaml").write_text(f"extends: ../../tiny.yaml\n{files}train: {{max_steps: {4 if role == 'a' else 5}}}\n")
    for script in ("train", "eval"):
        (folder / script).symlink_to(ROOT / script)
    for key, value in environment(folder).items():
        monkeypatch.setenv(key, value)
    made, rate = folder / "runs", ["hardware.rate.usd_per_hour=36", "hardware.rate.source=a test", "hardware.rate.date=2026-03-10"]
    for role in ("a", "b", BOTH):
        planned = PlannedRun(role, 0, memo_folder / "reports" / f"{role}.seed0.json")
        make_missing_run(planned, folder, made, rate, Console(file=io.StringIO()))
    found = gather(folder)
    assert set(found.runs) == {"a", "b", BOTH} and found.higher_rank is not None and found.higher_rank[1] > 4
    added = found.of(BOTH)[0]
    assert added.adapter.rank == 32 and added.provenance.scored_from.foreign
    assert {one.run for one in found.spent} == {report.run for reports in found.runs.values() for report in reports}
    assert all(one.usd == pytest.approx(one.seconds / 100) for one in found.spent)
    told = {claim["id"]: claim for claim in verdict(found)["claims"]}
    assert told["M10"]["measured"][0]["exact"] and told["M9"]["lacking"] == "no run of b_on_a"


def test_whoever_is_stopped_stops_the_run_it_has_started() -> None:
    sleeps = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    code = (
        "import sys; from nomoat import errors, memo_runs; memo_runs.GRACE_SECONDS = 0.1; "
        f"errors.run_script(lambda: memo_runs.run_to_its_end([sys.executable, '-c', {sleeps!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    started = int(process.stdout.readline())
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "same command" in said and "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.kill(started, 0)
