"""Several runs compared: whether they are comparable, their adapters' paired differences, and the rows and benchmarks where they differ.

Two runs are comparable when they answered the same held-out rows, scored by the same scorers, decoded in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from nomoat.config.schema import QUANTISED
from nomoat.errors import NomoatError
from nomoat.io import read_json, read_jsonl
from nomoat.reports.build import checked_report, read_report, sample_text
from nomoat.reports.format import change, flattened, number, tier_words
from nomoat.reports.metrics import Metric, benchmark_scores, by_metric, in_tier_order, tier_difference
from nomoat.reports.schema import Benchmark, CompactRow, Harness, Report, TierDifference
from nomoat.runs.provenance import Decoding
from nomoat.stats.intervals import holm
from nomoat.stats.paired import Verdict, p_of_interval

ARM, REFERENCE = "adapter", "reference"
SCORED_IN = "decoding (decoding.dtype)"
SCORED_WHERE = ("decoding (decoding.device)", "decoding (decoding.prompts)", "decoding (decoding.method)")
NOT_RECORDED = "not recorded"
ERROR_RATE = 0.05
EXPECTED_TO_DIFFER = ("created", "matrix_gflops")  # no reason why scores differ
ADVICE = "score them on the same rows with the same version and settings, or add --force (FORCE=1), which labels every number"
ASKED_OTHERWISE = "asked otherwise"
ONLY_REPORT = "only its report is here"
Answered = tuple[Harness | None, list[dict[str, Any]] | None]  # a run's benchmarks, and its lines of one metric


@dataclass(frozen=True)
class RunComparison:
    """Reports in the order they were given, and their differences from one of them, the reference."""

    reports: tuple[Report, ...]
    reference: int  # index of the report that the others are measured against
    obstacles: tuple[str, ...]  # why the runs are not comparable; empty when they are
    tiers: tuple[str, ...]
    differences: tuple[dict[str, TierDifference], ...]  # per report and tier: adapter minus the reference's, on rows scored in both
    recipe_changes: tuple[tuple[str, tuple[str, ...]], ...]  # (dotted key, each report's value) where recipes differ
    environment_changes: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def letters(self) -> list[str]:
        """A, B, ... Z, A2, B2 ...: short names for the runs."""
        return [ascii_uppercase[index % 26] + (str(index // 26 + 1) if index >= 26 else "") for index in range(len(self.reports))]


def load_run(path: Path) -> Report:
    """The report of a run directory, checked against its rows and its files; or a report.json alone, checked against its rows."""
    if path.suffix == ".json":
        return read_report(path)
    if not path.is_dir():
        raise NomoatError(f"{path} is not a run directory: give the path of a finished run, such as runs/smoke-1a2b3c")
    return checked_report(path)


def finished_runs(runs_dir: Path) -> list[Path]:
    """Run directories whose report says that they finished, by name; one whose report cannot be read is among them, to be refused."""
    return sorted(path.parent for path in runs_dir.glob("*/report.json") if not _failed(path))


def _failed(path: Path) -> bool:
    try:
        content = read_json(path)
    except ValueError:
        return False
    return isinstance(content, dict) and content.get("status") == "failed"


def compare(reports: Sequence[Report], *, reference: int = 0, force: bool = False) -> RunComparison:
    """Compare reports with the one at index `reference`.

    Raises NomoatError naming every field that makes them incomparable, unless `force`; the reasons are then in the result, and a view has
    to label each number.
    """
    obstacles = tuple(reason for other in reports for reason in incomparabilities(reports[reference], other))
    if obstacles and not force:
        raise NomoatError("these runs cannot be compared:\n" + "\n".join(f"  {reason}" for reason in obstacles) + "\n" + ADVICE)
    return RunComparison(
        reports=tuple(reports),
        reference=reference,
        obstacles=obstacles,
        tiers=tuple(in_tier_order({row.tier for report in reports for row in report.rows})),
        differences=tuple(paired_tiers(report, reports[reference]) for report in reports),
        recipe_changes=changed([report.recipe.as_dict() for report in reports]),
        environment_changes=changed([report.provenance.record() for report in reports]),
    )


def incomparabilities(reference: Report, other: Report) -> list[str]:
    """Each field in which two comparable reports agree and these do not, with both values."""
    if other is reference:
        return []
    ours, theirs = _comparability(reference), _comparability(other)
    exact = ours[SCORED_IN] == theirs[SCORED_IN] == "float32"
    reasons = []
    for name, mine in sorted(ours.items()):
        yours = theirs[name]
        if name == SCORED_IN and {mine, yours} & set(QUANTISED):
            continue  # a quantised base answers in its own precision: such runs are compared to see what that costs
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
    settings = {
        "held-out rows (data.heldout_sha256)": provenance.data.heldout_sha256,
        "scorer version (scorer_version)": provenance.scorer_version,
        **{f"decoding (decoding.{key})": getattr(provenance.decoding, key, None) for key in Decoding.model_fields},
    }
    return {name: NOT_RECORDED if value is None else str(value) for name, value in settings.items()}


def paired_tiers(report: Report, reference: Report) -> dict[str, TierDifference]:
    """By tier and family, the adapter of `report` minus that of `reference`, over the rows that both scored."""
    rows = paired_rows(report, reference)
    tiers = in_tier_order({row.tier for row in rows})
    differences = {tier: tier_difference([row for row in rows if row.tier == tier], REFERENCE) for tier in tiers}
    return {tier: difference for tier, difference in differences.items() if difference is not None}


def paired_rows(report: Report, reference: Report, arm: str = ARM) -> list[CompactRow]:
    """The rows of `report` with its adapter's score and, as REFERENCE, the score of `arm` in the other report on the same row."""
    theirs = {row.id: row.values.get(arm) for row in reference.rows}
    return [row._replace(values={ARM: row.values.get(ARM), REFERENCE: theirs.get(row.id)}) for row in report.rows]


