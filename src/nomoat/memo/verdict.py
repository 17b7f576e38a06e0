"""The memo's verdict: reports gathered by role, judged claim by claim, and written down so that the same reports give the same bytes."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nomoat.errors import NomoatError
from nomoat.io import read_json, sha256_of
from nomoat.memo.evidence import TIER, Context, Evidence, Finding, Spent, ThresholdTest, load_claims, rental
from nomoat.memo.rules import judge, judge_claim
from nomoat.reports.build import read_report
from nomoat.reports.compare import incomparabilities
from nomoat.reports.readme_tables import PublishedRuns, published_runs
from nomoat.reports.schema import Report
from nomoat.runs.provenance import claims_sha256

DEFAULT, LARGER = "smollm2-135m", "gemma-3-270m"  # recipes whose published runs are the roles `default` and `gemma`
RANKS_FILE = "ranks.json"  # for M10: ranks of two updates and of their sum, module by module
SPENT_FILE = "spent.json"  # for M18: what each of the memo's runs took, those without a report too


def gather(root: Path) -> Evidence:
    """The published runs of the default recipe and of the larger base, and `recipes/memo/reports/<role>.seed<n>.json`.

    Each is checked as it is read.
    NomoatError for a report whose numbers do not follow from its rows, that was made under another table of claims, or that was not
    asked what the others were.
    """
    runs = _published(published_runs(root / "recipes" / "reference"))
    folder = root / "recipes" / "memo" / "reports"
    for path in sorted(folder.glob("*.seed*.json")):
        role = path.name.partition(".")[0]
        runs[role] = (*runs.get(role, ()), read_report(path))
    _check(runs, root)
    ranks, spent = folder / RANKS_FILE, folder / SPENT_FILE
    return Evidence(
        runs,
        _higher_ranks(read_json(ranks), runs) if ranks.is_file() else None,
        tuple(Spent(**one) for one in read_json(spent)) if spent.is_file() else (),
    )


def _published(found: dict[str, PublishedRuns]) -> dict[str, tuple[Report, ...]]:
    default, larger = found.get(DEFAULT), found.get(LARGER)
    runs = {"default": default.seeds if default else (), "gemma": larger.seeds if larger else ()}
    runs["quarter"] = (default.quarter,) if default and default.quarter else ()
    return {role: reports for role, reports in runs.items() if reports}


def _check(runs: dict[str, tuple[Report, ...]], root: Path) -> None:
    expected = claims_sha256(root)
    every = [report for reports in runs.values() for report in reports]
    for report in every:
        stated = report.provenance.claims_sha256
        if stated != expected:
            made = "before there was a table of claims" if stated is None else f"under another table of claims ({stated[:12]})"
            raise NomoatError(f"{report.run} was made {made}: what it is judged by has to be fixed before it runs; run it again")
        obstacles = incomparabilities(every[0], report)
        if obstacles:
            raise NomoatError(f"{report.run} cannot be judged beside {every[0].run}: {'; '.join(obstacles)}")


def _higher_ranks(found: dict[str, Any], runs: dict[str, tuple[Report, ...]]) -> tuple[int, int]:
    """Of how many modules the sum's rank is higher than both summands', of how many; NomoatError where it is of other adapters."""
    for role in ("a", "b"):
        known = {report.adapter.sha256 for report in runs.get(role, ())}
        if found[f"{role}_sha256"] not in known:
            raise NomoatError(f"{RANKS_FILE} was computed from an adapter {found[f'{role}_sha256'][:12]} that no report of {role} is of")
    return sum(one["sum"] > max(one["a"], one["b"]) for one in found["modules"]), len(found["modules"])


def verdict(evidence: Evidence, root: Path) -> dict[str, Any]:
    """memo.json: every claim's words, rule, verdict and numbers, and what they were taken from."""
    return {
        "claims_sha256": claims_sha256(root),
        "runs": {role: [_run(report) for report in reports] for role, reports in sorted(evidence.runs.items())},
        "claims": [_finding(finding, evidence) for finding in judge(load_claims(root), evidence)],
        "curve": [point for role in ("quarter", "lora", "default") for point in _points(evidence.of(role))],
    }


def _points(runs: tuple[Report, ...]) -> list[dict[str, Any]]:
    """One point a run of the learning curve over rows: what was trained on, what it cost, what it scored."""
    points = []
    for report in runs:
        score = report.arms["adapter"].tiers.get(TIER)
        if score is not None and report.data.train is not None:
            spent = {"rows": report.data.train.rows, "seconds": report.cost.seconds, "usd": rental(report.cost)}
            points.append(
                {**spent, "shared": report.shared, "score": score.score, "interval": score.interval, "seed": report.provenance.seed}
            )
    return points


def _run(report: Report) -> dict[str, Any]:
    return {
        "run": report.run,
        "seed": report.provenance.seed,
        "base": report.base_name,
        "device": report.provenance.device.name,
        "threads": report.provenance.threads,
        "shared": report.shared,
        "dtype": report.provenance.dtype,
        "seconds": report.cost.seconds,
        "train_seconds": report.cost.seconds_by_phase.get("train"),
        "report_sha256": sha256_of(report.model_dump(mode="json")),
    }


def _plain(one: ThresholdTest | Context) -> dict[str, Any]:
    """Its fields; a value that could not be computed (no rows in common, say) is null, since JSON has no NaN."""
    return {**asdict(one), "value": None if math.isnan(one.value) else one.value}


def _finding(finding: Finding, evidence: Evidence) -> dict[str, Any]:
    claim = finding.claim
    before = claim.looked_at
    as_it_stood = None if before is None else judge_claim(claim.model_copy(update={"limits": before, "looked_at": None}), evidence).word
    seeds = [len(evidence.of(role)) for role in claim.runs]
    return {
        "id": claim.id,
        "quote": claim.quote,
        "rule": claim.rule,
        "limits": claim.limits,
        "verdict": finding.word,
        "measured": [{**_plain(one), "verdict": one.word, "times_the_data": one.times_the_data} for one in finding.measured],
        "shown": [_plain(one) for one in finding.shown],
        "lacking": finding.lacking,
        "changed_after_looking": None if before is None else {"limits": before, "verdict": as_it_stood},
        "seeds": min(seeds, default=0),
        "runs": list(claim.runs),
        "leaves_out": claim.leaves_out,
    }
