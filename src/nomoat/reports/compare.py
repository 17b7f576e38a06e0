"""Several runs compared: whether they may be compared, how much their adapters differ row by row, and the rows and benchmarks in question.

Two runs are comparable when they answered the same held-out rows, scored by the same scorers, decoded in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nomoat.config.schema import QUANTISED
from nomoat.errors import NomoatError
from nomoat.io import read_json, read_jsonl
from nomoat.reports.build import read_report, shorten, verify_files
from nomoat.reports.format import change, flattened, number, tier_words
from nomoat.reports.metrics import benchmark_scores, in_tier_order, tier_difference
from nomoat.reports.schema import Benchmark, CompactRow, Harness, Report, TierDifference
from nomoat.runs.provenance import Decoding
from nomoat.stats.intervals import holm
from nomoat.stats.paired import Verdict, p_of_interval

ARM, REFERENCE = "adapter", "reference"
SCORED_IN = "decoding (decoding.dtype)"
SCORED_WHERE = ("decoding (decoding.device)", "decoding (decoding.prompts)", "decoding (decoding.method)")
NOT_RECORDED = "not recorded"
ERROR_RATE = 0.05
EXPECTED_TO_DIFFER = ("created", "matrix_gflops")  # say nothing about why two runs differ


@dataclass(frozen=True)
class RunComparison:
    """Reports in the order asked for, and what follows from having them side by side."""

    reports: tuple[Report, ...]
    reference: int
    """Index of the report that the others are measured against."""
    obstacles: tuple[str, ...]
    """Why the runs are not comparable; empty when they are."""
    tiers: tuple[str, ...]
    differences: tuple[dict[str, TierDifference], ...]
    """For each report by tier: its adapter minus the reference's, paired on rows that both have a score for."""
    recipe_changes: tuple[tuple[str, tuple[str, ...]], ...]
    """(dotted key, each report's value) where recipes differ."""
    environment_changes: tuple[tuple[str, tuple[str, ...]], ...]


def load_run(path: Path) -> Report:
    """The report of a run directory, checked against its rows and its files; or a report.json alone, checked against its rows."""
    if path.suffix == ".json":
        return read_report(path)
    if not path.is_dir():
        raise NomoatError(f"{path} is not a run directory: give the path of a finished run, such as runs/smoke-1a2b3c")
    report = read_report(path / "report.json")
    verify_files(report, path)
    return report


def finished_runs(runs_dir: Path) -> list[Path]:
    """Run directories whose report says that they finished, by name; one whose report cannot be read is among them, to be refused."""
    return sorted(path.parent for path in runs_dir.glob("*/report.json") if not _failed(path))


def _failed(path: Path) -> bool:
    try:
        found = read_json(path)
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("status") == "failed"


def compare(reports: Sequence[Report], *, reference: int = 0, force: bool = False) -> RunComparison:
    """Put reports side by side.

    Raises NomoatError naming every field that makes them incomparable, unless `force`; the result then carries the
    reasons, and whoever shows it has to say so beside each number.
    """
    obstacles = tuple(reason for other in reports for reason in incomparabilities(reports[reference], other))
    if obstacles and not force:
        raise NomoatError("these runs cannot be compared:\n" + "\n".join(f"  {reason}" for reason in obstacles) + "\n" + _ADVICE)
    return RunComparison(
        reports=tuple(reports),
        reference=reference,
        obstacles=obstacles,
        tiers=tuple(in_tier_order({row.tier for report in reports for row in report.rows})),
        differences=tuple(paired_tiers(report, reports[reference]) for report in reports),
        recipe_changes=changed([report.recipe.as_dict() for report in reports]),
        environment_changes=changed([report.provenance.record() for report in reports]),
    )


_ADVICE = "score them on the same rows with the same version and settings, or go on with --force (FORCE=1), which labels every number"


def incomparabilities(reference: Report, other: Report) -> list[str]:
    """Each field in which two reports have to agree and do not, with both values."""
    if other is reference:
        return []
    ours, theirs = _comparability(reference), _comparability(other)
    exact = ours.get(SCORED_IN) == theirs.get(SCORED_IN) == "float32"
    reasons = []
    for name in sorted(ours.keys() | theirs.keys()):
        mine, yours = ours.get(name, NOT_RECORDED), theirs.get(name, NOT_RECORDED)
        if name == SCORED_IN and {mine, yours} & set(QUANTISED):
            continue  # a quantised base answers in its own precision: what that costs is what such runs are compared for
        if exact and name in SCORED_WHERE:
            continue  # in float32 only ties depend on these: 426 of 426 answers were the same (recipes/LOG.md)
        if mine != yours:
            reasons.append(f"{name}: {reference.run} has {mine}, {other.run} has {yours}")
        elif mine == NOT_RECORDED:
            reasons.append(f"{name}: recorded by neither {reference.run} nor {other.run}")
    if not reasons and {row[:4] for row in reference.rows} != {row[:4] for row in other.rows}:
        counts = f"{reference.run} has {len(reference.rows)}, {other.run} has {len(other.rows)}"
        reasons.append(f"scored rows: {counts}, and they are not the same ones")
    return reasons