def family_verdicts(differences: dict[str, TierDifference]) -> dict[tuple[str, str], Verdict]:
    """By (tier, family), the verdict on each family of a run, with p-values corrected by Holm's method for all of them."""
    families = {(tier, name): family for tier, difference in differences.items() for name, family in difference.families.items()}
    p_values = {
        place: p_of_interval(family.difference, family.interval) for place, family in families.items() if family.interval is not None
    }
    significant = {place for place, p in zip(p_values, holm(list(p_values.values())), strict=True) if p < ERROR_RATE}
    return {place: family.verdict if place in significant else "cannot tell" for place, family in families.items()}


def repetition(report: Report, first: Report, differences: dict[str, TierDifference]) -> str | None:
    """Whether a run of the same recipe (seed and machine aside) agrees with `first`; None for another recipe.

    `differences` are `report` minus `first` by tier.
    """
    if _choices(report) != _choices(first) or not differences:
        return None
    significant = {tier: difference for tier, difference in differences.items() if difference.verdict != "cannot tell"}
    if significant:
        changes = [f"{difference.verdict} on {tier_words(tier)} ({change(difference)})" for tier, difference in significant.items()]
        return f"same recipe as {first.run}, other scores: {', '.join(changes)}"
    primary = differences.get(first.comparison.primary)
    detectable = None if primary is None else primary.smallest_detectable
    power = "" if detectable is None else f" (smallest detectable difference on the primary tier: {number(detectable)})"
    return f"same recipe as {first.run}, and no significant difference on any tier{power}"


def _choices(report: Report) -> dict[str, Any]:
    """The recipe without its seed, its name and its machine."""
    recipe = {name: part for name, part in report.recipe.as_dict().items() if name not in ("hardware", "name")}
    return {**recipe, "train": {key: value for key, value in recipe["train"].items() if key != "seed"}}


