"""Standard benchmarks of compared runs: each adapter's score, and its difference from the reference's, document by document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nomoat.benchmarks import benchmarks
from nomoat.comparing import ARM, Compared
from nomoat.files import read_lines
from nomoat.report_schema import Benchmark, Harness

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


def benchmark_rows(found: Compared, paths: Sequence[Path]) -> list[BenchmarkRow]:
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
        for line in read_lines(path / "eval" / "harness.jsonl"):
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
    [found] = benchmarks([{**own, "base": other[ARM]} for own, other in pairs], mine.tasks)
    return found


def _how(harness: Harness, task: str) -> tuple[Any, ...]:
    return harness.lm_eval, harness.chat_template, harness.limit, harness.tasks[task]