def _comparability(report: Report) -> dict[str, str]:
    """Everything a score depends on besides the model: held-out rows, scorers and decoding, as text."""
    provenance = report.provenance
    named = {
        "held-out rows (data.heldout_sha256)": provenance.data.heldout_sha256,
        "scorer version (scorer_version)": provenance.scorer_version,
    }
    decoding = {"decoding ()": None} if provenance.decoding is None else _decoding(provenance.decoding)
    return {name: NOT_RECORDED if value is None else str(value) for name, value in (named | decoding).items()}


def _decoding(decoding: Decoding) -> dict[str, Any]:
    return {f"decoding (decoding.{key})": value for key, value in decoding.model_dump().items()}


def paired_tiers(report: Report, reference: Report) -> dict[str, TierDifference]:
    """By tier and family, the adapter of `report` minus that of `reference`, over the rows that both scored."""
    rows = paired_rows(report, reference)
    tiers = in_tier_order({row.tier for row in rows})
    differences = {tier: tier_difference([row for row in rows if row.tier == tier], REFERENCE) for tier in tiers}
    return {tier: difference for tier, difference in differences.items() if difference is not None}


def paired_rows(report: Report, reference: Report, arm: str = ARM) -> list[CompactRow]:
    """The rows of `report` with its adapter's score and, as REFERENCE, what `arm` of the other report scored on the same row."""
    theirs = {row.id: row.values.get(arm) for row in reference.rows}
    return [row._replace(values={ARM: row.values.get(ARM), REFERENCE: theirs.get(row.id)}) for row in report.rows]


def family_verdicts(differences: dict[str, TierDifference]) -> dict[tuple[str, str], Verdict]:
    """By (tier, family), what can be said of one run's families when all of them are looked at: p-values corrected by Holm's method."""
    found = {(tier, name): one for tier, of in differences.items() for name, one in of.families.items()}
    known = {place: p_of_interval(one.difference, one.interval) for place, one in found.items() if one.interval is not None}
    sure = {place for place, p in zip(known, holm(list(known.values())), strict=True) if p < ERROR_RATE}
    return {place: one.verdict if place in sure else "cannot tell" for place, one in found.items()}


def repetition(report: Report, first: Report, differences: dict[str, TierDifference]) -> str | None:
    """Whether a run of the same recipe (seed and machine aside) agrees with `first`; None for another recipe.

    `differences` are `report` minus `first` by tier.
    """
    if _choices(report) != _choices(first) or not differences:
        return None
    apart = [f"{one.verdict} on {tier_words(tier)} ({change(one)})" for tier, one in differences.items() if one.verdict != "cannot tell"]
    if apart:
        return f"same recipe as {first.run}, other scores: {', '.join(apart)}"
    primary = differences.get(first.comparison.primary)
    detectable = None if primary is None else primary.smallest_detectable
    power = "" if detectable is None else f" (smallest detectable difference on the primary tier: {number(detectable)})"
    return f"same recipe as {first.run}, and no significant difference on any tier{power}"


def _choices(report: Report) -> dict[str, Any]:
    """The recipe without its seed, its name and what it says of the machine."""
    recipe = {name: part for name, part in report.recipe.as_dict().items() if name not in ("hardware", "name")}
    return {**recipe, "train": {key: value for key, value in recipe["train"].items() if key != "seed"}}