def changed(parts: Sequence[dict[str, Any]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(dotted key, the value in each part) for the keys whose values differ."""
    flat = [dict(flattened(part)) for part in parts]
    rows = [(key, tuple(part.get(key, "-") for part in flat)) for key in sorted(set().union(*flat) - set(EXPECTED_TO_DIFFER))]
    return tuple((key, values) for key, values in rows if len(set(values)) > 1)


@dataclass(frozen=True)
class RunAnswer:
    """One run's answer to a row; `output` is None if only its report is given."""

    letter: str
    score: float | None
    output: str | None


@dataclass(frozen=True)
class Disagreement:
    """A held-out row on which scores differ; prompt and target are None if only reports are given."""

    id: str
    tier: str
    family: str
    prompt: str | None
    target: str | None
    answers: tuple[RunAnswer, ...]


def disagreements(runs: RunComparison, paths: Sequence[Path]) -> list[Disagreement]:
    """Rows with different scores, in the order of tiers and families; `paths` are those of the reports, in their order."""
    lines = [{line["id"]: line for line in read_jsonl(path / "eval" / f"{ARM}.jsonl")} if path.is_dir() else {} for path in paths]
    scores = [{row.id: row.values.get(ARM) for row in report.rows} for report in runs.reports]
    rows = []
    for row_id, tier, family, _, _ in runs.reports[runs.reference].rows:
        if any(row_id not in run for run in scores) or len({run[row_id] for run in scores}) == 1:
            continue
        answered = [run.get(row_id) for run in lines]
        answers = tuple(
            RunAnswer(letter, run[row_id], sample_text(line["output"]) if line else None)
            for letter, run, line in zip(runs.letters, scores, answered, strict=True)
        )
        first = next(filter(None, answered), None)
        prompt, target = (sample_text(first["prompt"]), sample_text(first["target"])) if first else (None, None)
        rows.append(Disagreement(row_id, tier, family, prompt, target, answers))
    tiers = in_tier_order({row.tier for row in rows})
    return sorted(rows, key=lambda row: (tiers.index(row.tier), row.family, row.id))


@dataclass(frozen=True)
class BenchmarkRow:
    """One metric of one task over all runs, in their order; None where a run was not asked it."""

    first: Benchmark  # any run's entry, for its names
    scores: tuple[Benchmark | None, ...]
    differences: tuple[Benchmark | str | None, ...]  # the run's adapter minus the reference's, or why there is none


def benchmark_rows(runs: RunComparison, paths: Sequence[Path]) -> list[BenchmarkRow]:
    """A row for each metric that any run was asked; `paths` are those of the reports, in their order."""
    harnesses = [report.harness for report in runs.reports]
    scores: list[dict[Metric, Benchmark]] = [
        {(score.task, score.metric, score.filter): score for score in harness.scores} if harness else {} for harness in harnesses
    ]
    lines = [by_metric(read_jsonl(path / "eval" / "harness.jsonl")) if path.is_dir() else {} for path in paths]
    rows = []
    for metric in dict.fromkeys(metric for run in scores for metric in run):
        answered = [(harness, run.get(metric)) for harness, run in zip(harnesses, lines, strict=True)]
        differences = [_benchmark_difference(metric[0], run, answered[runs.reference]) for run in answered]
        differences[runs.reference] = None
        rows.append(
            BenchmarkRow(next(run[metric] for run in scores if metric in run), tuple(run.get(metric) for run in scores), tuple(differences))
        )
    return rows


def _benchmark_difference(task: str, run: Answered, reference: Answered) -> Benchmark | str | None:
    """The run's adapter minus the reference's on the same documents, which the tasks' hashes guarantee."""
    (mine, my_lines), (theirs, their_lines) = run, reference
    if mine is None or theirs is None or task not in mine.tasks or task not in theirs.tasks:
        return None
    if _settings(mine, task) != _settings(theirs, task):
        return ASKED_OTHERWISE
    if my_lines is None or their_lines is None:
        return ONLY_REPORT
    pairs = zip(my_lines, their_lines, strict=True)
    return benchmark_scores([{**line, "base": other[ARM]} for line, other in pairs], mine.tasks)[0]


def _settings(harness: Harness, task: str) -> tuple[Any, ...]:
    return harness.lm_eval, harness.chat_template, harness.limit, harness.tasks[task]


def agreement_with_published(report: Report, folder: Path) -> str | None:
    """Whether a run of a published recipe agrees with the published report; None where there is nothing to compare with.

    A published report that cannot be verified is reported in the result, not raised: the run is finished by then and not at fault.
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
