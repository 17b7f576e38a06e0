"""The memo's verdict, memo.json: reports gathered by role and judged claim by claim. The same reports give the same bytes."""

from __future__ import annotations

from pathlib import Path

from nomoat.errors import NomoatError
from nomoat.io import Record, read_json, sha256_of
from nomoat.memo.evidence import SUMMANDS, TIER, Evidence, Finding, Spent, SumRanks, load_claims, rental
from nomoat.memo.rules import judge
from nomoat.reports.build import read_report
from nomoat.reports.compare import incomparabilities
from nomoat.reports.readme_tables import published_runs
from nomoat.reports.schema import Interval, Report
from nomoat.runs.provenance import claims_sha256

DEFAULT, LARGER = "smollm2-135m", "gemma-3-270m"  # the recipes whose published runs are the roles `default` and `gemma`
RANKS_FILE, SPENT_FILE = "ranks.json", "spent.json"  # in the folder of the reports: SumRanks for M10, a list of Spent for M18


class RunFacts(Record):
    """A run behind the verdict; times in seconds."""

    run: str
    seed: int
    base: str
    device: str
    threads: int | None
    shared: bool
    dtype: str | None
    seconds: float
    train_seconds: float | None
    report_sha256: str


class CurvePoint(Record):
    """A run of the learning curve over training rows: what it was trained on, what it cost, and its score on unseen phrasings."""

    rows: int
    seconds: float
    usd: float | None
    shared: bool
    score: float
    interval: Interval | None
    seed: int


class MemoVerdict(Record):
    """memo.json: every claim's words, rule, verdict and numbers, and the runs they were taken from, by role."""

    claims_sha256: str | None
    runs: dict[str, tuple[RunFacts, ...]]
    claims: tuple[Finding, ...]
    curve: tuple[CurvePoint, ...]


def gather(root: Path) -> Evidence:
    """The published runs of the default recipe and of the larger base, and `recipes/memo/reports/<role>.seed<n>.json`.

    Raises NomoatError for a report whose numbers do not follow from its rows, that was made under another table of claims, or that was
    scored on other rows or in another way than the others.
    """
    published = published_runs(root / "recipes" / "reference")
    runs = {role: published[recipe].seeds for role, recipe in (("default", DEFAULT), ("gemma", LARGER)) if recipe in published}
    if DEFAULT in published and (quarter := published[DEFAULT].quarter):
        runs["quarter"] = (quarter,)
    folder = root / "recipes" / "memo" / "reports"
    for path in sorted(folder.glob("*.seed*.json")):
        role = path.name.partition(".")[0]
        runs[role] = (*runs.get(role, ()), read_report(path))
    _check_comparable([report for reports in runs.values() for report in reports], root)
    spent = read_spent(folder)
    if not (folder / RANKS_FILE).is_file():
        return Evidence(runs=runs, spent=spent)
    ranks = SumRanks.model_validate_json((folder / RANKS_FILE).read_bytes())
    for role, sha256 in zip(SUMMANDS, (ranks.a_sha256, ranks.b_sha256), strict=True):
        if sha256 not in {report.adapter.sha256 for report in runs.get(role, ())}:
            raise NomoatError(f"{RANKS_FILE} was computed from an adapter {sha256[:12]} that belongs to no report of {role}")
    return Evidence(runs=runs, ranks=ranks, spent=spent)


def read_spent(folder: Path) -> tuple[Spent, ...]:
    """What the memo's runs took, from spent.json; empty if there is none."""
    path = folder / SPENT_FILE
    return tuple(Spent.model_validate(line) for line in read_json(path)) if path.is_file() else ()


def _check_comparable(reports: list[Report], root: Path) -> None:
    expected = claims_sha256(root)
    for report in reports:
        stated = report.provenance.claims_sha256
        if stated != expected:
            made = "before there was a table of claims" if stated is None else f"under another table of claims ({stated[:12]})"
            raise NomoatError(f"{report.run} was made {made}: the rules have to be fixed before a run; make it again")
        obstacles = incomparabilities(reports[0], report)
        if obstacles:
            raise NomoatError(f"{report.run} cannot be judged together with {reports[0].run}: {'; '.join(obstacles)}")


def judge_memo(evidence: Evidence, root: Path) -> MemoVerdict:
    """The verdict on every claim of `root`'s claims.yaml."""
    return MemoVerdict(
        claims_sha256=claims_sha256(root),
        runs={role: tuple(map(_run_facts, reports)) for role, reports in sorted(evidence.runs.items())},
        claims=judge(load_claims(root), evidence),
        curve=tuple(point for role in ("quarter", "lora", "default") for report in evidence.of(role) if (point := _curve_point(report))),
    )


def _run_facts(report: Report) -> RunFacts:
    return RunFacts(
        run=report.run,
        seed=report.seed,
        base=report.base_name,
        device=report.provenance.device.name or "unknown device",
        threads=report.provenance.threads,
        shared=report.shared,
        dtype=report.provenance.dtype,
        seconds=report.cost.seconds,
        train_seconds=report.cost.seconds_by_phase.get("train"),
        report_sha256=sha256_of(report.model_dump(mode="json")),
    )


def _curve_point(report: Report) -> CurvePoint | None:
    score = report.arms["adapter"].tiers.get(TIER)
    if score is None or score.score is None or report.data.train is None:
        return None
    return CurvePoint(
        rows=report.data.train.rows,
        seconds=report.cost.seconds,
        usd=rental(report.cost),
        shared=report.shared,
        score=score.score,
        interval=score.interval,
        seed=report.seed,
    )