def changed(parts: Sequence[dict[str, Any]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(dotted key, each one's value) for the leaves that are not the same everywhere."""
    leaves = [dict(flattened(part)) for part in parts]
    keys = sorted({key for of in leaves for key in of} - set(EXPECTED_TO_DIFFER))
    rows = [(key, tuple(of.get(key, "-") for of in leaves)) for key in keys]
    return tuple((key, values) for key, values in rows if len(set(values)) > 1)


# Rows on which the runs disagree


@dataclass(frozen=True)
class RunAnswer:
    """One run's answer to a row; `output` is None where only its report is at hand."""

    letter: str
    score: float | None
    output: str | None


@dataclass(frozen=True)
class Disagreement:
    """A held-out row that not all runs got the same score for; prompt and target are None where no run's answers are at hand."""

    id: str
    tier: str
    family: str
    prompt: str | None
    target: str | None
    answers: tuple[RunAnswer, ...]


def disagreements(found: RunComparison, paths: Sequence[Path], letters: Sequence[str]) -> list[Disagreement]:
    """Rows with different scores, in the order of tiers and families; `paths` are those of the reports, in their order."""
    lines = [{line["id"]: line for line in read_jsonl(path / "eval" / f"{ARM}.jsonl")} if path.is_dir() else {} for path in paths]
    scores = [{row.id: row.values.get(ARM) for row in report.rows} for report in found.reports]
    apart = []
    for row_id, tier, family, _, _ in found.reports[found.reference].rows:
        if not all(row_id in of for of in scores) or len({of[row_id] for of in scores}) == 1:
            continue
        kept = [of.get(row_id) for of in lines]
        known = next((line for line in kept if line), None)
        prompt, target = (shorten(known["prompt"]), shorten(known["target"])) if known else (None, None)
        answers = [RunAnswer(*one) for one in zip(letters, (of[row_id] for of in scores), map(_output, kept), strict=True)]
        apart.append(Disagreement(row_id, tier, family, prompt, target, tuple(answers)))
    tiers = in_tier_order({one.tier for one in apart})
    return sorted(apart, key=lambda one: (tiers.index(one.tier), one.family, one.id))


def _output(line: dict[str, Any] | None) -> str | None:
    return None if line is None else shorten(line["output"])


Key = tuple[str, str, str]  # task, metric, filter
OTHERWISE = "asked otherwise"
ONLY_REPORT = "only its report is here"


@dataclass(frozen=True)
class BenchmarkRow:
    """One metric of one task over all runs, in their order; None where a run was not asked it."""

    first: Benchmark
    """Any run's entry, for its names."""
    scores: tuple[Benchmark | None, ...]
    differences: tuple[Benchmark | str | None, ...]
    """The run's adapter minus the reference's, or why there is none."""


def benchmark_rows(found: RunComparison, paths: Sequence[Path]) -> list[BenchmarkRow]:
    """A row for each metric that any run was asked; `paths` are those of the reports, in their order."""
    asked = [report.harness for report in found.reports]
    scores = [{_key(one): one for one in harness.scores} if harness else {} for harness in asked]
    lines = [_lines(path) if harness else {} for path, harness in zip(paths, asked, strict=True)]
    rows = []
    for key in dict.fromkeys(key for of in scores for key in of):
        first = next(of[key] for of in scores if key in of)
        differences = [_difference(key, asked, lines, number, found.reference) for number in range(len(asked))]
        rows.append(BenchmarkRow(first, tuple(of.get(key) for of in scores), tuple(differences)))
    return rows


def _key(one: Benchmark) -> Key:
    return one.task, one.metric, one.filter


def _lines(path: Path) -> dict[Key, list[dict[str, Any]]]:
    found: dict[Key, list[dict[str, Any]]] = {}
    if path.is_dir():
        for line in read_jsonl(path / "eval" / "harness.jsonl"):
            found.setdefault((line["task"], line["metric"], line["filter"]), []).append(line)
    return found


def _difference(
    key: Key, asked: Sequence[Harness | None], lines: Sequence[dict[Key, list[dict[str, Any]]]], number: int, reference: int
) -> Benchmark | str | None:
    """The run's adapter minus the reference's; both answered the same documents, which the tasks' hashes tell."""
    mine, theirs = asked[number], asked[reference]
    if number == reference or mine is None or theirs is None or key[0] not in mine.tasks or key[0] not in theirs.tasks:
        return None
    if _how(mine, key[0]) != _how(theirs, key[0]):
        return OTHERWISE
    if key not in lines[number] or key not in lines[reference]:
        return ONLY_REPORT
    pairs = zip(lines[number][key], lines[reference][key], strict=True)
    [found] = benchmark_scores([{**own, "base": other[ARM]} for own, other in pairs], mine.tasks)
    return found


def _how(harness: Harness, task: str) -> tuple[Any, ...]:
    return harness.lm_eval, harness.chat_template, harness.limit, harness.tasks[task]


def agreement_with_published(report: Report, folder: Path) -> str | None:
    """Whether a run of a published recipe agrees with the published report; None where there is nothing to compare with.

    A published report that does not hold is named so: by then the run is finished, and it is not the run's fault.
    """
    path = folder / f"{report.recipe.name}.json"
    if not path.is_file():
        return None
    try:
        published = read_report(path)
    except NomoatError as error:
        return f"not compared with the published report, which does not hold: {error}"
    if incomparabilities(published, report):
        return None
    return repetition(report, published, paired_tiers(report, published))
